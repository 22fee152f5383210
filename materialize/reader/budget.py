"""The time that a call may take, and what is tried again within it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import tenacity

from encoder.errors import TimedOut, TransientError

__all__ = ["Budget", "retry_options"]

_log = logging.getLogger(__name__)

_ATTEMPTS = 4
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.01, 0.25


class Budget:
    """Seconds from now on, for one call with all its waits; None: without an end.

    Raises
    ------
    ValueError
        Not above 0.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(
                f"timeout_seconds {seconds!r} was given; a number above 0, or None for no limit, "
                "is expected."
            )
        self.seconds = seconds
        self._ends = None if seconds is None else time.monotonic() + seconds

    def left(self, waiting_for: str) -> float | None:
        """Return the seconds that are left, above 0; None: without an end.

        Raises
        ------
        TimedOut
            There are none; the error says what was being waited for.
        """
        if self._ends is None:
            return None
        left = self._ends - time.monotonic()
        if left <= 0:
            raise self.over(waiting_for)
        return left

    def over(self, waiting_for: str) -> TimedOut:
        """Return the error of a call whose time is over."""
        seconds = self.seconds or 0.0
        return TimedOut(
            f"{waiting_for} did not answer within the {seconds:g} s that this call was given. "
            "Check it, or give the call more time (`timeout_seconds`).",
            waited_for=waiting_for,
            seconds=seconds,
        )


def retry_options(budget: Budget, where: str, kinds: Sequence[type[Exception]]) -> dict[str, Any]:
    """Return the arguments of tenacity's ``Retrying`` or ``AsyncRetrying``.

    Parameters
    ----------
    budget : Budget
        No attempt begins after its end.
    where : str
        What is asked, for the log and the error.
    kinds : sequence of exception types
        What another attempt may mend.

    Notes
    -----
    When the last attempt has failed, `TransientError` is raised from its error, or `TimedOut`.
    """
    left = budget.left(where)
    stop: Any = tenacity.stop_after_attempt(_ATTEMPTS)
    if left is not None:
        stop = stop | tenacity.stop_before_delay(left)

    def give_up(state: tenacity.RetryCallState) -> Any:
        cause = state.outcome.exception() if state.outcome is not None else None
        raise TransientError(
            f"{where} could not be read in {state.attempt_number} attempts: "
            f"{str(cause).rstrip('.')}. Check its server."
        ) from cause

    def told(state: tenacity.RetryCallState) -> None:
        cause = state.outcome.exception() if state.outcome is not None else None
        _log.info("%s: attempt %s failed: %s", where, state.attempt_number, cause)

    return {
        "retry": tenacity.retry_if_exception_type(tuple(kinds)),
        "stop": stop,
        "wait": tenacity.wait_random_exponential(
            multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS
        ),
        "before_sleep": told,
        "retry_error_callback": give_up,
    }
