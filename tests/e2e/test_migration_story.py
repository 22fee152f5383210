"""Three consumers move from space 1 to space 2, each on its own, while a reader never stops.

Everything that happens on the way is killed at each of its steps: the pass that materialises both
spaces, the moves, the roll back, the promotion, the retirement. The reader judges each vector by
what the ledger said at that moment, and by every vector that was ever made of the user.

The encoders are tiny, and trained on simulated listeners as `palate train` does it, the second one
while the reader reads; stores, ledgers, encoding and jobs are real.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import LedgerConflict
from materialize.client import EmbeddingClient
from materialize.consumers import add_consumer
from materialize.ledger import Space
from materialize.services import services_behind
from tests.e2e.killable import FORKS
from tests.e2e.listeners import Draws, Listeners, train
from tests.e2e.steps import Step, do, kill_at
from tests.e2e.watcher import Known, Watcher, watch
from tests.repositories import INSTANT, VIEWS, write_online
from tests.servers import Server
from tests.spaces import Spaces, close_registry
from tests.stores import PROFILES
from transforms.layout import field as raw_field
from transforms.names import USER_KEY, stored_view
from transforms.runtime import encode

USERS = 200
JOB: dict[str, Any] = {"workers": 2, "rows_per_partition": 60}
CONSUMERS = ("home", "search", "mail")
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
END = START + timedelta(days=365)
WHO = {"who": "operator", "why": "the story"}

_LEDGER = "materialize.ledger"
MATERIALISE = {
    "a batch is encoded for one space": Step("materialize.partition", "encode_rows", "after"),
    "a batch is encoded for both": Step("materialize.partition", "encode_rows", "after", 2),
    "a partition is offline": Step("os", "replace", "after"),
    "a partition is online": Step("materialize.online", "OnlineWriter.write", "after"),
    "a partition is recorded": Step(_LEDGER, "Ledger.partition_done", "after"),
    "a space is verified": Step("materialize.view_run", "verify_online", "after"),
    "the ledger has neither space": Step(_LEDGER, "Ledger.commit_run", "before"),
    "the ledger has one space": Step(_LEDGER, "Ledger.commit_run", "after"),
    "the ledger has both": Step(_LEDGER, "Ledger.commit_run", "after", 2),
}
APPLY = {
    "the registry lacks it": Step("feast", "FeatureStore.apply", "before"),
    "the service is written": Step("feast", "FeatureStore.apply", "after"),
}
MOVE = {
    "before the ledger": Step(_LEDGER, "Ledger.move_consumer", "before"),
    "in the ledger's transaction": Step("materialize.ledger.consumers", "record", "after"),
    "the ledger has it": Step(_LEDGER, "Ledger.move_consumer", "after"),
    **APPLY,
}
ROLL_BACK = {"the ledger has it": Step(_LEDGER, "Ledger.roll_back_consumer", "after"), **APPLY}
PROMOTE = {"the ledger has it": Step(_LEDGER, "Ledger.promote", "after"), **APPLY}
RETIRE = {
    "the ledger has decided": Step(_LEDGER, "Ledger.start_retiring", "after"),
    "a view is gone": Step("materialize.retirement", "undeclare", "after"),
    "online values are gone": Step("materialize.stores.removal", "remove_online", "after"),
    "offline files are gone": Step("materialize.retirement", "remove_folder", "after"),
    "the ledger lacks the end": Step(_LEDGER, "Ledger.finish_retiring", "before"),
}


@dataclass
class World:
    """A repository on real stores, and every vector that its spaces have made."""

    spaces: Spaces
    draws: Draws
    known: Known
    reader: Path
    turns: int = 0
    kills: int = 0

    def raw(self, users: npt.NDArray[np.int64]) -> None:
        """Give users newer rows in every raw view, after noting what each space makes of them."""
        self.turns += 1
        rows = self.draws.draw(users, seed=self.turns)
        as_of = int((START + timedelta(hours=self.turns)).timestamp()) * 1_000_000 + users
        for view in VIEWS:
            name = f"{view}__{raw_field(view, 'as_of')}"
            rows = rows.set_column(rows.column_names.index(name), name, pa.array(as_of))
        for space in self.spaces.ledger.spaces():
            if space.state not in {"retiring", "retired"}:
                self._note(space, rows, users)
        for view in VIEWS:
            names = [name for name in rows.column_names if name.startswith(f"{view}__")]
            own = rows.select([USER_KEY, *names]).rename_columns(
                [USER_KEY, *(name.removeprefix(f"{view}__") for name in names)]
            )
            for name in ("event_timestamp", "created_timestamp"):
                own = own.append_column(name, pa.array(as_of).cast(INSTANT))
            folder = self.spaces.settings.features_dir / view
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(own, folder / f"{self.turns:05d}.parquet")

    def _note(self, space: Space, rows: pa.Table, users: npt.NDArray[np.int64]) -> None:
        url = self.spaces.settings.artifacts_url
        made = encode(self.draws.batch(rows), space.encoder_version, url).embedding
        whole = np.full((USERS, made.shape[1]), np.nan, np.float32)
        whole[users] = made
        self.known.add(space.encoder_version, self.turns, whole)

    def do(self, operation: str, **arguments: Any) -> Any:
        return do(self.spaces.context, operation, JOB, **arguments)

    def killed(self, operation: str, step: Step, **arguments: Any) -> Any:
        """Let an operation die at a step, then repeat it to its end."""
        kill_at(step, self.spaces.tiny.path, operation, JOB, **arguments)
        self.kills += 1
        return self.do(operation, **arguments)

    def reads(self, consumer: str) -> int:
        return self.spaces.ledger.pin(consumer).space

    def seen(self) -> dict[str, Any]:
        """Return the reader's counts so far."""
        try:
            counts: dict[str, Any] = json.loads((self.reader / "tally.json").read_text())
        except FileNotFoundError:
            return {"reads": 0, "spaces": {}}
        return counts

    def wait_until_seen(self, *reads: str) -> None:
        """Wait until the reader has read each ``consumer space`` anew."""
        before, deadline = self.seen()["spaces"], time.monotonic() + 60
        while any(self.seen()["spaces"].get(one, 0) <= before.get(one, 0) + 3 for one in reads):
            assert time.monotonic() < deadline, f"the reader does not see {reads}: {self.seen()}"
            time.sleep(0.02)


