"""Closed forms of the evaluation's models on cases that are worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import sparse

from materialize.evaluate.future_pairs import future_pairs
from materialize.evaluate.models.als import Als, AlsSettings, fold_in
from materialize.evaluate.models.base import Pairs
from materialize.evaluate.models.calibrated import CalibratedRanker, scores_of_pairs
from materialize.evaluate.models.ease import Ease, ease_weights, gram
from materialize.evaluate.models.fits import Fit, forget, shared_fit
from materialize.evaluate.models.holdout import HeldOut, hold_out, ndcg_of_hidden
from materialize.evaluate.models.item_knn import similarities
from materialize.evaluate.models.item_side import item_features, item_tags
from materialize.evaluate.models.lightfm import user_features
from materialize.evaluate.models.logistic import fit_logistic
from materialize.evaluate.models.priors import ItemPrior
from materialize.evaluate.models.sasrec import sequence_windows
from materialize.evaluate.models.sequences import Sequences, of_past, of_rows
from materialize.evaluate.models.user_towers import standardise
from tests.cohorts import tiny_cohort

Float32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _no_kept_fits() -> Iterator[None]:
    yield
    forget()


def matrix(rows: list[list[float]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, np.float32))


def test_ease_of_three_items_is_what_the_inverse_says() -> None:
    # G + I = [[3, 1, 0], [1, 3, 1], [0, 1, 3]], determinant 21,
    # P = [[8, -3, 1], [-3, 9, -3], [1, -3, 8]] / 21, B_ij = -P_ij / P_jj.
    counts = np.array([[2, 1, 0], [1, 2, 1], [0, 1, 2]], np.float32)
    expected = [[0, 3 / 9, -1 / 8], [3 / 8, 0, 3 / 8], [-1 / 8, 3 / 9, 0]]
    np.testing.assert_allclose(ease_weights(counts, 1.0), expected, rtol=1e-5)


def test_ease_without_l2_on_a_singular_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not positive definite.*Give l2 above 0"):
        ease_weights(np.ones((3, 3), np.float32), 0.0)


def test_ease_scores_items_beyond_its_limit_below_all_others_by_popularity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("materialize.evaluate.models.ease._MAX_ITEMS", 50)
    tiny = tiny_cohort()
    model = Ease()
    model.fit(tiny.cohort, tiny.encoder, 0)
    scores = model.scores(np.arange(4))
    others = np.setdiff1d(np.arange(60), model.kept)
    assert len(others) == 10
    assert (scores[:, others].max(axis=1) < scores[:, model.kept].min(axis=1)).all()
    popularity = tiny.cohort.catalogue.popularity[others]
    by_score = others[np.argsort(scores[0, others], kind="stable")]
    np.testing.assert_array_equal(tiny.cohort.catalogue.popularity[by_score], np.sort(popularity))


@pytest.mark.parametrize("gain", [1e-9, 1e9])
def test_dense_and_sparse_products_count_the_same_pairs(
    gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("materialize.evaluate.models.ease._DENSE_GAIN", gain)
    past = matrix([[5, 1, 0], [2, 0, 0], [0, 3, 1]])
    # Whatever the weights: items 0 and 1 have two users each and share one.
    np.testing.assert_array_equal(gram(past), [[2, 1, 0], [1, 2, 1], [0, 1, 1]])


def test_item_neighbours_have_the_cosine_of_their_users() -> None:
    # Users {0, 1}, {0, 1, 2}, {0}: 3, 2 and 1 users; cos(0, 1) = 2 / sqrt(3 * 2) and so on.
    past = matrix([[1, 5, 0], [1, 1, 2], [3, 0, 0]])
    a, b, c = 2 / 6**0.5, 1 / 3**0.5, 1 / 2**0.5
    np.testing.assert_allclose(
        similarities(past, 2).toarray(), [[0, a, b], [a, 0, c], [b, c, 0]], rtol=1e-6
    )
    # Of one neighbour each: 1 is nearest to 0, 0 to 1, and 1 to 2.
    np.testing.assert_allclose(
        similarities(past, 1).toarray(), [[0, a, 0], [a, 0, 0], [0, c, 0]], rtol=1e-6
    )


def test_fold_in_solves_the_least_squares_of_a_history() -> None:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((6, 3)).astype(np.float32)
    history = matrix([[1, 0, 4, 0, 0, 2], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
    settings = AlsSettings(factors=3, alpha=10.0, regularisation=0.5)
    y = items.astype(np.float64)
    expected = []
    for row in history.toarray():
        confidence = np.where(row > 0, 10.0, 1.0)
        normal = y.T @ (confidence[:, None] * y) + 0.5 * np.eye(3)
        expected.append(np.linalg.solve(normal, y.T @ (confidence * (row > 0))))
    found = fold_in(items, history, settings)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[1], 0)


def test_ndcg_of_hidden_items_leaves_known_ones_out() -> None:
    held = HeldOut(matrix([[0] * 4]), matrix([[1, 0, 0, 0]]), matrix([[0, 0, 1, 1]]))
    # Without item 0: the order 1, 2, 3; hits at ranks 2 and 3 of 3.
    gain = 1 / np.log2([2, 3, 4])
    found = ndcg_of_hidden(held, np.array([[9, 3, 2, 1]], np.float32))
    assert found == pytest.approx((gain[1] + gain[2]) / (gain[0] + gain[1]))


def test_held_out_users_are_not_fitted_on_and_a_fifth_of_their_items_is_hidden() -> None:
    rng = np.random.default_rng(0)
    past = sparse.csr_array((rng.random((200, 40)) < 0.5).astype(np.float32))
    past.data[:] = np.arange(1, past.nnz + 1)  # each entry can be recognised
    held = hold_out(past)
    assert held.fit.shape == (160, 40)
    assert held.known.shape == (40, 40)
    values = [np.asarray(part.data) for part in (held.fit, held.known, held.hidden)]
    together = np.concatenate(values)
    assert len(np.unique(together)) == len(together) == past.nnz
    sizes = np.diff(held.known.indptr) + np.diff(held.hidden.indptr)
    np.testing.assert_array_equal(np.diff(held.hidden.indptr), np.maximum(1, sizes // 5))


class _Factors:
    name = "factors"
    task_specific = False

    def __init__(self, users: Float32, items: Float32) -> None:
        self.user_factors, self.item_factors = users, items

    def fit(self, cohort: object, encoder: object, seed: int) -> None: ...

    def scores(self, rows: npt.NDArray[np.int64]) -> Float32:
        return np.asarray(self.user_factors[rows] @ self.item_factors.T, np.float32)


class _FullRows:
    name = "full rows"
    task_specific = False

    def __init__(self, ranker: _Factors) -> None:
        self.ranker = ranker

    def fit(self, cohort: object, encoder: object, seed: int) -> None: ...

    def scores(self, rows: npt.NDArray[np.int64]) -> Float32:
        return self.ranker.scores(rows)


def test_scores_of_pairs_from_factors_are_those_from_full_rows() -> None:
    rng = np.random.default_rng(0)
    users = rng.standard_normal((9, 4)).astype(np.float32)
    users[3] = 0  # nothing is known of this one
    factors = _Factors(users, rng.standard_normal((20, 4)).astype(np.float32))
    row, item = rng.integers(0, 9, 200), rng.integers(0, 20, 200)
    short = scores_of_pairs(factors, row, item)
    full = scores_of_pairs(_FullRows(factors), row, item)
    np.testing.assert_allclose(short[0], full[0], atol=1e-5)
    np.testing.assert_allclose(short[1], full[1], atol=1e-4)
    assert not short[1][row == 3].any()


def test_logistic_regression_finds_the_log_odds_that_the_offset_leaves() -> None:
    # 3 of 4 positive where x is 1, 1 of 4 where it is -1: slope ln 3, constant 0, less the offset.
    x = np.array([[1.0]] * 4 + [[-1.0]] * 4)
    y = np.array([1, 1, 1, 0, 1, 0, 0, 0], bool)
    found = fit_logistic(x, y, np.full(8, 0.5, np.float32))
    np.testing.assert_allclose(found, [np.log(3), -0.5], atol=2e-3)


def _counted(events: list[tuple[int, int]]) -> sparse.csr_array:
    """Return counts of two items on ten days before test rows begin, of events (day, item)."""
    cells = np.array(events).T
    return sparse.csr_array((np.ones(len(events)), (cells[0], cells[1])), shape=(10, 2))


def test_the_prior_knows_what_was_popular_before_the_row_s_moment() -> None:
    # Three events of item 0 long ago, two of item 1 yesterday and one the day before.
    daily = _counted([(0, 0), (1, 0), (1, 0), (8, 1), (9, 1), (9, 1)])
    tiny = tiny_cohort().cohort
    end, day = tiny.judged_from, np.timedelta64(1, "D")
    moments = [end - 30 * day, end - day, end - np.timedelta64(12, "h"), end, end + 5 * day]
    cohort = replace(
        tiny,
        horizon_days=4,
        moment=np.array(moments),
        catalogue=replace(tiny.catalogue, daily=daily),
    )
    prior = ItemPrior(cohort)
    row, item = np.divmod(np.arange(10), 2)
    found = prior.features(row, item)
    # One event is added to each item; whole days count, and none from where test rows begin.
    whole = np.array([1 / 2, 1 / 2, 4 / 6, 2 / 6, 4 / 6, 2 / 6, 4 / 8, 4 / 8, 4 / 8, 4 / 8])
    late = np.array([1 / 2, 1 / 2, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 5, 4 / 5, 1 / 5, 4 / 5])
    np.testing.assert_allclose(found, np.log(np.stack([whole, late], axis=1)))
    for rows in (np.arange(5), np.array([4, 0]), np.array([3, 4])):
        for full, expected in zip(prior.full_features(rows), (whole, late), strict=True):
            assert full.shape[0] == (1 if 3 in rows and 0 not in rows else len(rows))
            np.testing.assert_allclose(
                np.broadcast_to(full, (len(rows), 2)), np.log(expected.reshape(5, 2)[rows])
            )


def test_the_prior_of_a_training_row_knows_nothing_of_its_horizon() -> None:
    cohort = tiny_cohort().cohort
    rows = np.flatnonzero(cohort.training)
    daily = cohort.catalogue.daily.toarray()
    late = daily.copy()
    late[-cohort.horizon_days :] = 0  # the last days before test rows begin
    assert not np.array_equal(late, daily)
    other = replace(cohort, catalogue=replace(cohort.catalogue, daily=sparse.csr_array(late)))
    item = np.zeros(len(rows), np.int64)
    np.testing.assert_allclose(
        ItemPrior(cohort).features(rows, item), ItemPrior(other).features(rows, item)
    )


def test_calibrated_scores_of_all_items_are_those_of_each_pair() -> None:
    tiny = tiny_cohort()
    training = np.flatnonzero(tiny.cohort.training)
    pairs = future_pairs(tiny.cohort, training, "uniform", 0, with_repeats=True)
    model = CalibratedRanker(Als())
    model.fit(tiny.cohort, tiny.encoder, pairs, 0)
    row, item = np.divmod(np.arange(120), 60)
    full = np.add(*model.full_parts(np.array([0, 1])))
    np.testing.assert_allclose(full.ravel(), model.score(row, item), atol=1e-3)


def test_a_fit_is_made_once_for_each_cohort_model_and_seed() -> None:
    cohort, made = tiny_cohort().cohort, []

    def make() -> Fit:
        made.append(1)
        return {"x": np.arange(3)}

    first = shared_fit(cohort, "model", 0, make)
    assert shared_fit(replace(cohort), "model", 0, make) is first
    shared_fit(cohort, "model", 1, make)
    shared_fit(cohort, "other", 0, make)
    shared_fit(replace(cohort, fingerprint="another"), "model", 0, make)
    assert len(made) == 4


def test_windows_name_every_event_but_each_sequence_s_first_once() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([2, 3, 10, 11, 12, 57])
    offsets = np.append(0, np.cumsum(sizes))
    events = Sequences(offsets, np.arange(offsets[-1]), np.zeros(offsets[-1]))
    for _ in range(50):
        start, size = sequence_windows(events, np.arange(len(sizes)), 11, rng)
        assert size.min() >= 2
        assert size.max() <= 11
        named = np.concatenate([np.arange(s + 1, s + n) for s, n in zip(start, size, strict=True)])
        np.testing.assert_array_equal(
            np.sort(named), np.setdiff1d(np.arange(offsets[-1]), offsets[:-1])
        )


def test_sequences_are_those_of_the_cohort() -> None:
    cohort = tiny_cohort().cohort
    past = of_past(cohort)
    assert len(past) == len(cohort.past_users)
    np.testing.assert_array_equal(past.sizes, np.bincount(
        np.unique(cohort.sequences.column("user_id").to_numpy(), return_inverse=True)[1]
    ))  # fmt: skip
    rows = of_rows(cohort)
    assert len(rows) == len(cohort)
    mine = slice(rows.offsets[5], rows.offsets[6])
    np.testing.assert_array_equal(rows.item[mine], cohort.history_sequences.of(5))
    newest = cohort.moment[5].astype(np.int64) / 86_400e6
    assert (np.diff(rows.day[mine]) >= 0).all()
    assert rows.day[mine][-1] <= newest


def test_item_features_hold_vectors_clusters_and_tags() -> None:
    tiny = tiny_cohort()
    found = item_features(tiny.cohort)
    assert found.shape == (60, 8 + 3 + 3)
    np.testing.assert_allclose(found[:, :8].mean(axis=0), 0, atol=1e-6)
    assert np.square(found[:, :8]).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(found[:, 8:11].argmax(axis=1), tiny.item_segment)
    np.testing.assert_allclose(np.linalg.norm(item_tags(tiny.cohort), axis=1), 1)


def test_user_features_are_categories_and_history_of_two_training_rows_or_more() -> None:
    cohort = tiny_cohort().cohort
    found = user_features(cohort).toarray()
    np.testing.assert_array_equal(found[:, -1], 1)
    used = (found[cohort.training] != 0).sum(axis=0)
    assert used.min() >= 2
    # Two devices and three countries, then history: its squares add up to 1.
    np.testing.assert_array_equal(found[:, :2].sum(axis=1), 1)
    np.testing.assert_array_equal(found[:, 2:5].sum(axis=1), 1)
    np.testing.assert_allclose(np.square(found[:, 5:-1]).sum(axis=1), 1, rtol=1e-5)


def test_standardised_columns_have_mean_0_and_variance_1_on_training_rows() -> None:
    rng = np.random.default_rng(0)
    vectors = np.column_stack([3 + 5 * rng.standard_normal(500), np.full(500, 7.0)])
    training = rng.random(500) < 0.6
    vectors[~training, 1] = 9  # a constant that a test row breaks must not blow up
    given = vectors.astype(np.float32)
    kept = given.copy()
    found = standardise(given, training)
    np.testing.assert_array_equal(given, kept)
    assert found[training, 0].mean() == pytest.approx(0, abs=1e-5)
    assert found[training, 0].std() == pytest.approx(1, rel=1e-4)
    np.testing.assert_array_equal(found[:, 1], 0)


def test_pairs_of_several_samplings_keep_their_own_chances() -> None:
    row, item, y = np.zeros(2, np.int64), np.arange(2), np.array([True, False])
    uniform = Pairs(row, item, y)
    popular = Pairs(row, item, y, np.array([0.5, -0.5], np.float32))
    np.testing.assert_allclose(
        Pairs.together([uniform, popular]).offset, [0, 0, -0.5, 0.5], atol=1e-7
    )
