"""Appending a file's events to the stream, at a rate where one is wanted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from materialize.stream.broker import Writer

__all__ = ["append_payloads"]

_MOST = 500
_CALLS_PER_SECOND = 50
"""At a rate, events go out in parts of this fraction of a second, not in bursts."""


def append_payloads(
    writer: Writer, payloads: Iterable[bytes], *, rate: float | None, progress: bool
) -> int:
    """Append events and return their number.

    Parameters
    ----------
    writer : Writer
    payloads : iterable of bytes
    rate : float or None
        Events a second; None: as fast as the broker takes them. A pause of the writer is not made
        up.
    progress : bool
        A bar on standard error.
    """
    size = _MOST if rate is None else max(1, min(_MOST, int(rate / _CALLS_PER_SECOND)))
    rest, appended = iter(payloads), 0
    due = time.monotonic()
    with tqdm(unit=" events", disable=not progress, unit_scale=True) as bar:
        while part := list(islice(rest, size)):
            if rate is not None:
                now = time.monotonic()
                time.sleep(max(0.0, due - now))
                due = max(due, now) + len(part) / rate
            appended += writer.append(part)
            bar.update(len(part))
    return appended
