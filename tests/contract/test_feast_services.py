"""What plain Feast 0.67 does with a service that is re-pointed: the ground of ADR 0018."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore, FeatureView
from feast.feature_view import FeatureViewState

from materialize.client import EmbeddingClient
from materialize.consumers import add_consumer, move_consumer
from tests.spaces import Spaces, close_registry
from transforms.names import stored_view

WHO = {"who": "test", "why": "a test"}
USERS = list(range(5))


def _made(path: Path, **options: Any) -> Spaces:
    spaces = Spaces.make(path, **options)
    spaces.add_space(USERS)
    spaces.add_space(USERS)
    add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
    return spaces


@pytest.fixture
def files(tmp_path: Path) -> Spaces:
    return _made(tmp_path / "repo")


@pytest.fixture
def sql(tmp_path: Path, postgres_database: str) -> Iterator[Spaces]:
    """A SQL registry whose cache outlives the test."""
    path = postgres_database.replace("postgresql:", "postgresql+psycopg:")
    cached = {"registry_type": "sql", "path": path, "cache_ttl_seconds": 3_600}
    made = _made(tmp_path / "repo", registry=cached)
    yield made
    close_registry(made.context.store)


def _spaces_read(store: FeatureStore, *, cached: bool) -> set[Any]:
    answer = store.get_online_features(
        features=store.get_feature_service("home", allow_cache=cached),
        entity_rows=[{"user_id": user} for user in USERS],
    ).to_dict()
    return set(answer["space"])


def _move(spaces: Spaces, space: int) -> None:
    move_consumer(spaces.context.store, spaces.ledger, "home", space, **WHO)


@pytest.mark.parametrize("cached", [True, False])
def test_over_a_file_registry_a_service_follows_at_once(files: Spaces, cached: bool) -> None:
    with files.elsewhere() as other:
        assert _spaces_read(other, cached=cached) == {1}
        _move(files, 2)
        assert _spaces_read(other, cached=cached) == {2}


@pytest.mark.parametrize("cached", [True, False])
def test_over_a_sql_registry_a_service_follows_when_the_cache_expires(
    sql: Spaces, cached: bool
) -> None:
    with sql.elsewhere() as other:
        assert _spaces_read(other, cached=cached) == {1}
        _move(sql, 2)
        fresh = other.get_feature_service("home")
        assert fresh.feature_view_projections[0].name == stored_view(2)
        # Even with the service just read: Feast remembers, by the service's name, which views it
        # resolved before, for as long as the registry's cache is valid.
        assert _spaces_read(other, cached=cached) == {1}
        other.refresh_registry()  # type: ignore[no-untyped-call]
        assert _spaces_read(other, cached=cached) == {2}


def test_a_view_that_is_being_materialised_by_feast_is_refused_and_the_client_serves_on(
    files: Spaces,
) -> None:
    store = files.context.store
    view = store.get_feature_view(stored_view(1))
    assert isinstance(view, FeatureView)
    # What `feast materialize` does while it runs; one that is killed leaves it so.
    view.state = FeatureViewState.MATERIALIZING
    store.registry.apply_feature_view(view, store.project)
    with files.elsewhere() as other:
        with pytest.raises(ValueError, match="MATERIALIZING"):
            _spaces_read(other, cached=False)
        client = EmbeddingClient(other, files.settings.ledger_url, "home")
        assert client.read(USERS).space == 1
        client.close()
