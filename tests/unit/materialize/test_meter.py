"""Seconds and memory of steps, children included."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import psutil
import pytest

from materialize.meter import StepMeter

_MIB = 2**20

# Touches 200 MiB, says so, and goes when its standard input closes.
_CHILD = "import sys; block = b'x' * (200 * 2**20); print('ready', flush=True); sys.stdin.read()"


def test_the_memory_of_a_child_process_counts() -> None:
    meter = StepMeter()
    own = psutil.Process().memory_info().rss / _MIB
    with meter.step("child") as step:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
        # Until a sample has seen it: the meter samples every 0.1 s.
        deadline = threading.Event()
        for _ in range(100):
            if step.peak_memory_mb >= own + 200:
                break
            deadline.wait(0.05)
        child.stdin.close()
        child.wait()
        child.stdout.close()
    assert step.peak_memory_mb >= own + 200
    assert step.seconds > 0


def test_a_short_step_is_sampled_at_least_once() -> None:
    meter = StepMeter()
    with meter.step("nothing") as step:
        pass
    assert step.peak_memory_mb > 10
    assert step.seconds < 5


def test_a_step_that_raises_is_recorded_and_its_sampler_ends() -> None:
    meter = StepMeter()
    before = threading.active_count()

    def broken() -> None:
        with meter.step("broken") as step:
            step.counts["rows"] = 3
            raise KeyError("x")

    with pytest.raises(KeyError):
        broken()
    assert threading.active_count() == before
    assert [s.name for s in meter.steps] == ["broken"]
    assert meter.steps[0].peak_memory_mb > 10
    assert meter.steps[0].counts == {"rows": 3}


def test_steps_are_plain_json_in_the_order_in_which_they_began() -> None:
    meter = StepMeter()
    with meter.step("outer"), meter.step("inner") as inner:
        inner.counts["users"] = 2
    steps = json.loads(json.dumps(meter.to_list()))
    assert [s["name"] for s in steps] == ["outer", "inner"]
    assert set(steps[0]) == {"name", "seconds", "peak_memory_mb", "counts"}
    assert steps[1]["counts"] == {"users": 2}
    assert steps[0]["seconds"] >= steps[1]["seconds"]
