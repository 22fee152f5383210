"""What a model of the evaluation is: a representation, a scorer of pairs, or a full ranker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from encoder.errors import EvaluationFault

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort

__all__ = ["FullRanker", "PairModel", "Pairs", "UserModel", "check_pairs"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a cohort's row and an item, with what happened: what a pair model is fitted on.

    Attributes
    ----------
    row : int64 (n_pairs,)
        Position in the cohort's rows.
    item : int64 (n_pairs,)
        Position in the catalogue.
    y : bool (n_pairs,)
        True: the row's user consumed the item between the moment and the horizon's end.
    log_q : float32 (n_pairs,), optional
        Logarithm of the item's chance to be drawn as a negative, up to a constant of the sampling:
        the log of its popularity where negatives are drawn by popularity, None (zeros) where they
        are drawn uniformly.

    Notes
    -----
    A positive beside sampled negatives has log odds ``log p(item | user) - log q(item)``. Models
    learn the first term and subtract the second while they fit, so that one fit on the pairs of
    several samplings serves all of them: score pairs of negatives that were drawn by ``q`` with
    ``model.score(row, item) - log_q``.

    References
    ----------
    Gutmann, Hyvarinen. Noise-contrastive estimation. AISTATS 2010, section 2.
    """

    row: Int64
    item: Int64
    y: npt.NDArray[np.bool_]
    log_q: Float32 | None = None

    def __post_init__(self) -> None:
        shapes = {
            name: np.shape(value)
            for name, value in vars(self).items()
            if not (name == "log_q" and value is None)
        }
        if set(shapes.values()) != {(len(self.row),)}:
            raise ValueError(f"Pairs of shapes {shapes} given, all (n_pairs,) expected.")

    def __len__(self) -> int:
        return len(self.row)

    @property
    def offset(self) -> Float32:
        """What is added to a score while fitting: ``-log_q``, zeros without one."""
        if self.log_q is None:
            return np.zeros(len(self), np.float32)
        return -np.asarray(self.log_q, np.float32)

    @classmethod
    def together(cls, parts: Sequence[Pairs]) -> Pairs:
        """Return the pairs of several samplings one after the other, to be fitted as one."""
        return cls(
            np.concatenate([p.row for p in parts]),
            np.concatenate([p.item for p in parts]),
            np.concatenate([p.y for p in parts]),
            np.concatenate([-p.offset for p in parts]),
        )

    def take(self, chosen: npt.NDArray[Any]) -> Pairs:
        """Return the pairs at these positions, or where a mask is true."""
        return Pairs(
            self.row[chosen],
            self.item[chosen],
            self.y[chosen],
            None if self.log_q is None else self.log_q[chosen],
        )


@runtime_checkable
class UserModel(Protocol):
    """A representation of users, read by the common light head and by tasks on neighbours."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    def vectors(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> Float32:
        """Return float32 (n_rows, k), finite: what is known of each row's user at its moment."""
        ...


@runtime_checkable
class PairModel(Protocol):
    """Scores pairs of a row and an item."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    @property
    def task_specific(self) -> bool:
        """True: trained end to end for this task alone; it is a bar and not a rival in kind."""
        ...

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, pairs: Pairs, seed: int) -> None:
        """Fit on pairs of training rows.

        Raises
        ------
        EvaluationFault
            Pairs of a test row, or of one class only.
        """
        ...

    def score(self, row: Int64, item: Int64) -> Float32:
        """Return log odds float32 (n_pairs,), as if negatives were drawn uniformly."""
        ...


@runtime_checkable
class FullRanker(Protocol):
    """Scores every item of the catalogue for chosen rows."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    @property
    def task_specific(self) -> bool:
        """As of a pair model."""
        ...

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Fit on events before the cut-off and, where it learns from them, training rows' futures.

        Raises
        ------
        EvaluationFault
            No training row has a future, where the model learns from them.
        """
        ...

    def scores(self, rows: Int64) -> Float32:
        """Return float32 (len(rows), n_items), higher first; items seen before are scored too."""
        ...


def check_pairs(cohort: Cohort, pairs: Pairs) -> None:
    """Refuse pairs that a model must not or cannot learn from.

    Raises
    ------
    EvaluationFault
        A pair of a test row, one class only, or no pair.
    """
    late = np.flatnonzero(~cohort.training[pairs.row])
    if late.size:
        user = cohort.user_id[pairs.row[late[0]]]
        raise EvaluationFault(
            f"{late.size} of {len(pairs)} pair(s) to fit on are of test users, first {user!r}. "
            "Give pairs of the cohort's training rows."
        )
    positive = int(pairs.y.sum())
    if positive in (0, len(pairs)):
        raise EvaluationFault(
            f"{positive} positive and {len(pairs) - positive} negative training pair(s): both are "
            "needed. Choose a longer horizon or more rows."
        )
