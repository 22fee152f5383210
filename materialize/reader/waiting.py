"""Calls that know no time limit of their own, given one: they wait in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from materialize.reader.budget import Budget

__all__ = ["Waiting"]

T = TypeVar("T")


class Waiting:
    """Threads in which blocking calls wait; safe for threads, event loops and forks.

    Parameters
    ----------
    threads : int
        How many calls may wait at once; another one waits for its turn, within its own time.

    Notes
    -----
    A call that was given up goes on in its thread until it ends by itself, and holds the thread.

    State: the threads of this process, made with the first call.
    """

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: ThreadPoolExecutor | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def run(self, call: Callable[[], T], budget: Budget, waiting_for: str, share: float = 1.0) -> T:
        """Return what a call returns, or stop waiting for it.

        Parameters
        ----------
        call : callable
        budget : Budget
            Without an end: the call is made here, in the caller's thread.
        waiting_for : str
        share : float
            Of the time that is left, how much this call may take; above 0, at most 1.

        Raises
        ------
        TimedOut
        """
        left = budget.left(waiting_for)
        if left is None:
            return call()
        future = self._opened().submit(call)
        try:
            return future.result(left * share)
        except concurrent.futures.TimeoutError:
            # On Python 3.11 it is the TimeoutError that the call itself may have raised.
            if future.done() and not future.cancelled():
                raise
            future.cancel()
            raise budget.over(waiting_for) from None

    async def run_async(
        self, call: Callable[[], T], budget: Budget, waiting_for: str, share: float = 1.0
    ) -> T:
        """Return what `run` does, without keeping the event loop waiting."""
        left = budget.left(waiting_for)
        future = self._opened().submit(call)
        waited = asyncio.wrap_future(future)
        done, _ = await asyncio.wait([waited], timeout=None if left is None else left * share)
        if not done:
            waited.cancel()
            raise budget.over(waiting_for)
        return waited.result()

    def close(self) -> None:
        """Let the threads end as soon as their calls have; a later call makes new ones."""
        with self._lock:
            if self._threads is not None:
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None

    def _opened(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None or self._pid != os.getpid():
                # A forked child has the executor and none of its threads.
                self._pid = os.getpid()
                self._threads = ThreadPoolExecutor(self._size, "palate-reader")
            return self._threads
