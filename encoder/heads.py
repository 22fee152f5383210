"""Heads on frozen features: the linear probe."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

__all__ = ["LinearProbe"]

logger = logging.getLogger(__name__)

_L2_PATH = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 3e-2, 1e-2, 1e-3, 1e-4, 1e-5)
"""A few hundred rows with a few hundred features want strong L2: with 0.1 as the strongest, every
probe on MovieLens 1M chose it, and the more features it had, the more it lost."""
_HELD_OUT_SHARE = 0.2


class LinearProbe:
    """Multi-label logistic regression whose L2 is chosen on held-out training users.

    Parameters
    ----------
    max_iterations : int
        L-BFGS iterations per strength of L2.
    device : str or torch.device
        Where to fit and score; CPU float32 is the reference.

    Notes
    -----
    Minimises ``mean over rows of sum over targets of cross entropy + l2 / 2 * ||W||^2``, bias not
    penalised, with full-batch L-BFGS. The L2 path runs from strong to weak, each fit starting from
    the one before, and ends when the held-out loss has risen; the best L2 is then refitted on all
    rows. The same input, seed, thread count and device give the same weights.

    State: ``fit`` learns ``mean`` and ``scale`` float32 (n_features,), ``weight`` float32
    (n_features, n_targets), ``bias`` float32 (n_targets,), ``l2``, and ``held_out_losses`` (l2 to
    mean held-out cross entropy of a target). A second ``fit`` replaces all of it.

    References
    ----------
    Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes.
    Nocedal and Wright (2006), Numerical Optimization, algorithms 3.5 and 7.5, as torch has them.
    """

    def __init__(self, *, max_iterations: int = 60, device: str | torch.device = "cpu") -> None:
        self.max_iterations = max_iterations
        self.device = torch.device(device)

    def fit(
        self, x: npt.NDArray[Any], y: npt.NDArray[np.bool_], users: npt.NDArray[Any], *, seed: int
    ) -> LinearProbe:
        """Fit on training rows and return self.

        Parameters
        ----------
        x : float (n_rows, n_features), finite
        y : bool (n_rows, n_targets)
            A target with one class only gets its base rate and no weights to speak of.
        users : (n_rows,)
            Whose row it is; a user is never on both sides of the held-out split.
        seed : int
            Chooses the held-out users.

        Raises
        ------
        ValueError
            Shapes that do not fit, NaN or infinity, or fewer than two users.
        FloatingPointError
            The loss became NaN or infinite.
        """
        _check(x, y, users)
        names, owner = np.unique(users, return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"{len(names)} training user(s) given, at least 2 expected.")
        n_held = max(1, round(_HELD_OUT_SHARE * len(names)))
        held = np.zeros(len(names), bool)
        held[np.random.default_rng(seed).permutation(len(names))[:n_held]] = True
        # Fitting rows first: both parts are then views of one standardised copy.
        order = np.argsort(held[owner], kind="stable")
        n_fit = len(order) - int(held[owner].sum())

        self._standardise_on(x)
        inputs = self._inputs(x, order)  # (n_rows, n_features)
        labels = torch.from_numpy(y[order].astype(np.float32)).to(self.device)
        parameters = _at_base_rate(inputs.shape[1], labels)

        self.held_out_losses: dict[float, float] = {}
        best = parameters
        for l2 in _L2_PATH:
            parameters = self._minimise(inputs[:n_fit], labels[:n_fit], parameters, l2)
            loss = _loss(inputs[n_fit:], labels[n_fit:], parameters).item() / labels.shape[1]
            self.held_out_losses[l2] = loss
            logger.debug("l2=%g: held-out loss %.5f", l2, loss)
            if loss > min(self.held_out_losses.values()):
                break
            best = parameters
        self.l2 = min(self.held_out_losses, key=lambda k: self.held_out_losses[k])
        fitted = self._minimise(inputs, labels, best, self.l2)
        self.weight = fitted[:-1].cpu().numpy()
        self.bias = fitted[-1].cpu().numpy()
        return self

    def scores(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return logits, float32 (n_rows, n_targets), comparable between targets.

        Parameters
        ----------
        x : float (n_rows, n_features), finite, the columns of ``fit``
        """
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x of shape {x.shape} given, (n_rows, {len(self.mean)}) expected.")
        weight = torch.from_numpy(self.weight).to(self.device)
        bias = torch.from_numpy(self.bias).to(self.device)
        logits = self._inputs(x, slice(None)) @ weight + bias  # (n_rows, n_targets)
        return np.asarray(logits.cpu().numpy(), np.float32)

    def _standardise_on(self, x: npt.NDArray[Any]) -> None:
        # float64 sums: float32 ones lose digits over 100,000 rows.
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = x.std(axis=0, dtype=np.float64)
        # A constant column's spread is rounding noise; dividing by it would blow the noise up.
        constant = spread <= 1e-6 * np.maximum(np.abs(self.mean), 1e-6)
        self.scale = np.where(constant, 1.0, spread).astype(np.float32)

    def _inputs(self, x: npt.NDArray[Any], rows: npt.NDArray[np.intp] | slice) -> torch.Tensor:
        picked = x[rows].astype(np.float32)
        picked -= self.mean
        picked /= self.scale
        return torch.from_numpy(picked).to(self.device)

    def _minimise(
        self, inputs: torch.Tensor, labels: torch.Tensor, start: torch.Tensor, l2: float
    ) -> torch.Tensor:
        parameters = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [parameters],
            max_iter=self.max_iterations,
            history_size=20,
            tolerance_grad=1e-5,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = _loss(inputs, labels, parameters) + l2 / 2 * parameters[:-1].square().sum()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The linear probe's loss is {loss.item()} at l2={l2}.")
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return parameters.detach()


def _at_base_rate(n_features: int, labels: torch.Tensor) -> torch.Tensor:
    """Return zero weights and, as the last row, the bias of each target's (smoothed) base rate."""
    rate = (labels.sum(dim=0) + 0.5) / (len(labels) + 1)
    parameters = torch.zeros(n_features + 1, labels.shape[1], device=labels.device)
    parameters[-1] = torch.logit(rate)
    return parameters


def _loss(inputs: torch.Tensor, labels: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of the cross entropy summed over targets."""
    logits = torch.addmm(parameters[-1], inputs, parameters[:-1])  # (n_rows, n_targets)
    return binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(labels)


def _check(x: npt.NDArray[Any], y: npt.NDArray[Any], users: npt.NDArray[Any]) -> None:
    if x.ndim != 2 or y.ndim != 2 or not len(x) == len(y) == len(users) > 0:
        raise ValueError(
            f"x {x.shape}, y {y.shape} and users {users.shape} given, expected "
            "(n_rows, n_features), (n_rows, n_targets) and (n_rows,) with n_rows > 0."
        )
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"x[{row}, {column}] is {x[row, column]}, finite values are expected.")
