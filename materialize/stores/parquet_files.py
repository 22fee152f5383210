"""From Feast's sources to folders of Parquet, and from a table to the columns stored there."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.repo_config import RepoConfig

__all__ = ["DUMMY_ENTITY", "INSTANT", "as_stored", "folder_of", "is_local_parquet"]

INSTANT = pa.timestamp("us", "UTC")
"""Type of every time column."""
DUMMY_ENTITY = "__dummy_id"
"""Feast's join key of a view without entities."""


def is_local_parquet(source: DataSource | None) -> bool:
    """Return whether the source is one local path of Parquet (no address, no glob)."""
    return (
        isinstance(source, FileSource)
        and (source.file_format is None or isinstance(source.file_format, ParquetFormat))
        and "://" not in source.path
        and not any(mark in source.path for mark in "*?[")
    )


def folder_of(config: RepoConfig, source: FileSource) -> Path:
    """Return the source's path, taken from the repository's folder when it is relative."""
    return Path(FileSource.get_uri_for_file_path(config.repo_path, source.path))


def as_stored(
    view: FeatureView, source: FileSource, table: pa.Table, file: Path | None
) -> pa.Table:
    """Return the table with the columns, order and types that the view's files have.

    Parameters
    ----------
    view, source
        The view and its batch source.
    table : pyarrow.Table
        Under source names or mapped names, in any order.
    file : Path or None
        One of the view's files; None: there is none yet, and the types are the table's own.

    Raises
    ------
    ValueError
        Columns are missing or unknown.
    pyarrow.ArrowInvalid
        A value does not fit its column's type.
    """
    times = {source.timestamp_field, *filter(None, [source.created_timestamp_column])}
    if file is not None:
        stored = {field.name: field.type for field in pq.read_schema(file)}
    else:
        keys = [e.name for e in view.entity_columns if e.name != DUMMY_ENTITY]
        names = [*keys, *(f.name for f in view.features), *sorted(times)]
        back = {new: old for old, new in source.field_mapping.items()}
        stored = {back.get(name, name): None for name in names}
    # Feast renames source columns to feature names before it writes to the source.
    back = {new: old for old, new in source.field_mapping.items() if old in stored}
    table = table.rename_columns([back.get(name, name) for name in table.column_names])
    missing, unknown = set(stored) - set(table.column_names), set(table.column_names) - set(stored)
    if missing or unknown:
        raise ValueError(
            f"Rows for view {view.name!r} lack the columns {sorted(missing)} and have "
            f"{sorted(unknown)}, which its files do not. Expected: {sorted(stored)}."
        )
    columns = {}
    for name, kind in stored.items():
        column = table.column(name)
        kind = INSTANT if name in times else kind or column.type
        # Times lose what is finer than a microsecond; any other loss is an error.
        columns[name] = column.cast(kind, safe=name not in times)
    return pa.table(columns)
