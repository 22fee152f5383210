"""On-demand embeddings from stored bytes are what Feast's own path answers, message for message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService
from feast.infra.online_stores.online_store import OnlineStore
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import DoubleList, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder.errors import MalformedInput, SpaceMismatch
from tests.repositories import INSTANT, TinyRepository, raw_rows, write_online
from tests.servers import Server
from tests.stores import PROFILES
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, Modality, RawLayout, column
from transforms.names import EMBEDDING_FEATURES, USER_KEY, on_demand_view, stored_view
from transforms.runtime import configure

LAYOUT = RawLayout(
    (Modality("collaborative", 4, 3),),
    (7,),
    context=("country", "device"),
    categories=("gender",),
    numbers=("age",),
    onboarding=True,
)
SCHEMA = LAYOUT.schema("0123456789ab")
PLAIN, OTHER, ASKING = (on_demand_view(number) for number in (1, 2, 3))
STORED = stored_view(1)

USERS = [1, 2, 3, 4, 5]
PRESENT = {
    ACTIVITY: [True, True, False, False, False],
    PROFILE: [True, False, True, False, True],
    ONBOARDING: [True, False, True, True, False],
}
UNKNOWN = 99
SHORT_ROW, NEGATIVE, MIXED, DOUBLES = 71, 72, 73, 74
"""A row of another width, one with a negative count, one of other modality encoders, and one that
another program wrote as doubles, which Feast takes."""


@dataclass(frozen=True)
class Both:
    """A repository on Palate's Redis store, read both ways."""

    repository: TinyRepository
    loop: asyncio.AbstractEventLoop
    """Of all asynchronous reads: a connection belongs to the loop that opened it."""

    @contextmanager
    @staticmethod
    def of(repository: TinyRepository) -> Iterator[Both]:
        loop = asyncio.new_event_loop()
        both = Both(repository, loop)
        try:
            yield both
        finally:
            loop.run_until_complete(both._close())
            loop.close()

    def ours(self, features: Any, rows: Any, *, full: bool = False) -> OnlineResponse:
        return self.repository.store.get_online_features(features, rows, full_feature_names=full)

    def feasts(self, features: Any, rows: Any, *, full: bool = False) -> OnlineResponse:
        """Read through the method that the store would have inherited."""
        return OnlineStore.get_online_features(self._online, **self._asked(features, rows, full))

    def ours_async(self, features: Any, rows: Any, *, full: bool = False) -> OnlineResponse:
        store = self.repository.store
        return self.loop.run_until_complete(
            store.get_online_features_async(features, rows, full_feature_names=full)
        )

    def feasts_async(self, features: Any, rows: Any, *, full: bool = False) -> OnlineResponse:
        asked = self._asked(features, rows, full)
        return self.loop.run_until_complete(
            OnlineStore.get_online_features_async(self._online, **asked)
        )

    async def _close(self) -> None:
        client = await self._online._get_client_async(self.repository.store.config.online_store)
        await client.aclose()

    @property
    def _online(self) -> Any:
        return self.repository.store._get_provider().online_store

    def _asked(self, features: Any, rows: Any, full: bool) -> dict[str, Any]:
        store = self.repository.store
        return {
            "config": store.config,
            "features": features,
            "entity_rows": rows,
            "registry": store.registry,
            "project": store.project,
            "full_feature_names": full,
        }


