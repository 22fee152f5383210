"""Laws are found where they were planted."""

from __future__ import annotations

import numpy as np
import pytest

from encoder.scaling_law import PowerLaw, Run, fit_law, fit_runs, frontier

PLANTED = PowerLaw(scale=2.0, exponent=0.3, constant=0.5, unit=1e12)


def _runs(law: PowerLaw, *, noise: float = 0.0, n: int = 12) -> list[Run]:
    """Return runs of growing models, each close to the law at the end of its own stretch."""
    rng = np.random.default_rng(0)
    runs = []
    for k in range(n):
        compute = np.geomspace(1e10, 10 ** (10.5 + 0.4 * k), 20)
        late = 1 + 0.5 * (1 - np.arange(20) / 19) ** 2  # above the law until it is trained
        runs.append(Run(compute, law(compute) * late * np.exp(noise * rng.standard_normal(20))))
    return runs


@pytest.mark.parametrize("law", [PLANTED, PowerLaw(2.0, 0.3, 0.0, 1e12)])
def test_a_planted_law_is_found_exactly(law: PowerLaw) -> None:
    compute = np.geomspace(1e10, 1e15, 9)
    found = fit_law(compute, law(compute), constant=True)
    assert found.exponent == pytest.approx(0.3, abs=1e-4)
    assert found.constant == pytest.approx(law.constant, abs=1e-3)
    assert found(compute) == pytest.approx(law(compute), rel=1e-5)


def test_a_pure_law_by_hand() -> None:
    # Tenfold compute halves the loss: exponent log10(2).
    found = fit_law(np.array([1.0, 10.0, 100.0]), np.array([4.0, 2.0, 1.0]), constant=False)
    assert found.exponent == pytest.approx(np.log10(2))
    assert found.unit == pytest.approx(10)
    assert found.scale == pytest.approx(2)


def test_the_frontier_is_the_best_so_far() -> None:
    one = Run(np.array([1.0, 10.0, 100.0]), np.array([5.0, 4.0, 3.9]))
    other = Run(np.array([10.0, 100.0, 1000.0]), np.array([6.0, 3.0, 3.5]))
    compute, loss = frontier([one, other], n_bins=3)
    # The last stretch holds 100 and 1,000; the first 1, the second 10.
    assert compute.tolist() == [1, 10, 100]
    assert loss.tolist() == [5, 4, 3]


def test_a_planted_constant_is_seen_through_runs_that_stop_anywhere() -> None:
    runs = _runs(PLANTED, noise=0.01)
    pure, full = (fit_runs(runs, constant=c, n_resamples=100) for c in (False, True))
    # Between their ends runs lie above the law, which no resampling knows of.
    assert full.exponent.value == pytest.approx(0.3, abs=0.03)
    assert full.constant.value == pytest.approx(0.5, abs=0.06)
    assert full.exponent.low < full.exponent.value < full.exponent.high
    assert full.aic < pure.aic
    assert pure.constant.value == 0
    assert full.n_runs == 12


def test_the_papers_points_fall_faster_than_a_power_law() -> None:
    # Digitised from the paper (arXiv 2111.11294, figure of loss against PF-days).
    days = np.array([1.9e-5, 1.1e-4, 9e-4, 3.8e-3, 1.5e-2, 3.8e-2])
    loss = np.array([5.14, 4.10, 2.93, 1.92, 1.01, 0.67])
    law = fit_law(days, loss, constant=False)
    assert 0.2 < law.exponent < 0.35
    # The local slope grows: no constant is approached.
    slopes = -np.diff(np.log(loss)) / np.diff(np.log(days))
    assert slopes[-1] > 2 * slopes[0]
    assert fit_law(days, loss, constant=True).constant == pytest.approx(0, abs=1e-3)


def test_too_few_points_are_told() -> None:
    with pytest.raises(ValueError, match="2 different amounts of compute given, a law with 3"):
        fit_law(np.array([1.0, 2.0]), np.array([2.0, 1.0]), constant=True)
