"""Item neighbours: items that the same users consume, by cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from materialize.evaluate.models.base import FullRanker, PairModel
from materialize.evaluate.models.calibrated import CalibratedRanker
from materialize.evaluate.models.calibrated_ranking import CalibratedRanking
from materialize.evaluate.models.fits import Fit, shared_fit
from materialize.evaluate.models.holdout import binary, hold_out, ndcg_of_hidden

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["ItemKnn", "choose_neighbours", "pairs", "ranking", "similarities"]

Float32 = npt.NDArray[np.float32]

_NEIGHBOURS = (20, 50, 100, 200)


def pairs() -> PairModel:
    """Return the model of pairs."""
    return CalibratedRanker(ItemKnn())


def ranking() -> FullRanker:
    """Return the model that ranks the catalogue."""
    return CalibratedRanking(ItemKnn())


class ItemKnn:
    """Ranks items by the summed cosine similarity to the items of a row's history.

    State: ``similarity`` csr_array float32 (n_items, n_items), of each item its nearest ones,
    fitted on events before the cut-off; their number (20 to 200) is chosen on held-out users.

    References
    ----------
    Sarwar et al. Item-based collaborative filtering recommendation algorithms. WWW 2001.
    """

    name = "item_knn"
    task_specific = False

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Find the neighbours, or take those that another task of this cohort has found."""

        def make() -> Fit:
            found = similarities(cohort.past, choose_neighbours(cohort))
            return {"data": found.data, "indices": found.indices, "indptr": found.indptr}

        fit = shared_fit(cohort, self.name, 0, make)
        n_items = len(cohort.catalogue.popularity)
        self.similarity = sparse.csr_array(
            (fit["data"], fit["indices"], fit["indptr"]), shape=(n_items, n_items)
        )
        self._history = binary(cohort.history)

    def scores(self, rows: npt.NDArray[np.int64]) -> Float32:
        """Return float32 (len(rows), n_items); zeros for a row without history."""
        return np.asarray((self._history[rows] @ self.similarity).toarray(), np.float32)


def choose_neighbours(cohort: Cohort) -> int:
    """Return the number of neighbours that ranks held-out users' hidden items best (nDCG@50)."""
    held = hold_out(cohort.past)
    if held.known.shape[0] == 0:
        return _NEIGHBOURS[0]
    known = binary(held.known)
    found = [
        ndcg_of_hidden(held, (known @ similarities(held.fit, k)).toarray()) for k in _NEIGHBOURS
    ]
    return _NEIGHBOURS[int(np.argmax(found))]


def similarities(past: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """Return each item's nearest items by cosine, itself left out, float32 (n_items, n_items).

    Parameters
    ----------
    past : csr_array (n_users, n_items)
        What was consumed; an interaction counts once, whatever its weight.
    neighbours : int
        Of each item (row) at most.
    """
    from implicit.nearest_neighbours import ItemItemRecommender

    interactions = sparse.csr_matrix(binary(past)).astype(np.float64)  # the library's own type
    count = np.bincount(interactions.indices, minlength=past.shape[1])
    # Columns of length 1, so that products are cosines. (The library's own cosine recommender
    # warns of the matrix that it makes for itself.)
    interactions.data /= np.sqrt(count)[interactions.indices]
    model = ItemItemRecommender(K=neighbours + 1)  # an item is its own nearest
    model.fit(interactions, show_progress=False)
    found = sparse.csr_array(model.similarity).astype(np.float32)
    found.setdiag(0)
    found.eliminate_zeros()
    return found
