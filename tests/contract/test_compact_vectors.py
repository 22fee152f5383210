"""Vectors stored as float16 or int8: float32 on every path of our stores, bytes to stock Feast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import FloatList, Value

from materialize.stores.compact import round_trip
from tests.sinks import HOUR, INSTANT, NOON, USERS, Sink, key_of
from transforms.names import FLOAT32, VECTOR_FORMS

COMPACT = [form for form in VECTOR_FORMS if form != FLOAT32]
_Floats = npt.NDArray[np.float32]
_Write = Callable[..., Any]


def _vectors(n: int = 3, dim: int = 120) -> _Floats:
    return np.random.default_rng(dim).standard_normal((n, dim), dtype=np.float32)


def _batch(users: list[int], vectors: list[Any], hours: int = 0) -> pa.RecordBatch:
    moments = pa.array([NOON + hours * HOUR] * len(users), INSTANT)
    return pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(users, pa.int64()),
            "vector": pa.array(vectors, pa.list_(pa.float32())),
            "amount": pa.array(users, pa.int64()),
            "event_timestamp": moments,
            "created_timestamp": moments,
        }
    )


def _write_protobuf(
    sink: Sink, view: str, users: list[int], vectors: list[Any], hours: int = 0
) -> None:
    moment = NOON + hours * HOUR
    rows = [
        (
            key_of(user),
            {
                "vector": Value()
                if vector is None
                else Value(float_list_val=FloatList(val=list(vector))),
                "amount": Value(int64_val=user),
            },
            moment,
            moment,
        )
        for user, vector in zip(users, vectors, strict=True)
    ]
    sink.fresh().online_write_batch(sink.store.config, sink.view(view), rows, None)


def _write_arrow(
    sink: Sink, view: str, users: list[int], vectors: list[Any], hours: int = 0
) -> None:
    batch = _batch(users, vectors, hours)
    sink.fresh().write_arrow(sink.store.config, sink.view(view), batch)


@pytest.fixture(params=[_write_protobuf, _write_arrow], ids=["protobuf", "arrow"])
def written(request: pytest.FixtureRequest) -> _Write:
    """Each way of writing: (sink, view, users, vectors, hours after noon)."""
    write: _Write = request.param
    return write


def _users(n: int = 3) -> list[int]:
    return [next(USERS) for _ in range(n)]


def _found(sink: Sink, view: str, users: list[int]) -> list[Value]:
    """Return the vectors as `online_read` gives them."""
    rows = sink.fresh().online_read(
        sink.store.config, sink.view(view), [key_of(user) for user in users], ["vector", "amount"]
    )
    return [values["vector"] for _, values in rows]


def _floats(values: Any) -> _Floats:
    assert {value.WhichOneof("val") for value in values} == {"float_list_val"}
    return np.array([value.float_list_val.val for value in values], np.float32)


async def _close_async(online: Any) -> None:
    if getattr(online, "_client_async", None) is not None:
        await online._client_async.aclose()
        online._client_async = None
    if getattr(online, "_conn_async", None) is not None:
        await online._conn_async.close()
        online._conn_async = None


@pytest.mark.parametrize("form", COMPACT)
def test_online_read_gives_float32(atomic: Sink, form: str, written: _Write) -> None:
    users, vectors = _users(), _vectors()
    written(atomic, form, users, vectors.tolist())
    assert _floats(_found(atomic, form, users)).tobytes() == round_trip(vectors, form).tobytes()


@pytest.mark.parametrize("form", COMPACT)
def test_online_read_async_gives_float32(atomic: Sink, form: str) -> None:
    users, vectors = _users(), _vectors()
    _write_arrow(atomic, form, users, vectors.tolist())
    online = atomic.fresh()

    async def read() -> Any:
        try:
            return await online.online_read_async(
                atomic.store.config, atomic.view(form), [key_of(user) for user in users], ["vector"]
            )
        finally:
            await _close_async(online)

    if not atomic.profile.reads_async:
        with pytest.raises(NotImplementedError):
            asyncio.run(read())
        return
    found = [values["vector"] for _, values in asyncio.run(read())]
    assert _floats(found).tobytes() == round_trip(vectors, form).tobytes()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("views", [*([form] for form in COMPACT), list(VECTOR_FORMS)])
def test_get_online_features_gives_float32(
    atomic: Sink, views: list[str], asynchronous: bool
) -> None:
    """One view or several in one request, which some stores read by other ways."""
    users, vectors, unknown = _users(), _vectors(), next(USERS)
    for view in views:
        _write_arrow(atomic, view, users, vectors.tolist())
    request: dict[str, Any] = {
        "features": [f"{view}:{name}" for view in views for name in ("amount", "vector")],
        "entity_rows": [{"user_id": user} for user in (*users, unknown, users[0])],
        "full_feature_names": True,
    }
    online = atomic.store._get_provider().online_store

    async def get() -> Any:
        try:
            return await atomic.store.get_online_features_async(**request)
        finally:
            await _close_async(online)

    if asynchronous and not atomic.profile.reads_async:
        with pytest.raises(NotImplementedError):
            asyncio.run(get())
        return
    answer = asyncio.run(get()) if asynchronous else atomic.store.get_online_features(**request)
    columns = answer.to_dict()
    for view in views:
        expected = round_trip(vectors, view)
        *found, absent, again = columns[f"{view}__vector"]
        assert np.array(found, np.float32).tobytes() == expected.tobytes()
        assert np.array(again, np.float32).tobytes() == expected[0].tobytes()
        assert absent is None
        assert columns[f"{view}__amount"] == [*users, None, users[0]]
        at = list(answer.proto.metadata.feature_names.val).index(f"{view}__vector")
        statuses = [FieldStatus.Name(status) for status in answer.proto.results[at].statuses]
        assert statuses == ["PRESENT"] * 3 + ["NOT_FOUND", "PRESENT"]


def _by_hand(content: bytes, form: str) -> _Floats:
    """Return a stored vector as the documentation describes its bytes."""
    if form == "float16":
        return np.frombuffer(content, "<f2").astype(np.float32)
    return np.frombuffer(content[:4], "<f4") * np.frombuffer(content[4:], np.int8)


@pytest.mark.parametrize(("form", "width"), [("float16", 240), ("int8", 124)])
def test_stock_feast_reads_bytes(
    sinks: Callable[[str], Sink], atomic: Sink, form: str, width: int, written: _Write
) -> None:
    """What a stock store hands out for such a view: the documented bytes, whoever wrote them."""
    stock = sinks(f"stock-{atomic.profile.family}")
    users, vectors = _users(), _vectors()
    written(atomic, form, users, vectors.tolist())
    found = _found(stock, form, users)
    assert {value.WhichOneof("val") for value in found} == {"bytes_val"}
    assert {len(value.bytes_val) for value in found} == {width}
    expected = round_trip(vectors, form)
    for value, vector in zip(found, expected, strict=True):
        assert _by_hand(value.bytes_val, form).tobytes() == vector.tobytes()
    answer = stock.store.get_online_features(
        features=[f"{form}:vector"], entity_rows=[{"user_id": user} for user in users]
    )
    assert answer.to_dict()["vector"] == [value.bytes_val for value in found]


def test_float32_is_stored_as_feast_stores_it(sinks: Callable[[str], Sink], atomic: Sink) -> None:
    users, vectors = _users(), _vectors()
    _write_arrow(atomic, FLOAT32, users, vectors.tolist())
    found = _found(sinks(f"stock-{atomic.profile.family}"), FLOAT32, users)
    assert _floats(found).tobytes() == vectors.tobytes()


@pytest.mark.parametrize("form", COMPACT)
def test_rows_of_stock_feast_are_read_as_they_are(
    sinks: Callable[[str], Sink], atomic: Sink, form: str
) -> None:
    """Float lists beside bytes in one view: a stock store wrote some of the rows."""
    users, vectors = _users(4), _vectors(4)
    _write_protobuf(sinks(f"stock-{atomic.profile.family}"), form, users[:2], vectors[:2].tolist())
    _write_arrow(atomic, form, users[2:], vectors[2:].tolist())
    expected = np.concatenate([vectors[:2], round_trip(vectors[2:], form)])
    order = [2, 0, 3, 1]
    found = _floats(_found(atomic, form, [users[k] for k in order]))
    assert found.tobytes() == expected[order].tobytes()


@pytest.mark.parametrize("form", COMPACT)
def test_what_was_read_back_is_stored_as_the_same_bytes(
    sinks: Callable[[str], Sink], atomic: Sink, form: str, written: _Write
) -> None:
    stock = sinks(f"stock-{atomic.profile.family}")
    users = _users()
    written(atomic, form, users, _vectors().tolist())
    before = _found(stock, form, users)
    again = _floats(_found(atomic, form, users)).tolist()
    written(atomic, form, users, again, 1)
    assert _found(stock, form, users) == before


@pytest.mark.parametrize("form", COMPACT)
def test_a_null_vector_stays_null(atomic: Sink, form: str, written: _Write) -> None:
    users, vectors = _users(), _vectors().tolist()
    written(atomic, form, users, [vectors[0], None, vectors[2]])
    first, empty, last = _found(atomic, form, users)
    assert empty == Value()
    expected = round_trip(np.array([vectors[0], vectors[2]], np.float32), form)
    assert _floats([first, last]).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("form", "number", "message"),
    [
        ("int8", np.nan, "1 of 2 vectors hold NaN or infinity, the first in row 1"),
        ("float16", -np.inf, "1 of 2 vectors hold NaN or infinity, the first in row 1"),
        ("float16", -65_505.0, "a number beyond 65504, the first in row 1; float16 takes"),
        ("int8", 3e38, r"a number beyond 1.68812e\+38"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_and_nothing_written(
    atomic: Sink, form: str, number: float, message: str, written: _Write
) -> None:
    users, vectors = _users(2), _vectors(2).tolist()
    vectors[1][7] = number
    with pytest.raises(ValueError, match=message):
        written(atomic, form, users, vectors)
    ((_, first), (_, second)) = atomic.fresh().online_read(
        atomic.store.config, atomic.view(form), [key_of(user) for user in users], ["vector"]
    )
    assert (first, second) == (None, None)


@pytest.mark.parametrize("form", COMPACT)
def test_vectors_of_two_widths_are_refused(atomic: Sink, form: str, written: _Write) -> None:
    with pytest.raises(ValueError, match=r"vectors of widths \[1, 2\] given, one width expected"):
        written(atomic, form, _users(2), [[1.0], [1.0, 2.0]])
