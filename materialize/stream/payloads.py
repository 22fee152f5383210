"""Events in files: JSON lines as they are, or Parquet of clean events."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from encoder.errors import DataFault
from transforms.stream.events import StreamEvent, event_payload

__all__ = ["is_parquet", "line_payloads", "parquet_payloads"]

_NEEDED = ("user_id", "item_id", "ts")
_ROWS = 4_096


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def line_payloads(file: BinaryIO, skip_bytes: int = 0) -> Generator[tuple[int, bytes], None, None]:
    """Yield each line that is not empty, with the position behind it in bytes."""
    at = skip_bytes
    file.seek(at)
    for line in file:
        at += len(line)
        if stripped := line.strip():
            yield at, stripped


def parquet_payloads(
    path: Path, context: Sequence[str], skip_rows: int = 0
) -> Generator[tuple[int, bytes], None, None]:
    """Yield each row of clean events as a payload, with the position behind it in rows.

    Parameters
    ----------
    path : Path
        Columns as in ``clean/events``: ``user_id``, ``item_id``, ``ts``; ``weight``, ``context``
        and ``service`` where there are any.
    context : sequence of str
        Names of the data set's ``events.context``.
    skip_rows : int

    Raises
    ------
    DataFault
        A column is missing.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        missing = [name for name in _NEEDED if name not in names]
        if missing:
            raise DataFault(
                f"{path} has no column {', '.join(map(repr, missing))}. Expected clean events, as "
                "`palate data validate` writes them: user_id, item_id, ts (weight, context, "
                "service)."
            )
        wanted = [name for name in (*_NEEDED, "weight", "context", "service") if name in names]
        at = 0
        for batch in file.iter_batches(_ROWS, columns=wanted):
            behind = at + batch.num_rows
            if behind > skip_rows:
                rest = batch.slice(max(0, skip_rows - at))
                start = max(at, skip_rows) + 1
                yield from zip(range(start, behind + 1), _rows(rest, context), strict=True)
            at = behind


def _rows(batch: pa.RecordBatch, context: Sequence[str]) -> Iterator[bytes]:
    names = tuple(context)
    users, items = batch["user_id"].to_pylist(), batch["item_id"].to_pylist()
    times = batch["ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
    columns = batch.schema.names
    weights = batch["weight"].to_pylist() if "weight" in columns else [1.0] * len(users)
    services = batch["service"].to_pylist() if "service" in columns else [None] * len(users)
    given = batch["context"].to_pylist() if "context" in columns and names else None
    for row, (user, item, at, weight, service) in enumerate(
        zip(users, items, times, weights, services, strict=True)
    ):
        values = None
        if names:
            known = given[row] if given is not None else None
            values = tuple(value or "" for value in known) if known else ("",) * len(names)
        event = StreamEvent("consume", user, at, item, weight, values, service)
        yield event_payload(event, names)
