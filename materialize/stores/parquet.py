"""Offline store plugin: append-only folders of Parquet, joined point-in-time by DuckDB.

In ``feature_store.yaml``::

    offline_store:
      type: materialize.stores.parquet.PalateParquetOfflineStore
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView, FileSource, OnDemandFeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig

from materialize.stores.append import any_file, append_rows, reading
from materialize.stores.compact import compact_fields, round_trip_column
from materialize.stores.parquet_files import as_stored, folder_of, is_local_parquet
from materialize.stores.parquet_job import ParquetJob
from materialize.stores.parquet_settings import ParquetSettings, connection, settings_of
from materialize.stores.parquet_sql import column_types, newest_rows, rows_between
from materialize.stores.retrieval import Wanted, entity_rows, join_views

__all__ = ["PalateParquetOfflineStore", "PalateParquetOfflineStoreConfig"]

logger = logging.getLogger(__name__)

_INSTANT = pa.timestamp("us", "UTC")
_DUMMY_ENTITY = "__dummy_id"  # Feast's join key of a view without entities
_BATCH_ROWS = 65_536


class PalateParquetOfflineStoreConfig(ParquetSettings):
    """Settings under ``offline_store`` in ``feature_store.yaml``."""

    type: str = "materialize.stores.parquet.PalateParquetOfflineStore"
    """Class path of the store."""


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
        settings = settings_of(config)
        if not all(is_local_parquet(view.batch_source) for view in feature_views):
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
        entities, moment = entity_rows(entity_df, settings)
        wanted = [Wanted.of(view, feature_refs, full_feature_names) for view in feature_views]
        for one in wanted:
            one.check(entities.column_names)

        @contextmanager
        def result(batch_rows: int) -> Iterator[pa.RecordBatchReader]:
            chosen = filter_by_created_timestamp
            table = join_views(config, settings, entities, moment, wanted, chosen)
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
        if not is_local_parquet(data_source):
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
            lambda files, types: newest_rows(
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
        if not is_local_parquet(data_source):
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
            lambda files, types: rows_between(files, types, columns, times, start_date, end_date),
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
        if not is_local_parquet(source):
            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return
        assert isinstance(source, FileSource)  # noqa: S101 - narrows what was just checked
        folder = folder_of(config, source)
        append_rows(folder, as_stored(feature_view, source, table, any_file(folder)))
        if progress is not None:
            progress(table.num_rows)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Return the columns of one of the source's files.

        One, because Feast asks before each push, and listing a folder takes longer the more files
        it holds.
        """
        if is_local_parquet(data_source):
            assert isinstance(data_source, FileSource)  # noqa: S101 - narrows
            file = any_file(folder_of(config, data_source))
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


def _times(timestamp: str, created: str | None) -> list[str]:
    return [timestamp] if not created else [timestamp, created]


def _pull(
    config: RepoConfig,
    source: DataSource,
    query: Callable[[list[Path], dict[str, str]], str],
) -> ParquetJob:
    assert isinstance(source, FileSource)  # noqa: S101 - narrows; the caller has checked it
    settings = settings_of(config)

    @contextmanager
    def result(batch_rows: int) -> Iterator[pa.RecordBatchReader]:
        with reading(folder_of(config, source)) as files, connection(settings) as db:
            yield db.sql(query(files, column_types(db, files))).to_arrow_reader(batch_rows)

    return ParquetJob(result, combine=True, repo_path=str(config.repo_path))
