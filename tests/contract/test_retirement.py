"""A space is taken down on every store: all of it goes, nothing else, and a kill does no harm."""

from __future__ import annotations

import fcntl
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import FeatureService, FeatureView, Field, FileSource, OnDemandFeatureView
from feast.types import Int64

from encoder.alignment import OrthogonalMap
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.errors import LedgerConflict, TransientError, VerificationFailed
from encoder.store import ArtifactStore
from materialize.applied import applied_among
from materialize.embedding_rows import ensure_readable
from materialize.ledger import Space
from materialize.lineage import CHAIN_FACT, Chain, chain
from materialize.online import OnlineWriter
from materialize.removal_tally import TALLY_FACT
from materialize.retirement import RetirementReport, plan_retirement, retire_space
from materialize.services import apply_services
from materialize.stores.append import append_rows, live_files, locked
from materialize.stores.shares import OnlineShare
from tests.chains import build_artifact, fit_encoders
from tests.repositories import VIEWS
from tests.retiring import Reader, retire_and_kill
from tests.sinks import close
from tests.spaces import DIM, Spaces, vectors
from tests.stores import PROFILES
from transforms.names import bridged_view, on_demand_view, stored_view
from transforms.on_demand import EMBEDDING_FIELDS

USERS = list(range(1, 401))
WHO = {"who": "test", "why": "superseded"}
ENCODERS = fit_encoders()

STORES = [
    pytest.param("palate-sqlite", id="sqlite"),
    pytest.param("palate-redis", id="redis", marks=pytest.mark.server),
    pytest.param("palate-postgres", id="postgres", marks=pytest.mark.server),
]


def build(path: Path, store: str, request: pytest.FixtureRequest) -> Spaces:
    profile = PROFILES[store]
    server = request.getfixturevalue(profile.server) if profile.server else None
    registry: dict[str, Any] = {"path": str(path / "registry.db")}
    if profile.family == "postgres":
        address = server.url.replace("postgresql://", "postgresql+psycopg://")
        registry = {"registry_type": "sql", "path": address, "cache_ttl_seconds": 60}
    return Spaces.make(path, online=profile.settings(server, str(path)), registry=registry)


def add_space(spaces: Spaces, weight: float) -> Space:
    """Add a ready space with rows of all users and an artifact that tells what it came from."""
    artifact = build_artifact(ENCODERS, weight)
    url = ArtifactStore(spaces.settings.artifacts_url).save(artifact)
    facts = {"raw_views": list(VIEWS), "embedding_dim": DIM}
    space = spaces.ledger.register(artifact.encoder_version, url, facts)
    ensure_readable(spaces.settings.offline_dir / stored_view(space.number), spaces.user_type)
    spaces.apply(space)
    spaces.write(space, USERS)
    return spaces.ledger.space(space.number)


@contextmanager
def two_spaces(path: Path, store: str, request: pytest.FixtureRequest) -> Iterator[Spaces]:
    """Yield a repository of its own with spaces 1 and 2, both ready."""
    made = build(path, store, request)
    for weight in (1.0, 2.0):
        add_space(made, weight)
    yield made
    close(made.context.store._get_provider().online_store)
    registry = made.context.store.registry
    for engine in ("read_engine", "write_engine"):  # of a SQL registry
        if hasattr(registry, engine):
            getattr(registry, engine).dispose()


@pytest.fixture(params=STORES)
def spaces(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spaces]:
    with two_spaces(tmp_path / "repo", request.param, request) as made:
        yield made


@pytest.fixture
def on_sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spaces]:
    with two_spaces(tmp_path / "repo", "palate-sqlite", request) as made:
        yield made


@pytest.fixture
def on_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spaces]:
    with two_spaces(tmp_path / "repo", "palate-redis", request) as made:
        yield made


def retire(spaces: Spaces, number: int = 1, **options: Any) -> RetirementReport:
    where = (spaces.context.store, spaces.settings, spaces.ledger)
    return retire_space(*where, number, progress=False, **(WHO | options))


def plan(spaces: Spaces) -> RetirementReport:
    where = (spaces.context.store, spaces.settings, spaces.ledger)
    return plan_retirement(*where, 1, progress=False)


def read(spaces: Spaces, number: int, users: list[int] = USERS) -> np.ndarray:
    answer = spaces.context.store.get_online_features(
        features=[f"{stored_view(number)}:embedding"],
        entity_rows=[{"user_id": user} for user in users],
    )
    return np.array(answer.to_dict()["embedding"], np.float32)


def expected(spaces: Spaces, number: int) -> np.ndarray:
    return vectors(spaces.ledger.space(number).encoder_version, USERS)


