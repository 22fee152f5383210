"""Start calls in processes of their own, all at the same moment of the machine's monotonic clock.

``run_isolated`` measures one call; here producer, prober and others run side by side, and each is
ready (modules loaded, connected) before the clock runs.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from benchmarks._environment import ROOT

__all__ = ["Together", "together"]

_READY = "ready\n"
_LEAD_SECONDS = 0.2
"""Between the last one's readiness and the start."""


class Together:
    """Calls that are about to run.

    State: the processes; the start, once given.
    """

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str, subprocess.Popen[str], IO[str]]] = {}

    def add(self, name: str, target: str, *args: Any) -> None:
        """Start ``module:function`` in a process; it loads, and waits for the start.

        The function is called with a callable that waits for the start and returns it, and with
        ``args`` (JSON); what it returns is JSON too.
        """
        errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by end()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._stream_process", target, json.dumps(args)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        self._calls[name] = (target, process, errors)

    def start(self) -> float:
        """Wait until all are ready, and return the moment at which all begin."""
        for target, process, errors in self._calls.values():
            assert process.stdout is not None
            if process.stdout.readline() != _READY:
                raise _failed(target, process, errors)
        start = time.monotonic() + _LEAD_SECONDS
        for _, process, _ in self._calls.values():
            assert process.stdin is not None
            print(repr(start), file=process.stdin, flush=True)
        return start

    def running(self) -> bool:
        """Return whether one is not done yet."""
        return any(process.poll() is None for _, process, _ in self._calls.values())

    def results(self) -> dict[str, Any]:
        """Wait for all, and return what each returned, by name."""
        found = {}
        for name, (target, process, errors) in self._calls.items():
            text, _ = process.communicate()
            if process.returncode != 0:
                raise _failed(target, process, errors)
            found[name] = json.loads(text)
        return found

    def end(self) -> None:
        """Stop what still runs."""
        for _, process, errors in self._calls.values():
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, errors):
                assert stream is not None
                stream.close()


@contextmanager
def together() -> Iterator[Together]:
    """Yield an empty `Together`, and stop its processes afterwards."""
    calls = Together()
    try:
        yield calls
    finally:
        calls.end()


def _failed(target: str, process: subprocess.Popen[str], errors: IO[str]) -> RuntimeError:
    process.kill()
    process.wait()
    errors.seek(0)
    return RuntimeError(f"{target} exited with {process.returncode}:\n{errors.read()}")


def _begin() -> float:
    """Say that this process is ready, and return the start as soon as it has come."""
    print(_READY, end="", flush=True)
    start = float(sys.stdin.readline())
    time.sleep(max(0.0, start - time.monotonic()))
    return start


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    call = getattr(importlib.import_module(module), function)
    print(json.dumps(call(_begin, *json.loads(sys.argv[2]))))
