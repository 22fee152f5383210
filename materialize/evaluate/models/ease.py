"""EASE: a linear autoencoder of interactions, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack

from materialize.evaluate.models.base import FullRanker, PairModel
from materialize.evaluate.models.calibrated import CalibratedRanker
from materialize.evaluate.models.calibrated_ranking import CalibratedRanking
from materialize.evaluate.models.fits import Fit, shared_fit
from materialize.evaluate.models.holdout import HeldOut, binary, hold_out, ndcg_of_hidden

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["Ease", "choose_l2", "ease_weights", "gram", "pairs", "ranking"]

Float32 = npt.NDArray[np.float32]

_MAX_ITEMS = 5_000
_CHOICE_ITEMS = 2_000
_L2 = (30.0, 100.0, 300.0, 1000.0)
_USERS = 4_096
_DENSE_GAIN = 300
"""A multiplication of dense matrices is about so many times as fast as one of sparse ones."""


def pairs() -> PairModel:
    """Return the model of pairs."""
    return CalibratedRanker(Ease())


def ranking() -> FullRanker:
    """Return the model that ranks the catalogue."""
    return CalibratedRanking(Ease())


class Ease:
    """Ranks items by a row's history times the closed-form item weights.

    The weights of all items need the inverse of an (n_items, n_items) matrix, so the 5,000 most
    popular items have some (100 MB, seconds); others score below them all, by their popularity.

    State: ``weights`` float32 (n_kept, n_kept) and ``kept`` int64 (n_kept,), fitted on events
    before the cut-off. The strength of L2 is chosen on held-out users.

    References
    ----------
    Steck. Embarrassingly shallow autoencoders for sparse data. WWW 2019, algorithm 1.
    """

    name = "ease"
    task_specific = False

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Solve for the weights, or take those that another task of this cohort has solved for."""
        popularity = cohort.catalogue.popularity
        self.kept = np.sort(np.argsort(-popularity, kind="stable")[:_MAX_ITEMS])

        def make() -> Fit:
            l2 = choose_l2(cohort.past, popularity)
            return {"weights": ease_weights(gram(cohort.past[:, self.kept]), l2)}

        self.weights = np.asarray(shared_fit(cohort, self.name, 0, make)["weights"])
        self._history = binary(cohort.history[:, self.kept])
        others = np.setdiff1d(np.arange(len(popularity)), self.kept)
        self._others = others
        self._below = -1 + popularity[others] / (popularity.max() + 1)

    def scores(self, rows: npt.NDArray[np.int64]) -> Float32:
        """Return float32 (len(rows), n_items); zeros on kept items for a row without history."""
        known = np.asarray(self._history[rows] @ self.weights, np.float32)
        if not self._others.size:
            return known
        scores = np.empty((len(rows), len(self.kept) + len(self._others)), np.float32)
        scores[:, self.kept] = known
        scores[:, self._others] = known.min(axis=1, keepdims=True) + self._below
        return scores


def choose_l2(past: sparse.csr_array, popularity: npt.NDArray[np.float64]) -> float:
    """Return the L2 that ranks held-out users' hidden items best, among 2,000 popular items."""
    top = np.sort(np.argsort(-popularity, kind="stable")[:_CHOICE_ITEMS])
    held = hold_out(past[:, top])
    if held.known.shape[0] == 0:
        return _L2[1]
    counts = gram(held.fit)
    # The strength grows with the number of users that it is weighed against.
    share = held.fit.shape[0] / max(int((np.diff(past.indptr) > 0).sum()), 1)
    found = [_quality(held, counts, l2 * share) for l2 in _L2]
    return _L2[int(np.argmax(found))]


def gram(past: sparse.csr_array) -> Float32:
    """Return how many users consumed each pair of items, float32 (n_items, n_items)."""
    interactions = binary(past)
    n_users, n_items = interactions.shape
    sparse_cost = float(np.square(np.diff(interactions.indptr).astype(np.float64)).sum())
    if sparse_cost < n_users * n_items * n_items / _DENSE_GAIN:
        return np.asarray((interactions.T @ interactions).toarray(), np.float32)
    counts = np.zeros((n_items, n_items), np.float32)
    for start in range(0, n_users, _USERS):
        dense = interactions[start : start + _USERS].toarray()
        counts += dense.T @ dense
    return counts


def ease_weights(counts: Float32, l2: float) -> Float32:
    """Return the weights that predict each item from all others, zero on the diagonal.

    ``B = I - P diag(1 / diag(P))`` with ``P = (G + l2 I)^-1``.

    Parameters
    ----------
    counts : float32 (n_items, n_items)
        The Gram matrix G.
    l2 : float
        Above 0.

    Raises
    ------
    ValueError
        ``G + l2 I`` is not positive definite.
    """
    damped = np.array(counts, np.float32, order="F")
    damped[np.diag_indices_from(damped)] += l2
    factor, failed = lapack.spotrf(damped, lower=1, overwrite_a=1)
    if failed:
        raise ValueError(
            f"G + {l2} I is not positive definite (leading minor {failed}). Give l2 above 0."
        )
    half, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    inverse = np.tril(half)
    inverse += np.tril(half, -1).T
    weights: Float32 = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def _quality(held: HeldOut, counts: Float32, l2: float) -> float:
    return ndcg_of_hidden(held, binary(held.known) @ ease_weights(counts, l2))