def add_map(spaces: Spaces) -> str:
    """Store and record a map from space 2 into space 1 that never served."""
    first, second = (spaces.ledger.space(number).encoder_version for number in (1, 2))
    unit = OrthogonalMap(np.eye(DIM, dtype=np.float32), np.zeros(DIM, np.float32))
    bridge = BridgeArtifact(second, first, unit)
    url = BridgeStore(spaces.settings.artifacts_url).save(bridge)
    names: dict[str, Any] = {"source": 2, "target": 1, "figures": {}, "who": "test"}
    spaces.ledger.record_bridge(bridge.version, url=url, **names)
    return bridge.version


def online_share_of(spaces: Spaces, view: str) -> OnlineShare:
    from feast.infra.online_stores.helpers import get_online_store_from_config

    from materialize.stores.removal import online_share

    config = spaces.context.store.config
    online = get_online_store_from_config(config.online_store)
    named = FeatureView(name=view, schema=list(EMBEDDING_FIELDS), source=FileSource(path="x"))
    share = online_share(online, config, named, ["user_id"])
    close(online)
    return share


def left(spaces: Spaces, number: int, version: str) -> list[str]:
    """Return what is still there of a space."""
    view = stored_view(number)
    store, settings = spaces.context.store, spaces.settings
    sources = {s.name for s in store.registry.list_data_sources(store.project, allow_cache=False)}
    staging = settings.offline_dir / "_staging"
    found = {
        "views": bool(applied_among(store, [view, on_demand_view(number)])),
        "sources": bool(sources & {f"{view}_push", f"{view}_source"}),
        "online": online_share_of(spaces, view) != OnlineShare(0, 0),
        "offline": (settings.offline_dir / view).exists(),
        "aside": (settings.offline_dir / "_retired" / view).exists(),
        "staging": staging.exists() and any(staging.iterdir()),
        "artifact": ArtifactStore(settings.artifacts_url).size(version) > 0,
    }
    return [name for name, there in found.items() if there]


# --- the whole of it


def test_a_dry_run_tells_what_would_go_and_changes_nothing(spaces: Spaces) -> None:
    planned = plan(spaces)
    assert (planned.outcome, planned.refused) == ("planned", None)
    assert planned.removed["online user_embedding_s1"]["rows"] == len(USERS)
    assert planned.removed["offline user_embedding_s1"]["rows"] == len(USERS)
    assert set(planned.freed) == {"registry", "online", "offline", "artifact"}
    assert all(n > 0 for kind, n in planned.freed.items() if kind != "registry")
    assert spaces.ledger.space(1).state == "ready"
    assert TALLY_FACT not in spaces.ledger.space(1).facts
    assert np.array_equal(read(spaces, 1), expected(spaces, 1))
    assert plan(spaces) == planned


def test_all_of_the_space_goes_and_nothing_of_the_other(spaces: Spaces) -> None:
    space, planned = spaces.ledger.space(1), plan(spaces)
    before = expected(spaces, 2)
    done = retire(spaces)
    assert done.outcome == "retired"
    assert left(spaces, 1, space.encoder_version) == []
    assert done.removed["online user_embedding_s1"]["rows"] == len(USERS)
    for place in ("offline user_embedding_s1", f"artifact {space.encoder_version}"):
        assert done.removed[place] == planned.removed[place]
    assert done.freed["online"] >= len(USERS) * DIM * 4
    ended = spaces.ledger.space(1)
    assert ended.state == "retired"
    assert ended.facts["freed"] == done.freed
    assert np.array_equal(read(spaces, 2), before)
    assert len(left(spaces, 2, spaces.ledger.space(2).encoder_version)) == 5
    states = [t.after for t in spaces.ledger.transitions("space", "1")]
    assert states[-2:] == ["retiring", "retired"]


def test_what_it_came_from_is_told_after_it_is_gone(on_sqlite: Spaces) -> None:
    before = chain(on_sqlite.settings, on_sqlite.ledger.space(1))
    retire(on_sqlite)
    space = on_sqlite.ledger.space(1)
    assert Chain.from_dict(space.facts[CHAIN_FACT]) == before
    assert chain(on_sqlite.settings, space) == before


def test_retiring_again_says_so_and_changes_nothing(on_sqlite: Spaces) -> None:
    done = retire(on_sqlite)
    transitions = on_sqlite.ledger.transitions()
    again = retire(on_sqlite)
    assert (again.outcome, again.removed, again.freed) == ("unchanged", done.removed, done.freed)
    assert on_sqlite.ledger.transitions() == transitions
    assert plan(on_sqlite).outcome == "unchanged"


