"""Offline store plugin: append-only folders of Parquet, joined point-in-time by DuckDB.

In ``feature_store.yaml``::

    offline_store:
      type: materialize.stores.parquet.PalateParquetOfflineStore
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView, FileSource, OnDemandFeatureView
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _write_data_source,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from pydantic import ConfigDict, Field

from materialize.stores import pit
from materialize.stores.append import any_file, append_rows, is_pushed, reading
from materialize.stores.compact import compact_fields, round_trip_column
from transforms.engine import bounded_connection
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE
from transforms.names import ITEM_VECTORS

__all__ = ["PalateParquetOfflineStore", "PalateParquetOfflineStoreConfig", "ParquetJob"]

logger = logging.getLogger(__name__)

_INSTANT = pa.timestamp("us", "UTC")
_DUMMY_ENTITY = "__dummy_id"  # Feast's join key of a view without entities
_BATCH_ROWS = 65_536


class PalateParquetOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Settings under ``offline_store`` in ``feature_store.yaml``."""

    model_config = ConfigDict(extra="forbid")

    type: str = "materialize.stores.parquet.PalateParquetOfflineStore"
    """Class path of the store."""
    memory_limit_mb: int = Field(default=4096, ge=128)
    """What DuckDB may hold in memory (MiB); more is spilled to disk. Results come on top."""
    spill_folder: str | None = None
    """Existing folder for spilled data; default: the system's folder for temporary files."""
    threads: int | None = Field(default=None, ge=1)
    """Of DuckDB; default: one a core."""
    filter_by_created_timestamp: bool = True
    """Hide rows that were created after an entity row's time, in every view with such a column."""
    recomputed_views: tuple[str, ...] = (
        ACTIVITY,
        PROFILE,
        ONBOARDING,
        ITEM_VECTORS,
        "user_embedding_s*",
    )
    """Views (``*`` allowed) whose batch files count from their event time on, because a job
    recomputes them from dated events; their pushed rows count from their created time on."""


