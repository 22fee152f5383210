"""Linear probe: how much of a user's next days an embedding knows, against two baselines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from encoder.errors import EvaluationFault
from encoder.metrics import AucReplicates, auc_per_target, bootstrap_auc
from encoder.resampling import Interval
from materialize.evaluate.checks import check_no_leak, check_rows
from materialize.evaluate.labels import Labels, training_users

__all__ = ["BASELINES", "EMBEDDING", "GroupResult", "ModelResult", "ProbeReport", "run_probe"]

logger = logging.getLogger(__name__)

EMBEDDING = "embedding"
BASELINES = ("raw_pooled", "popularity")

_ESTABLISHED_FROM = 20
_COLD_UP_TO = 10
_MIN_CONTROL_RESAMPLES = 200


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


def run_probe(
    labels: Labels,
    embeddings: npt.NDArray[Any],
    raw: npt.NDArray[Any],
    *,
    as_of: npt.NDArray[np.datetime64],
    n_events: npt.NDArray[Any] | None = None,
    seed: int = 0,
    n_bootstrap: int = 500,
) -> ProbeReport:
    """Return how well a linear probe predicts the labels of test users, with two baselines.

    Parameters
    ----------
    labels : Labels
    embeddings : float (n_rows, dim)
        The embedding known at each label's time, in label order. A row of NaN: there is none.
    raw : float (n_rows, n_features)
        Baseline ``raw_pooled``: the raw pooled features known at the same time, same NaN rule.
    as_of : datetime64[us] (n_rows,)
        Newest event time inside each row's features, UTC; NaT where there is none.
    n_events : int (n_rows,), optional
        Events known of the user at label time; gives results for established and cold users.
    seed : int
        Held-out users of the probe, resamples, and the control's shuffle.
    n_bootstrap : int
        Resamples of the test users.

    Raises
    ------
    EvaluationFault
        A leak (see ``check_no_leak``), features that do not fit the labels, no target with both
        classes among the training or the test users, or a control that beats chance.

    Notes
    -----
    One logistic regression a feature set, fitted on 60% of the users and judged on the others. The
    baseline ``popularity`` scores each target with its share of the events before the cut-off, the
    same for everybody, hence its macro AUC is 0.5. A row without features gets the training mean
    and a 1 in an additional column, so that no user is left out of the comparison.

    The control shuffles the label rows among training users and among test users, then runs the
    same code. Nothing links labels and features any more; what still scores above chance, or
    below it, is an error in the evaluation. It raises when 0.5 is outside its interval stretched to
    twice its length (about 4 standard errors).
    """
    training = training_users(labels.user_id)
    check_no_leak(labels, as_of, training)
    features = {EMBEDDING: embeddings, BASELINES[0]: raw}
    for name, x in features.items():
        check_rows(labels, x, name)
    _check_classes(labels.y[training], "training")
    _check_classes(labels.y[~training], "test")

    y, users = labels.y[~training], labels.user_id[~training]
    popularity = np.broadcast_to(labels.popularity, y.shape)
    scores: dict[str, npt.NDArray[Any]] = {}
    l2: dict[str, float] = {}
    with tqdm(total=len(features) + 1, desc="probe", unit="fit") as bar:
        for name, x in features.items():
            scores[name], l2[name] = _fit_and_score(x, labels.y, labels.user_id, training, seed)
            bar.update()
        shuffled = _shuffled_within(labels.y, training, seed)
        by_chance, _ = _fit_and_score(embeddings, shuffled, labels.user_id, training, seed)
        bar.update()
    # A few resamples give an interval too short to raise an alarm on.
    n_control = max(n_bootstrap, _MIN_CONTROL_RESAMPLES)
    control = bootstrap_auc(
        shuffled[~training], by_chance, users, n_resamples=n_control, seed=seed
    ).macro_interval
    _check_control(control)
    scores[BASELINES[1]] = popularity
    groups = {
        name: _judge(
            y[rows], {m: s[rows] for m, s in scores.items()}, users[rows], n_bootstrap, seed
        )
        for name, rows in tqdm(
            list(_groups(y, None if n_events is None else n_events[~training])),
            desc="bootstrap",
            unit="group",
        )
    }
    report = ProbeReport(
        targets=labels.targets,
        horizon_days=labels.horizon_days,
        n_training_rows=int(training.sum()),
        n_training_users=len(np.unique(labels.user_id[training])),
        groups=groups,
        per_target=tuple(_per_target(labels.targets, y, {m: scores[m] for m in features})),
        control=control,
        missing={m: int(np.isnan(x).all(axis=1).sum()) for m, x in features.items()},
        l2=l2,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    found = groups["all"].models
    logger.info(
        "probe: %d test users, micro AUC %s",
        groups["all"].n_users,
        ", ".join(f"{m} {r.auc_micro.value:.4f}" for m, r in found.items()),
    )
    return report


def _fit_and_score(
    x: npt.NDArray[Any],
    y: npt.NDArray[np.bool_],
    users: npt.NDArray[Any],
    training: npt.NDArray[np.bool_],
    seed: int,
) -> tuple[npt.NDArray[np.float32], float]:
    # Here and not above: reading a stored report, or `--help`, must not wait for torch.
    from encoder.heads import LinearProbe

    present = _with_presence(x, training)
    probe = LinearProbe().fit(present[training], y[training], users[training], seed=seed)
    return probe.scores(present[~training]), probe.l2


def _with_presence(x: npt.NDArray[Any], training: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return ``x`` with missing rows at the training mean and a last column that marks them."""
    missing = np.isnan(x).all(axis=1)
    known = x[training & ~missing]
    filled = np.empty((len(x), x.shape[1] + 1), np.float32)
    filled[:, :-1] = x
    filled[missing, :-1] = known.mean(axis=0) if len(known) else 0.0
    filled[:, -1] = missing
    return filled


