"""A job in a process of its own that is forked with everything imported, and can be killed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing, suppress
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import feast.infra.online_stores.helpers  # noqa: F401 - imported here, not while the clock runs
import onnxruntime  # noqa: F401
import psutil
from tqdm import tqdm

import materialize.stores.redis  # noqa: F401
from materialize.batch import materialize_space
from materialize.context import Context
from tests.forks import FORKS, preload

_READY_SECONDS, _END_SECONDS = 60.0, 60.0
preload(__name__)


class KillableRun:
    """A run of space 1 that waits for ``begin``, as the leader of a process group.

    Parameters
    ----------
    repo : Path
    end : datetime
    job : dict
        Fields of ``materialize:`` that differ from palate.yaml's.
    """

    def __init__(self, repo: Path, end: datetime, job: dict[str, Any]) -> None:
        self._here, there = FORKS.Pipe()
        self._process = FORKS.Process(target=_work, args=(str(repo), end, job, there))
        self._process.start()
        there.close()
        assert self._here.poll(_READY_SECONDS), "the process is ready in time"
        assert self._here.recv() == "ready"

    def begin(self) -> None:
        """Let it run."""
        self._here.send("begin")

    def wait(self, seconds: float) -> bool:
        """Return whether it ended within so many seconds; it must not have failed."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            return False
        assert self._process.exitcode == 0, "the run failed"
        self._close()
        return True

    def kill(self) -> bool:
        """Send SIGKILL to its process group; return whether that ended it (else it had ended).

        Processes that it started in groups of their own must end by themselves.
        """
        assert self._process.pid is not None
        started = []
        with suppress(ProcessLookupError, psutil.NoSuchProcess):  # it has just ended
            started = psutil.Process(self._process.pid).children(recursive=True)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        _, alive = psutil.wait_procs(started, timeout=_END_SECONDS)
        assert not alive, "what the run had started ends with it"
        code = self._process.exitcode
        assert code in (0, -signal.SIGKILL), "the run failed"
        self._close()
        return code != 0

    def kill_one(self, name: str) -> int:
        """Send SIGKILL to a process that it started and whose command begins so; return how many.

        The busiest one: others may wait for work.
        """
        assert self._process.pid is not None
        found = [
            child
            for child in psutil.Process(self._process.pid).children(recursive=True)
            if (child.cmdline() or [""])[0].startswith(name)
        ]
        if not found:
            return 0
        max(found, key=lambda child: sum(child.cpu_times()[:2])).kill()
        return 1

    def _close(self) -> None:
        self._process.close()
        self._here.close()


def _work(repo: str, end: datetime, job: dict[str, Any], parent: Connection) -> None:
    os.setsid()
    # Its own lock is a named semaphore here, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    context = Context(Path(repo))
    store, space = context.store, context.ledger.space(1)
    settings = context.settings.with_job(**job)
    with closing(parent):
        parent.send("ready")
        parent.recv()
    materialize_space(store, settings, context.ledger, space, end=end, progress=False)
