"""What a head loses when it reads other vectors than those it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.errors import DataFault
from encoder.metrics import AucReplicates, bootstrap_auc
from encoder.resampling import Interval
from materialize.evaluate.labels import Labels
from materialize.evaluate.split import training_users

__all__ = ["OldHeadReport", "judge_old_head"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OldHeadReport:
    """Macro AUC of a linear head on test users, by the vectors that it reads.

    Attributes
    ----------
    n_training_rows, n_rows, n_users : int
        Rows that heads were fitted on; rows and users that they were judged on.
    n_targets : int
    auc_macro : mapping of str to Interval
        ``old``: the old head on old vectors. ``bridged``, ``unbridged``: the old head on the new
        vectors, mapped and as they are; no ``unbridged`` where the widths differ. ``new_head``: a
        head fitted on the new vectors, reading them.
    loss : mapping of str to Interval
        ``old`` minus each other, paired: the same resampled users on both sides.
    """

    n_training_rows: int
    n_rows: int
    n_users: int
    n_targets: int
    auc_macro: Mapping[str, Interval]
    loss: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "n_training_rows": self.n_training_rows,
            "n_rows": self.n_rows,
            "n_users": self.n_users,
            "n_targets": self.n_targets,
            "auc_macro": {name: one.to_dict() for name, one in self.auc_macro.items()},
            "loss": {name: one.to_dict() for name, one in self.loss.items()},
        }


def judge_old_head(
    labels: Labels,
    old: Float32,
    new: Float32,
    bridged: Float32,
    *,
    seed: int,
    n_bootstrap: int = 500,
) -> OldHeadReport:
    """Fit a head on the old vectors of training users, and let it read test users' new ones.

    Parameters
    ----------
    labels : Labels
    old, new, bridged : float32 (n_rows, dim), in label order
        Known at each label's time; ``bridged`` are the new ones mapped into the old space. A row of
        NaN: there is none; such a row is left out of all.
    seed : int
        Held-out users of the heads, and resamples.
    n_bootstrap : int

    Raises
    ------
    DataFault
        Too few rows have vectors of both spaces, or no target has both classes among them.
    """
    from encoder.heads import LinearProbe  # torch: not for who only reads a stored report

    known = np.isfinite(np.concatenate([old, bridged], axis=1)).all(axis=1)
    training = training_users(labels.user_id) & known
    test = known & ~training
    y, users = labels.y[test], labels.user_id[test]
    if len(np.unique(labels.user_id[training])) < 2 or not y.any() or y.all():
        raise DataFault(
            f"Of {len(known)} labelled moments, {int(training.sum())} of training and "
            f"{int(test.sum())} of test users have vectors of both spaces: too few for a head. "
            "Materialise both with --from-history."
        )

    def head(vectors: Float32) -> LinearProbe:
        fitted = LinearProbe()
        return fitted.fit(
            vectors[training], labels.y[training], labels.user_id[training], seed=seed
        )

    old_head = head(old)
    scores = {"old": old_head.scores(old[test]), "bridged": old_head.scores(bridged[test])}
    if new.shape[1] == old.shape[1]:
        scores["unbridged"] = old_head.scores(new[test])
    scores["new_head"] = head(new).scores(new[test])
    found: dict[str, AucReplicates] = {
        name: bootstrap_auc(y, s, users, n_resamples=n_bootstrap, seed=seed)
        for name, s in scores.items()
    }
    if np.isnan(found["old"].macro):
        raise DataFault(
            f"No target has both classes among {len(y)} test row(s). Choose a longer horizon or a "
            "cut-off with more users on both sides."
        )
    return OldHeadReport(
        n_training_rows=int(training.sum()),
        n_rows=len(y),
        n_users=len(np.unique(users)),
        n_targets=y.shape[1],
        auc_macro={name: one.macro_interval for name, one in found.items()},
        loss={
            name: found["old"].minus(one).macro_interval
            for name, one in found.items()
            if name != "old"
        },
    )
