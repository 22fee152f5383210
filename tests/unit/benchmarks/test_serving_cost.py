"""What a million embeddings a second take, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks._serving_cost import (
    CALLER,
    DEMAND,
    IN_PROCESS,
    READER,
    REDIS,
    SERVING,
    claim,
    cost_table,
    over,
)


def _records() -> list[dict[str, Any]]:
    records = []
    for where, ways in ((over(1, 4), (DEMAND,)), (IN_PROCESS, (DEMAND, READER))):
        for way in ways:
            for each in (1, 100):
                figures = {SERVING: 3.0, REDIS: 0.1, CALLER: 0.5}
                for figure, seconds in figures.items():
                    what = f"{claim(way, where, each)}: {figure}"
                    ours, baseline = seconds / each, seconds / each / 2
                    records.append({"claim": what, "ours": ours, "baseline": baseline})
    return records


def test_cores_machines_and_money_follow_from_cpu_seconds() -> None:
    rows = cost_table(_records()).splitlines()[2:]
    assert len(rows) == 10
    # (3.0 + 0.1 + 0.5) s / 1,000 * 1e6 / 0.6 = 6,000 cores; / 32 = 187.5; 6,000 / 3,600 * 0.04.
    assert rows[0] == "| on demand, HTTP | 1 | 3.000 | 0.100 | 0.500 | 6,000 | 188 | 0.0667 |"
    # The stored view is the baseline's half: 1.8 s.
    assert rows[2] == "| stored view, HTTP | 1 | 1.500 | 0.050 | 0.250 | 3,000 | 94 | 0.0333 |"
    # In process the caller is the process: 3.1 / 0.6 * 1,000 = 5,167.
    assert rows[4] == "| on demand, in process | 1 | 3.000 | 0.100 |  | 5,167 | 162 | 0.0574 |"
    assert rows[9].startswith("| EmbeddingClient, in process | 100 | 0.030 |")


def test_a_figure_that_was_not_measured_is_missed() -> None:
    with pytest.raises(KeyError, match="Redis"):
        cost_table([r for r in _records() if REDIS not in r["claim"]])
