"""Events to state, raw rows and embeddings on real Redis: whole, exact, and beside other writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.servers import Server
from tests.stores import PROFILES
from tests.streams import NOON, TinyStream, apply, consume
from transforms.layout import ACTIVITY
from transforms.names import on_demand_view, stored_view


@pytest.fixture
def stream(tmp_path: Path, redis_server: Server) -> TinyStream:
    online = PROFILES["palate-redis"].settings(redis_server, str(tmp_path))
    return TinyStream.make(tmp_path / "repository", online)


def test_an_event_makes_raw_row_and_embedding(stream: TinyStream) -> None:
    stream.add_space()
    applier = stream.applier()
    report = apply(applier, consume(1, 3, NOON), consume(1, 4, NOON + 1), consume(2, 3, NOON))
    assert report.outcomes == {("consume", "applied"): 3}
    assert report.written == 2
    raw = stream.online(ACTIVITY, [1, 2, 3])
    assert raw["activity_as_of"] == [NOON + 1, NOON, None]
    stored = stream.online(stored_view(1), [1, 2, 3])
    assert stored["as_of"] == [NOON + 1, NOON, None]
    on_demand = stream.online(on_demand_view(1), [1, 2])
    np.testing.assert_array_equal(stored["embedding"][:2], on_demand["embedding"])
