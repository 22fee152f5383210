"""Task future: its pairs, its figures by hand, and planted tastes that it must find."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from encoder.resampling import user_draws
from materialize.evaluate.cohort import Catalogue, Cohort
from materialize.evaluate.future import FutureTask, balanced_accuracy
from materialize.evaluate.future_pairs import (
    NEGATIVES,
    POSITIVES,
    SAMPLINGS,
    future_pairs,
    repeats_happen,
    rows_for,
)
from materialize.evaluate.kind_cohort import item_kind_matrix, kind_cohort
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.task import Progress
from tests.cohorts import tiny_cohort


def every_row(cohort: Cohort) -> Any:
    return np.arange(len(cohort))


def cells(matrix: Any, row: Any, item: Any) -> Any:
    return np.asarray(matrix.toarray()[row, item])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_positives_are_consumed_later_and_negatives_are_not(sampling: str) -> None:
    cohort = tiny_cohort().cohort
    pairs = future_pairs(cohort, every_row(cohort), sampling, 0, with_repeats=True)
    assert (cells(cohort.future, pairs.row, pairs.item) == pairs.y).all()
    # Every future item of every row is asked for: none has more than 20.
    assert pairs.y.sum() == cohort.future.nnz
    assert (~pairs.y).sum() == NEGATIVES * pairs.y.sum()
    per_row = [np.bincount(pairs.row[pairs.y == c], minlength=len(cohort)) for c in (True, False)]
    assert (per_row[1] == NEGATIVES * per_row[0]).all()
    assert (np.diff(pairs.row) >= 0).all()


def test_items_known_already_are_no_question_where_nobody_repeats() -> None:
    cohort = tiny_cohort().cohort
    assert repeats_happen(cohort)
    new = sparse.csr_array(cohort.future.toarray() & (cohort.history.toarray() == 0))
    once = replace(cohort, future=new)
    assert not repeats_happen(once)
    pairs = future_pairs(cohort, every_row(cohort), "uniform", 0, with_repeats=False)
    assert (cells(cohort.history, pairs.row, pairs.item) == 0).all()
    assert pairs.y.sum() == new.nnz


def test_negatives_are_drawn_by_popularity_or_all_alike() -> None:
    cohort = tiny_cohort(n_items=60).cohort
    popularity = cohort.catalogue.popularity
    found = {}
    for sampling in SAMPLINGS:
        pairs = future_pairs(cohort, every_row(cohort), sampling, 0, with_repeats=True)
        found[sampling] = popularity[pairs.item[~pairs.y]].mean()
    # Expected popularity of a draw: sum p^2 / sum p by popularity, the mean of p uniformly; futures
    # hold popular items more often, so that a little less is left for negatives.
    by_popularity = (popularity**2).sum() / popularity.sum()
    assert found["popularity"] == pytest.approx(by_popularity, rel=0.1)
    assert found["uniform"] == pytest.approx(popularity.mean(), rel=0.1)
    assert found["popularity"] > 1.2 * found["uniform"]


def test_log_q_is_the_chance_against_a_uniform_one() -> None:
    cohort = tiny_cohort().cohort
    popularity = cohort.catalogue.popularity
    pairs = future_pairs(cohort, every_row(cohort), "popularity", 0, with_repeats=True)
    expected = np.log(popularity[pairs.item] / popularity.mean())
    assert -pairs.offset == pytest.approx(expected, abs=1e-5)
    pairs = future_pairs(cohort, every_row(cohort), "uniform", 0, with_repeats=True)
    assert pairs.offset == pytest.approx(np.zeros(len(pairs)), abs=1e-6)


def test_a_row_has_twenty_positives_at_most_and_the_same_in_both_samplings() -> None:
    cohort = tiny_cohort().cohort
    greedy = np.zeros(cohort.future.shape, bool)
    greedy[:, :30] = True
    wide = replace(cohort, future=sparse.csr_array(greedy))
    asked = {}
    for sampling in SAMPLINGS:
        pairs = future_pairs(wide, every_row(wide), sampling, 0, with_repeats=True)
        assert (np.bincount(pairs.row[pairs.y]) == POSITIVES).all()
        asked[sampling] = set(zip(pairs.row[pairs.y], pairs.item[pairs.y], strict=True))
        assert (pairs.item[~pairs.y] >= 30).all()
    assert asked["popularity"] == asked["uniform"]
    # Which 20 is drawn for each row anew.
    assert len({i for _, i in asked["uniform"]}) == 30


def test_who_consumes_all_there_is_has_no_negatives() -> None:
    cohort = tiny_cohort().cohort
    everything = np.zeros(cohort.future.shape, bool)
    everything[3] = True
    full = replace(cohort, future=sparse.csr_array(everything))
    pairs = future_pairs(full, every_row(full), "uniform", 0, with_repeats=True)
    assert len(pairs) == POSITIVES
    assert pairs.y.all()


def test_rows_to_fit_on_are_drawn_whole_up_to_a_number_of_pairs() -> None:
    cohort = tiny_cohort().cohort
    rows = np.flatnonzero(cohort.training)
    chosen = rows_for(cohort, rows, 1_000, seed=0)
    n = sum(
        len(future_pairs(cohort, chosen, sampling, 0, with_repeats=True)) for sampling in SAMPLINGS
    )
    # A row has 6 positives at most: 6 * (1 + 4) * 2 = 60 pairs.
    assert 1_000 - 60 < n <= 1_000
    assert set(chosen) < set(rows)
    assert set(rows_for(cohort, rows, 1_000, seed=1)) != set(chosen)
    assert (rows_for(cohort, rows, 10**6, seed=0) == rows).all()


def test_same_seed_gives_the_same_pairs_and_another_seed_others() -> None:
    cohort = tiny_cohort().cohort
    first, again, other = (
        future_pairs(cohort, every_row(cohort), "uniform", seed, with_repeats=True)
        for seed in (0, 0, 1)
    )
    assert (first.item == again.item).all()
    assert not (first.item == other.item).all()


def test_accuracy_of_a_hand_computed_case_weighs_both_classes_the_same() -> None:
    # Positives right: 1 of 2; negatives right: 3 of 4. (1/2 + 3/4) / 2 = .625.
    y = np.array([1, 1, 0, 0, 0, 0], bool)
    answer = np.array([1, 0, 0, 0, 1, 0], bool)
    found = balanced_accuracy(y, answer, user_draws(np.arange(6), 5))
    assert found.value == pytest.approx(0.625)
    assert np.isnan(balanced_accuracy(y[:2], answer[:2], user_draws(np.arange(2), 5)).value)


def measure(cohort: Cohort, encoder: Any, models: Any, n_resamples: int = 100) -> Any:
    told = Progress()
    found = FutureTask().measure(
        cohort, encoder, 0, models=models, n_resamples=n_resamples, progress=told
    )
    return {(m.metric, m.group, m.model): m for m in found}, told


@pytest.fixture(scope="module")
def planted() -> dict[Any, Measurement]:
    tiny = tiny_cohort(n_users=400)
    return dict(measure(tiny.cohort, tiny.encoder, ["popularity"])[0])


def test_planted_taste_gives_the_known_answer(planted: dict[Any, Measurement]) -> None:
    # 3 segments of 20 items; 9 of 10 consumptions are of the user's segment. A user consumes about
    # 5.5 distinct items, 5 of them own: (20 - 5) / (60 - 5.5) = .275 of the negatives are own ones.
    # Who knows the segment and nothing else: .9 * .725 right, .9 * .275 + .1 * .725 ties: .8125;
    # popularity inside a segment adds a little to negatives drawn uniformly.
    found = planted["auc@uniform", "all", "embedding"]
    low, high = found.figure.interval.low, found.figure.interval.high
    assert 0.76 < found.value < 0.90
    assert low < 0.85
    assert high > 0.80
    assert planted["auc_row@uniform", "all", "embedding"].value == pytest.approx(
        found.value, abs=0.03
    )
    for metric in ("auc@popularity", "auc_row@popularity", "accuracy@popularity"):
        mine, theirs = (planted[metric, "all", m] for m in ("embedding", "popularity"))
        assert mine.figure.minus(theirs.figure).interval.low > 0.1


def test_popularity_knows_nothing_of_negatives_drawn_by_popularity(
    planted: dict[Any, Measurement],
) -> None:
    found = planted["auc@popularity", "all", "popularity"].figure.interval
    assert found.value == pytest.approx(0.5, abs=0.06)
    assert planted["accuracy@popularity", "all", "popularity"].value == pytest.approx(0.5, abs=0.05)
    assert planted["auc@uniform", "all", "popularity"].value > found.value


def test_every_group_with_a_future_is_judged_on_test_users_only(
    planted: dict[Any, Measurement],
) -> None:
    cohort = tiny_cohort(n_users=400).cohort
    asked = np.diff(cohort.future.indptr) > 0
    for name, member in cohort.groups.items():
        rows = member & ~cohort.training & asked
        found = planted["auc@uniform", name, "embedding"]
        assert found.n_rows == rows.sum()
        assert found.n_users == len(np.unique(cohort.user_id[rows].astype(str)))


def test_nothing_planted_is_nothing_found() -> None:
    tiny = tiny_cohort(n_users=400, purity=1 / 3)
    found, _ = measure(tiny.cohort, tiny.encoder, (), 200)
    chance = found["auc@popularity", "all", "embedding"].figure.interval
    slack = (chance.high - chance.low) / 2  # twice the interval: about 4 standard errors
    assert chance.low - slack < 0.5 < chance.high + slack


def test_shuffled_futures_give_chance() -> None:
    tiny = tiny_cohort(n_users=400)
    cohort, rng = tiny.cohort, np.random.default_rng(0)
    order = np.arange(len(cohort))
    for side in (cohort.training, ~cohort.training):
        order[side] = rng.permutation(order[side])
    shuffled = replace(cohort, fingerprint="shuffled", future=cohort.future[order])
    found, _ = measure(shuffled, tiny.encoder, (), 200)
    chance = found["auc@popularity", "all", "embedding"].figure.interval
    slack = (chance.high - chance.low) / 2
    assert chance.low - slack < 0.5 < chance.high + slack


def test_large_catalogue_is_also_asked_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("materialize.evaluate.future._MANY_ITEMS", 50)
    tiny = tiny_cohort(n_users=400)
    found, told = measure(tiny.cohort, tiny.encoder, ["popularity"])
    metrics = {metric for metric, _, _ in found}
    assert {m for m in metrics if m.startswith("kind_")} == {
        f"kind_{m}" for m in metrics if not m.startswith("kind_")
    }
    assert told.details["kind_pairs"]["fit"] > 0
    mine, theirs = (found["kind_auc@uniform", "all", m] for m in ("embedding", "popularity"))
    assert mine.figure.minus(theirs.figure).interval.low > 0.02


def test_news_of_tomorrow_are_asked_by_kind_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("materialize.evaluate.future._MANY_ITEMS", 50)
    tiny = tiny_cohort(n_users=400)
    # Four fifths of the test rows consume nothing that was known at the cut-off.
    test = np.flatnonzero(~tiny.cohort.training)
    keeps = np.ones(len(tiny.cohort), np.int8)
    keeps[test[np.arange(len(test)) % 5 > 0]] = 0
    future = sparse.csr_array(tiny.cohort.future.multiply(keeps[:, None]))
    future.eliminate_zeros()
    cohort = replace(tiny.cohort, future=future)
    found, told = measure(cohort, tiny.encoder, ["popularity"])
    assert {metric.partition("_")[0] for metric, _, _ in found} == {"kind"}
    assert "were known at the cut-off" in told.skipped["single items"]
    assert "pairs" not in told.details


def test_kinds_are_the_items_of_a_cohort_by_kind() -> None:
    tiny = tiny_cohort()
    cohort, kinds = tiny.cohort, kind_cohort(tiny.cohort)
    names = list(cohort.tag_names)
    segment = {tags[0]: k % 3 for k, tags in enumerate(cohort.catalogue.tags)}
    assert list(kinds.catalogue.item_ids.to_pylist()) == names
    for k, name in enumerate(names):
        of_kind = tiny.item_segment == segment[name]
        popularity = cohort.catalogue.popularity
        assert kinds.catalogue.popularity[k] == popularity[of_kind].sum()
        vectors = cohort.catalogue.vectors["collaborative"][of_kind]
        mean = popularity[of_kind] @ vectors / popularity[of_kind].sum()
        assert kinds.catalogue.vectors["collaborative"][k] == pytest.approx(mean, abs=1e-5)
        past = cohort.past.toarray()[:, of_kind].sum(axis=1)
        assert kinds.past.toarray()[:, k] == pytest.approx(past)
    for row in (0, 7, len(cohort) - 1):
        expected = [names.index(cohort.catalogue.tags[i][0]) for i in
                    cohort.history_sequences.of(row)]  # fmt: skip
        assert kinds.history_sequences.of(row).tolist() == expected
    assert kinds.sequences.num_rows == cohort.sequences.num_rows
    assert kinds.fingerprint != cohort.fingerprint


def test_event_of_an_item_of_two_kinds_stands_for_both_and_of_none_for_nothing() -> None:
    cohort = tiny_cohort().cohort
    first, second, third = cohort.tag_names
    tags = ((first, second), (), *((first,),) * (len(cohort.catalogue) - 3), (third,))
    mixed = replace(cohort, catalogue=replace(cohort.catalogue, tags=tags))
    assert item_kind_matrix(mixed).toarray()[:3].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    sequences = kind_cohort(mixed).history_sequences
    for row in (0, 5, len(cohort) - 1):
        expected: list[int] = []
        for item in cohort.history_sequences.of(row):
            expected += [cohort.tag_names.index(tag) for tag in tags[item]]
        assert sequences.of(row).tolist() == expected


def test_clusters_are_the_kinds_where_items_have_no_tags() -> None:
    tiny = tiny_cohort()
    catalogue: Catalogue = replace(tiny.cohort.catalogue, tags=((),) * len(tiny.cohort.catalogue))
    names = ("collaborative 2", "collaborative 0")
    matrix = item_kind_matrix(replace(tiny.cohort, catalogue=catalogue, tag_names=names))
    assert matrix.toarray().tolist() == [[float(s == 2), float(s == 0)] for s in tiny.item_segment]


def test_cohort_without_futures_cannot_be_asked() -> None:
    cohort = tiny_cohort().cohort
    empty = replace(cohort, future=sparse.csr_array(cohort.future.shape, dtype=bool))
    assert FutureTask().unavailable(cohort) is None
    assert "no training user consumes" in (FutureTask().unavailable(empty) or "")
