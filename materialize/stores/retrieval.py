"""Historical retrieval from local Parquet: entity rows in, the same rows with features out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView, FileSource
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import RepoConfig

from materialize.stores import pit
from materialize.stores.append import is_pushed, reading
from materialize.stores.parquet_files import DUMMY_ENTITY, INSTANT, folder_of
from materialize.stores.parquet_settings import ParquetSettings, connection
from materialize.stores.parquet_sql import column_types

__all__ = ["Wanted", "entity_rows", "join_views"]


@dataclass(frozen=True)
class Wanted:
    """One feature view's part of a retrieval."""

    view: FeatureView
    source: FileSource
    keys: dict[str, str]  # join key of the view -> column of the entity rows
    fields: dict[str, str]  # column of the result -> feature

    @classmethod
    def of(cls, view: FeatureView, refs: list[str], full_names: bool) -> Wanted:
        """Return what the references name of a view with a local Parquet source."""
        source = view.batch_source
        assert isinstance(source, FileSource)  # noqa: S101 - narrows; the caller has checked it
        projection = view.projection
        name: str = projection.name_to_use()  # type: ignore[no-untyped-call]
        keys = {
            entity.name: projection.join_key_map.get(entity.name, entity.name)
            for entity in view.entity_columns
            if entity.name != DUMMY_ENTITY
        }
        features = [ref.split(":")[1] for ref in refs if ref.startswith(f"{name}:")]
        prefix = f"{projection.name_alias or view.name}__" if full_names else ""
        return cls(view, source, keys, {f"{prefix}{feature}": feature for feature in features})

    def check(self, entity_columns: list[str]) -> None:
        """Raise ValueError when the entity rows lack a key, or have a column of a field's name."""
        missing = sorted(set(self.keys.values()) - set(entity_columns))
        if missing:
            raise ValueError(
                f"View {self.view.name!r} is joined on {', '.join(map(repr, missing))}, which the "
                f"entity rows lack. Columns: {', '.join(sorted(entity_columns))}."
            )
        both = sorted(set(self.fields) & set(entity_columns))
        if both:
            raise ValueError(
                f"{', '.join(map(repr, both))} is a column of the entity rows and a feature of "
                f"view {self.view.name!r}. Rename the column, or ask for full_feature_names."
            )

    def history(
        self, files: list[Path], types: dict[str, str], settings: ParquetSettings
    ) -> pit.History:
        """Return the view's rows in ``files``, whose columns have these DuckDB types."""
        given = {new: old for old, new in self.source.field_mapping.items() if old in types}
        recomputed = any(fnmatchcase(self.view.name, p) for p in settings.recomputed_views)
        exempt = [path for path in files if recomputed and not is_pushed(path)]
        ttl = self.view.ttl
        created = self.source.created_timestamp_column
        return pit.History(
            view=self.view.name,
            files=(*exempt, *(path for path in files if path not in set(exempt))),
            exempt=len(exempt),
            keys={given.get(key, key): f"key_{column}" for key, column in self.keys.items()},
            timestamp=given.get(self.source.timestamp_field, self.source.timestamp_field),
            created=given.get(created, created) if created else None,
            fields={column: given.get(f, f) for column, f in self.fields.items()},
            types=types,
            ttl_us=ttl // timedelta(microseconds=1) if ttl else 0,
        )


def join_views(
    config: RepoConfig,
    settings: ParquetSettings,
    entities: pa.Table,
    moment: str,
    wanted: list[Wanted],
    created_filter: bool | None,
) -> pa.Table:
    """Return the entity rows with every view's features.

    Parameters
    ----------
    config, settings
        Of the repository and of its offline store.
    entities : pyarrow.Table
        From `entity_rows`.
    moment : str
        Their time column.
    wanted : list of Wanted
        Checked against the entity rows.
    created_filter : bool or None
        Of the call; None: as configured.

    Raises
    ------
    DataFault
        A view's folder is missing or empty, or lacks a column.
    """
    mode: pit.CreatedFilter = "pushed" if settings.filter_by_created_timestamp else "off"
    if created_filter is not None:
        mode = "all" if created_filter else "off"
    row = pa.array(np.arange(entities.num_rows))
    result = entities
    with ExitStack() as stack:
        db = stack.enter_context(connection(settings))
        for one in wanted:
            files = stack.enter_context(reading(folder_of(config, one.source)))
            history = one.history(files, column_types(db, files), settings)
            spine = pa.table(
                {
                    "row": row,
                    "moment": entities.column(moment).cast(pa.int64()),
                    **{f"key_{c}": entities.column(c) for c in one.keys.values()},
                }
            )
            fields = pit.join(db, spine, history, mode)
            for name in fields.column_names:
                result = result.append_column(name, fields.column(name))
    return result


def entity_rows(entity_df: pd.DataFrame | str, settings: ParquetSettings) -> tuple[pa.Table, str]:
    """Return the entity rows, times as microseconds in UTC, and the name of their time column."""
    if isinstance(entity_df, str):
        with connection(settings) as db:
            frame: pd.DataFrame = db.sql(entity_df).to_arrow_table().to_pandas()
    else:
        frame = entity_df
    columns = [str(column) for column in frame.columns]
    moment = infer_event_timestamp_from_entity_df(dict(zip(columns, frame.dtypes, strict=True)))
    times = frame[moment]
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        times = times.dt.tz_convert("UTC")
    else:
        times = pd.Series(pd.to_datetime(times, utc=True))
    if times.dt.unit != "us":
        times = times.dt.floor("us").dt.as_unit("us")
    rest = [column for column in frame.columns if str(column) != moment]
    table = pa.Table.from_pandas(frame[rest], preserve_index=False).replace_schema_metadata()
    return table.add_column(columns.index(moment), moment, pa.array(times).cast(INSTANT)), moment
