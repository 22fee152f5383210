"""A small sound data set on disk, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from materialize.validate import ValidationReport, validate
from transforms.clean import CleanTables
from transforms.dataset import Dataset

UTC = timezone.utc
NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
T0 = datetime(2024, 3, 1, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")


def events() -> dict[str, Any]:
    """Return six sound events of users 1, 2, 3 with items 10, 11, 12."""
    return {
        "user": pa.array([1, 1, 2, 2, 3, 3], pa.int32()),
        "item": pa.array([10, 11, 10, 12, 11, 12], pa.int64()),
        "at": pa.array([T0 + k * DAY for k in range(6)], STAMP),
        "weight": pa.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0]),
        "device": pa.array(["tv", None, "car", "tv", "tv", "tv"]),
    }


def users() -> dict[str, Any]:
    """Return users 1, 2, 3, who signed up before their events, and 4, who has none."""
    return {
        "uid": pa.array([1, 2, 3, 4]),
        "joined": pa.array([T0 - DAY] * 4, STAMP),
        "country": pa.array(["IT", None, "BR", "SE"]),
        "age": pa.array([30, None, 41, 22], pa.int16()),
        "picks": pa.array([[10, 11], None, [], [12, 12, None, 10]], pa.list_(pa.int32())),
    }


def items() -> dict[str, Any]:
    """Return items 10 to 13; nobody met 13."""
    return {
        "iid": pa.array([10, 11, 12, 13], pa.int16()),
        "title": pa.array(["A b", None, "C", "D"]),
        "genres": pa.array(["x| y|x", None, "", "y"]),
        "audio": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]]),
    }


def description() -> dict[str, Any]:
    """Return what dataset.yaml says of the three tables."""
    return {
        "events": {
            "user": "user", "item": "item", "timestamp": "at", "weight": "weight",
            "context": ["device"],
        },
        "users": {
            "user": "uid", "signed_up_at": "joined", "categories": ["country"],
            "numbers": ["age"], "onboarding": "picks",
        },
        "items": {
            "item": "iid", "text": ["title"], "tags": {"column": "genres", "separator": "|"},
            "vectors": {"audio": "audio"},
        },
    }  # fmt: skip


@dataclass
class Raw:
    """The tables of one test: change them, then ``validate``."""

    root: Path
    events: dict[str, Any] | None = field(default_factory=events)
    users: dict[str, Any] | None = field(default_factory=users)
    items: dict[str, Any] | None = field(default_factory=items)
    says: dict[str, Any] = field(default_factory=description)

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def clean(self) -> CleanTables:
        return CleanTables(self.out)

    def drop(self, table: str) -> None:
        """Describe no such table."""
        setattr(self, table, None)
        del self.says[table]

    def write(self) -> None:
        """Write the tables to Parquet files."""
        self.root.mkdir(exist_ok=True)
        for name in self.says:
            columns = getattr(self, name)
            if columns is not None:
                pq.write_table(pa.table(columns), self.root / f"{name}.parquet")

    def dataset(self, **more: Any) -> Dataset:
        """Return the description of the tables."""
        tables = {
            name: {"path": str(self.root / f"{name}.parquet")} | said
            for name, said in self.says.items()
        }
        fields = {"name": "tiny", "evaluation": {"cutoff": T0.replace(hour=0)}} | tables | more
        return Dataset.model_validate(fields)

    def validate(self, *, write: bool = True, **options: Any) -> ValidationReport:
        """Write the tables (unless the files are to stay as they are), then validate them."""
        if write:
            self.write()
        options = {"now": NOW, "progress": False, "threads": 1} | options
        return validate(self.dataset(), self.out, **options)

    def rows(self, table: str, kind: str = "clean") -> list[dict[str, Any]]:
        """Return the rows that were written for a table, in file order."""
        return pq.read_table(self.out / kind / table / "part-0.parquet").to_pylist()


def changed(values: pa.Array, changes: Mapping[int, Any], type_: pa.DataType | None = None) -> Any:
    """Return an array with some elements replaced."""
    listed = values.to_pylist()
    for index, value in changes.items():
        listed[index] = value
    return pa.array(listed, type_ or values.type)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return everything below a folder: path to content, None for folders."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }
