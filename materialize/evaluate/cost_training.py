"""What training costs a downstream task: time and size of its model, at equal quality."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.resampling import Draws, Replicates, auc_replicates, user_draws

if TYPE_CHECKING:
    from encoder.heads import LinearProbe
    from encoder.network_probe import NetworkProbe
    from materialize.evaluate.cohort import Cohort

__all__ = ["Fitted", "Interests", "cheapest_equal", "fit_ladder", "fit_linear", "interests_of"]

_MAX_TARGETS = 30
_WIDTHS = (16, 64, 256)


@dataclass(frozen=True, eq=False)
class Interests:
    """A downstream task: the kinds of item that the user will consume within the horizon.

    Attributes
    ----------
    y : bool (n_rows, n_targets)
    targets : tuple of str
    """

    y: npt.NDArray[np.bool_]
    targets: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model of the task.

    Attributes
    ----------
    model : str
        For tables: ``linear``, ``network of 64``.
    numbers : int
        Inputs a row.
    parameters : int
    seconds : float
        Processor time of the fit, over all threads, the choice of its settings included.
    auc : Replicates
        Over all (row, target) pairs of test users.
    """

    model: str
    numbers: int
    parameters: int
    seconds: float
    auc: Replicates

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "model": self.model,
            "numbers": self.numbers,
            "parameters": self.parameters,
            "seconds": round(self.seconds, 4),
            "auc": self.auc.interval.to_dict(),
        }


def interests_of(cohort: Cohort) -> Interests | None:
    """Return the task of a cohort: its most frequent kinds of item, 30 at most.

    Those that all or no training or test rows have are left out; None: no kind is left.
    """
    y = cohort.future_tags[:, :_MAX_TARGETS].toarray().astype(bool)
    useful = np.ones(y.shape[1], bool)
    for rows in (cohort.training, ~cohort.training):
        useful &= y[rows].any(axis=0) & ~y[rows].all(axis=0)
    if not useful.any():
        return None
    names = tuple(name for name, kept in zip(cohort.tag_names, useful, strict=False) if kept)
    return Interests(y[:, useful], names)


def fit_linear(
    cohort: Cohort, task: Interests, x: npt.NDArray[Any], seed: int, n_resamples: int
) -> Fitted:
    """Fit the linear head on features ``x`` float (n_rows, n_features) and judge it."""
    from encoder.heads import LinearProbe

    head, seconds = _timed(LinearProbe(), cohort, task, x, seed)
    parameters = (x.shape[1] + 1) * len(task.targets)
    return _judged("linear", head, parameters, seconds, cohort, task, x, n_resamples)


def fit_ladder(
    cohort: Cohort, task: Interests, x: npt.NDArray[Any], seed: int, n_resamples: int
) -> list[Fitted]:
    """Fit the linear head and networks of growing width, by number of parameters."""
    from encoder.network_probe import NetworkProbe

    found = [fit_linear(cohort, task, x, seed, n_resamples)]
    for width in _WIDTHS:
        network, seconds = _timed(NetworkProbe(width), cohort, task, x, seed)
        found.append(
            _judged(
                f"network of {width}",
                network,
                network.n_parameters,
                seconds,
                cohort,
                task,
                x,
                n_resamples,
            )
        )
    return sorted(found, key=lambda fitted: fitted.parameters)


def cheapest_equal(ladder: Sequence[Fitted], wanted: Replicates) -> tuple[Fitted, bool]:
    """Return the smallest model that is not worse than ``wanted``, and whether there is one.

    Not worse: the paired 95% interval of the difference reaches 0. Where all are worse, the best
    one is returned.
    """
    for fitted in ladder:
        if fitted.auc.minus(wanted).interval.high >= 0:
            return fitted, True
    return max(ladder, key=lambda fitted: fitted.auc.value), False


def _timed(
    model: Any, cohort: Cohort, task: Interests, x: npt.NDArray[Any], seed: int
) -> tuple[Any, float]:
    rows = cohort.training
    # Processor time: what is paid for, and the same beside other work on the machine.
    began = time.process_time()
    model.fit(x[rows], task.y[rows], cohort.user_id[rows], seed=seed)
    return model, time.process_time() - began


def _judged(
    name: str,
    model: LinearProbe | NetworkProbe,
    parameters: int,
    seconds: float,
    cohort: Cohort,
    task: Interests,
    x: npt.NDArray[Any],
    n_resamples: int,
) -> Fitted:
    test = np.flatnonzero(~cohort.training)
    y = task.y[test]
    of_pair = np.repeat(np.arange(len(test)), y.shape[1])
    draws: Draws = user_draws(cohort.user_id[test], n_resamples).take(of_pair)
    found = auc_replicates(y.ravel(), model.scores(x[test]).ravel(), draws)
    return Fitted(name, x.shape[1], parameters, seconds, found)
