"""What a probe found, for users' groups and targets; plain JSON types on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from encoder.metrics import AucReplicates
from encoder.resampling import Interval
from materialize.evaluate.measurement import EMBEDDING

__all__ = ["GroupResult", "ModelResult", "ProbeReport"]


@dataclass(frozen=True)
class ModelResult:
    """AUC of one model, or the difference of two, with 95% intervals over users."""

    auc_micro: Interval
    auc_macro: Interval

    @classmethod
    def of(cls, replicates: AucReplicates) -> ModelResult:
        """Return the intervals of a model's or a difference's replicates."""
        return cls(replicates.micro_interval, replicates.macro_interval)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"auc_micro": self.auc_micro.to_dict(), "auc_macro": self.auc_macro.to_dict()}


@dataclass(frozen=True)
class GroupResult:
    """Results on the test rows of one group of users.

    Attributes
    ----------
    models : mapping of str to ModelResult
        ``embedding``, ``raw_pooled``, ``popularity``.
    differences : mapping of str to ModelResult
        Embedding minus each baseline, paired: the same resampled users on both sides.
    """

    n_rows: int
    n_users: int
    models: Mapping[str, ModelResult]
    differences: Mapping[str, ModelResult]

    @classmethod
    def of(cls, replicates: Mapping[str, AucReplicates], n_rows: int, n_users: int) -> GroupResult:
        """Return the result of models that were judged on the same resamples."""
        models = {name: ModelResult.of(r) for name, r in replicates.items()}
        differences = {
            name: ModelResult.of(replicates[EMBEDDING].minus(r))
            for name, r in replicates.items()
            if name != EMBEDDING
        }
        return cls(n_rows, n_users, models, differences)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "n_rows": self.n_rows,
            "n_users": self.n_users,
            "models": {name: m.to_dict() for name, m in self.models.items()},
            "differences": {name: d.to_dict() for name, d in self.differences.items()},
        }


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes
    ----------
    groups : mapping of str to GroupResult
        ``all``, and with event counts ``established`` (20 events and more) and ``cold`` (10 and
        fewer); a group without a positive or without a negative test row is left out.
    per_target : tuple of mapping
        ``target``, ``base_rate`` among test rows, and the test AUC of each learned model; None
        where a target has one class only.
    control : Interval
        Macro AUC of the embedding with shuffled labels; around 0.5 or ``run_probe`` raises.
    missing : mapping of str to int
        Rows without such features, by model; they are kept.
    l2 : mapping of str to float
        The strength of L2 that held-out training users chose, by model.
    """

    targets: tuple[str, ...]
    horizon_days: int
    n_training_rows: int
    n_training_users: int
    groups: Mapping[str, GroupResult]
    per_target: tuple[Mapping[str, Any], ...]
    control: Interval
    missing: Mapping[str, int]
    l2: Mapping[str, float]
    n_bootstrap: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "targets": list(self.targets),
            "horizon_days": self.horizon_days,
            "n_training_rows": self.n_training_rows,
            "n_training_users": self.n_training_users,
            "groups": {name: g.to_dict() for name, g in self.groups.items()},
            "per_target": [dict(row) for row in self.per_target],
            "control": self.control.to_dict(),
            "missing": dict(self.missing),
            "l2": dict(self.l2),
            "n_bootstrap": self.n_bootstrap,
            "seed": self.seed,
        }
