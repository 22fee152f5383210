"""What the online stores share: rows from Arrow or protobuf, counts, and expiry on reading."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from pydantic import ValidationInfo, field_validator

from materialize.stores.compact import (
    compact_fields,
    compact_messages,
    compact_values,
    restore,
)
from materialize.stores.rows import EncodedRows
from materialize.stores.values import entity_keys, microseconds, value_bytes, value_text

if TYPE_CHECKING:
    from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

    _Vector = GetOnlineFeaturesResponse.FeatureVector

__all__ = ["AtomicOnlineStore", "WithoutVectorSearch", "WriteCounts", "stored_values"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

FeastRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
FoundRow = tuple[datetime | None, dict[str, Value] | None]


class WithoutVectorSearch(FeastConfigBaseModel):
    """Refuses the settings of Feast's SQL stores that need columns only those stores fill."""

    @field_validator("vector_enabled", "enable_openai_compatible_store", check_fields=False)
    @classmethod
    def _refuse(cls, value: object, info: ValidationInfo) -> object:
        """Vector search needs columns that only Feast's own stores fill."""
        if value:
            raise ValueError(
                f"{info.field_name} {value!r} given, false expected. "
                "Use Feast's own store for vector search."
            )
        return value


@dataclass(frozen=True)
class WriteCounts:
    """What a write did."""

    written: int = 0
    """Rows that are now in the store."""
    stale: int = 0
    """Rows left out because the store, or the same batch, holds a newer one of their entity."""

    def __add__(self, other: WriteCounts) -> WriteCounts:
        return WriteCounts(self.written + other.written, self.stale + other.stale)


