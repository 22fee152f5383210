"""How `server_load` names what it measured, and what a million embeddings a second would take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

DEMAND, STORED, READER = "on demand", "stored view", "EmbeddingClient"
IN_PROCESS = "in process"
SERVING = "CPU seconds per 1,000 embeddings"
REDIS = "Redis's CPU seconds per 1,000 embeddings"
CALLER = "caller's CPU seconds per 1,000 embeddings, JSON to float32 included"

_UTILISATION, _CORES, _USD_PER_CORE_HOUR = 0.6, 32, 0.04
_HEAD = """\
| way | users a request | serving | Redis | caller | cores | machines | USD per million |
|---|---|---|---|---|---|---|---|"""


def claim(way: str, where: str, each: int) -> str:
    """Return what the claims of one way begin with."""
    return f"{way}, {where}, {each} user{'s' if each > 1 else ''} a request"


def over(workers: int, connections: int) -> str:
    """Return where answers over HTTP come from."""
    return (
        f"HTTP, {workers} worker{'s' if workers > 1 else ''}, "
        f"{connections} connection{'s' if connections > 1 else ''}"
    )


def cost_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: what a million embeddings a second take, from written records.

    CPU seconds per 1,000 embeddings of serving processes, Redis and caller; cores for a million
    embeddings a second at 60 % use, machines of 32 such cores, and USD for a million embeddings at
    0.04 USD a core and hour.
    """
    known = {record["claim"]: record for record in records}
    lines = [_HEAD]
    for where in (over(1, 4), IN_PROCESS):
        within = where == IN_PROCESS
        figures = (SERVING, REDIS) if within else (SERVING, REDIS, CALLER)
        for way in (DEMAND, STORED, *([READER] if within else [])):
            for each in (1, 100):
                # The stored view's own figures stand as the on-demand view's baseline.
                of, side = (DEMAND, "baseline") if way == STORED else (way, "ours")
                seconds = [known[f"{claim(of, where, each)}: {name}"][side] for name in figures]
                cores = sum(seconds) * 1_000 / _UTILISATION
                cells = [
                    f"{way}, {'in process' if within else 'HTTP'}",
                    str(each),
                    *(f"{one:.3f}" for one in seconds),
                    *([""] if within else []),
                    f"{cores:,.0f}",
                    f"{math.ceil(cores / _CORES):,}",
                    f"{cores / 3_600 * _USD_PER_CORE_HOUR:.4f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