def test_a_damaged_artifact_is_no_reason_to_keep_the_space(on_sqlite: Spaces) -> None:
    space = on_sqlite.ledger.space(1)
    folder = Path(on_sqlite.settings.artifacts_url) / space.encoder_version
    (folder / "weights.safetensors").write_bytes(b"short")
    assert retire(on_sqlite).outcome == "retired"
    assert CHAIN_FACT not in on_sqlite.ledger.space(1).facts
    assert left(on_sqlite, 1, space.encoder_version) == []


def test_staging_folders_and_pushed_files_go_too(on_sqlite: Spaces) -> None:
    view, ledger, settings = stored_view(1), on_sqlite.ledger, on_sqlite.settings
    ledger.begin_run("f" * 16, view, "abandoned", {}, space=1)
    ledger.begin_run("e" * 16, stored_view(2), "other", {}, space=2)
    for run in ("f" * 16, "e" * 16):
        (settings.offline_dir / "_staging" / run / "raw").mkdir(parents=True)
        (settings.offline_dir / "_staging" / run / "raw" / "x.arrow").write_bytes(b"x" * 100)
    append_rows(settings.offline_dir / view, on_sqlite.rows(ledger.space(1), [1, 2, 3]))
    (settings.offline_dir / view / ".push-1.parquet.tmp").write_bytes(b"unfinished")
    done = retire(on_sqlite)
    assert done.removed[f"offline {view}"]["rows"] == len(USERS) + 3
    assert done.removed["offline staging"] == {"files": 1, "bytes": 100}
    assert [p.name for p in (settings.offline_dir / "_staging").iterdir()] == ["e" * 16]


@pytest.mark.server
def test_bridges_of_the_space_go_with_it(on_redis: Spaces) -> None:
    ledger, settings = on_redis.ledger, on_redis.settings
    into = on_redis.add_bridge(ledger.space(2), ledger.space(1), USERS)
    with pytest.raises(LedgerConflict, match=f"bridge {into.version} serves space 1 from space 2"):
        retire(on_redis)
    ledger.retire_bridge(into.version, **WHO)
    version = add_map(on_redis)
    view = bridged_view(1, 2)
    assert online_share_of(on_redis, view).rows == len(USERS)
    done = retire(on_redis)
    assert done.removed[f"online {view}"]["rows"] == len(USERS)
    assert done.removed[f"bridge {version}"]["bytes"] > 0
    assert ledger.bridge(version).state == "retired"
    assert not BridgeStore(settings.artifacts_url).exists(version)
    assert applied_among(on_redis.context.store, [view]) == {}
    assert online_share_of(on_redis, view) == OnlineShare(0, 0)
    assert not (settings.offline_dir / view).exists()
    assert np.array_equal(read(on_redis, 2), expected(on_redis, 2))


# --- refusals


def test_a_service_that_lags_behind_its_consumer_is_no_reader(on_sqlite: Spaces) -> None:
    """A move that died between the ledger and the registry leaves such a service."""
    store, ledger = on_sqlite.context.store, on_sqlite.ledger
    ledger.add_consumer("home", 1, **WHO)
    apply_services(store, ledger)
    ledger.move_consumer("home", 2, expected_revision=1, **WHO)
    assert retire(on_sqlite).outcome == "retired"
    (service,) = store.registry.list_feature_services(store.project, allow_cache=False)
    assert [p.name for p in service.feature_view_projections] == [stored_view(2)]


def test_who_needs_the_space_is_named_and_nothing_changes(on_sqlite: Spaces) -> None:
    on_sqlite.ledger.add_consumer("home_ranking", 1, **WHO)
    on_sqlite.ledger.promote(1, **WHO, expected=None)
    named = r"'home_ranking' reads it.*it is the default"
    with pytest.raises(LedgerConflict, match=named):
        retire(on_sqlite)
    refused = plan(on_sqlite).refused
    assert refused is not None
    assert re.search(named, refused)
    assert on_sqlite.ledger.space(1).state == "ready"
    assert np.array_equal(read(on_sqlite, 1), expected(on_sqlite, 1))


def test_a_feature_service_that_reads_the_view_stands_in_the_way(on_sqlite: Spaces) -> None:
    store = on_sqlite.context.store
    view = store.get_feature_view(stored_view(1))
    store.apply([FeatureService(name="old_model", features=[view.with_name("embedding")])])
    found = "feature service 'old_model' reads user_embedding_s1"
    with pytest.raises(LedgerConflict, match=found):
        retire(on_sqlite)
    refused = plan(on_sqlite).refused
    assert refused is not None
    assert found in refused
    assert on_sqlite.ledger.space(1).state == "ready"
    store.delete_feature_service("old_model")
    assert retire(on_sqlite).outcome == "retired"


