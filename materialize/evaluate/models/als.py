"""Matrix factorisation of implicit feedback: alternating least squares, with fold-in."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse
from threadpoolctl import threadpool_limits

from materialize.evaluate.models.base import FullRanker, PairModel
from materialize.evaluate.models.calibrated import CalibratedRanker
from materialize.evaluate.models.calibrated_ranking import CalibratedRanking
from materialize.evaluate.models.fits import Fit, shared_fit
from materialize.evaluate.models.holdout import binary, hold_out, ndcg_of_hidden

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = [
    "Als",
    "AlsSettings",
    "AlsVectors",
    "choose_settings",
    "fit_items",
    "fold_in",
    "pairs",
    "ranking",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_ITERATIONS = 10
_CHOICE_ITERATIONS = 5
_GRID = tuple(itertools.product((32, 64, 128), (2.0, 10.0)))
"""Factors and alpha. On films and on news, regularisation of 0.1 to 10 hardly moves nDCG."""


@dataclass(frozen=True)
class AlsSettings:
    """Settings of one factorisation.

    Attributes
    ----------
    factors : int
    alpha : float
        Confidence in an interaction, against 1 for an item that was not consumed.
    regularisation : float
    """

    factors: int = 64
    alpha: float = 10.0
    regularisation: float = 10.0


def pairs() -> PairModel:
    """Return the model of pairs."""
    return CalibratedRanker(Als())


def ranking() -> FullRanker:
    """Return the model that ranks the catalogue."""
    return CalibratedRanking(Als())


class Als:
    """Ranks items by the factors of a row's history, folded in.

    State: item factors, learned from events before the cut-off, and the cohort's rows' factors. A
    second ``fit`` replaces them. The settings are chosen on held-out users, whatever the seed; the
    seed starts the factors.

    References
    ----------
    Hu, Koren, Volinsky. Collaborative filtering for implicit feedback datasets. ICDM 2008.
    """

    name = "als"
    task_specific = False

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Factorise, or take the factors that another task of this cohort and seed has made."""
        found = _factors(cohort, seed)
        self.user_factors, self.item_factors = found["users"], found["items"]

    def scores(self, rows: Int64) -> Float32:
        """Return float32 (len(rows), n_items); zeros for a row without history."""
        scores: Float32 = self.user_factors[rows] @ self.item_factors.T
        return scores


class AlsVectors:
    """The folded-in factors of each row as a representation."""

    name = "als_vectors"

    def vectors(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> Float32:
        """Return float32 (n_rows, factors); zeros for a row without history."""
        return np.asarray(_factors(cohort, seed)["users"], np.float32)


def _factors(cohort: Cohort, seed: int) -> Fit:
    def make() -> Fit:
        settings = choose_settings(cohort)
        items = fit_items(cohort.past, settings, seed)
        return {"items": items, "users": fold_in(items, cohort.history, settings)}

    return shared_fit(cohort, "als", seed, make)


def choose_settings(cohort: Cohort) -> AlsSettings:
    """Return the settings that rank held-out users' hidden items best (nDCG@50)."""
    grid = [AlsSettings(factors, alpha) for factors, alpha in _GRID]

    def make() -> Fit:
        held = hold_out(cohort.past)
        if held.known.shape[0] == 0:
            return {"best": np.zeros(1, np.int64)}
        found = []
        for settings in grid:
            items = fit_items(held.fit, settings, 0, _CHOICE_ITERATIONS)
            found.append(ndcg_of_hidden(held, fold_in(items, held.known, settings) @ items.T))
        return {"best": np.array([int(np.argmax(found))]), "ndcg": np.array(found)}

    return grid[int(shared_fit(cohort, "als settings", 0, make)["best"][0])]


def fit_items(
    past: sparse.csr_array, settings: AlsSettings, seed: int, iterations: int = _ITERATIONS
) -> Float32:
    """Return item factors, float32 (n_items, factors).

    Parameters
    ----------
    past : csr_array (n_users, n_items)
        What was consumed; an interaction counts once, whatever its weight.
    settings : AlsSettings
    seed : int
        Of the factors' start.
    iterations : int

    Raises
    ------
    FloatingPointError
        Factors that are not finite.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    # The library has threads of its own; BLAS threads inside them make it several times slower.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=min(settings.factors, *past.shape),
            regularization=settings.regularisation,
            alpha=settings.alpha,
            iterations=iterations,
            random_state=seed,
        )
        model.fit(sparse.csr_matrix(binary(past)), show_progress=False)
    items = np.asarray(model.item_factors, np.float32)
    if not np.isfinite(items).all():
        raise FloatingPointError(f"ALS with {settings} gave factors that are not finite.")
    return items


def fold_in(items: Float32, history: sparse.csr_array, settings: AlsSettings) -> Float32:
    """Return the factors that solve each history's least squares, float32 (n_rows, factors).

    ``(Y'Y + Y'(C - I)Y + regularisation I) x = Y'C p``, with Y the item factors, C the confidence
    (``alpha`` where consumed, 1 elsewhere) and p 1 where consumed. Zeros for an empty history.
    """
    from implicit.cpu.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=items.shape[1], regularization=settings.regularisation, alpha=settings.alpha
        )
        model.item_factors = items
        rows = model.recalculate_user(
            np.arange(history.shape[0]), sparse.csr_matrix(binary(history))
        )
    return np.asarray(rows, np.float32)
