"""What frozen vectors of a grid's networks are worth in a task: the loss of a linear head."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.clue.encoding import encode_users
from encoder.clue.network import ClueNetwork
from encoder.clue.sequences import UserSequences
from encoder.errors import DataFault
from encoder.metrics import bootstrap_auc
from materialize.config import RepoSettings
from materialize.evaluate.job import repository_labels
from materialize.evaluate.labels import Labels
from materialize.evaluate.probe import linear_scores
from materialize.evaluate.split import training_users

__all__ = ["Downstream", "downstream_of"]

_log = logging.getLogger(__name__)

_RESAMPLES = 200


@dataclass(frozen=True)
class Downstream:
    """Which kinds of item users consume after the cut-off, told from their vectors before it.

    Attributes
    ----------
    labels : Labels
        Those of the repository's probe. What is known of a user ends at the cut-off, at whatever
        moment after it a label is taken.
    seed : int
        Of the head's held-out users and of the resamples.
    """

    labels: Labels
    seed: int

    def measure(self, network: ClueNetwork, sequences: UserSequences) -> dict[str, Any]:
        """Fit a linear head on training users' vectors and judge it on test users.

        Parameters
        ----------
        network : ClueNetwork
            Frozen.
        sequences : UserSequences
            Events before the cut-off.

        Returns
        -------
        dict
            ``loss``, the mean cross entropy of a target (nats); ``auc_micro`` with ``value``,
            ``low``, ``high``, 95% over users; ``test_rows``; ``base_loss``, that of the targets'
            base rates.
        """
        labels = self.labels
        training = training_users(labels.user_id)
        x = self._vectors(network, sequences)
        logits, _ = linear_scores(x, labels.y, labels.user_id, training, self.seed)
        y = labels.y[~training]
        rates = np.clip(labels.y[training].mean(axis=0), 1e-6, 1 - 1e-6)
        base = np.broadcast_to(np.log(rates / (1 - rates)), y.shape)
        auc = bootstrap_auc(
            y, logits, labels.user_id[~training], n_resamples=_RESAMPLES, seed=self.seed
        )
        return {
            "loss": _cross_entropy(logits, y),
            "base_loss": _cross_entropy(base, y),
            "auc_micro": auc.micro_interval.to_dict(),
            "test_rows": len(y),
        }

    def _vectors(self, network: ClueNetwork, sequences: UserSequences) -> npt.NDArray[np.float32]:
        """Return a vector for each label, float32 (n_rows, dim), NaN without events before."""
        place = {user: k for k, user in enumerate(sequences.users)}
        rows = np.array([place[str(user)] for user in self.labels.user_id], np.int64)
        users, back = np.unique(rows, return_inverse=True)
        vectors = encode_users(network, sequences, users)
        vectors[~vectors.any(axis=1)] = np.nan
        return vectors[back]


def downstream_of(settings: RepoSettings) -> Downstream | None:
    """Return the task of a repository's probe; None, and said in the log, where there is none.

    Items without tags are told apart by their content clusters, so the raw features must be built.
    """
    try:
        return Downstream(repository_labels(settings), settings.file.seed)
    except DataFault as exc:
        _log.warning("runs are not judged downstream: %s", exc)
        return None


def _cross_entropy(logits: npt.NDArray[Any], y: npt.NDArray[np.bool_]) -> float:
    against = np.where(y, -1.0, 1.0) * np.asarray(logits, np.float64)
    return float(np.logaddexp(0.0, against).mean())
