"""What write_online writes, stock Feast reads back bit-equal."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from materialize import online
from tests.repositories import INSTANT, TinyRepository, write_online
from transforms.layout import ACTIVITY, PROFILE, field
from transforms.names import USER_KEY

POOLED, COUNTS, AS_OF, MODALITY = (
    field(ACTIVITY, name) for name in ("pooled", "counts", "as_of", "modality")
)
WHEN = datetime(2026, 1, 1, tzinfo=timezone.utc)
EXTREMES = np.array(
    [0.0, -0.0, np.nan, np.inf, -np.inf, 3.4028235e38, -3.4028235e38, 1e-45, 1.1754944e-38, 0.1],
    np.float32,
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> TinyRepository:
    return TinyRepository.make(tmp_path_factory.mktemp("texts"), "STRING")


def _activity(users: pa.Array, **columns: Any) -> pa.RecordBatch:
    """Rows of user_activity; columns that are not given are null."""
    n = len(users)
    types = {
        "pooled": pa.list_(pa.float32()),
        "histogram": pa.list_(pa.float32()),
        "counts": pa.list_(pa.float32()),
        "as_of": pa.int64(),
        "modality": pa.string(),
    }
    arrays = {USER_KEY: users}
    for name, kind in types.items():
        value = columns.get(name, pa.nulls(n, kind))
        arrays[field(ACTIVITY, name)] = (
            value if isinstance(value, pa.Array) else pa.array(value, kind)
        )
    for name in ("event_timestamp", "created_timestamp"):
        arrays[name] = pa.array([WHEN] * n, INSTANT)
    return pa.RecordBatch.from_pydict(arrays)


def _read(repository: TinyRepository, users: list[Any], *names: str) -> dict[str, list[Any]]:
    return repository.store.get_online_features(
        features=[f"{ACTIVITY}:{name}" for name in names],
        entity_rows=[{USER_KEY: user} for user in users],
    ).to_dict()


@example(EXTREMES.reshape(1, -1))
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 200)), elements=st.floats(width=32)
    )
)
@settings(max_examples=15)
def test_floats_are_read_back_bit_equal(tiny: TinyRepository, values: np.ndarray) -> None:
    """Any float32 array: signs of zero, subnormals, infinities and NaN included."""
    users = list(range(100, 100 + len(values)))
    rows = _activity(pa.array(users), pooled=values.tolist())
    assert write_online(tiny.store, ACTIVITY, [rows]) == len(users)
    read = np.array(_read(tiny, users, POOLED)[POOLED], np.float32)
    np.testing.assert_array_equal(np.isnan(read), np.isnan(values))
    numbers = ~np.isnan(values)
    assert read[numbers].tobytes() == values[numbers].tobytes()


@pytest.mark.parametrize("width", [0, 1, 2, 31, 32, 33, 120, 4095, 4096, 70_000, 600_000])
def test_packed_floats_are_what_protobuf_writes(width: int) -> None:
    values = np.arange(width, dtype=np.float32)
    whole = FloatList(val=values.tolist()).SerializeToString()
    assert online._header(width) + values.tobytes() == whole
    column = pa.array([values.tolist(), None], pa.list_(pa.float32()))
    assert online._values(column) == [Value(float_list_val=FloatList(val=values)), Value()]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float32(), 3),
    ],
    ids=str,
)
def test_every_arrow_list_of_floats_keeps_rows_nulls_and_slices(kind: pa.DataType) -> None:
    rows = [[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], None, [0.5, 0.25, 0.125]]
    column = pa.array(rows, kind)
    for start, stop in ((0, 6), (1, 4), (2, 6), (4, 5), (3, 3)):
        values = online._values(column.slice(start, stop - start))
        found = [list(v.float_list_val.val) if v.WhichOneof("val") else None for v in values]
        assert found == rows[start:stop]


def test_nulls_and_empty_lists_are_told_apart(tiny: TinyRepository) -> None:
    users = [201, 202, 203]
    rows = _activity(
        pa.array(users), pooled=[[1.0], None, []], as_of=[None, 2, 3], modality=["m", None, ""]
    )
    write_online(tiny.store, ACTIVITY, [rows])
    read = _read(tiny, users, POOLED, AS_OF, MODALITY, COUNTS)
    assert read[POOLED] == [[1.0], None, []]
    assert read[AS_OF] == [None, 2, 3]
    assert read[MODALITY] == ["m", None, ""]
    assert read[COUNTS] == [None, None, None]


@pytest.mark.parametrize("user", [0, -1, 2**63 - 1, -(2**63)])
def test_any_integer_user_is_found_again(tiny: TinyRepository, user: int) -> None:
    rows = _activity(pa.array([user]), as_of=[2**62 + 1])
    write_online(tiny.store, ACTIVITY, [rows])
    assert _read(tiny, [user, 204], AS_OF)[AS_OF] == [2**62 + 1, None]


@pytest.mark.parametrize("user", ["a", "7", "ü", "user with spaces", "😀" * 20])
def test_any_string_user_is_found_again(texts: TinyRepository, user: str) -> None:
    rows = _activity(pa.array([user]), as_of=[5])
    write_online(texts.store, ACTIVITY, [rows])
    assert _read(texts, [user, "nobody"], AS_OF)[AS_OF] == [5, None]


def test_string_lists_are_read_back(tiny: TinyRepository) -> None:
    users, categories = [301, 302, 303], field(PROFILE, "categories")
    values = [["a", "", "ü"], None, [""]]
    rows = pa.RecordBatch.from_pydict(
        {
            USER_KEY: pa.array(users),
            categories: pa.array(values, pa.list_(pa.string())),
            field(PROFILE, "as_of"): pa.array([1, 2, 3]),
            "event_timestamp": pa.array([WHEN] * 3, INSTANT),
            "created_timestamp": pa.array([WHEN] * 3, INSTANT),
        }
    )
    write_online(tiny.store, PROFILE, [rows])
    read = tiny.store.get_online_features(
        features=[f"{PROFILE}:{categories}"], entity_rows=[{USER_KEY: u} for u in users]
    ).to_dict()
    assert read[categories] == values


def test_batches_are_written_and_may_be_repeated(tiny: TinyRepository) -> None:
    parts = [
        _activity(pa.array([401, 402]), as_of=[1, 2]),
        _activity(pa.array([], pa.int64())),
        _activity(pa.array([403]), as_of=[3]),
    ]
    for _ in range(2):
        assert write_online(tiny.store, ACTIVITY, parts) == 3
    assert _read(tiny, [401, 402, 403], AS_OF)[AS_OF] == [1, 2, 3]


def test_the_event_time_is_written_with_the_row(tiny: TinyRepository) -> None:
    write_online(tiny.store, ACTIVITY, [_activity(pa.array([501]), as_of=[1])])
    answer = tiny.store.get_online_features(
        features=[f"{ACTIVITY}:{AS_OF}"], entity_rows=[{USER_KEY: 501}]
    )
    assert answer.proto.results[1].event_timestamps[0].ToDatetime(timezone.utc) == WHEN
