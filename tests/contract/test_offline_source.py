"""The offline contract: stock DuckDB, stock PostgreSQL and ours, against a row-by-row search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from materialize.stores import pit
from tests.offline import (
    HOUR,
    PALATE,
    POSTGRES,
    START,
    STOCK,
    OfflineProfile,
    Repository,
    entity_rows,
    make_repository,
    postgres_schema,
    table_of,
    values,
)


@pytest.fixture(params=[STOCK, PALATE, POSTGRES], ids=lambda p: p.name, scope="module")
def profile(request: pytest.FixtureRequest) -> OfflineProfile:
    return request.param


@pytest.fixture(scope="module")
def repository(
    profile: OfflineProfile,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Repository]:
    """A repository a module shares; each test uses views of its own names."""
    root = tmp_path_factory.mktemp(profile.name) / "repo"
    if profile.server is None:
        yield make_repository(profile, root)
        return
    with postgres_schema(request.getfixturevalue(profile.server), "contract") as where:
        yield make_repository(profile, root, *where)


def reference(
    history: list[tuple[int, int, int, float]],
    asked: list[tuple[int, int]],
    ttl: int,
    created: bool,
) -> list[set[float] | None]:
    """Row by row: the values that may stand in each entity row (ties in both times are open)."""
    answers: list[set[float] | None] = []
    for user, moment in asked:
        seen = [
            (event, made, value)
            for owner, event, made, value in history
            if owner == user
            and event <= moment
            and (not ttl or moment - event <= ttl)
            and (not created or made <= moment)
        ]
        best = max((row[:2] for row in seen), default=None)
        answers.append(None if best is None else {v for e, m, v in seen if (e, m) == best})
    return answers


NEAR = {"_NEAR_ROWS": 0, "_NEAR_RATIO": 0, "_NEAR_BUCKET": 1}
WAYS = [{"_PAIRED": 16}, {"_PAIRED": 0}, NEAR, NEAR | {"_PAIRED": 2}]
_histories = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 8), st.integers(0, 10)), min_size=1, max_size=20
)
_asked = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=8)


@given(
    history=_histories,
    asked=_asked,
    ttl=st.sampled_from([0, 2]),
    strict=st.booleans(),
    ways=st.sampled_from(WAYS),
)
def test_each_entity_row_gets_what_a_row_by_row_search_finds(
    repository: Repository,
    history: list[tuple[int, int, int]],
    asked: list[tuple[int, int]],
    ttl: int,
    strict: bool,
    ways: dict[str, int],
) -> None:
    """Values, kept rows, duplicates, ttl, ties and the created filter, for any small history.

    ``ways`` sets the numbers of rows by which our store chooses how it searches.
    """
    name = f"any_{ttl}"
    if name not in repository.declared:
        repository.view(name, ttl=ttl * HOUR)
    rows = [(*row, float(k)) for k, row in enumerate(history)]
    half = len(rows) // 2
    repository.write(name, rows[: half or 1], "a")
    repository.write(name, rows[half or 1 :], "b")
    with mock.patch.multiple(pit, **ways):
        frame = repository.ask(
            entity_rows(asked), f"{name}:value", filter_by_created_timestamp=strict
        )
    created = strict or repository.profile.created_filter_default
    assert set(frame["position"]) == set(range(len(asked))), "no entity row is lost"
    if not repository.profile.ties_multiply:
        assert len(frame) == len(asked), "none comes twice"
    expected = reference(rows, asked, ttl, created)
    for position, one in zip(frame["position"], frame["value"], strict=True):
        allowed = expected[position]
        assert pd.isna(one) if allowed is None else (one in allowed)


def test_entity_rows_come_back_in_their_order(repository: Repository) -> None:
    repository.view("ordered")
    rng = np.random.default_rng(1)
    n = 5000
    users, at = rng.integers(0, 300, n), rng.integers(0, 50, n)
    repository.write(
        "ordered", [(u, h, h, u * 100.0 + h) for u in range(300) for h in range(0, 50, 7)]
    )
    asked = entity_rows(list(zip(users.tolist(), at.tolist(), strict=True)))
    frame = repository.ask(asked, "ordered:value")
    assert values(frame) == [u * 100.0 + h // 7 * 7 for u, h in zip(users, at, strict=True)]
    if repository.profile.keeps_order:
        assert frame["position"].tolist() == list(range(n))


def test_several_views_aliases_and_full_names_meet_in_one_row(repository: Repository) -> None:
    view = repository.view("aliased")
    repository.view("other")
    repository.write("aliased", [(1, 1, 1, 10.0), (2, 1, 1, 20.0)])
    repository.write("other", [(1, 2, 2, 30.0)])
    from feast import FeatureService

    friend = view.with_name("friend").with_join_key_map({"user_id": "friend_id"})
    service = FeatureService(
        name="both", features=[friend, repository.store.get_feature_view("other")]
    )
    repository.store.apply([service])
    asked = entity_rows([(1, 5), (2, 5), (1, 1)]).assign(friend_id=[2, 1, 7])
    frame = repository.store.get_historical_features(
        asked, features=service, full_feature_names=True
    ).to_df()
    assert values(frame, "friend__value") == [20.0, 10.0, None]
    assert values(frame, "other__value") == [30.0, None, None]


def test_source_columns_are_found_under_their_mapped_names(repository: Repository) -> None:
    repository.view("mapped", mapping={"raw": "value"})
    table = table_of([(1, 1, 1, 5.0)])
    names = ["raw" if name == "value" else name for name in table.column_names]
    repository.write_table("mapped", table.rename_columns(names))
    assert values(repository.ask(entity_rows([(1, 2)]), "mapped:value")) == [5.0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kathmandu"])
def test_entity_times_of_any_unit_and_zone(
    repository: Repository, unit: str, zone: str | None
) -> None:
    if "units" not in repository.declared:
        repository.view("units")
        repository.write("units", [(1, 1, 1, 1.0), (1, 3, 3, 3.0)])
    asked = entity_rows([(1, 0), (1, 1), (1, 2), (1, 3)])
    times = pd.DatetimeIndex(asked["event_timestamp"])
    asked["event_timestamp"] = (
        times.tz_convert(zone) if zone else times.tz_localize(None)
    ).as_unit(unit)
    assert values(repository.ask(asked, "units:value")) == [None, 1.0, 1.0, 3.0]


def test_rows_of_every_chunk_are_pulled(repository: Repository) -> None:
    """Both ends of the range are inclusive; the first chunk is not the whole."""
    repository.view("pulled")
    for part in range(3):
        repository.write(
            "pulled",
            [(u, h, h, float(h)) for u in range(part, 3000, 3) for h in (1, 2, 3)],
            f"{part}",
        )
    store = repository.store
    source = store.get_feature_view("pulled").batch_source
    offline = store._get_provider().offline_store
    common: dict[str, Any] = {
        "config": store.config, "data_source": source, "join_key_columns": ["user_id"],
        "feature_name_columns": ["value"], "timestamp_field": "event_timestamp",
        "created_timestamp_column": "created_timestamp",
        "start_date": START + 1 * HOUR, "end_date": START + 2 * HOUR,
    }  # fmt: skip
    everything = offline.pull_all_from_table_or_query(**common).to_arrow()
    assert everything.num_rows == 6000
    newest = offline.pull_latest_from_table_or_query(**common).to_arrow()
    assert sorted(newest["user_id"].to_pylist()) == list(range(3000))
    assert set(newest["value"].to_pylist()) == {2.0}


def test_a_query_stands_for_entity_rows(repository: Repository) -> None:
    repository.view("queried")
    repository.write("queried", [(1, 1, 1, 1.0)])
    query = (
        "SELECT 1::BIGINT AS user_id, TIMESTAMPTZ '2024-01-01 05:00+00' AS event_timestamp, "
        "0 AS position"
    )
    match repository.profile.sql_entity_rows:
        case "yes":
            assert values(repository.ask(query, "queried:value")) == [1.0]
        case "warns":
            with pytest.warns(UserWarning, match="only supports SQLAlchemy"):
                assert values(repository.ask(query, "queried:value")) == [1.0]
        case error:
            with pytest.raises(AttributeError):
                repository.ask(query, "queried:value")
            assert error == "AttributeError"