@contextmanager
def _reading(world: World) -> Iterator[None]:
    """Let a process read for every consumer meanwhile; it must not fail."""
    world.reader.mkdir()
    names = (str(world.spaces.tiny.path), CONSUMERS, USERS, str(world.reader.parent / "known"))
    process = FORKS.Process(target=watch, args=(*names, str(world.reader)))
    process.start()
    try:
        world.wait_until_seen(*(f"{name} 1" for name in CONSUMERS))
        yield
    finally:
        (world.reader / "stop").touch()
        process.join(60)
        code = process.exitcode
        if code is None:
            process.kill()
    assert code == 0, "the reader failed"


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Listeners:
    return Listeners.build(tmp_path_factory.mktemp("listeners"), USERS)


@pytest.fixture
def make(
    tmp_path: Path, request: pytest.FixtureRequest, listeners: Listeners
) -> Iterator[Callable[[str, str], World]]:
    """Return a function: an online store's profile and where the ledger is -> space 1, served."""
    made: list[World] = []

    def world(profile: str, ledger: str) -> World:
        path = tmp_path / "repo"
        online = PROFILES[profile].settings(
            request.getfixturevalue(str(PROFILES[profile].server)), str(path)
        )
        options: dict[str, Any] = {}
        if ledger == "postgres":
            url = _database(request.getfixturevalue("postgres_server"))
            registry = url.replace("postgresql:", "postgresql+psycopg:")
            options = {"ledger": url, "registry": {"registry_type": "sql", "path": registry}}
        spaces = listeners.move_into(Spaces.make(path, online=online, **options))
        folders = Known(tmp_path / "known"), tmp_path / "reader"
        one = World(spaces, Draws.of(spaces), *folders)
        made.append(one)
        space = train(spaces, seed=0)
        one.raw(np.arange(USERS))
        one.do("materialise", spaces=[space.number], end=END)
        one.do("promote", number=1)
        for name in CONSUMERS:
            add_consumer(spaces.context.store, spaces.ledger, name, 1, **WHO)
        return one

    yield world
    for one in made:
        close_registry(one.spaces.context.store)


def _database(server: Server) -> str:
    name = f"story_{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server.url.rsplit('/', 1)[0]}/{name}"


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("profile", "ledger"), [("palate-redis", "postgres"), ("palate-postgres", "files")]
)
def test_no_consumer_ever_reads_a_vector_of_a_space_other_than_its_pin(
    make: Callable[[str, str], World],
    capsys: pytest.CaptureFixture[str],
    profile: str,
    ledger: str,
) -> None:
    world = make(profile, ledger)
    began = time.perf_counter()
    with _reading(world):
        _story(world)
    seen = world.seen()
    with capsys.disabled():
        print(
            f"\n{profile}, ledger in {ledger}: {seen['reads']} reads, {seen['vectors']} vectors, "
            f"{world.kills} kills, {time.perf_counter() - began:.0f} s; violations: "
            f"{seen['not_pinned']} not pinned, {seen['foreign']} foreign, {seen['refused']} "
            f"refused, {seen['lost']} lost"
        )
    assert seen["reads"] > 200
    assert set(seen["spaces"]) == {f"{name} {space}" for name in CONSUMERS for space in (1, 2)}
    violations = {name: seen[name] for name in ("not_pinned", "foreign", "refused", "lost")}
    assert violations == dict.fromkeys(violations, 0)