@pytest.fixture(scope="module")
def both(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    root = tmp_path_factory.mktemp("reads")
    online = PROFILES["palate-redis"].settings(redis_server, str(root))
    repository = TinyRepository.make(root / "repository", layout=LAYOUT, online=online)
    first, second = repository.save_encoder(), repository.save_encoder(seed=1)
    repository.apply_space(1, first)
    repository.apply_space(2, second)
    repository.apply_space(3, first, request_context=["device"])
    repository.write_raw(raw_rows(USERS, PRESENT, schema=SCHEMA))
    columns = raw_rows([SHORT_ROW, NEGATIVE, MIXED, DOUBLES], schema=SCHEMA)
    odd = columns.to_pydict()
    odd[column(ACTIVITY, "pooled")][0] = [1.0, 2.0]
    odd[column(ACTIVITY, "counts")][1][0] = -1.0
    odd[column(ONBOARDING, "modality")][2] = "f" * 12
    repository.write_raw(pa.table(odd, columns.schema))
    _write_doubles(repository)
    _write_stored(repository, first)
    store = repository.store
    views = {name: store.get_on_demand_feature_view(name) for name in (PLAIN, OTHER, ASKING)}
    stored = store.get_feature_view(STORED)
    store.apply(
        [
            FeatureService(name="mixed", features=[stored.with_name("embedding"), views[OTHER]]),
            FeatureService(name="some", features=[views[PLAIN][["status", "as_of"]]]),
            FeatureService(name="aliased", features=[views[PLAIN].with_name("alias")]),
        ]
    )
    with Both.of(repository) as both:
        yield both


def _write_doubles(repository: TinyRepository) -> None:
    """Write a row whose counts are doubles."""
    store = repository.store
    view = store.get_feature_view(ACTIVITY)
    key = EntityKey(join_keys=[USER_KEY], entity_values=[Value(int64_val=DOUBLES)])
    online = store._get_provider().online_store
    ((moment, values),) = online.online_read(store.config, view, [key])
    numbers = list(values["activity_counts"].float_list_val.val)
    values["activity_counts"] = Value(double_list_val=DoubleList(val=numbers))
    online.online_write_batch(store.config, view, [(key, values, moment, None)], None)


def _write_stored(repository: TinyRepository, version: str) -> None:
    n = 3
    moments = pa.array([1_767_268_800_000_000] * n).cast(INSTANT)
    batch = pa.record_batch(
        {
            USER_KEY: pa.array(USERS[:n]),
            "embedding": pa.array([[float(k)] * 8 for k in range(n)], pa.list_(pa.float32())),
            "as_of": pa.array([7] * n),
            "space": pa.array([1] * n),
            "encoder_version": pa.array([version] * n),
            "status": pa.array(["warm"] * n),
            "n_events": pa.array([3] * n),
            "event_timestamp": moments,
            "created_timestamp": moments,
        }
    )
    write_online(repository.store, STORED, [batch])


@pytest.fixture
def without_feast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the function that Feast's path runs fail, so that only ours can answer."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("Feast ran the view's function")

    monkeypatch.setattr("transforms.runtime.encode_on_demand", refuse)


def _all(view: str) -> list[str]:
    return [f"{view}:{name}" for name in EMBEDDING_FEATURES]


def _rows(users: Sequence[Any], **given: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {USER_KEY: user} | {name: values[k] for name, values in given.items()}
        for k, user in enumerate(users)
    ]


def _assert_same(ours: OnlineResponse, feasts: OnlineResponse) -> None:
    assert list(ours.proto.metadata.feature_names.val) == list(
        feasts.proto.metadata.feature_names.val
    )
    assert ours.proto.SerializeToString(deterministic=True) == feasts.proto.SerializeToString(
        deterministic=True
    )
    assert ours.to_dict(include_event_timestamps=True) == feasts.to_dict(
        include_event_timestamps=True
    )
    pd.testing.assert_frame_equal(ours.to_df(), feasts.to_df())
    assert ours._feature_types == feasts._feature_types


MANY = [3, 1, UNKNOWN, 1, 5, 2, 4, 3, UNKNOWN, DOUBLES - 1000]

REQUESTS: dict[str, tuple[list[str], list[dict[str, Any]], bool]] = {
    "all features": (_all(PLAIN), _rows(USERS), False),
    "full names": (_all(PLAIN), _rows(USERS), True),
    "one feature": ([f"{PLAIN}:embedding"], _rows(USERS), False),
    "features in another order": (
        [f"{PLAIN}:status", f"{PLAIN}:embedding", f"{PLAIN}:as_of"],
        _rows(USERS),
        False,
    ),
    "several spaces": (_all(OTHER) + _all(PLAIN), _rows(USERS), True),
    "some of each of two spaces": (
        [f"{OTHER}:embedding", f"{PLAIN}:status"],
        _rows(USERS),
        False,
    ),
    "beside the stored view": (
        [f"{STORED}:status", f"{PLAIN}:embedding", f"{STORED}:as_of"],
        _rows(MANY),
        False,
    ),
    "beside the stored view, full": ([*_all(STORED), *_all(PLAIN)], _rows(MANY), True),
    "beside raw features": (
        [f"{ACTIVITY}:activity_counts", f"{PLAIN}:embedding", f"{PROFILE}:profile_categories"],
        _rows(MANY),
        False,
    ),
    "beside raw features, full": (
        [f"{ACTIVITY}:activity_as_of", f"{PLAIN}:embedding"],
        _rows(MANY),
        True,
    ),
    "repeated and unknown users": (_all(PLAIN), _rows(MANY), False),
    "one user": (_all(PLAIN), _rows([1]), False),
    "one unknown user": (_all(PLAIN), _rows([UNKNOWN]), False),
    "what the request knows": (
        _all(ASKING),
        _rows([1, 2, UNKNOWN, 1], device=["a", None, "b", ""]),
        False,
    ),
    "a request that knows nothing": (_all(ASKING), _rows([1, 2], device=[None, None]), False),
    "with and without context": (
        [f"{ASKING}:embedding", f"{PLAIN}:embedding"],
        _rows([1, 2, UNKNOWN], device=["a", "b", None]),
        True,
    ),
    "a column that nobody asked for": (_all(PLAIN), _rows([1, 2], hour=[8, 9]), False),
}
"""What our path answers by itself."""


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_feasts_message_for_message(both: Both, name: str) -> None:
    features, rows, full = REQUESTS[name]
    _assert_same(both.ours(features, rows, full=full), both.feasts(features, rows, full=full))


@pytest.mark.parametrize("name", REQUESTS)
def test_the_asynchronous_answer_is_feasts_too(both: Both, name: str) -> None:
    features, rows, full = REQUESTS[name]
    ours, feasts = (
        read(features, rows, full=full) for read in (both.ours_async, both.feasts_async)
    )
    _assert_same(ours, feasts)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_made_without_the_views_function(
    both: Both, name: str, without_feast: None
) -> None:
    features, rows, full = REQUESTS[name]
    assert both.ours(features, rows, full=full).to_dict()
    assert both.ours_async(features, rows, full=full).to_dict()
    with pytest.raises(AssertionError, match="Feast ran"):
        both.feasts(features, rows, full=full)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("service", ["mixed", "some"])
def test_a_feature_service_is_answered_alike(both: Both, service: str, full: bool) -> None:
    asked = both.repository.store.get_feature_service(service)
    rows = _rows([1, UNKNOWN, 2])
    if service == "mixed" and not full:
        # Both views have an embedding: Feast refuses this, and so do we.
        for read in (both.ours, both.feasts, both.ours_async):
            with pytest.raises(Exception, match="Duplicate features named"):
                read(asked, rows, full=full)
        return
    _assert_same(both.ours(asked, rows, full=full), both.feasts(asked, rows, full=full))


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    users=st.lists(st.sampled_from([*USERS, UNKNOWN, 7]), min_size=1, max_size=12),
    features=st.lists(
        st.sampled_from(
            [*_all(PLAIN), *_all(OTHER), *_all(STORED), f"{ACTIVITY}:activity_context"]
        ),
        min_size=1,
        unique=True,
    ),
)
def test_any_request_is_answered_alike(both: Both, users: list[int], features: list[str]) -> None:
    """Whatever is asked together, in whatever order."""
    rows = _rows(users)
    _assert_same(both.ours(features, rows, full=True), both.feasts(features, rows, full=True))