class ParquetJob(RetrievalJob):
    """A retrieval that runs each time its result is asked for.

    Parameters
    ----------
    result : callable
        Largest number of rows of a batch -> context that yields a reader of the result.
    combine : bool
        Return one chunk a column: Feast's own materialisation reads no further than the first.
    on_demand : list of OnDemandFeatureView
        Applied to the whole table by ``to_arrow`` and ``to_df``.
    full_names : bool
    metadata : RetrievalMetadata or None
    repo_path : str
    """

    def __init__(
        self,
        result: Callable[[int], AbstractContextManager[pa.RecordBatchReader]],
        *,
        combine: bool = False,
        on_demand: list[OnDemandFeatureView] | None = None,
        full_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        repo_path: str = "",
    ) -> None:
        super().__init__()
        self._result, self._combine = result, combine
        self._on_demand, self._full_names = on_demand or [], full_names
        self._metadata, self._repo_path = metadata, repo_path

    def to_record_batches(self, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the result in batches of at most ``batch_rows``, without on-demand features.

        The rows' files stay in place until the iterator is exhausted or closed.
        """
        with self._result(batch_rows) as reader:
            yield from reader

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with self._result(_BATCH_ROWS) as reader:
            table = reader.read_all()
        return table.combine_chunks() if self._combine else table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal().to_pandas()
        return frame

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The views that ``to_arrow`` and ``to_df`` compute from the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for; None for pulls."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result where Feast's own store would, on-demand features included."""
        source = storage.to_data_source()
        table = ibis.memtable(self.to_arrow())
        _write_data_source(table, source, self._repo_path, "overwrite", allow_overwrite)


class PalateParquetOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store with ASOF joins, appending pushes and the created-timestamp filter.

    Sources that are not local Parquet (remote addresses, globs, Delta, Iceberg, Lance) are read and
    written by Feast's own code.
    """

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return each entity row with the features that were known at its time.

        Parameters
        ----------
        config, feature_views, feature_refs, registry, project, full_feature_names
            As Feast gives them.
        entity_df : DataFrame or str
            Keys and ``event_timestamp`` (any unit and zone, strings too; naive is UTC), or a DuckDB
            query for them. Rows keep their number and order. Never modified.
        filter_by_created_timestamp : bool, optional
            True: no row counts before its created time, recomputed ones included. False: created
            time breaks ties only. None, which is also what Feast's own default comes as: as
            configured.
        start_date, end_date : datetime, optional
            Not supported; entity rows are needed.

        Raises
        ------
        NotImplementedError
            Without ``entity_df``.
        ValueError
            A feature would have the name of a column of the entity rows, or a join key is missing.
        DataFault
            When the job runs: a view's folder is missing or empty, or lacks a column.
        """
        if entity_df is None:
            raise NotImplementedError(
                "A retrieval by start_date and end_date was asked for; this store needs entity_df, "
                "rows of join keys and event_timestamp."
            )
        settings = _settings(config)
        if not all(_is_local_parquet(view.batch_source) for view in feature_views):
            names = ", ".join(sorted(view.name for view in feature_views))
            logger.info("not all of %s are local Parquet: read by Feast's own store", names)
            chosen = filter_by_created_timestamp
            return DuckDBOfflineStore.get_historical_features(
                config,
                feature_views,
                feature_refs,
                entity_df,
                registry,
                project,
                full_feature_names,
                settings.filter_by_created_timestamp if chosen is None else chosen,
            )
        entities, moment = _entity_rows(entity_df, settings)
        wanted = [_Wanted.of(view, feature_refs, full_feature_names) for view in feature_views]
        for one in wanted:
            one.check(entities.column_names)

        @contextmanager
        def result(batch_rows: int) -> Iterator[pa.RecordBatchReader]:
            chosen = filter_by_created_timestamp
            table = _join_all(config, settings, entities, moment, wanted, chosen)
            yield table.to_reader(batch_rows)

        moments = entities.column(moment)
        bounds = pc.min_max(moments).as_py()
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return ParquetJob(
            result,
            on_demand=on_demand,
            full_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[column for column in entities.column_names if column != moment],
                min_event_timestamp=bounds["min"],
                max_event_timestamp=bounds["max"],
            ),
            repo_path=str(config.repo_path),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return each key's newest row with an event time in ``[start_date, end_date]``."""
        if not _is_local_parquet(data_source):
            return DuckDBOfflineStore.pull_latest_from_table_or_query(
                config,
                data_source,
                join_key_columns,
                feature_name_columns,
                timestamp_field,
                created_timestamp_column,
                start_date,
                end_date,
            )
        times = _times(timestamp_field, created_timestamp_column)
        columns = list(dict.fromkeys([*join_key_columns, *feature_name_columns, *times]))
        return _pull(
            config,
            data_source,
            lambda files, types: pit.newest_rows(
                files, types, columns, times, join_key_columns, start_date, end_date
            ),
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return all rows with an event time in ``[start_date, end_date]``; None: no bound."""
        if not _is_local_parquet(data_source):
            return DuckDBOfflineStore.pull_all_from_table_or_query(
                config,
                data_source,
                join_key_columns,
                feature_name_columns,
                timestamp_field,
                created_timestamp_column,
                start_date,
                end_date,
            )
        times = _times(timestamp_field, created_timestamp_column)
        columns = list(dict.fromkeys([*join_key_columns, *feature_name_columns, *times]))
        return _pull(
            config,
            data_source,
            lambda files, types: pit.rows_between(
                files, types, columns, times, start_date, end_date
            ),
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append a table as one new file of the view's folder.

        Columns may stand in any order and bear source or mapped names; their types become those of
        the files that are there, times become microseconds, UTC.

        Raises
        ------
        ValueError
            Columns are missing or unknown, or a vector does not fit the view's form.
        DataFault
            The source is a single file, which cannot be appended to.
        """
        table = _as_read_online(feature_view, table)
        source = feature_view.batch_source
        if not _is_local_parquet(source):
            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return
        assert isinstance(source, FileSource)  # noqa: S101 - narrows what was just checked
        folder = _folder(config, source)
        append_rows(folder, _as_stored(feature_view, source, table, any_file(folder)))
        if progress is not None:
            progress(table.num_rows)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Return the columns of one of the source's files.

        One, because Feast asks before each push, and listing a folder takes longer the more files
        it holds.
        """
        if _is_local_parquet(data_source):
            assert isinstance(data_source, FileSource)  # noqa: S101 - narrows
            file = any_file(_folder(config, data_source))
            if file is not None:
                schema = pq.read_schema(file)
                return zip(schema.names, map(str, schema.types), strict=True)
        columns: Iterable[tuple[str, str]] = (
            super().get_table_column_names_and_types_from_data_source(config, data_source)
        )
        return columns


def _as_read_online(view: FeatureView, table: pa.Table) -> pa.Table:
    """Return pushed rows with vectors as the online store hands them out (`stores/compact.py`)."""
    form, compact = compact_fields(view)
    for place, name in enumerate(table.column_names):
        if name in compact:
            kept = round_trip_column(table.column(name), form)
            table = table.set_column(place, name, kept)
    return table


@dataclass(frozen=True)
class _Wanted:
    """One feature view's part of a retrieval."""

    view: FeatureView
    source: FileSource
    keys: dict[str, str]  # join key of the view -> column of the entity rows
    fields: dict[str, str]  # column of the result -> feature

    @classmethod
    def of(cls, view: FeatureView, refs: list[str], full_names: bool) -> _Wanted:
        source = view.batch_source
        assert isinstance(source, FileSource)  # noqa: S101 - narrows; the caller has checked it
        projection = view.projection
        name: str = projection.name_to_use()  # type: ignore[no-untyped-call]
        keys = {
            entity.name: projection.join_key_map.get(entity.name, entity.name)
            for entity in view.entity_columns
            if entity.name != _DUMMY_ENTITY
        }
        features = [ref.split(":")[1] for ref in refs if ref.startswith(f"{name}:")]
        prefix = f"{projection.name_alias or view.name}__" if full_names else ""
        return cls(view, source, keys, {f"{prefix}{feature}": feature for feature in features})

    def check(self, entity_columns: list[str]) -> None:
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
        self, files: list[Path], types: dict[str, str], settings: PalateParquetOfflineStoreConfig
    ) -> pit.History:
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


def _join_all(
    config: RepoConfig,
    settings: PalateParquetOfflineStoreConfig,
    entities: pa.Table,
    moment: str,
    wanted: list[_Wanted],
    created_filter: bool | None,
) -> pa.Table:
    """Return the entity rows with every view's features."""
    mode: pit.CreatedFilter = "pushed" if settings.filter_by_created_timestamp else "off"
    if created_filter is not None:
        mode = "all" if created_filter else "off"
    row = pa.array(np.arange(entities.num_rows))
    result = entities
    with ExitStack() as stack:
        db = stack.enter_context(_connection(settings))
        for one in wanted:
            files = stack.enter_context(reading(_folder(config, one.source)))
            history = one.history(files, pit.column_types(db, files), settings)
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


def _times(timestamp: str, created: str | None) -> list[str]:
    return [timestamp] if not created else [timestamp, created]


def _pull(
    config: RepoConfig,
    source: DataSource,
    query: Callable[[list[Path], dict[str, str]], str],
) -> ParquetJob:
    assert isinstance(source, FileSource)  # noqa: S101 - narrows; the caller has checked it
    settings = _settings(config)

    @contextmanager
    def result(batch_rows: int) -> Iterator[pa.RecordBatchReader]:
        with reading(_folder(config, source)) as files, _connection(settings) as db:
            yield db.sql(query(files, pit.column_types(db, files))).to_arrow_reader(batch_rows)

    return ParquetJob(result, combine=True, repo_path=str(config.repo_path))


def _as_stored(
    view: FeatureView, source: FileSource, table: pa.Table, file: Path | None
) -> pa.Table:
    """Return the table with the columns, order and types that the view's files have."""
    times = {source.timestamp_field, *filter(None, [source.created_timestamp_column])}
    if file is not None:
        stored = {field.name: field.type for field in pq.read_schema(file)}
    else:
        keys = [e.name for e in view.entity_columns if e.name != _DUMMY_ENTITY]
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
        kind = _INSTANT if name in times else kind or column.type
        # Times lose what is finer than a microsecond; any other loss is an error.
        columns[name] = column.cast(kind, safe=name not in times)
    return pa.table(columns)


def _entity_rows(
    entity_df: pd.DataFrame | str, settings: PalateParquetOfflineStoreConfig
) -> tuple[pa.Table, str]:
    """Return the entity rows, times as microseconds in UTC, and the name of their time column."""
    if isinstance(entity_df, str):
        with _connection(settings) as db:
            frame: pd.DataFrame = db.sql(entity_df).to_arrow_table().to_pandas()
    else:
        frame = entity_df
    columns = [str(column) for column in frame.columns]
    moment = infer_event_timestamp_from_entity_df(dict(zip(columns, frame.dtypes, strict=True)))
    times = pd.Series(pd.to_datetime(frame[moment], utc=True)).dt.floor("us").dt.as_unit("us")
    table = pa.Table.from_pandas(frame.drop(columns=moment), preserve_index=False)
    position = columns.index(moment)
    column = pa.array(times).cast(_INSTANT)
    return table.replace_schema_metadata().add_column(position, moment, column), moment


@contextmanager
def _connection(
    settings: PalateParquetOfflineStoreConfig,
) -> Iterator[duckdb.DuckDBPyConnection]:
    spill = Path(settings.spill_folder) if settings.spill_folder else None
    with bounded_connection(settings.memory_limit_mb, spill) as db:
        if settings.threads is not None:
            db.execute(f"SET threads = {settings.threads}")
        yield db


def _settings(config: RepoConfig) -> PalateParquetOfflineStoreConfig:
    settings = config.offline_store
    if not isinstance(settings, PalateParquetOfflineStoreConfig):
        raise TypeError(
            f"offline_store is configured by {type(settings).__name__}; set its type to "
            f"{PalateParquetOfflineStoreConfig.model_fields['type'].default!r}."
        )
    return settings


def _is_local_parquet(source: DataSource | None) -> bool:
    return (
        isinstance(source, FileSource)
        and (source.file_format is None or isinstance(source.file_format, ParquetFormat))
        and "://" not in source.path
        and not any(mark in source.path for mark in "*?[")
    )


def _folder(config: RepoConfig, source: FileSource) -> Path:
    return Path(FileSource.get_uri_for_file_path(config.repo_path, source.path))
