"""A space is quantised and goes the whole way: every path encodes with the one int8 graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from encoder.alignment import cosines
from encoder.manifest import AUTOENCODER, CLUE, NETWORKS
from materialize.batch import materialize_space
from materialize.compare import compare_views, sample_users
from materialize.lineage import diff_spaces
from materialize.quantise import quantise_space
from tests.e2e import conftest
from tests.e2e.conftest import END, Raw, Story, apply, build_story

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[AUTOENCODER, CLUE])
def quantised(
    request: pytest.FixtureRequest, raw: Raw, tmp_path_factory: pytest.TempPathFactory
) -> Story:
    kind = conftest.CLUE if request.param == CLUE else {}
    story = build_story(tmp_path_factory.mktemp("int8") / "repo", raw, END, **kind)
    context = story.context
    where = (context.store, context.settings, context.ledger)
    report = quantise_space(*where, 1, progress=False)
    apply(story.repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]
    assert report.space == 2
    materialize_space(*where, context.ledger.space(2), end=END, progress=False)
    return story


def _read(story: Story, view: str, users: list[Any]) -> npt.NDArray[np.float32]:
    answer = story.context.store.get_online_features(
        features=[f"{view}:embedding"], entity_rows=[{"user_id": user} for user in users]
    )
    return np.array(answer.to_dict()["embedding"], np.float32)


def test_stored_and_on_demand_differ_by_nothing(quantised: Story) -> None:
    """The batch encodes all users at once, the view a hundred: the bits are the same."""
    users = sample_users(quantised.context.settings, 2, 300)
    found = compare_views(quantised.context.store, 2, users)
    assert (found.users, found.missing, found.max_abs_diff) == (300, 0, 0.0)
    assert found.agrees(0.0)


def test_one_user_alone_gets_the_bits_that_many_at_once_get(quantised: Story) -> None:
    view = "user_embedding_on_demand_s2"
    users = sample_users(quantised.context.settings, 2, 30)
    alone = [_read(quantised, view, [user]) for user in users]
    assert np.concatenate(alone).tobytes() == _read(quantised, view, users).tobytes()


def test_the_diff_of_both_spaces_is_the_quantisation_alone(quantised: Story) -> None:
    ledger = quantised.context.ledger
    diff = diff_spaces(quantised.context.settings, ledger.space(1), ledger.space(2))
    (change,) = diff.changes
    assert (change.part, change.settings["precision"]) == ("quantisation", (None, "int8"))
    assert {"preprocessing", "input schema"} <= set(diff.same)
    assert set(NETWORKS.values()) & set(diff.same)


def test_vectors_lie_as_near_to_the_float32_space_as_the_record_says(quantised: Story) -> None:
    users = sample_users(quantised.context.settings, 2, 200)
    exact, int8 = (_read(quantised, f"user_embedding_s{number}", users) for number in (1, 2))
    assert not np.array_equal(exact, int8)
    found = 1.0 - cosines(exact, int8)
    error = quantised.context.ledger.space(2).facts["quantisation"]["error"]
    # The record is of other users, as of the cut-off; another graph would be far away.
    assert found.mean() < 3 * error["cosine_error_mean"]
    assert found.max() < 10 * error["cosine_error_max"]


def test_a_repeated_quantisation_is_the_same_space(quantised: Story) -> None:
    context = quantised.context
    where = (context.store, context.settings, context.ledger)
    again = quantise_space(*where, 1, progress=False)
    assert (again.space, again.new) == (2, False)
    assert len(context.ledger.spaces()) == 2
