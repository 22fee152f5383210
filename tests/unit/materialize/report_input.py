"""What a report is made of, made up, with whatever name is given in every place that has one."""

from __future__ import annotations

from typing import Any

import numpy as np

from materialize.report.lineage import draw_lineage
from materialize.report.report import ReportInput
from materialize.report.users import Neighbours, UserMap
from tests.unit.materialize.lineage_records import bridge, record
from tests.unit.materialize.report_records import evaluation, study

__all__ = ["EVIL", "complete", "history", "interval", "probe"]

EVIL = '</script><script>alert("x")</script><img src="http://evil.example/x">'


def complete(name: str = "jazz") -> ReportInput:
    return ReportInput(
        summary={
            "dataset": name,
            "source": "given",
            "space": 3,
            "encoder_version": "c0ffee123456",
            "embedding_dim": 120,
            "created_at": "2026-01-01",
            "counts": {"events": 1_000_209},
            "max_abs_diff": 2.5e-7,
            "pit_rows_in": 3000,
            "pit_rows_out": 2999,
            "steps": [
                {
                    "name": name,
                    "seconds": 12.34,
                    "peak_memory_mb": 1234.5,
                    "counts": {"rows": 20_411, "of": name},
                }
            ],
        },
        history=history(),
        probe=probe(name),
        user_map=UserMap(
            np.array([[0.0, 1.0], [2.0, -1.0]]),
            0.375,
            [name, "u2"],
            {"taste": [name, ""], name: ["a", "b"]},
        ),
        neighbours=Neighbours(
            np.array([[1], [0]]), np.full((2, 1), 0.98765), [name, "rock"], [[0], [0, 1]]
        ),
        validation={
            "tables": {"events": {"rows_in": 1010, "kept": 1001, "rejected": 9, "added": 0}},
            "faults": [
                {
                    "code": "duplicate",
                    "severity": "tolerable",
                    "table": "events",
                    "column": name,
                    "count": 9,
                    "advice": name,
                }
            ],
            "first_event": "2000-04-25T00:00:00+00:00",
            "last_event": "2003-02-28T00:00:00+00:00",
        },
        lineage=draw_lineage(
            [
                record(2, data=name, bridges=[bridge(3, 2)]),
                record(3, data=name, consumers=[name], bridges=[bridge(3, 2)]),
            ],
            3,
            left_out=1,
        ),
        evaluation=evaluation(name),
        studies=[study()],
        record=record(3, bridges=[bridge(3, 2)]),
    )


def interval(value: float | None) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - 0.01, "high": value + 0.02}


def probe(name: str = "jazz") -> dict[str, Any]:
    values = {"embedding": 0.71, "raw_pooled": 0.66, "popularity": 0.5}

    def group(n_users: int) -> dict[str, Any]:
        return {
            "n_rows": n_users,
            "n_users": n_users,
            "models": {
                m: {"auc_micro": interval(v + 0.1), "auc_macro": interval(v)}
                for m, v in values.items()
            },
            "differences": {
                "raw_pooled": {"auc_micro": interval(0.05), "auc_macro": interval(-0.005)},
                "popularity": {"auc_micro": interval(-0.2), "auc_macro": interval(None)},
            },
        }

    return {
        "targets": [name, "rock"],
        "horizon_days": 7,
        "n_training_rows": 900,
        "n_training_users": 800,
        "groups": {"all": group(1234), "established": group(600), "cold": group(7)},
        "per_target": [
            {"target": name, "base_rate": 0.4, "embedding": 0.8, "raw_pooled": 0.7},
            {"target": "rock", "base_rate": 0.1, "embedding": None, "raw_pooled": None},
        ],
        "control": interval(0.5),
        "missing": {"embedding": 0, "raw_pooled": 0},
        "l2": {"embedding": 0.01, "raw_pooled": 0.1},
        "n_bootstrap": 500,
        "seed": 0,
    }


def history() -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "validation_loss": validation,
            "block_errors": {"counts": 0.9 / epoch, "content_7d": 0.5 / epoch},
        }
        for epoch, validation in ((1, 0.9), (2, 0.4), (3, 0.6))
    ]
