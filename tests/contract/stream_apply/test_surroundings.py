"""What an applier works beside: views that come and go, item vectors, and Redis of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoder.errors import DataFault, TransientError
from materialize.stream.apply import Applier
from materialize.stream.atomic import UserHashes
from materialize.stream.restarts import Restarts
from tests.contract.stream_apply.applying import (
    BRIDGED,
    FIRST,
    HOUR,
    SECOND,
    USERS,
    change,
    online_settings,
    pick,
)
from tests.repositories import TinyRepository
from tests.servers import Server
from tests.servers import redis_server as start_redis
from tests.streams import NOON, TinyStream, apply, consume, item_vectors
from transforms.layout import ACTIVITY, ONBOARDING
from transforms.names import on_demand_view


def test_what_becomes_live_is_taken_up_without_a_restart(
    tmp_path: Path, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    stream = TinyStream.make(tmp_path / "repository", online_settings(redis_server, tmp_path))
    applier = stream.applier()
    assert set(apply(applier, consume(1, 1, NOON)).offline) == {ACTIVITY}
    first = stream.add_space()
    applier.refresh()
    assert set(apply(applier, consume(1, 2, NOON)).offline) == {ACTIVITY, FIRST}
    second = stream.add_space(1, applied=False)
    for _ in range(3):
        applier.refresh()
    assert caplog.text.count("leaves out user_embedding_s2: it is not applied") == 1
    assert set(apply(applier, consume(1, 3, NOON)).offline) == {ACTIVITY}, "1 is no longer live"
    stream.apply_space(second)
    stream.context.ledger.promote(first.number, who="test", why="a test", expected=None)
    applier.refresh()
    assert set(apply(applier, consume(1, 4, NOON)).offline) == {ACTIVITY, FIRST, SECOND}
    stream.bridge(second, first)
    applier.refresh()
    live = {ACTIVITY, FIRST, SECOND, BRIDGED}
    assert set(apply(applier, consume(1, 5, NOON)).offline) == live


def test_new_item_vectors_are_taken_up_and_old_rows_made_anew(
    tmp_path: Path, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    stream = TinyStream.make(tmp_path / "repository", online_settings(redis_server, tmp_path))
    stream.add_space()
    applier = stream.applier()
    apply(applier, pick(1, 1, NOON), pick(1, 2, NOON + 1), consume(1, 3, NOON), pick(2, 1, NOON))
    rebuilt = item_vectors(5)
    stream.publish(rebuilt)
    applier.refresh()
    assert "leaves out user_embedding_s1" in caplog.text
    report = apply(applier, consume(1, 4, NOON + HOUR))
    assert set(report.offline) == {ACTIVITY, ONBOARDING}, "of space 1 nothing can be made"
    assert report.offline[ONBOARDING]["onboarding_modality"].to_pylist() == [rebuilt.version]
    stream.add_space(1, encoders=rebuilt)
    applier.refresh()
    # A pick makes the row of what was consumed anew as well.
    report = apply(applier, consume(2, 1, NOON + HOUR), change(1, NOON + HOUR, age=3.0))
    assert set(report.offline[SECOND]["user_id"].to_pylist()) == {1, 2}
    for user in (1, 2):
        stored_row, made = stream.online(SECOND, [user]), stream.online(on_demand_view(2), [user])
        assert stored_row == made


def test_users_with_text_ids_and_an_expiry(tmp_path: Path, redis_server: Server) -> None:
    settings = online_settings(redis_server, tmp_path, key_ttl_seconds=500)
    stream = TinyStream.make(tmp_path / "repository", settings, user_type="STRING")
    stream.add_space()
    applier = stream.applier()
    apply(applier, consume("ü", 1, NOON), consume("b", 1, NOON))
    assert stream.online(FIRST, ["ü", "b", "c"])["as_of"] == [NOON, NOON, None]
    hashes = UserHashes(stream.context.store)
    assert all(490 < hashes.client.ttl(key) <= 500 for key in hashes.keys(["ü", "b"]))
    hashes.client.close()


def test_on_a_cluster_steps_are_grouped_by_slot(
    tmp_path: Path, redis_server: Server, cluster: Server
) -> None:
    settings = online_settings(cluster, tmp_path, redis_type="redis_cluster")
    stream = TinyStream.make(tmp_path / "repository", settings)
    stream.add_space()
    users = list(range(150))
    applier = stream.applier()
    report = apply(applier, *(consume(user, user % 12, NOON + user) for user in users))
    assert report.written == len(users)
    assert stream.online(FIRST, users)["as_of"] == [NOON + user for user in users]
    report = apply(applier, *(consume(user, user % 12, NOON + user) for user in users))
    assert report.outcomes == {("consume", "duplicate"): len(users)}
    assert not Restarts([UserHashes(stream.context.store).client])()


def test_a_forgotten_script_is_loaded_again(stream: TinyStream, applier: Applier) -> None:
    users = [next(USERS) for _ in range(250)]
    for k in range(2):
        applier._hashes.client.script_flush()
        report = apply(applier, *(consume(user, 1, NOON + k) for user in users))
        assert report.written == len(users)


def test_a_redis_that_is_gone_is_transient_and_loses_nothing(tmp_path: Path) -> None:
    with start_redis(tmp_path, "--dir", str(tmp_path)) as server:
        stream = TinyStream.make(tmp_path / "repository", online_settings(server, tmp_path))
        stream.add_space()
        applier = stream.applier()
        apply(applier, consume(1, 1, NOON))
    with pytest.raises(TransientError):
        apply(applier, consume(1, 2, NOON + 1))
    with pytest.raises(TransientError):
        applier.refresh()


def test_another_online_store_is_refused(tmp_path: Path) -> None:
    tiny = TinyRepository.make(tmp_path / "repository")
    with pytest.raises(DataFault, match="PalateRedisOnlineStore"):
        UserHashes(tiny.store)


def test_without_raw_features_there_is_nothing_to_stream(
    tmp_path: Path, redis_server: Server
) -> None:
    online = online_settings(redis_server, tmp_path)
    stream = TinyStream.make(tmp_path / "repository", online)
    (stream.context.settings.features_dir / "state.json").unlink()
    with pytest.raises(DataFault, match="palate features build"):
        stream.applier()
