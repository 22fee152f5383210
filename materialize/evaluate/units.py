"""What one task found with one seed, as two files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from materialize.evaluate.measurement import Measurement

__all__ = ["MEASURES", "Unit", "read_unit", "unit_path", "write_unit"]

MEASURES = 2
"""Raise it when a task or a baseline would measure something else of the same data: figures that
were measured before are then not taken for new ones."""

_SCALARS = tuple(f.name for f in fields(Measurement) if f.name != "replicates")


@dataclass(frozen=True, eq=False)
class Unit:
    """A task measured with one seed: the piece of an evaluation that is done whole.

    Attributes
    ----------
    task : str
    seed : int
    measurements : sequence of Measurement
    skipped : mapping of str to str
        Model -> why it did not run.
    details : mapping
        What the task keeps for the report, JSON types.
    seconds : float
        Wall time.
    """

    task: str
    seed: int
    measurements: Sequence[Measurement]
    skipped: Mapping[str, str]
    details: Mapping[str, Any]
    seconds: float


def unit_path(folder: Path, task: str, seed: int) -> Path:
    """Return the file whose presence says that the unit is done; its replicates lie beside it."""
    return folder / f"{task}-{seed}.json"


def write_unit(folder: Path, unit: Unit) -> Path:
    """Write a unit into a folder: the replicates first, the JSON that tells of them second.

    An earlier unit of the same task and seed is replaced.

    Raises
    ------
    ValueError
        ``details`` hold something that JSON does not know, such as NaN.
    """
    path = unit_path(folder, unit.task, unit.seed)
    sizes = [len(m.replicates) for m in unit.measurements]
    text = json.dumps(
        {
            "task": unit.task,
            "seed": unit.seed,
            "seconds": round(unit.seconds, 3),
            "skipped": dict(unit.skipped),
            "details": dict(unit.details),
            "resamples": sizes,
            "measurements": [_scalars(m) for m in unit.measurements],
        },
        indent=1,
        allow_nan=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # until the new replicates are there, nothing is
    flat = [np.empty(0), *(m.replicates for m in unit.measurements)]
    arrays = path.with_suffix(".npz.tmp")
    with arrays.open("wb") as file:
        np.savez(file, replicates=np.concatenate(flat))
    os.replace(arrays, path.with_suffix(".npz"))
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_unit(folder: Path, task: str, seed: int) -> Unit | None:
    """Return a unit that was written, or None: it is still to be measured."""
    path = unit_path(folder, task, seed)
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    with np.load(path.with_suffix(".npz")) as arrays:
        flat = arrays["replicates"]
    sizes = content["resamples"]
    ends = np.cumsum(sizes)
    measurements = [
        Measurement(**{**row, "value": _number(row["value"])}, replicates=flat[end - size : end])
        for row, size, end in zip(content["measurements"], sizes, ends, strict=True)
    ]
    return Unit(
        task=task,
        seed=seed,
        measurements=measurements,
        skipped=content["skipped"],
        details=content["details"],
        seconds=content["seconds"],
    )


def _scalars(measurement: Measurement) -> dict[str, Any]:
    row = {name: getattr(measurement, name) for name in _SCALARS}
    return row | {"value": None if np.isnan(measurement.value) else float(measurement.value)}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