# --- what is left to Feast


def _raised(read: Any, *asked: Any) -> tuple[type[BaseException], str, Any, Any]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  compared with the other path's
        read(*asked)
    error = caught.value
    return type(error), str(error), getattr(error, "row", None), getattr(error, "user", None)


@pytest.mark.parametrize(
    ("users", "kind"),
    [
        ([1, SHORT_ROW, 2], MalformedInput),
        ([1, 2, NEGATIVE], MalformedInput),
        ([MIXED, 1], SpaceMismatch),
        ([NEGATIVE, MIXED, SHORT_ROW], MalformedInput),
    ],
)
def test_a_malformed_row_raises_the_same_error(
    both: Both, users: list[int], kind: type[Exception]
) -> None:
    asked = (_all(PLAIN), _rows(users))
    ours = _raised(both.ours, *asked)
    assert ours == _raised(both.feasts, *asked) == _raised(both.ours_async, *asked)
    assert ours[0] is kind


@pytest.fixture
def per_row() -> Iterator[None]:
    configure(on_error="row")
    yield
    configure()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    "users", [[1, SHORT_ROW, 2, NEGATIVE], [NEGATIVE, 1, MIXED, UNKNOWN], [NEGATIVE], [SHORT_ROW]]
)
def test_malformed_rows_are_marked_alike(
    both: Both, per_row: None, users: list[int], full: bool
) -> None:
    asked = (_all(PLAIN), _rows(users))
    ours = both.ours(*asked, full=full)
    _assert_same(ours, both.feasts(*asked, full=full))
    status = ours.to_dict()[f"{PLAIN}__status" if full else "status"]
    assert [s == "error" for s in status] == [u in {SHORT_ROW, NEGATIVE, MIXED} for u in users]


