"""One line on stderr that says how the stream goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from materialize.stream.latency import LatencyHistogram
from materialize.stream.metrics import added_up
from materialize.stream.source import Lag

__all__ = ["ProgressLine"]

_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 10.0


class ProgressLine:
    """Prints rate, lag and freshness; on a terminal in place, elsewhere every ten seconds.

    Parameters
    ----------
    quiet : bool
        Print nothing.

    Notes
    -----
    State: what was counted when the last line was printed; rates are of the time since.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._in_place = sys.stderr.isatty()
        self._printed = time.monotonic()
        self._events = 0
        self._freshness = LatencyHistogram()

    def show(self, snapshots: Sequence[Mapping[str, Any]], lag: Lag) -> None:
        """Print a line when it is time for one.

        Parameters
        ----------
        snapshots : sequence of `StreamMetrics.snapshot`
            Of every worker.
        lag : Lag
        """
        now = time.monotonic()
        every = _TERMINAL_SECONDS if self._in_place else _LOG_SECONDS
        if self._quiet or now - self._printed < every:
            return
        added, total = added_up(snapshots), LatencyHistogram()
        events, dead = sum(added["events"].values()), sum(added["dead"].values())
        total.merge(*added["freshness"])
        recent = LatencyHistogram()
        recent.merge(total.counts - self._freshness.counts, total.sum_ms - self._freshness.sum_ms)
        rate = (events - self._events) / (now - self._printed)
        parts = [
            f"{events:,} events",
            f"{rate:,.0f}/s",
            f"undelivered {lag.undelivered:,}",
            f"unacknowledged {lag.unacknowledged:,}",
        ]
        if recent.count:
            p50, p99 = recent.quantile(0.5), recent.quantile(0.99)
            parts.append(f"fresh p50 {p50:,.0f} ms p99 {p99:,.0f} ms")
        if dead:
            parts.append(f"dead letters {dead:,}")
        line = "  ".join(parts)
        sys.stderr.write(f"\r\x1b[K{line}" if self._in_place else f"{line}\n")
        sys.stderr.flush()
        self._printed, self._events, self._freshness = now, events, total

    def end(self) -> None:
        """Go to a new line where the last one was printed in place."""
        if self._in_place and not self._quiet:
            sys.stderr.write("\n")
