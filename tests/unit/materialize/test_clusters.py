from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from materialize.evaluate.clusters import ClustersTask, likenesses, retrieved_items
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.task import Progress
from tests.cohorts import TinyCohort, tiny_cohort

MODELS = ("mean_vectors", "raw_inputs", "random")


@pytest.fixture(scope="module")
def planted() -> TinyCohort:
    return tiny_cohort()


def _measured(tiny: TinyCohort, seed: int = 0, **changes: Any) -> list[Measurement]:
    options = {"models": MODELS, "n_resamples": 200, "progress": Progress()} | changes
    return ClustersTask().measure(tiny.cohort, tiny.encoder, seed, **options)


@pytest.fixture(scope="module")
def found(planted: TinyCohort) -> Mapping[tuple[str, str, str], Measurement]:
    return {(m.metric, m.group, m.model): m for m in _measured(planted)}


@pytest.mark.parametrize("model", ["embedding", "mean_vectors"])
@pytest.mark.parametrize("group", ["all", "cold", "established"])
def test_planted_taste_is_found_by_neighbours_and_not_by_lot(
    found: Mapping[tuple[str, str, str], Measurement], model: str, group: str
) -> None:
    own, lot = (found["ndcg@50_taste", group, name] for name in (model, "random"))
    # A third of all users are of the same segment; the others' tastes point away and gain nothing.
    assert lot.value == pytest.approx(0.33, abs=0.08)
    assert own.figure.minus(lot.figure).interval.low > 0.2


def test_where_nothing_is_planted_neighbours_are_as_good_as_drawn_by_lot() -> None:
    nothing = tiny_cohort(purity=1 / 3)
    both = {
        m.model: m for m in _measured(nothing, models=("random",)) if m.metric == "ndcg@50_taste"
        and m.group == "all"
    }  # fmt: skip
    difference = both["embedding"].figure.minus(both["random"].figure).interval
    assert difference.low < 0.02
    assert abs(difference.value) < 0.05


def test_neighbours_do_not_share_a_device_that_is_chance(
    found: Mapping[tuple[str, str, str], Measurement],
) -> None:
    mean, lot = (
        found["ndcg@50_context_device", "all", name] for name in ("mean_vectors", "random")
    )
    assert mean.figure.minus(lot.figure).interval.low < 0.02


def test_every_model_is_judged_on_the_same_users(
    found: Mapping[tuple[str, str, str], Measurement], planted: TinyCohort
) -> None:
    judged: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    for (metric, group, model), m in found.items():
        judged[metric, group].add((model, m.n_users))
    for models in judged.values():
        assert {model for model, _ in models} == {"embedding", *MODELS}
        assert len({n for _, n in models}) == 1
    assert found["ndcg@50_profile_country", "all", "random"].n_users == len(
        np.unique(planted.cohort.user_id[~planted.cohort.training])
    )


def test_taste_is_what_users_do_after_the_moment(planted: TinyCohort) -> None:
    rows = np.arange(len(planted.cohort))
    other = replace(
        planted.cohort,
        future=sparse.csr_array(planted.cohort.future.shape, dtype=bool),
        future_tags=sparse.csr_array(planted.cohort.future_tags.shape, dtype=bool),
    )
    assert "taste" in likenesses(planted.cohort, rows)
    assert "taste" not in likenesses(other, rows)


def test_onboarding_groups_are_the_segments_that_were_picked(planted: TinyCohort) -> None:
    rows = np.unique(planted.cohort.user_id.astype(str), return_index=True)[1]
    groups: Any = likenesses(planted.cohort, rows)["onboarding"]
    picked = planted.cohort.groups["newcomer_onboarded"][rows]
    assert np.array_equal(groups.known, picked)
    # Three picks, nine of ten of the user's segment: the majority is the segment, mostly.
    by_segment = planted.segment[rows][picked]
    agree = groups.codes[picked][:, None] == groups.codes[picked]
    assert (agree == (by_segment[:, None] == by_segment)).mean() > 0.9


def test_collapse_to_one_vector_covers_as_little_as_chance(planted: TinyCohort) -> None:
    by_model = {m.model: m for m in _measured(planted) if m.metric == "p90_coverage@10_items"}
    assert by_model["embedding"].value > by_model["random"].value


def test_seeds_resample_the_same_users(planted: TinyCohort) -> None:
    one, other = (_measured(planted, seed, models=()) for seed in (0, 1))
    for a, b in zip(one, other, strict=True):
        assert (a.metric, a.group, a.model) == (b.metric, b.group, b.model)
        # Distinct vectors: the seed decides nothing, and the replicates agree.
        assert a.replicates == pytest.approx(b.replicates, abs=0.02)
    assert {m.model for m in one} == {"embedding"}


def test_cohort_without_anything_to_share_says_so(planted: TinyCohort) -> None:
    bare = replace(
        planted.cohort,
        profile={},
        future=sparse.csr_array(planted.cohort.future.shape, dtype=bool),
        future_tags=sparse.csr_array(planted.cohort.future_tags.shape, dtype=bool),
        raw=planted.cohort.raw.drop_columns(["user_onboarding__onboarding_pooled"]),
        schema=replace(
            planted.cohort.schema,
            blocks=tuple(
                b for b in planted.cohort.schema.blocks if not b.column.startswith("user_onb")
            ),
            onboarding_count=None,
        ),
    )
    assert "nothing that neighbours could share" in str(ClustersTask().unavailable(bare))
    assert ClustersTask().unavailable(planted.cohort) is None


def test_retrieved_items_are_the_neighbours_most_frequent_ones_without_those_seen() -> None:
    seen = sparse.csr_array(
        np.array([[0, 0, 0, 0, 1], [1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [0, 1, 0, 0, 0]], bool)
    )
    # User 0 has seen item 4. Neighbours 1, 2: item 0 twice, 1 and 2 once; item 3 nobody.
    found = retrieved_items(np.array([[1, 2], [3, -1]]), np.array([0, 1]), seen, 4)
    assert found.tolist() == [[0, 1, 2, -1], [-1, -1, -1, -1]]
    assert retrieved_items(np.array([[1, 2]]), np.array([0]), seen, 2).tolist() == [[0, 1]]