def _shuffled_within(
    y: npt.NDArray[np.bool_], training: npt.NDArray[np.bool_], seed: int
) -> npt.NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    shuffled = y.copy()
    for side in (training, ~training):
        shuffled[side] = rng.permutation(y[side])
    return shuffled


def _groups(
    y: npt.NDArray[np.bool_], n_events: npt.NDArray[Any] | None
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    yield "all", np.ones(len(y), bool)
    if n_events is not None:
        for name, rows in (
            ("established", n_events >= _ESTABLISHED_FROM),
            ("cold", n_events <= _COLD_UP_TO),
        ):
            if y[rows].any() and not y[rows].all():
                yield name, rows


def _judge(
    y: npt.NDArray[np.bool_],
    scores: Mapping[str, npt.NDArray[Any]],
    users: npt.NDArray[Any],
    n_bootstrap: int,
    seed: int,
) -> GroupResult:
    replicates = {
        name: bootstrap_auc(y, s, users, n_resamples=n_bootstrap, seed=seed)
        for name, s in scores.items()
    }
    return GroupResult(
        n_rows=len(y),
        n_users=len(np.unique(users)),
        models={name: ModelResult.of(r) for name, r in replicates.items()},
        differences={
            name: ModelResult.of(replicates[EMBEDDING].minus(replicates[name]))
            for name in BASELINES
        },
    )


def _per_target(
    targets: tuple[str, ...], y: npt.NDArray[np.bool_], scores: Mapping[str, npt.NDArray[Any]]
) -> Iterator[dict[str, Any]]:
    auc = {name: auc_per_target(y, s) for name, s in scores.items()}
    for t, target in enumerate(targets):
        values = {m: None if np.isnan(a[t]) else float(a[t]) for m, a in auc.items()}
        yield {"target": target, "base_rate": float(y[:, t].mean())} | values


def _check_classes(y: npt.NDArray[np.bool_], side: str) -> None:
    if not (y.any(axis=0) & ~y.all(axis=0)).any():
        raise EvaluationFault(
            f"No target has both classes among the {len(y)} {side} row(s). Choose a longer horizon "
            "or a cut-off with more users on both sides."
        )


def _check_control(control: Interval) -> None:
    slack = (control.high - control.low) / 2
    if not control.low - slack <= 0.5 <= control.high + slack:
        raise EvaluationFault(
            f"With shuffled labels the probe has macro AUC {control.value:.3f} "
            f"[{control.low:.3f}, {control.high:.3f}], 0.5 expected: the evaluation leaks. "
            "Its figures are not reported; look for features or rows that carry the label."
        )
