"""A space is quantised and goes the whole way: every path encodes with the one int8 graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from encoder.alignment import cosines
from encoder.manifest import AUTOENCODER, CLUE, HYBRID, NETWORKS
from materialize.batch import materialize_space
from materialize.compare import compare_views, sample_users
from materialize.context import Context
from materialize.lineage import diff_spaces
from materialize.quantise import quantise_space
from tests.e2e import conftest
from tests.e2e.conftest import END, Raw, apply, build_story

pytestmark = pytest.mark.slow


_STORIES: dict[str, dict[str, Any]] = {
    AUTOENCODER: {},
    CLUE: conftest.CLUE,
    HYBRID: conftest.HYBRID,
}


@dataclass(frozen=True)
class Quantised:
    """A story whose space ``exact`` was quantised into its newest one, ``int8``."""

    context: Context
    exact: int
    int8: int


@pytest.fixture(scope="module", params=list(_STORIES))
def quantised(
    request: pytest.FixtureRequest, raw: Raw, tmp_path_factory: pytest.TempPathFactory
) -> Quantised:
    repo = tmp_path_factory.mktemp("int8") / "repo"
    story = build_story(repo, raw, END, **_STORIES[request.param])
    context, exact = story.context, story.space.number
    where = (context.store, context.settings, context.ledger)
    report = quantise_space(*where, exact, progress=False)
    apply(story.repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]
    assert report.space == exact + 1
    materialize_space(*where, context.ledger.space(report.space), end=END, progress=False)
    return Quantised(context, exact, report.space)


def _read(quantised: Quantised, view: str, users: list[Any]) -> npt.NDArray[np.float32]:
    answer = quantised.context.store.get_online_features(
        features=[f"{view}:embedding"], entity_rows=[{"user_id": user} for user in users]
    )
    return np.array(answer.to_dict()["embedding"], np.float32)


def test_stored_and_on_demand_differ_by_nothing(quantised: Quantised) -> None:
    """The batch encodes all users at once, the view a hundred: the bits are the same."""
    users = sample_users(quantised.context.settings, quantised.int8, 300)
    found = compare_views(quantised.context.store, quantised.int8, users)
    assert (found.users, found.missing, found.max_abs_diff) == (300, 0, 0.0)
    assert found.agrees(0.0)


def test_one_user_alone_gets_the_bits_that_many_at_once_get(quantised: Quantised) -> None:
    view = f"user_embedding_on_demand_s{quantised.int8}"
    users = sample_users(quantised.context.settings, quantised.int8, 30)
    alone = [_read(quantised, view, [user]) for user in users]
    assert np.concatenate(alone).tobytes() == _read(quantised, view, users).tobytes()


def test_the_diff_of_both_spaces_is_the_quantisation_alone(quantised: Quantised) -> None:
    ledger = quantised.context.ledger
    diff = diff_spaces(
        quantised.context.settings, ledger.space(quantised.exact), ledger.space(quantised.int8)
    )
    (change,) = diff.changes
    assert (change.part, change.settings["precision"]) == ("quantisation", (None, "int8"))
    assert {"preprocessing", "input schema"} <= set(diff.same)
    assert set(NETWORKS.values()) & set(diff.same)


def test_vectors_lie_as_near_to_the_float32_space_as_the_record_says(quantised: Quantised) -> None:
    users = sample_users(quantised.context.settings, quantised.int8, 200)
    spaces = (quantised.exact, quantised.int8)
    exact, int8 = (_read(quantised, f"user_embedding_s{number}", users) for number in spaces)
    assert not np.array_equal(exact, int8)
    found = 1.0 - cosines(exact, int8)
    error = quantised.context.ledger.space(quantised.int8).facts["quantisation"]["error"]
    # The record is of other users, as of the cut-off; another graph would be far away.
    assert found.mean() < 3 * error["cosine_error_mean"]
    assert found.max() < 10 * error["cosine_error_max"]


def test_a_repeated_quantisation_is_the_same_space(quantised: Quantised) -> None:
    context = quantised.context
    where = (context.store, context.settings, context.ledger)
    again = quantise_space(*where, quantised.exact, progress=False)
    assert (again.space, again.new) == (quantised.int8, False)
    assert len(context.ledger.spaces()) == quantised.int8