class AtomicOnlineStore(OnlineStore):
    """A Feast online store in which an older row never replaces a newer one.

    Mixed in before one of Feast's stores, whose layout stays as it is. A row replaces another of
    its entity when its event time is newer, or equal with a created time that is not older; a
    missing created time counts as the oldest. All features of a row move in one step.

    Vectors of a view that is tagged with another form than float32 are stored in it, and handed out
    as float32 on every path (``materialize/stores/compact.py``).
    """

    rows_per_write = 20_000
    """Rows that are encoded at once, which bounds memory."""

    @abstractmethod
    def _write_encoded(self, config: RepoConfig, view: FeatureView, rows: EncodedRows) -> int:
        """Compare and set; return the number of rows that are now in the store."""

    def _key_suffix(self, config: RepoConfig) -> bytes:
        return b""

    _keeps_text = True

    def write_arrow(
        self,
        config: RepoConfig,
        feature_view: FeatureView,
        batch: pa.RecordBatch | pa.Table,
        progress: Callable[[int], object] | None = None,
    ) -> WriteCounts:
        """Write Arrow rows; safe to repeat and to run beside other writers.

        Parameters
        ----------
        config : RepoConfig
        feature_view : FeatureView
            Applied; its fields, join keys and the timestamp columns of its source are in
            ``batch``. The created time may be missing.
        batch : RecordBatch or Table
            Not modified.
        progress : callable, optional
            Called with a number of rows as they are done.

        Returns
        -------
        WriteCounts

        Raises
        ------
        KeyError
            A column is missing.
        ValueError
            A join key or an event time is null, or a vector does not fit the view's form.
        """
        parts = batch.to_batches() if isinstance(batch, pa.Table) else [batch]
        counts = WriteCounts()
        for part in parts:
            for start in range(0, part.num_rows, self.rows_per_write):
                rows = self._encode(config, feature_view, part.slice(start, self.rows_per_write))
                counts += self._write(config, feature_view, rows, progress)
        return counts

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write Feast's protobuf rows by the same rule; a row may hold some of the features."""
        by_features: dict[tuple[str, ...], list[FeastRow]] = {}
        for row in data:
            by_features.setdefault(tuple(row[1]), []).append(row)
        for names, group in by_features.items():
            for start in range(0, len(group), self.rows_per_write):
                part = group[start : start + self.rows_per_write]
                self._write(
                    config, table, self._from_protobuf(config, table, names, part), progress
                )

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[FeastRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write as `online_write_batch` does, in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def _write(
        self,
        config: RepoConfig,
        view: FeatureView,
        rows: EncodedRows,
        progress: Callable[[int], object] | None,
    ) -> WriteCounts:
        written = self._write_encoded(config, view, rows) if len(rows) else 0
        if progress is not None:
            progress(len(rows))
        return WriteCounts(written, len(rows) - written)

    def _encode(self, config: RepoConfig, view: FeatureView, batch: pa.RecordBatch) -> EncodedRows:
        fields = [(f.name, f.dtype.to_value_type().name) for f in view.features]
        joins = [(f.name, f.dtype.to_value_type().name) for f in view.entity_columns]
        source = view.batch_source
        assert source is not None  # noqa: S101 - Feast refuses to apply such a view
        event = batch.column(source.timestamp_field or "event_timestamp")
        if event.null_count:
            raise ValueError(
                f"{view.name}: {event.null_count} event times are null, none expected. "
                "Remove these rows."
            )
        name = source.created_timestamp_column or "created_timestamp"
        created = (
            batch.column(name)
            if name in batch.schema.names
            else pa.nulls(batch.num_rows, pa.timestamp("us", "UTC"))
        )
        columns = [batch.column(name) for name, _ in fields]
        return EncodedRows(
            tuple(name for name, _ in fields),
            entity_keys(
                [(name, kind, batch.column(name)) for name, kind in joins],
                config.entity_key_serialization_version,
                self._key_suffix(config),
            ),
            stored_values(view, batch),
            [value_text(c, kind) for c, (_, kind) in zip(columns, fields, strict=True)]
            if self._keeps_text
            else [],
            microseconds(event),
            microseconds(created),
            created.is_valid().to_numpy(zero_copy_only=False),
        )

    def _from_protobuf(
        self,
        config: RepoConfig,
        view: FeatureView,
        names: tuple[str, ...],
        data: Sequence[FeastRow],
    ) -> EncodedRows:
        form, compact = compact_fields(view)
        version, suffix = config.entity_key_serialization_version, self._key_suffix(config)
        return EncodedRows(
            names,
            [
                serialize_entity_key(key, entity_key_serialization_version=version) + suffix
                for key, _, _, _ in data
            ],
            [
                compact_messages([values[name] for _, values, _, _ in data], form)
                if name in compact
                else [values[name].SerializeToString() for _, values, _, _ in data]
                for name in names
            ],
            [[extract_text_and_num(row[1][name], False)[0] for row in data] for name in names]
            if self._keeps_text
            else [],
            np.array([_since_epoch(event) for _, _, event, _ in data], np.int64),
            np.array([_since_epoch(row[3]) if row[3] else 0 for row in data], np.int64),
            np.array([row[3] is not None for row in data], np.bool_),
        )

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[FoundRow]:
        """Read as Feast does; vectors are float lists whatever their form in the store."""
        found: list[FoundRow] = super().online_read(  # type: ignore[safe-super]  # see the class
            config, table, entity_keys, requested_features
        )
        _restore_rows(table, found)
        return found

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[FoundRow]:
        """Read as `online_read` does; on SQLite Feast does not implement it."""
        found: list[FoundRow] = await super().online_read_async(
            config, table, entity_keys, requested_features
        )
        _restore_rows(table, found)
        return found

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: Any,
        entity_name_to_join_key_map: Any,
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        start = len(online_features_response.results)
        super()._read_features_per_fv(
            config,
            grouped_refs,
            join_key_values,
            entity_name_to_join_key_map,
            online_features_response,
            full_feature_names,
            include_feature_view_version_metadata,
        )
        _finish(grouped_refs, online_features_response, start)

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: Any,
        entity_name_to_join_key_map: Any,
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        start = len(online_features_response.results)
        await super()._read_features_per_fv_async(
            config,
            grouped_refs,
            join_key_values,
            entity_name_to_join_key_map,
            online_features_response,
            full_feature_names,
            include_feature_view_version_metadata,
        )
        _finish(grouped_refs, online_features_response, start)


def stored_values(view: FeatureView, batch: pa.RecordBatch) -> list[list[bytes]]:
    """Return what an online store keeps of each feature of a view, a value a row.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        A vector does not fit the view's form.
    """
    form, compact = compact_fields(view)
    return [
        compact_values(batch.column(f.name), form)
        if f.name in compact
        else value_bytes(batch.column(f.name), f.dtype.to_value_type().name)
        for f in view.features
    ]


def _finish(
    grouped_refs: Sequence[tuple[FeatureView, list[str]]],
    response: GetOnlineFeaturesResponse,
    start: int,
) -> None:
    """Restore compact vectors and mark expired rows in what was appended from ``start`` on.

    Feast appends one vector a requested feature, view by view. (Its Redis store lengthens the list
    of requested features by ``_ts:view``, for which it appends a vector too.)
    """
    now = time.time()
    vectors = iter(response.results[start:])
    for view, features in grouped_refs:
        own = [next(vectors) for _ in features]
        form, compact = compact_fields(view)
        for name, vector in zip(features, own, strict=True):
            # Stores that read several views at once do not go through `online_read`.
            if name in compact:
                restore(vector.values, form)
        if view.ttl and own:
            _mark_expired(own, now - view.ttl.total_seconds())


def _mark_expired(
    vectors: Sequence[GetOnlineFeaturesResponse.FeatureVector], oldest: float
) -> None:
    """Set OUTSIDE_MAX_AGE where a view's rows are older than a Unix time; the values stay."""
    expired = [
        row
        for row, moment in enumerate(vectors[0].event_timestamps)
        if moment.seconds + moment.nanos / 1e9 < oldest
    ]
    for vector in vectors:
        for row in expired:
            if vector.statuses[row] == FieldStatus.PRESENT:
                vector.statuses[row] = FieldStatus.OUTSIDE_MAX_AGE


def _restore_rows(view: FeatureView, found: Sequence[FoundRow]) -> None:
    form, compact = compact_fields(view)
    for name in compact:
        restore([values[name] for _, values in found if values and name in values], form)


def _since_epoch(moment: datetime) -> int:
    """Return microseconds since 1970; a time without a zone is UTC, as in Feast."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (aware - _EPOCH) // _MICROSECOND
