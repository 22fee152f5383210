"""What every benchmark shares: isolated runs, repeats, and records in one machine-readable form."""

from __future__ import annotations

import dataclasses
import importlib
import json
import operator
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._environment import ROOT, commit, hardware, peak_rss_bytes, versions

__all__ = ["RESULTS", "Measured", "Record", "compare", "repeat", "run_isolated", "write_results"]

RESULTS = ROOT / "benchmarks" / "results"
_TARGET = re.compile(
    r"(ours|ratio_to_baseline|ratio_to_limit) (<=|<|>=|>) (-?\d+(?:\.\d+)?(?:e-?\d+)?)"
)
_COMPARE = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


@dataclasses.dataclass(frozen=True)
class Record:
    """One measured claim; made by `compare`, written by `write_results`."""

    claim: str
    """What is measured, in one sentence."""
    ours: float
    """Median over the repeats, in ``unit``."""
    baseline: float | None
    """What somebody would use instead, measured in the same run."""
    baseline_name: str | None
    limit: float | None
    """What cannot be beaten (a bare loop, the hardware) or may not be passed."""
    limit_name: str | None
    unit: str
    ratio_to_baseline: float | None
    """ours / baseline."""
    ratio_to_limit: float | None
    """ours / limit."""
    target: str | None
    """``<ours|ratio_to_baseline|ratio_to_limit> <op> <number>``, decided before measuring."""
    met: bool | None
    """Whether the target holds; None without a target."""
    repeats: int
    spread: tuple[float, float]
    """Smallest and largest of the repeats, in ``unit``."""
    commit: str
    """Hash of the checkout; ``-dirty`` when tracked files differ from it."""
    versions: dict[str, str]
    hardware: dict[str, str | int | float]
    """cpu, cores (logical, that this process may use), memory_gib, and gpu where there is one."""
    seed: int | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one call in a fresh process gave and took."""

    result: Any
    """The callable's return value, after a round trip through JSON."""
    seconds: float
    """Wall time of the call alone: without starting Python and importing the target's module."""
    peak_rss_bytes: int
    """Largest resident memory of that process, imports included."""


def repeat(measure: Callable[[], float], repeats: int, warmup: int = 1) -> list[float]:
    """Call ``measure`` ``warmup`` + ``repeats`` times and return the last ``repeats`` results."""
    if repeats < 1:
        raise ValueError(f"repeats {repeats!r} given, at least 1 expected")
    for _ in range(warmup):
        measure()
    return [measure() for _ in range(repeats)]


def compare(
    claim: str,
    ours: Sequence[float],
    *,
    unit: str,
    baseline: tuple[str, Sequence[float]] | None = None,
    limit: tuple[str, float] | None = None,
    target: str | None = None,
    seed: int | None = None,
) -> Record:
    """Return the record of one claim.

    Parameters
    ----------
    claim : str
        What is measured, in one sentence.
    ours : sequence of float
        One figure a repeat, in ``unit``; the median counts.
    unit : str
        For example ``"rows/s"``.
    baseline : (name, one figure a repeat), optional
        The alternative; the caller has checked that it produced the same rows.
    limit : (name, figure), optional
        What cannot be beaten, or may not be passed.
    target : str, optional
        For example ``"ours <= 0.3"`` or ``"ratio_to_baseline >= 10"``.
    seed : int, optional
        Of everything random in the run.

    Raises
    ------
    ValueError
        No figure, or a target that cannot be read or names a ratio that was not measured.
    """
    if not ours:
        raise ValueError("ours: no figure given, one a repeat expected")
    figure = statistics.median(ours)
    other = statistics.median(baseline[1]) if baseline else None
    ratio_to_baseline = figure / other if other else None
    ratio_to_limit = figure / limit[1] if limit and limit[1] else None
    return Record(
        claim=claim,
        ours=figure,
        baseline=other,
        baseline_name=baseline[0] if baseline else None,
        limit=limit[1] if limit else None,
        limit_name=limit[0] if limit else None,
        unit=unit,
        ratio_to_baseline=ratio_to_baseline,
        ratio_to_limit=ratio_to_limit,
        target=target,
        met=_met(
            target,
            ours=figure,
            ratio_to_baseline=ratio_to_baseline,
            ratio_to_limit=ratio_to_limit,
        ),
        repeats=len(ours),
        spread=(min(ours), max(ours)),
        commit=commit(),
        versions=versions(),
        hardware=hardware(),
        seed=seed,
    )


def _met(target: str | None, **figures: float | None) -> bool | None:
    if target is None:
        return None
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ValueError(
            f"target {target!r} given, '<field> <op> <number>' expected, field one of "
            f"{', '.join(sorted(figures))}, op one of {', '.join(sorted(_COMPARE))}"
        )
    field, op, number = found.groups()
    figure = figures[field]
    if figure is None:
        raise ValueError(f"target {target!r} names {field}, which was not measured")
    return bool(_COMPARE[op](figure, float(number)))


def write_results(name: str, records: Sequence[Record], folder: Path = RESULTS) -> Path:
    """Write ``folder/name.json``, replacing it in one step, and print one line a record.

    Returns
    -------
    Path
        The file: a list of objects with the fields of `Record`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".json.tmp")
    text = json.dumps([dataclasses.asdict(record) for record in records], indent=2, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    for record in records:
        verdict = {True: "met", False: "NOT MET", None: "no target"}[record.met]
        line = f"{record.claim}: {record.ours:.4g} {record.unit}"
        if record.baseline is not None:
            line += f", {record.baseline_name}: {record.baseline:.4g}"
        print(f"{line}; target {record.target or '-'}: {verdict}")
    return path


def run_isolated(target: str, *args: Any, **kwargs: Any) -> Measured:
    """Call ``module:function`` in a fresh process and measure it.

    Parameters
    ----------
    target : str
        ``module:function``, importable from the root of the checkout.
    *args, **kwargs
        Passed on as JSON, as is the return value: hand large data over as file paths.

    Raises
    ------
    RuntimeError
        The process failed; the message holds what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.harness", target, str(answer)],
            cwd=ROOT,
            input=json.dumps([args, kwargs]),
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{target} exited with {done.returncode}:\n{done.stderr}")
        return Measured(**json.loads(answer.read_text(encoding="utf-8")))


def _answer(target: str, answer: Path) -> None:
    args, kwargs = json.load(sys.stdin)
    module, _, function = target.partition(":")
    call = getattr(importlib.import_module(module), function)
    start = time.perf_counter()
    result = call(*args, **kwargs)
    seconds = time.perf_counter() - start
    measured = Measured(result, seconds, peak_rss_bytes())
    answer.write_text(json.dumps(dataclasses.asdict(measured)), encoding="utf-8")


if __name__ == "__main__":
    _answer(sys.argv[1], Path(sys.argv[2]))
