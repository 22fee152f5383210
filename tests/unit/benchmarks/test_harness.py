"""The benchmark harness measures what it says and writes the agreed fields."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import Record, compare, repeat, run_isolated, write_results
from tests.architecture.modules import ROOT

FIELDS = [
    "claim",
    "ours",
    "baseline",
    "baseline_name",
    "limit",
    "limit_name",
    "unit",
    "ratio_to_baseline",
    "ratio_to_limit",
    "target",
    "met",
    "repeats",
    "spread",
    "commit",
    "versions",
    "hardware",
    "seed",
]
THIS = "tests.unit.benchmarks.test_harness"


def hold(megabytes: int) -> int:
    """Touch so much memory and return its sum; called in a fresh process."""
    return int(np.ones(megabytes * 2**20, np.uint8).sum(dtype=np.int64))


def fail() -> None:
    """Raise; called in a fresh process."""
    raise ValueError("on purpose")


def test_record_has_exactly_the_agreed_fields() -> None:
    assert [field.name for field in dataclasses.fields(Record)] == FIELDS


def test_median_ratios_and_spread() -> None:
    record = compare(
        "speed",
        [5.0, 1.0, 4.0],
        unit="s",
        baseline=("old", [8.0, 8.0, 100.0]),
        limit=("bare", 2.0),
        target="ratio_to_baseline <= 0.5",
        seed=7,
    )
    # median of ours 4, of the baseline 8: 4/8 and 4/2
    assert (record.ours, record.baseline, record.limit) == (4.0, 8.0, 2.0)
    assert (record.ratio_to_baseline, record.ratio_to_limit) == (0.5, 2.0)
    assert (record.repeats, record.spread, record.seed) == (3, (1.0, 5.0), 7)
    assert record.met is True


@pytest.mark.parametrize(
    ("target", "met"),
    [(None, None), ("ours < 4", False), ("ours <= 4", True), ("ours >= 4.5", False)],
)
def test_target_is_judged(target: str | None, met: bool | None) -> None:
    assert compare("x", [4.0], unit="s", target=target).met is met


@pytest.mark.parametrize("target", ["ours == 4", "speed < 4", "ours < fast", "ratio_to_limit < 1"])
def test_target_that_cannot_be_judged_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        compare("x", [4.0], unit="s", target=target)


def test_repeat_leaves_the_warmup_out() -> None:
    figures = iter([9.0, 1.0, 2.0])
    assert repeat(lambda: next(figures), 2) == [1.0, 2.0]


def test_results_are_read_back_as_written(tmp_path: Path) -> None:
    record = compare("x", [4.0, 6.0], unit="rows/s", target="ours > 1")
    path = write_results("some_question", [record], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["some_question.json"]
    (read,) = json.loads(path.read_text(encoding="utf-8"))
    assert list(read) == FIELDS
    assert read["spread"] == [4.0, 6.0]
    assert {"cpu", "cores", "memory_gib"} <= set(read["hardware"])
    assert {"python", "numpy"} <= set(read["versions"])


def test_figure_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_results("x", [compare("x", [float("nan")], unit="s")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_isolated_peak_memory_is_the_calls_own() -> None:
    # The parent holds 400 MiB while the child holds 1, then 200: only the child's own may count.
    ballast = np.ones(400 * 2**20, np.uint8)
    small, large = run_isolated(f"{THIS}:hold", 1), run_isolated(f"{THIS}:hold", megabytes=200)
    assert ballast.nbytes == 400 * 2**20
    assert (small.result, large.result) == (1 * 2**20, 200 * 2**20)
    grown = (large.peak_rss_bytes - small.peak_rss_bytes) / 2**20
    assert 180 < grown < 220
    assert small.seconds >= 0.0


def test_isolated_failure_carries_the_childs_message() -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        run_isolated(f"{THIS}:fail")


def test_benchmarks_are_listed_with_their_question() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())
    assert lines["cli_startup"] == "Does `palate --help` answer in under 0.3 s?"
    assert not {"harness", "__main__", "_environment"} & set(lines)


def test_unknown_benchmark_is_refused_with_the_known_names() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nope"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cli_startup" in done.stderr
