"""An algorithm that waits for others, written once for threads and for event loops.

The algorithm is a generator. It yields what it waits for, and is sent the answer or thrown the
error; a driver does the waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from materialize.reader.budget import Budget
from materialize.reader.fields import FieldReader, Users, Wanted
from materialize.reader.waiting import Waiting

__all__ = ["Fetch", "Step", "Steps", "Wait", "Work", "perform", "perform_async"]

T = TypeVar("T")


@dataclass(frozen=True)
class Fetch:
    """Wait for stored fields; answered with `Found`."""

    wanted: Sequence[Wanted]
    users: Users


@dataclass(frozen=True)
class Wait:
    """Wait for a call that may block; answered with what it returns."""

    call: Callable[[], Any]
    waiting_for: str
    share: float = 1.0
    """Of the time that is left."""
    at_once: Callable[[float | None], Any] | None = None
    """Does the same within so many seconds, without a thread, or answers None: then ``call`` is
    made. Only for callers who wait themselves."""


@dataclass(frozen=True)
class Work:
    """Do a call that keeps the processor busy; answered with what it returns."""

    call: Callable[[], Any]
    name: str


Step: TypeAlias = Fetch | Wait | Work
Steps: TypeAlias = Generator[Step, Any, T]


def perform(steps: Steps[T], reader: FieldReader, waiting: Waiting, budget: Budget) -> T:
    """Return what an algorithm returns; the caller's thread waits."""

    def answer(step: Step) -> Any:
        if isinstance(step, Fetch):
            return reader.read(step.wanted, step.users, budget)
        if isinstance(step, Wait):
            if step.at_once is not None:
                left = budget.left(step.waiting_for)
                answered = step.at_once(None if left is None else left * step.share)
                if answered is not None:
                    return answered
            return waiting.run(step.call, budget, step.waiting_for, step.share)
        return step.call()

    given, error = None, None
    while True:
        try:
            step = steps.send(given) if error is None else steps.throw(error)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            given, error = answer(step), None
        except Exception as exc:  # noqa: BLE001 - it is the algorithm's to judge
            error = exc


async def perform_async(
    steps: Steps[T], reader: FieldReader, waiting: Waiting, budget: Budget
) -> T:
    """Return what an algorithm returns; the event loop goes on meanwhile."""

    def answer(step: Step) -> Awaitable[Any]:
        if isinstance(step, Fetch):
            return reader.read_async(step.wanted, step.users, budget)
        if isinstance(step, Wait):
            return waiting.run_async(step.call, budget, step.waiting_for, step.share)
        return waiting.run_async(step.call, budget, step.name)

    given, error = None, None
    while True:
        try:
            step = steps.send(given) if error is None else steps.throw(error)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            given, error = await answer(step), None
        except Exception as exc:  # noqa: BLE001 - it is the algorithm's to judge
            error = exc