def _story(world: World) -> None:
    store, ledger = world.spaces.context.store, world.spaces.ledger
    rng = np.random.default_rng(0)

    # Space 2 is trained, and one pass keeps both fresh; it dies at each of its steps.
    two = train(world.spaces, seed=1)
    world.raw(np.arange(USERS))
    for step in MATERIALISE.values():
        world.killed("materialise", step, spaces=[1, 2], end=END)
        assert {run.state for run in ledger.runs()} == {"committed"}
        world.raw(rng.choice(USERS, USERS // 3, replace=False))
    world.do("materialise", spaces=[1, 2], end=END)
    assert ledger.space(2).state == "ready"
    assert [world.reads(name) for name in CONSUMERS] == [1, 1, 1]

    # One consumer moves, and is rolled back; the others stay.
    for step in MOVE.values():
        world.killed("move", step, name="home", space=2)
        assert not services_behind(store, ledger)
        assert [world.reads(name) for name in CONSUMERS] == [2, 1, 1]
        world.wait_until_seen("home 2", "search 1", "mail 1")
        world.do("roll back", name="home")
        assert [world.reads(name) for name in CONSUMERS] == [1, 1, 1]
        world.wait_until_seen("home 1")
    for step in ROLL_BACK.values():
        world.do("move", name="home", space=2)
        kill_at(step, world.spaces.tiny.path, "roll back", JOB, name="home")
        world.kills += 1
        if world.reads("home") == 2:
            world.do("roll back", name="home")
        else:
            world.do("move", name="home", space=1)  # it is there; its service follows
        assert not services_behind(store, ledger)
        world.wait_until_seen("home 1")

    # Everybody goes to space 2, and nothing needs space 1 any more.
    for step, name in zip(MOVE.values(), CONSUMERS, strict=False):
        with pytest.raises(LedgerConflict, match=f"consumer '{name}' reads it"):
            world.do("retire", number=1)
        world.killed("move", step, name=name, space=2)
    for step in PROMOTE.values():
        world.killed("promote", step, number=2)
        world.do("promote", number=1)
    world.do("promote", number=2)
    world.wait_until_seen(*(f"{name} 2" for name in CONSUMERS))
    for step in RETIRE.values():
        kill_at(step, world.spaces.tiny.path, "retire", JOB, number=1)
        world.kills += 1
        # The other space is kept fresh meanwhile.
        world.raw(rng.choice(USERS, USERS // 3, replace=False))
        world.do("materialise", spaces=[2], end=END)
    world.do("retire", number=1)
    assert (ledger.space(1).state, ledger.space(2)) == ("retired", ledger.space(two.number))
    assert not services_behind(store, ledger)
    world.wait_until_seen(*(f"{name} 2" for name in CONSUMERS))


def _planted(world: World, *, space: Space, rows_of: Space) -> None:
    """Put newer rows into the view of space 1, marked as of one space, made by another's."""
    users = np.arange(USERS)
    rows = world.draws.draw(users, seed=1)
    url = world.spaces.settings.artifacts_url
    made = encode(world.draws.batch(rows), rows_of.encoder_version, url).embedding
    table = world.spaces.rows(space, users.tolist(), turn=10**15)
    column = table.column_names.index("embedding")
    table = table.set_column(column, "embedding", pa.array(list(made), pa.list_(pa.float32())))
    write_online(world.spaces.context.store, stored_view(1), table.to_batches())


@pytest.mark.slow
@pytest.mark.server
def test_the_watcher_counts_what_is_wrong(make: Callable[[str, str], World]) -> None:
    world = make("palate-redis", "files")
    one, two = world.spaces.ledger.space(1), train(world.spaces, seed=1)
    world.raw(np.arange(USERS))
    world.do("materialise", spaces=[1, 2], end=END)
    watcher = Watcher(world.spaces.context, ("home",), USERS, world.known)
    watcher.look("home")
    assert (watcher.tally.reads, watcher.tally.vectors, watcher.tally.violations) == (1, 19, 0)

    # A process that reads what another consumer is pinned to.
    context = world.spaces.context
    world.do("move", name="mail", space=2)
    other = EmbeddingClient(context.store, context.settings.ledger_url, "mail")
    astray = Watcher(context, ("home",), USERS, world.known, clients={"home": other})
    astray.look("home")
    assert astray.tally.not_pinned == astray.tally.violations == 19

    # Marked as the pinned space, made by another encoder.
    _planted(world, space=one, rows_of=two)
    watcher.look("home")
    assert watcher.tally.foreign == watcher.tally.violations == 19
    # Marked as another space: the client refuses it.
    _planted(world, space=two, rows_of=two)
    watcher.look("home")
    assert (watcher.tally.refused, watcher.tally.violations) == (1, 20)
    # Nothing at all.
    world.do("move", name="home", space=2)
    store = context.store
    view = store.get_feature_view(stored_view(2))
    online = store._get_provider().online_store
    online.update(store.config, [view], [], [store.get_entity("user")], [], False)
    watcher.look("home")
    assert (watcher.tally.lost, watcher.tally.violations) == (19, 39)
