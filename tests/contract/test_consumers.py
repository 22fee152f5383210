"""Consumers move one at a time: the ledger says where to, and Feast's services follow it.

Over a file registry with a SQLite ledger, and over both in PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import FeatureService, FeatureStore

from encoder.errors import LedgerConflict
from materialize.consumers import (
    add_consumer,
    move_consumer,
    plan_move,
    promote_space,
    remove_consumer,
    roll_back_consumer,
    roll_back_default,
)
from materialize.ledger import Ledger
from materialize.one_space import require_one_space
from materialize.services import apply_services, services_behind
from tests.spaces import DIM, Spaces, close_registry, vectors
from transforms.names import EMBEDDING_ALIAS, ENCODER_TAG, REVISION_TAG, SPACE_TAG, stored_view

WHO = {"who": "test", "why": "a test"}
USERS = list(range(20))


@pytest.fixture(params=["files", "postgres"])
def spaces(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spaces]:
    """A repository with spaces 1 and 2, ready, with rows of the same users."""
    if request.param == "files":
        made = Spaces.make(tmp_path / "repo")
    else:
        url: str = request.getfixturevalue("postgres_database")
        made = Spaces.make(
            tmp_path / "repo",
            ledger=url,
            registry={
                "registry_type": "sql",
                "path": url.replace("postgresql:", "postgresql+psycopg:"),
                "cache_ttl_seconds": 600,
            },
        )
    made.add_space(USERS)
    made.add_space(USERS)
    yield made
    close_registry(made.context.store)


def _services(spaces: Spaces) -> dict[str, tuple[str, dict[str, str]]]:
    """Return view and tags of each service, as another process reads them."""
    with spaces.elsewhere() as store:
        found = store.list_feature_services()
    return {s.name: (s.feature_view_projections[0].name, dict(s.tags)) for s in found}


def _where(spaces: Spaces) -> tuple[FeatureStore, Ledger]:
    return spaces.context.store, spaces.ledger


def test_a_consumer_is_a_service_that_reads_its_space_under_one_alias(spaces: Spaces) -> None:
    added = add_consumer(*_where(spaces), "home", 1, **WHO)
    assert (added.space, added.bridge, added.revision) == (1, None, 1)
    version = spaces.ledger.space(1).encoder_version
    tags = {SPACE_TAG: "1", ENCODER_TAG: version, REVISION_TAG: "1"}
    assert _services(spaces) == {"home": (stored_view(1), tags)}


def test_the_names_and_the_values_follow_a_move_online_and_offline(spaces: Spaces) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    move_consumer(*_where(spaces), "home", 2, **WHO)
    entities = pd.DataFrame(
        {"user_id": USERS, "event_timestamp": pd.Timestamp("2026-02-01", tz="UTC")}
    )
    with spaces.elsewhere() as other:
        service = other.get_feature_service("home")
        online = other.get_online_features(
            features=service, entity_rows=[{"user_id": u} for u in USERS], full_feature_names=True
        ).to_dict()
        past = other.get_historical_features(
            entity_df=entities, features=service, full_feature_names=True
        ).to_df()
    version = spaces.ledger.space(2).encoder_version
    expected = vectors(version, USERS)
    assert np.array_equal(np.array(online[f"{EMBEDDING_ALIAS}__embedding"], np.float32), expected)
    assert set(online[f"{EMBEDDING_ALIAS}__space"]) == {2}
    assert require_one_space(past) == (2, version)
    past = past.sort_values("user_id")
    assert np.array_equal(np.stack(past[f"{EMBEDDING_ALIAS}__embedding"].tolist()), expected)


def test_a_dry_run_says_what_changes_and_changes_nothing(spaces: Spaces) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    spaces.write(spaces.ledger.space(2), [*USERS, 99], turn=7)
    before = _services(spaces), spaces.ledger.transitions()
    plan = plan_move(*_where(spaces), "home", 2)
    assert (plan.outcome, plan.refused, plan.revision) == ("planned", None, 1)
    assert plan.before is not None
    assert (plan.before.space, plan.after.space) == (1, 2)
    assert (plan.before.view, plan.after.view) == (stored_view(1), stored_view(2))
    assert (plan.before.users, plan.after.users) == (20, 21)
    assert (plan.users_both, plan.users_lost) == (20, 0)
    assert plan.before.embedding_dim == plan.after.embedding_dim == DIM
    assert plan.before.newest_as_of is not None
    assert plan.after.newest_as_of is not None
    age = plan.after.newest_as_of - plan.before.newest_as_of
    assert age.microseconds == 7
    assert f"{EMBEDDING_ALIAS}__embedding" in plan.features
    assert (_services(spaces), spaces.ledger.transitions()) == before


def test_a_move_that_would_lose_users_is_refused_unless_it_is_forced_with_a_reason(
    spaces: Spaces,
) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    fewer = spaces.add_space(USERS[:15])
    # Rows of history are offline only: nobody is served by them.
    spaces.write(fewer, USERS, history=True)
    with pytest.raises(LedgerConflict, match=r"lacks 5 of the 20 users whom 'home' reads"):
        move_consumer(*_where(spaces), "home", fewer.number, **WHO)
    assert spaces.ledger.consumer("home").revision == 1
    with pytest.raises(ValueError, match="reason"):
        move_consumer(*_where(spaces), "home", fewer.number, who="test", force=True)
    moved = move_consumer(*_where(spaces), "home", fewer.number, **WHO, force=True)
    assert (moved.outcome, moved.users_lost, moved.revision) == ("moved", 5, 2)
    change = spaces.ledger.transitions("consumer", "home")[-1]
    assert (change.who, change.why, change.forced) == ("test", "a test", True)


def test_a_move_that_needs_no_force_is_not_recorded_as_forced(spaces: Spaces) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    move_consumer(*_where(spaces), "home", 2, **WHO, force=True)
    assert not spaces.ledger.transitions("consumer", "home")[-1].forced


def test_a_space_that_is_not_ready_or_not_applied_is_refused(spaces: Spaces) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    trained = spaces.register()
    with pytest.raises(LedgerConflict, match=r"Space 3 is trained, not ready"):
        move_consumer(*_where(spaces), "home", trained.number, **WHO)
    hidden = spaces.register(applied=False)
    with pytest.raises(LedgerConflict, match="feast apply"):
        add_consumer(*_where(spaces), "other", hidden.number, **WHO)
    # Nobody could read a view that is not there, whatever the reason.
    with pytest.raises(LedgerConflict, match="feast apply"):
        move_consumer(*_where(spaces), "home", hidden.number, **WHO, force=True)
    assert plan_move(*_where(spaces), "home", hidden.number).refused is not None
    assert [c.name for c in spaces.ledger.consumers()] == ["home"]


def test_a_roll_back_returns_to_the_space_before(spaces: Spaces) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    before = _services(spaces)["home"]
    move_consumer(*_where(spaces), "home", 2, **WHO)
    back = roll_back_consumer(*_where(spaces), "home", **WHO)
    assert (back.space, back.revision) == (1, 3)
    view, tags = _services(spaces)["home"]
    assert view == before[0]
    assert tags == before[1] | {REVISION_TAG: "3"}
    with pytest.raises(LedgerConflict, match="no earlier pin"):
        roll_back_consumer(*_where(spaces), "home", **WHO)


def test_a_consumer_may_read_through_a_bridge(spaces: Spaces) -> None:
    one, two = spaces.ledger.spaces()
    add_consumer(*_where(spaces), "home", 1, **WHO)
    with pytest.raises(LedgerConflict, match=r"palate spaces bridge 2 --to 1"):
        move_consumer(*_where(spaces), "home", 1, bridge_from=2, **WHO)
    bridge = spaces.add_bridge(two, one, USERS)
    moved = move_consumer(*_where(spaces), "home", 1, bridge_from=2, **WHO)
    assert (moved.outcome, moved.after.view) == ("moved", "user_embedding_s1_from_s2")
    view, tags = _services(spaces)["home"]
    assert view == "user_embedding_s1_from_s2"
    assert (tags[SPACE_TAG], tags[ENCODER_TAG]) == ("1", bridge.version)


def test_a_removed_consumers_service_is_gone(spaces: Spaces) -> None:
    add_consumer(*_where(spaces), "home", 1, **WHO)
    add_consumer(*_where(spaces), "search", 2, **WHO)
    remove_consumer(*_where(spaces), "home", **WHO)
    assert set(_services(spaces)) == {"search"}
    with pytest.raises(LedgerConflict, match=r"Unknown consumer 'home'\. Known: 'search'"):
        remove_consumer(*_where(spaces), "home", **WHO)


@pytest.mark.parametrize("name", ["", "user_embedding", "1st", "a b", "x" * 101, "ü"])
def test_a_name_that_cannot_be_a_services_is_refused(spaces: Spaces, name: str) -> None:
    with pytest.raises(ValueError, match="Consumer name"):
        add_consumer(*_where(spaces), name, 1, **WHO)


def test_the_default_spaces_service_moves_with_a_promotion(spaces: Spaces) -> None:
    plan = promote_space(*_where(spaces), 1, **WHO, dry_run=True)
    assert (plan.outcome, plan.before, plan.after.space) == ("planned", None, 1)
    assert _services(spaces) == {}
    promote_space(*_where(spaces), 1, **WHO)
    assert _services(spaces)[EMBEDDING_ALIAS][0] == stored_view(1)
    moved = promote_space(*_where(spaces), 2, **WHO)
    assert moved.before is not None
    assert (moved.outcome, moved.before.space, moved.after.space) == ("moved", 1, 2)
    assert promote_space(*_where(spaces), 2, **WHO).outcome == "unchanged"
    version = spaces.ledger.space(2).encoder_version
    tags = {SPACE_TAG: "2", ENCODER_TAG: version}
    assert _services(spaces) == {EMBEDDING_ALIAS: (stored_view(2), tags)}
    assert roll_back_default(*_where(spaces), **WHO).number == 1
    assert _services(spaces)[EMBEDDING_ALIAS][0] == stored_view(1)
    hidden = spaces.register(applied=False)
    with pytest.raises(LedgerConflict, match="feast apply"):
        promote_space(*_where(spaces), hidden.number, **WHO)


def test_what_a_crash_left_between_ledger_and_registry_is_repaired_by_repeating(
    spaces: Spaces,
) -> None:
    store, ledger = _where(spaces)
    add_consumer(store, ledger, "home", 1, **WHO)
    add_consumer(store, ledger, "search", 1, **WHO)
    assert not services_behind(store, ledger)
    # The ledger changed and the process ended.
    ledger.move_consumer("home", 2, expected_revision=1, **WHO)
    ledger.add_consumer("mail", 2, **WHO)
    ledger.remove_consumer("search", **WHO)
    behind = services_behind(store, ledger)
    assert (behind.stale, behind.extra) == (("home", "mail"), ("search",))
    assert move_consumer(store, ledger, "home", 2, **WHO).outcome == "unchanged"
    assert {name: view for name, (view, _) in _services(spaces).items()} == {
        "home": stored_view(2),
        "mail": stored_view(2),
    }
    assert not services_behind(store, ledger)
    assert not apply_services(store, ledger)


def test_operators_who_move_consumers_at_once_leave_every_service_right(spaces: Spaces) -> None:
    names = ("home", "search", "mail")
    for name in names:
        add_consumer(*_where(spaces), name, 1, **WHO)

    def moves(name: str) -> None:
        ledger = Ledger(spaces.settings.ledger_url)
        with spaces.elsewhere() as store:
            for space in (2, 1, 2, 1, 2):
                move_consumer(store, ledger, name, space, **WHO)

    with ThreadPoolExecutor(len(names)) as pool:
        for done in [pool.submit(moves, name) for name in names]:
            done.result()
    assert not services_behind(*_where(spaces))
    assert {view for view, _ in _services(spaces).values()} == {stored_view(2)}
    assert {tags[REVISION_TAG] for _, tags in _services(spaces).values()} == {"6"}


def test_a_service_of_somebody_else_is_left_alone(spaces: Spaces) -> None:
    store, ledger = _where(spaces)
    own = FeatureService(name="own", features=[store.get_feature_view(stored_view(1))])
    store.apply([own])
    add_consumer(store, ledger, "home", 1, **WHO)
    remove_consumer(store, ledger, "home", **WHO)
    assert set(_services(spaces)) == {"own"}


def test_a_pin_whose_view_is_not_applied_waits_for_feast_apply(spaces: Spaces) -> None:
    store, ledger = _where(spaces)
    hidden = spaces.register(applied=False)
    spaces.apply(hidden)
    spaces.write(hidden, USERS)
    add_consumer(store, ledger, "home", hidden.number, **WHO)
    store.delete_feature_view(stored_view(hidden.number))
    store.delete_feature_service("home")
    behind = apply_services(store, ledger)
    assert (behind.stale, behind.extra, behind.unknown_views) == ((), (), ("home",))
    spaces.apply(hidden)
    assert apply_services(store, ledger).stale == ("home",)
