"""An operation in a process of its own that kills itself, without clean-up, at a chosen step.

The process is forked with everything imported (`tests.e2e.killable`).
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from materialize.batch import materialize_spaces
from materialize.consumers import move_consumer, promote_space, roll_back_consumer
from materialize.context import Context
from materialize.retirement import retire_space
from tests.e2e.killable import FORKS

__all__ = ["Step", "do", "kill_at"]

_SECONDS = 120.0


@dataclass(frozen=True)
class Step:
    """Before or after the nth call of a function."""

    module: str
    attribute: str
    when: Literal["before", "after"]
    nth: int = 1

    def arm(self) -> None:
        """Let this process be killed there."""
        owner = importlib.import_module(self.module)
        *path, name = self.attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), 0
        lock = threading.Lock()

        def killing(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            with lock:
                calls += 1
                mine = calls == self.nth
            if mine and self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, killing)


def do(context: Context, operation: str, job: dict[str, Any], **arguments: Any) -> Any:
    """Do one operation of the story, as its command does.

    ``job`` are fields of ``materialize:`` in palate.yaml.
    """
    settings = context.settings.with_job(**job)
    store, ledger = context.store, context.ledger
    who = {"who": "operator", "why": "the story"}
    if operation == "materialise":
        spaces = [ledger.space(number) for number in arguments.pop("spaces")]
        return materialize_spaces(store, settings, ledger, spaces, progress=False, **arguments)
    if operation == "move":
        return move_consumer(store, ledger, **arguments, **who)
    if operation == "roll back":
        return roll_back_consumer(store, ledger, **arguments, **who)
    if operation == "promote":
        return promote_space(store, ledger, **arguments, **who)
    return retire_space(store, settings, ledger, progress=False, **arguments, **who)


def kill_at(step: Step, repo: Path, operation: str, job: dict[str, Any], **arguments: Any) -> None:
    """Begin an operation elsewhere; it must come to the step, and die there."""
    process = FORKS.Process(target=_work, args=(step, str(repo), operation, job, arguments))
    process.start()
    process.join(_SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code == -signal.SIGKILL, f"{operation} ended with {code} and not at {step}"
    process.close()


def _work(
    step: Step, repo: str, operation: str, job: dict[str, Any], arguments: dict[str, Any]
) -> None:
    # Its own lock is a named semaphore here, which a killed process would leave behind.
    tqdm.set_lock(threading.RLock())
    context = Context(Path(repo))
    step.arm()
    do(context, operation, job, **arguments)
