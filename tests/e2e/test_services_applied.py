"""`feast apply` declares what the ledger says: spaces, bridges and consumers' services."""

from __future__ import annotations

from pathlib import Path

import pytest
from feast import FeatureStore

from materialize.consumers import add_consumer, move_consumer, promote_space
from materialize.context import Context
from materialize.services import services_behind
from materialize.template import init_repository
from tests.e2e.conftest import run
from tests.repositories import VIEWS
from transforms.names import bridged_view, on_demand_view, stored_view

WHO = {"who": "test", "why": "a test"}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """The shipped repository, applied once with an empty ledger."""
    init_repository(tmp_path / "repo", "simulated")
    run("feast", "apply", cwd=tmp_path / "repo")
    return Context(tmp_path / "repo")


def _ready(context: Context, version: str) -> int:
    number = context.ledger.register(version, "", {"raw_views": list(VIEWS)}).number
    context.ledger.begin_run(version, stored_view(number), version, {}, space=number)
    context.ledger.commit_run(version, {"rows": 0})
    return number


def _views(store: FeatureStore) -> set[str]:
    return {view.name for view in store.list_all_feature_views() if "embedding" in view.name}


@pytest.mark.slow
def test_apply_follows_the_ledger_and_finds_nothing_to_change_after_a_move(
    context: Context,
) -> None:
    store, ledger = context.store, context.ledger
    repo = context.settings.repo
    assert _views(store) == set()
    assert store.list_feature_services() == []
    for version in ("a" * 12, "b" * 12):
        _ready(context, version)
    ledger.record_bridge("c" * 12, source=2, target=1, url="", figures={}, who="test")
    ledger.serve_bridge("c" * 12, **WHO)
    run("feast", "apply", cwd=repo)
    both = {view(number) for view in (stored_view, on_demand_view) for number in (1, 2)}
    assert _views(store) == both | {bridged_view(1, 2)}

    add_consumer(store, ledger, "home", 1, **WHO)
    add_consumer(store, ledger, "user_activity", 1, bridge_from=2, **WHO)
    promote_space(store, ledger, 2, **WHO)
    move_consumer(store, ledger, "home", 2, **WHO)
    before = {service.name: service for service in store.list_feature_services()}
    assert set(before) == {"home", "user_activity", "user_embedding"}
    run("feast", "apply", cwd=repo)
    assert {service.name: service for service in store.list_feature_services()} == before
    # A process that ended between ledger and registry is caught up with.
    ledger.move_consumer("home", 1, expected_revision=2, **WHO)
    ledger.remove_consumer("user_activity", **WHO)
    run("feast", "apply", cwd=repo)
    assert not services_behind(store, ledger)
    services = {s.name: s.feature_view_projections[0].name for s in store.list_feature_services()}
    assert services == {"home": stored_view(1), "user_embedding": stored_view(2)}

    ledger.retire_bridge("c" * 12, **WHO)
    ledger.move_consumer("home", 2, expected_revision=3, **WHO)
    ledger.start_retiring(1, **WHO)
    run("feast", "apply", cwd=repo)
    assert _views(store) == both, "a space that is being retired keeps its views"
    ledger.finish_retiring(1, {}, who="test")
    run("feast", "apply", cwd=repo)
    assert _views(store) == {stored_view(2), on_demand_view(2)}
