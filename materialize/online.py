"""Arrow rows into any Feast online store, in batches, through Feast's own store interface."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from materialize.stores.values import value_bytes

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["OnlineWriter"]


class OnlineWriter:
    """Writes rows of one feature view online; safe to repeat.

    A store with ``write_arrow`` gets the columns as they are and leaves out rows that are older
    than what it holds; any other store gets Feast's protobuf rows. Holds a connection of its own,
    so one a thread.

    Parameters
    ----------
    store : FeatureStore
    view_name : str
        An applied feature view with one join key.
    """

    def __init__(self, store: FeatureStore, view_name: str) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config

        self._config = store.config
        self._view = store.get_feature_view(view_name)
        self._online = get_online_store_from_config(store.config.online_store)

    def write(self, batch: pa.RecordBatch) -> int:
        """Write one batch and return how many of its rows were older than what is stored.

        Parameters
        ----------
        batch : RecordBatch
            The view's fields, its join key, ``event_timestamp`` and ``created_timestamp``; one row
            an entity (of two rows of one entity, stores keep either).
        """
        if hasattr(self._online, "write_arrow"):
            return int(self._online.write_arrow(self._config, self._view, batch).stale)
        rows = _protobuf_rows(self._view, batch)
        self._online.online_write_batch(self._config, self._view, rows, None)
        return 0


def _protobuf_rows(
    view: FeatureView, batch: pa.RecordBatch
) -> list[tuple[Any, dict[str, Any], datetime, datetime | None]]:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    (join_key,) = view.join_keys
    keys = _values(batch.column(join_key))
    fields = [(f.name, _values(batch.column(f.name))) for f in view.features]
    events = _datetimes(batch.column("event_timestamp"))
    created = _datetimes(batch.column("created_timestamp"))
    return [
        (
            EntityKey(join_keys=[join_key], entity_values=[keys[row]]),
            {name: values[row] for name, values in fields},
            events[row],
            created[row],
        )
        for row in range(batch.num_rows)
    ]


def _values(column: pa.Array) -> list[Any]:
    """Return one Feast ``Value`` a row; a null row is an unset value."""
    from feast.protos.feast.types.Value_pb2 import StringList, Value

    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_floating(kind.value_type):
            return _float_lists(column)
        if pa.types.is_integer(kind.value_type):
            form = "INT32_LIST" if kind.value_type.bit_width <= 32 else "INT64_LIST"
            return [Value.FromString(content) for content in value_bytes(column, form)]
        return [
            Value() if row is None else Value(string_list_val=StringList(val=row))
            for row in column.to_pylist()
        ]
    name = "int64_val" if pa.types.is_integer(kind) else "string_val"
    return [Value() if v is None else Value(**{name: v}) for v in column.to_pylist()]


def _float_lists(column: pa.Array) -> list[Any]:
    """Return float lists without a Python object per element.

    A packed repeated float is a tag, a length and the little-endian bytes, so each row's bytes are
    merged as they lie in the Arrow buffer (measured for 512 floats: 348k rows/s against 23k from
    lists).
    """
    from feast.protos.feast.types.Value_pb2 import Value

    present = column.drop_null()
    flat = present.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    data = np.ascontiguousarray(flat, "<f4").tobytes()
    lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False)
    ends = (np.cumsum(lengths) * 4).tolist()
    values, position, start = [], 0, 0
    for is_valid in column.is_valid().to_pylist():
        value = Value()
        if is_valid:
            end = ends[position]
            value.float_list_val.MergeFromString(_header((end - start) // 4) + data[start:end])
            position, start = position + 1, end
        values.append(value)
    return values


@lru_cache(maxsize=64)
def _header(width: int) -> bytes:
    """Return what protobuf writes before the packed floats of a list of ``width`` elements."""
    from feast.protos.feast.types.Value_pb2 import FloatList

    whole: bytes = FloatList(val=[0.0] * width).SerializeToString()
    return whole[: len(whole) - 4 * width]


def _datetimes(column: pa.Array) -> list[datetime]:
    moments: list[datetime] = column.to_pylist()
    return moments