def test_an_on_demand_view_that_reads_the_view_stands_in_the_way(on_sqlite: Spaces) -> None:
    store = on_sqlite.context.store

    def count(inputs: Any) -> Any:
        return {"doubled": [2 * n for n in inputs["n_events"]]}

    store.apply(
        OnDemandFeatureView(
            name="doubled_events",
            sources=[store.get_feature_view(stored_view(1))],
            schema=[Field(name="doubled", dtype=Int64)],
            udf=count,
            udf_string="def count(inputs):\n"
            "    return {'doubled': [2 * n for n in inputs['n_events']]}\n",
            mode="python",
        )
    )
    with pytest.raises(LedgerConflict, match="view 'doubled_events' reads user_embedding_s1"):
        retire(on_sqlite)


def test_a_run_that_writes_the_space_stands_in_the_way(on_sqlite: Spaces) -> None:
    on_sqlite.ledger.begin_run("d" * 16, stored_view(1), "now", {}, space=1)
    staging = on_sqlite.settings.offline_dir / "_staging" / ("d" * 16)
    staging.mkdir(parents=True)
    with (
        locked(staging, fcntl.LOCK_EX),
        pytest.raises(LedgerConflict, match=f"run {'d' * 16} writes it"),
    ):
        retire(on_sqlite)
    assert on_sqlite.ledger.space(1).state == "ready"
    assert retire(on_sqlite).outcome == "retired"


def test_readers_of_the_files_are_waited_for(on_sqlite: Spaces) -> None:
    folder = on_sqlite.settings.offline_dir / stored_view(1)
    with (
        locked(folder, fcntl.LOCK_SH),
        pytest.raises(TransientError, match=r"is being read for more than 0\.1 s"),
    ):
        retire(on_sqlite, wait_seconds=0.1)
    assert on_sqlite.ledger.space(1).state == "retiring"
    assert live_files(folder), "not one file went while they were read"
    done = retire(on_sqlite)
    assert done.removed["offline user_embedding_s1"]["rows"] == len(USERS)


@pytest.mark.server
def test_a_writer_that_goes_on_is_noticed(on_redis: Spaces) -> None:
    """A process that has the view from before writes it, while the scan goes over the keys."""
    space, version = on_redis.ledger.space(1), on_redis.ledger.space(1).encoder_version
    writer = OnlineWriter(on_redis.context.store, stored_view(1))
    (batch,) = on_redis.rows(space, USERS).to_batches()
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            writer.write(batch)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(VerificationFailed, match="still have a row of user_embedding_s1"):
            retire(on_redis)
    finally:
        stop.set()
        thread.join()
    assert on_redis.ledger.space(1).state == "retiring"
    assert retire(on_redis).outcome == "retired"
    assert left(on_redis, 1, version) == []


def test_views_that_were_declared_again_meanwhile_go_again(
    spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `feast apply` that read the ledger before the decision ends after the views are gone."""
    space = spaces.ledger.space(1)
    started = spaces.ledger.retire_bridge
    into = spaces.add_bridge(spaces.ledger.space(2), space, USERS[:3])
    spaces.ledger.retire_bridge(into.version, **WHO)
    add_map(spaces)

    def apply_first(*args: Any, **kwargs: Any) -> Any:
        spaces.apply(space)
        return started(*args, **kwargs)

    monkeypatch.setattr(spaces.ledger, "retire_bridge", apply_first)
    retire(spaces)
    assert left(spaces, 1, space.encoder_version) == []


# --- kills


def test_killed_at_every_step_it_goes_on_and_tells_all(spaces: Spaces) -> None:
    """The job is killed at its first, second, ... word to the ledger, until one lives to its end.

    Another process reads space 2 all the while.
    """
    space, planned = spaces.ledger.space(1), plan(spaces)
    reader, kills = Reader(spaces.settings.repo, 2, USERS), 0
    while retire_and_kill(spaces.settings.repo, 1, after=kills + 1):
        kills += 1
    reads, faults = reader.stop()
    assert kills >= 5
    assert reads > 20
    assert faults == []
    assert left(spaces, 1, space.encoder_version) == []
    ended = spaces.ledger.space(1)
    assert ended.state == "retired"
    told = ended.facts[TALLY_FACT]
    assert told["online user_embedding_s1"]["rows"] == len(USERS)
    for place in ("offline user_embedding_s1", f"artifact {space.encoder_version}"):
        assert told[place] == planned.removed[place]
    assert np.array_equal(read(spaces, 2), expected(spaces, 2))
