"""Models of the evaluation find what was planted, and nothing where nothing was planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from encoder.errors import EvaluationFault
from materialize.evaluate.future_pairs import future_pairs
from materialize.evaluate.models import registry
from materialize.evaluate.models.base import PairModel, Pairs
from materialize.evaluate.models.coles import ColesSettings, ColesVectors
from materialize.evaluate.models.fits import forget
from materialize.evaluate.models.head import LightHead
from materialize.evaluate.models.ranking_head import RankingHead
from materialize.evaluate.models.registry import (
    MODELS,
    choose,
    full_ranker,
    missing,
    models_for,
    pair_model,
    user_model,
)
from materialize.evaluate.models.sasrec import SasRec, SasRecSettings
from tests.cohorts import TinyCohort, tiny_cohort

LEARNED = [name for name in models_for("pairs") if name != "popularity"]
RANKERS = [name for name in models_for("ranking") if name != "popularity"]
SHORT = {
    "sasrec": SasRecSettings(width=32, events=120_000, negatives=60, batch=128),
    "coles": ColesSettings(width=32, steps=60, users=32),
}
"""What is planted here is found in seconds."""


@pytest.fixture(autouse=True)
def _no_kept_fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "materialize.evaluate.models.sasrec.SasRecSettings", lambda: SHORT["sasrec"]
    )
    monkeypatch.setattr("materialize.evaluate.models.coles.ColesSettings", lambda: SHORT["coles"])
    yield
    forget()


def planted() -> TinyCohort:
    return tiny_cohort(n_users=400, n_items=60, n_segments=3, purity=0.9, seed=3)


def unplanted() -> TinyCohort:
    return tiny_cohort(n_users=400, n_items=60, n_segments=3, purity=1 / 3, seed=4)


def pairs_of(tiny: TinyCohort, rows: npt.NDArray[np.bool_], seed: int = 0) -> Pairs:
    return Pairs.together(
        [
            future_pairs(tiny.cohort, np.flatnonzero(rows), how, seed, with_repeats=True)
            for how in ("popularity", "uniform")
        ]
    )


def auc_within_rows(tiny: TinyCohort, model: PairModel) -> float:
    """Mean over test rows: what everybody likes gives 0.5 here, hard negatives only."""
    test = future_pairs(
        tiny.cohort, np.flatnonzero(~tiny.cohort.training), "popularity", 1, with_repeats=True
    )
    scores = model.score(test.row, test.item) + test.offset
    rows = [np.flatnonzero(test.row == row) for row in np.unique(test.row)]
    return float(
        np.mean([roc_auc_score(test.y[r], scores[r]) for r in rows if 0 < test.y[r].sum() < len(r)])
    )


def fitted(name: str, tiny: TinyCohort, seed: int = 0) -> PairModel:
    model = pair_model(name)
    model.fit(tiny.cohort, tiny.encoder, pairs_of(tiny, tiny.cohort.training, seed), seed)
    return model


def recall_at_10(tiny: TinyCohort, name: str) -> float:
    model = full_ranker(name)
    model.fit(tiny.cohort, tiny.encoder, 0)
    rows = np.flatnonzero(~tiny.cohort.training)
    scores = np.array(model.scores(rows))
    assert scores.dtype == np.float32
    assert scores.shape == (len(rows), len(tiny.cohort.catalogue))
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    future = tiny.cohort.future[rows].toarray()
    hits = np.take_along_axis(future, top, axis=1).sum(axis=1)
    return float(np.mean(hits / np.minimum(future.sum(axis=1), 10)))


def test_popularity_alone_cannot_tell_who_consumes_what() -> None:
    assert auc_within_rows(planted(), fitted("popularity", planted())) == pytest.approx(
        0.5, abs=0.04
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_every_model_of_pairs_finds_planted_tastes(name: str) -> None:
    # 0.9 of a user's events are of one segment in three: an oracle reaches about 0.87.
    assert auc_within_rows(planted(), fitted(name, planted())) > 0.72


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_every_model_of_pairs_is_at_chance_where_nothing_is_planted(name: str) -> None:
    assert auc_within_rows(unplanted(), fitted(name, unplanted())) == pytest.approx(0.5, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_finds_planted_tastes_and_popularity_does_not(name: str) -> None:
    assert recall_at_10(planted(), name) > 1.3 * recall_at_10(planted(), "popularity")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raw", "als", "sasrec", "coles"])
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    tiny = planted()
    test = pairs_of(tiny, ~tiny.cohort.training)
    first = fitted(name, tiny).score(test.row, test.item)
    forget()
    np.testing.assert_allclose(fitted(name, tiny).score(test.row, test.item), first, atol=1e-4)


@pytest.mark.slow
def test_the_order_of_pairs_does_not_change_their_scores() -> None:
    tiny = planted()
    model = fitted("dlrm", tiny)
    test = pairs_of(tiny, ~tiny.cohort.training)
    order = np.random.default_rng(0).permutation(len(test))
    np.testing.assert_allclose(
        model.score(test.row[order], test.item[order]),
        model.score(test.row, test.item)[order],
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedding", "als", "lightfm"])
def test_no_model_reads_what_test_users_do_next(name: str) -> None:
    tiny = planted()
    test = np.flatnonzero(~tiny.cohort.training)
    future = tiny.cohort.future.tolil(copy=True)
    future[test] = False
    blind = replace(tiny.cohort, future=sparse.csr_array(future), fingerprint="blind")
    asked = pairs_of(tiny, ~tiny.cohort.training)
    learned = pairs_of(tiny, tiny.cohort.training)
    scores = []
    for cohort in (tiny.cohort, blind):
        model = pair_model(name)
        model.fit(cohort, tiny.encoder, learned, 0)
        scores.append(model.score(asked.row, asked.item))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


@pytest.mark.parametrize("name", models_for("pairs"))
def test_a_pair_of_a_test_user_is_refused(name: str) -> None:
    tiny = planted()
    model = pair_model(name)
    with pytest.raises(EvaluationFault, match="are of test users, first 'user"):
        model.fit(tiny.cohort, tiny.encoder, pairs_of(tiny, ~tiny.cohort.training), 0)


def test_pairs_of_one_class_are_refused() -> None:
    tiny = planted()
    pairs = pairs_of(tiny, tiny.cohort.training)
    with pytest.raises(EvaluationFault, match="0 negative training pair"):
        pair_model("popularity").fit(tiny.cohort, tiny.encoder, pairs.take(pairs.y), 0)


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'item': \(2,\).* all \(n_pairs,\) expected"):
        Pairs(np.zeros(3, np.int64), np.zeros(2, np.int64), np.zeros(3, bool))


@pytest.mark.parametrize("head", [LightHead, RankingHead])
def test_a_representation_with_nan_is_refused_and_names_the_user(
    head: type[LightHead] | type[RankingHead],
) -> None:
    tiny = planted()

    class Broken:
        name = "broken"

        def vectors(self, cohort: object, encoder: object, seed: int) -> npt.NDArray[np.float32]:
            found = np.ones((len(tiny.cohort), 2), np.float32)
            found[7, 1] = np.nan
            return found

    model = head(Broken())
    arguments = (pairs_of(tiny, tiny.cohort.training), 0) if head is LightHead else (0,)
    with pytest.raises(EvaluationFault, match=f"1 row.*{tiny.cohort.user_id[7]}"):
        model.fit(tiny.cohort, tiny.encoder, *arguments)  # type: ignore[arg-type]


def test_a_representation_of_other_rows_is_refused() -> None:
    class Short:
        name = "short"

        def vectors(self, cohort: object, encoder: object, seed: int) -> npt.NDArray[np.float32]:
            return np.ones((3, 2), np.float32)

    tiny = planted()
    with pytest.raises(EvaluationFault, match=r"shape \(3, 2\)"):
        RankingHead(Short()).fit(tiny.cohort, tiny.encoder, 0)


def test_rows_without_history_get_zeros_from_coles_and_popularity_from_sasrec() -> None:
    tiny = planted()
    nobody = replace(
        tiny.cohort,
        fingerprint="nobody",
        history_sequences=replace(
            tiny.cohort.history_sequences,
            offsets=np.zeros(len(tiny.cohort) + 1, np.int64),
        ),
    )
    assert not ColesVectors().vectors(nobody, tiny.encoder, 0).any()
    ranker = SasRec()
    ranker.fit(nobody, tiny.encoder, 0)
    scores = ranker.scores(np.array([0, 5]))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.corrcoef(scores[0], np.log(nobody.catalogue.popularity))[0, 1] > 0.5


def test_cohorts_of_the_same_past_share_the_network_of_coles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = planted()
    first = ColesVectors().vectors(tiny.cohort, tiny.encoder, 0)
    monkeypatch.setattr("materialize.evaluate.models.coles._train", None)  # would fail
    again = ColesVectors().vectors(replace(tiny.cohort, fingerprint="known"), tiny.encoder, 0)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_registered_model_can_be_made_and_keeps_its_name(name: str) -> None:
    makers = {"vectors": user_model, "pairs": pair_model, "ranking": full_ranker}
    for kind in MODELS[name].factories:
        model = makers[kind](name)
        assert model.name == name
        if not isinstance(model, registry.UserModel):
            assert model.task_specific == MODELS[name].task_specific


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unknown model 'svd'. Known: als, als_vectors"):
        pair_model("svd")
    with pytest.raises(ValueError, match="Unknown model 'svd'"):
        choose("pairs", ["svd"])


def test_a_model_is_refused_for_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="'raw' cannot be asked for ranking"):
        full_ranker("raw")


def test_a_model_of_a_missing_extra_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        registry,
        "MODELS",
        MODELS | {"als": replace(MODELS["als"], needs=("no_such_library", "evaluate"))},
    )
    assert missing("als") == "no_such_library is not installed: pip install 'palate[evaluate]'"
    names, reasons = choose("pairs", ["als", "popularity", "als_vectors"])
    assert (names, list(reasons)) == (["als_vectors", "popularity"], ["als"])
    with pytest.raises(ImportError, match=r"needs a library: no_such_library is not installed"):
        pair_model("als")
