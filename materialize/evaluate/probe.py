"""Linear probe: how much of a user's next days an embedding knows, against two baselines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.errors import EvaluationFault
from encoder.metrics import AucReplicates, auc_per_target, bootstrap_auc
from encoder.resampling import Interval
from materialize.evaluate.checks import check_no_leak, check_rows
from materialize.evaluate.labels import Labels
from materialize.evaluate.measurement import EMBEDDING
from materialize.evaluate.probe_results import GroupResult, ProbeReport
from materialize.evaluate.split import training_users

__all__ = [
    "BASELINES",
    "EMBEDDING",
    "ProbeScores",
    "judge_groups",
    "linear_scores",
    "probe_report",
    "probe_scores",
    "run_probe",
    "shuffled_control",
    "with_presence",
]

logger = logging.getLogger(__name__)

BASELINES = ("raw_pooled", "popularity")

_ESTABLISHED_FROM = 20
_COLD_UP_TO = 10
_MIN_CONTROL_RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """What fitted models say of the test rows.

    Attributes
    ----------
    training : bool (n_rows,)
        Rows that were fitted on; the others are the test rows.
    scores : mapping of str to float (n_test_rows, n_targets)
        By model; comparable between targets.
    l2 : mapping of str to float
        Of the models that were fitted.
    missing : mapping of str to int
    control : Interval
        As of ``ProbeReport``.
    """

    training: npt.NDArray[np.bool_]
    scores: Mapping[str, npt.NDArray[Any]]
    l2: Mapping[str, float]
    missing: Mapping[str, int]
    control: Interval


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
    features = {EMBEDDING: embeddings, BASELINES[0]: raw}
    scores = probe_scores(labels, features, as_of=as_of, seed=seed, n_bootstrap=n_bootstrap)
    test = ~scores.training
    groups = _groups(labels.y[test], None if n_events is None else n_events[test])
    judged = judge_groups(labels, scores, groups, n_resamples=n_bootstrap, seed=seed)
    return probe_report(labels, scores, groups, judged, seed)


def probe_scores(
    labels: Labels,
    features: Mapping[str, npt.NDArray[Any]],
    *,
    as_of: npt.NDArray[np.datetime64],
    seed: int,
    n_bootstrap: int,
) -> ProbeScores:
    """Check for leaks, fit a linear probe on each feature set, and run the shuffled control.

    Parameters
    ----------
    labels : Labels
    features : mapping of str to float (n_rows, n_features)
        In label order, ``embedding`` among them: the control is run on it. A row of NaN: none.
    as_of, seed, n_bootstrap
        As of ``run_probe``, which also tells what is raised.
    """
    training = training_users(labels.user_id)
    check_no_leak(labels, as_of, training)
    for name, x in features.items():
        check_rows(labels, x, name)
    _check_classes(labels.y[training], "training")
    _check_classes(labels.y[~training], "test")
    scores: dict[str, npt.NDArray[Any]] = {}
    l2: dict[str, float] = {}
    for name, x in features.items():
        scores[name], l2[name] = linear_scores(x, labels.y, labels.user_id, training, seed)
    control = shuffled_control(
        features[EMBEDDING], labels.y, labels.user_id, training, seed, n_bootstrap
    )
    scores[BASELINES[1]] = np.broadcast_to(labels.popularity, labels.y[~training].shape)
    missing = {name: int(np.isnan(x).all(axis=1).sum()) for name, x in features.items()}
    return ProbeScores(training, scores, l2, missing, control)


def judge_groups(
    labels: Labels,
    scores: ProbeScores,
    groups: Mapping[str, npt.NDArray[np.bool_]],
    *,
    n_resamples: int,
    seed: int = 0,
) -> dict[str, dict[str, AucReplicates]]:
    """Return each model's AUC with replicates, by group, then by model.

    Parameters
    ----------
    labels : Labels
    scores : ProbeScores
    groups : mapping of str to bool (n_test_rows,)
    n_resamples, seed : int
        Of the users.
    """
    test = ~scores.training
    y, users = labels.y[test], labels.user_id[test]
    return {
        name: {
            model: bootstrap_auc(y[rows], s[rows], users[rows], n_resamples=n_resamples, seed=seed)
            for model, s in scores.scores.items()
        }
        for name, rows in groups.items()
    }


def probe_report(
    labels: Labels,
    scores: ProbeScores,
    groups: Mapping[str, npt.NDArray[np.bool_]],
    judged: Mapping[str, Mapping[str, AucReplicates]],
    seed: int,
) -> ProbeReport:
    """Return what the scores are worth, with intervals over users.

    Parameters
    ----------
    labels : Labels
    scores : ProbeScores
    groups : mapping of str to bool (n_test_rows,)
        ``all`` among them.
    judged : mapping
        Of ``judge_groups``, on these groups.
    seed : int
        That the probes were fitted with.
    """
    training = scores.training
    y, users = labels.y[~training], labels.user_id[~training]
    found = {
        name: GroupResult.of(judged[name], int(rows.sum()), len(np.unique(users[rows])))
        for name, rows in groups.items()
    }
    fitted = {model: scores.scores[model] for model in scores.l2}
    report = ProbeReport(
        targets=labels.targets,
        horizon_days=labels.horizon_days,
        n_training_rows=int(training.sum()),
        n_training_users=len(np.unique(labels.user_id[training])),
        groups=found,
        per_target=tuple(_per_target(labels.targets, y, fitted)),
        control=scores.control,
        missing=scores.missing,
        l2=scores.l2,
        n_bootstrap=len(judged["all"][EMBEDDING].micro_replicates),
        seed=seed,
    )
    logger.info(
        "probe: %d test users, micro AUC %s",
        found["all"].n_users,
        ", ".join(f"{m} {r.auc_micro.value:.4f}" for m, r in found["all"].models.items()),
    )
    return report


def shuffled_control(
    x: npt.NDArray[Any],
    y: npt.NDArray[np.bool_],
    users: npt.NDArray[Any],
    training: npt.NDArray[np.bool_],
    seed: int,
    n_resamples: int = _MIN_CONTROL_RESAMPLES,
) -> Interval:
    """Return the macro AUC of a linear probe whose label rows were shuffled, around 0.5.

    Parameters
    ----------
    x : float (n_rows, n_features)
        A row of NaN: none.
    y : bool (n_rows, n_targets)
    users : (n_rows,)
    training : bool (n_rows,)
    seed : int
        Of the shuffle and the fit.
    n_resamples : int
        At least 200 are made: a few give an interval too short to raise an alarm on.

    Raises
    ------
    EvaluationFault
        0.5 is outside the interval stretched to twice its length: the evaluation leaks.
    """
    shuffled = _shuffled_within(y, training, seed)
    by_chance, _ = linear_scores(x, shuffled, users, training, seed)
    control = bootstrap_auc(
        shuffled[~training],
        by_chance,
        users[~training],
        n_resamples=max(n_resamples, _MIN_CONTROL_RESAMPLES),
        seed=seed,
    ).macro_interval
    _check_control(control)
    return control


def linear_scores(
    x: npt.NDArray[Any],
    y: npt.NDArray[np.bool_],
    users: npt.NDArray[Any],
    training: npt.NDArray[np.bool_],
    seed: int,
) -> tuple[npt.NDArray[np.float32], float]:
    """Return a linear probe's logits of the test rows, and the strength of L2 it chose.

    Parameters as of ``shuffled_control``; logits are float32 (n_test_rows, n_targets).
    """
    # Here and not above: reading a stored report, or `--help`, must not wait for torch.
    from encoder.heads import LinearProbe

    present = with_presence(x, training)
    probe = LinearProbe().fit(present[training], y[training], users[training], seed=seed)
    return probe.scores(present[~training]), probe.l2


def with_presence(x: npt.NDArray[Any], training: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
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
) -> dict[str, npt.NDArray[np.bool_]]:
    groups = {"all": np.ones(len(y), bool)}
    if n_events is not None:
        groups |= {"established": n_events >= _ESTABLISHED_FROM, "cold": n_events <= _COLD_UP_TO}
    return {
        name: rows
        for name, rows in groups.items()
        if name == "all" or (y[rows].any() and not y[rows].all())
    }


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