def test_a_value_that_another_program_wrote_is_read_as_feast_reads_it(both: Both) -> None:
    asked = (_all(PLAIN), _rows([1, DOUBLES]))
    ours = both.ours(*asked)
    _assert_same(ours, both.feasts(*asked))
    assert ours.to_dict()["status"] == ["warm", "warm"]


@pytest.mark.parametrize(
    ("features", "rows"),
    [
        (_all(ASKING), _rows([1])),  # without the field of the request
        (_all(ASKING), _rows([1], device=[7])),
        ([f"{PLAIN}:nothing"], _rows([1])),
        (["user_embedding_on_demand_s77:embedding"], _rows([1])),
        ([f"{PLAIN}:embedding", f"{PLAIN}:embedding"], _rows([1])),
        (_all(PLAIN), [{USER_KEY: 1}, {USER_KEY: 2, "more": 3}]),
        (_all(PLAIN), [{"other": 1}]),
        (_all(PLAIN), [{USER_KEY: "one"}]),
        (_all(PLAIN), []),
    ],
)
def test_a_wrong_request_is_refused_alike(
    both: Both, features: list[str], rows: list[dict[str, Any]]
) -> None:
    assert _raised(both.ours, features, rows) == _raised(both.feasts, features, rows)


def test_an_aliased_view_is_feasts_business(both: Both) -> None:
    service = both.repository.store.get_feature_service("aliased")
    _assert_same(both.ours(service, _rows([1])), both.feasts(service, _rows([1])))


def test_columns_and_messages_are_taken_as_entities_too(both: Both) -> None:
    for users in ([1, 2], [Value(int64_val=1), Value(int64_val=2)]):
        asked = (_all(PLAIN), {USER_KEY: users})
        _assert_same(both.ours(*asked), both.feasts(*asked))


def test_a_view_that_is_not_ours_is_run_by_feast(both: Both) -> None:
    """It has the name of one of ours and another function."""
    from feast import Field, OnDemandFeatureView
    from feast.transformation.python_transformation import PythonTransformation
    from feast.types import Int64

    name = on_demand_view(9)
    source = f"def {name}(inputs):\n    return {{'status': inputs['activity_as_of']}}\n"
    scope: dict[str, Any] = {}
    exec(source, scope)  # noqa: S102  as Feast does
    view = OnDemandFeatureView(
        name=name,
        sources=list(both.repository.raw_views),
        schema=[Field(name="status", dtype=Int64)],
        feature_transformation=PythonTransformation(scope[name], source),
        udf=scope[name],
        udf_string=source,
        mode="python",
    )
    store = both.repository.store
    store.registry.apply_feature_view(view, store.project)
    try:
        asked = ([f"{name}:status", f"{PLAIN}:embedding"], _rows([1, 2]))
        ours = both.ours(*asked)
        _assert_same(ours, both.feasts(*asked))
        assert ours.to_dict()["status"][0] > 0
    finally:
        store.delete_feature_view(name)


def test_users_with_text_ids_are_answered_alike(
    redis_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("texts")
    online = PROFILES["palate-redis"].settings(redis_server, str(root))
    repository = TinyRepository.make(root, "STRING", layout=LAYOUT, online=online)
    repository.apply_space(1, repository.save_encoder())
    repository.write_raw(raw_rows(["ana", "bo", "zoë"], schema=SCHEMA))
    asked = (_all(PLAIN), _rows(["zoë", "nobody", "ana", "zoë"]))
    with Both.of(repository) as both:
        ours = both.ours(*asked)
        _assert_same(ours, both.feasts(*asked))
    assert ours.to_dict()["status"] == ["warm", "cold", "warm", "warm"]
