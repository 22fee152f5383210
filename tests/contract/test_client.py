"""The client for serving code: the pinned space's vectors or an error, on every online store."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from encoder.errors import DataFault, LedgerConflict, SpaceMismatch, TransientError
from materialize.client import NOT_FOUND, EmbeddingBatch, EmbeddingClient
from materialize.consumers import add_consumer, move_consumer, roll_back_consumer
from tests.forks import FORKS, preload
from tests.servers import Server
from tests.sinks import close, marked
from tests.spaces import DIM, Spaces, close_registry, vectors
from tests.stores import PROFILES
from transforms.names import stored_view

WHO = {"who": "test", "why": "a test"}
USERS = list(range(20))
preload(__name__)

# Feast's own stores leave their connections open.
pytestmark = pytest.mark.filterwarnings(
    "ignore:<psycopg.Connection .*was deleted while still open:ResourceWarning"
)

Make = Callable[..., Spaces]
CLIENTS: list[EmbeddingClient] = []


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a repository on an online store, by the name of its profile."""
    made: list[Spaces] = []

    def spaces(profile: str = "palate-sqlite", **options: Any) -> Spaces:
        store = PROFILES[profile]
        server = request.getfixturevalue(store.server) if store.server else None
        path = tmp_path / f"repo{len(made)}"
        made.append(Spaces.make(path, online=store.settings(server, str(path)), **options))
        return made[-1]

    yield spaces
    while CLIENTS:
        CLIENTS.pop().close()
    for one in made:
        close_registry(one.context.store)
        close(one.context.store._get_provider().online_store)


@pytest.fixture(params=[marked(name) for name in PROFILES])
def spaces(request: pytest.FixtureRequest, make: Make) -> Spaces:
    """Spaces 1 and 2 are ready; the consumer `home` reads space 1."""
    return _with_home(make(request.param))


@pytest.fixture
def plain(make: Make) -> Spaces:
    """As `spaces`, on SQLite."""
    return _with_home(make())


def _with_home(spaces: Spaces) -> Spaces:
    spaces.add_space(USERS)
    spaces.add_space(USERS)
    add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
    return spaces


def _client(spaces: Spaces, **options: Any) -> EmbeddingClient:
    client = EmbeddingClient(spaces.context.store, spaces.settings.ledger_url, "home", **options)
    CLIENTS.append(client)
    return client


def _move(spaces: Spaces, space: int, **options: Any) -> None:
    move_consumer(spaces.context.store, spaces.ledger, "home", space, **WHO, **options)


def _of(spaces: Spaces, space: int, users: list[Any] = USERS) -> Any:
    return vectors(spaces.ledger.space(space).encoder_version, users)


def test_users_are_answered_in_the_order_of_the_question(spaces: Spaces) -> None:
    asked = [7, 3, 7, 19]
    batch = _client(spaces).read(asked)
    assert np.array_equal(batch.embedding, _of(spaces, 1, asked))
    assert batch.embedding.dtype == np.float32
    assert (batch.as_of.dtype, len(set(batch.as_of.tolist()))) == (np.dtype(np.int64), 1)
    assert batch.status.tolist() == ["warm"] * 4
    assert batch.n_events.tolist() == [8, 4, 8, 20]
    assert batch.found.all()
    assert (batch.space, batch.encoder_version) == (1, spaces.ledger.space(1).encoder_version)
    assert batch.pin == spaces.ledger.pin("home")


def test_a_user_who_is_not_there_is_an_answer_and_never_zeros(spaces: Spaces) -> None:
    batch = _client(spaces).read(np.array([5, 1_000, 6]))
    assert batch.found.tolist() == [True, False, True]
    assert batch.status[1] == NOT_FOUND
    assert np.isnan(batch.embedding[1]).all()
    assert (batch.as_of[1], batch.n_events[1]) == (-1, -1)
    assert np.array_equal(batch.embedding[[0, 2]], _of(spaces, 1, [5, 6]))


@pytest.mark.parametrize("users", [[], [1_000, 1_001]])
def test_nobody_found_has_the_width_of_the_space(spaces: Spaces, users: list[int]) -> None:
    client = _client(spaces)
    for _ in range(2):
        assert client.read(users).embedding.shape == (len(users), DIM)
        client.read(USERS)


def test_ids_may_be_text(make: Make) -> None:
    users = ["a", "ü", "c" * 40]
    spaces = make(user_type="STRING")
    spaces.add_space(users)
    add_consumer(spaces.context.store, spaces.ledger, "home", 1, **WHO)
    assert np.array_equal(_client(spaces).read(users[::-1]).embedding, _of(spaces, 1, users[::-1]))
    with pytest.raises(TypeError):
        _client(spaces).read([5])


def test_an_id_of_another_type_is_refused(plain: Spaces) -> None:
    with pytest.raises(TypeError):
        _client(plain).read(["5"])


def test_a_move_is_seen_by_the_next_read_and_so_is_a_roll_back(spaces: Spaces) -> None:
    client = _client(spaces)
    assert client.read(USERS).space == 1
    _move(spaces, 2)
    batch = client.read(USERS)
    assert (batch.space, batch.pin.revision) == (2, 2)
    assert np.array_equal(batch.embedding, _of(spaces, 2))
    roll_back_consumer(spaces.context.store, spaces.ledger, "home", **WHO)
    assert np.array_equal(client.read(USERS).embedding, _of(spaces, 1))


def test_a_space_that_was_trained_after_the_client_began_is_read(spaces: Spaces) -> None:
    client = _client(spaces)
    client.read(USERS)
    spaces.add_space(USERS)
    _move(spaces, 3)
    assert np.array_equal(client.read(USERS).embedding, _of(spaces, 3))


def test_a_bridged_view_is_read_with_the_bridges_mark(spaces: Spaces) -> None:
    one, two = spaces.ledger.spaces()
    bridge = spaces.add_bridge(two, one, USERS)
    _move(spaces, 1, bridge_from=2)
    batch = _client(spaces, space=1).read(USERS)
    assert (batch.space, batch.encoder_version) == (1, bridge.version)
    assert np.array_equal(batch.embedding, vectors(bridge.version, USERS))


def _plant(spaces: Spaces, users: list[int], space: int, encoder_version: str) -> None:
    """Write newer rows of another space into the view of space 1, past every check."""
    from tests.repositories import write_online

    other = spaces.ledger.space(space)
    table = spaces.rows(other, users, encoder_version=encoder_version, turn=1_000_000)
    write_online(spaces.context.store, stored_view(1), table.to_batches())


def test_one_row_of_another_space_raises_and_names_both(spaces: Spaces) -> None:
    one, two = spaces.ledger.spaces()
    client = _client(spaces)
    _plant(spaces, [4], 2, two.encoder_version)
    with pytest.raises(
        SpaceMismatch,
        match=rf"1 of 20 rows of user_embedding_s1 are of space 2 \({two.encoder_version}\); "
        rf"consumer 'home' reads space 1 \({one.encoder_version}\).*"
        r"palate materialize --space 1 --force",
    ):
        client.read(USERS)
    assert client.read([5]).space == 1


def test_the_right_space_of_another_encoder_raises(spaces: Spaces) -> None:
    _plant(spaces, [4], 1, "f" * 12)
    with pytest.raises(SpaceMismatch, match=r"are of space 1 \(f{12}\)"):
        _client(spaces).read([4])


def test_a_pin_elsewhere_than_the_model_raises_and_says_what_to_do(spaces: Spaces) -> None:
    client = _client(spaces, space=1)
    client.read(USERS)
    _move(spaces, 2)
    with pytest.raises(
        SpaceMismatch,
        match=r"'home' reads space 2 .* a model of space 1\. Deploy the model of space 2, or run "
        r"`palate consumers rollback home`",
    ):
        client.read(USERS)
    roll_back_consumer(spaces.context.store, spaces.ledger, "home", **WHO)
    assert client.read(USERS).space == 1


def test_a_pin_may_be_kept_for_so_many_seconds(plain: Spaces) -> None:
    kept, asking = _client(plain, pin_seconds=3_600.0), _client(plain)
    assert kept.read(USERS).space == asking.read(USERS).space == 1
    _move(plain, 2)
    assert (kept.read(USERS).space, asking.read(USERS).space) == (1, 2)
    # Whoever is missing makes it ask.
    assert kept.read([1, 1_000]).space == 2
    assert kept.read(USERS).space == 2


def test_a_read_of_a_view_that_was_removed_meanwhile_begins_again(spaces: Spaces) -> None:
    client = _client(spaces, pin_seconds=3_600.0)
    assert client.read(USERS).space == 1
    _move(spaces, 2)
    store = spaces.context.store
    online = store._get_provider().online_store
    view, user = store.get_feature_view(stored_view(1)), store.get_entity("user")
    online.update(store.config, [view], [], [user], [], False)
    assert np.array_equal(client.read(USERS).embedding, _of(spaces, 2))


@pytest.mark.parametrize("given", [-1.0, float("nan")])
@pytest.mark.parametrize("name", ["pin_seconds", "outage_seconds"])
def test_seconds_below_zero_are_refused(plain: Spaces, name: str, given: float) -> None:
    with pytest.raises(ValueError, match=name):
        _client(plain, **{name: given})


def test_an_unknown_consumer_and_an_unknown_view_are_named(plain: Spaces) -> None:
    other = EmbeddingClient(plain.context.store, plain.settings.ledger_url, "nobody")
    with pytest.raises(LedgerConflict, match=r"Unknown consumer 'nobody'\. Known: 'home'"):
        other.read(USERS)
    client = _client(plain)
    client.read(USERS)
    plain.ledger.remove_consumer("home", **WHO)
    with pytest.raises(LedgerConflict, match="Unknown consumer 'home'"):
        client.read(USERS)
    plain.ledger.add_consumer("home", 2, **WHO)
    plain.context.store.delete_feature_view(stored_view(2))
    with pytest.raises(DataFault, match=r"no view 'user_embedding_s2'.*feast apply"):
        client.read(USERS)


@contextmanager
def _gone(server: Server, url: str) -> Iterator[None]:
    """Let a PostgreSQL database take no connections meanwhile, and end those that it has."""
    name = url.rsplit("/", 1)[1]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        yield
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def _answer(client: EmbeddingClient) -> EmbeddingBatch | None:
    try:
        return client.read(USERS)
    except TransientError:
        return None


def test_without_the_ledger_the_last_known_pin_serves_for_a_while(
    make: Make, postgres_server: Server, postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    spaces = _with_home(make(ledger=postgres_database))
    client, brief = _client(spaces), _client(spaces, outage_seconds=0.0)
    late, expected = _client(spaces), _of(spaces, 1)
    assert client.read(USERS).space == brief.read(USERS).space == 1
    with _gone(postgres_server, postgres_database):
        with caplog.at_level(logging.WARNING, "materialize.pins"):
            for _ in range(20):
                assert np.array_equal(client.read(USERS).embedding, expected)
            assert client.read([1, 1_000]).found.tolist() == [True, False]
        assert 1 <= len(caplog.records) <= 3, "one line an attempt, not one a read"
        assert "goes on with space 1" in caplog.text
        with pytest.raises(TransientError, match=r"space 1\) may serve for 0 s"):
            brief.read(USERS)
        with pytest.raises(TransientError, match="nobody knows which space") as failed:
            late.read(USERS)
        assert "palate:palate" not in caplog.text + str(failed.value)
    _move(spaces, 2)
    for one in (client, brief, late):
        deadline = time.monotonic() + 10
        while (batch := _answer(one)) is None or batch.space != 2:
            assert time.monotonic() < deadline, "the ledger is asked again"


def test_threads_share_a_client_while_the_consumer_moves(spaces: Spaces) -> None:
    client, expected = _client(spaces), {n: _of(spaces, n) for n in (1, 2)}
    stop, faults, seen = threading.Event(), [], set()

    def loop() -> None:
        while not stop.is_set():
            batch = client.read(USERS)
            seen.add(batch.space)
            if not np.array_equal(batch.embedding, expected[batch.space]):
                faults.append(batch)

    readers = [threading.Thread(target=loop) for _ in range(4)]
    for reader in readers:
        reader.start()
    for space in (2, 1, 2, 1, 2):
        _move(spaces, space)
    stop.set()
    for reader in readers:
        reader.join(30)
    assert faults == []
    assert seen == {1, 2}
    assert client.read(USERS).space == 2


def _serve(repo: str, url: str, asked: Any, answers: Any) -> None:
    from feast import FeatureStore

    store = FeatureStore(repo_path=repo)
    client = EmbeddingClient(store, url, "home")
    while asked.get() is not None:
        batch = client.read(USERS)
        answers.put((batch.space, batch.pin.revision, batch.embedding.tolist()))


@pytest.mark.parametrize("registry", ["file", pytest.param("sql", marks=pytest.mark.server)])
def test_another_process_sees_a_move_on_its_very_next_read(
    request: pytest.FixtureRequest, make: Make, registry: str
) -> None:
    options: dict[str, Any] = {}
    if registry == "sql":
        url = request.getfixturevalue("postgres_database")
        path = url.replace("postgresql:", "postgresql+psycopg:")
        # The cache outlives the test: nothing is seen by its expiry.
        cached = {"registry_type": "sql", "path": path, "cache_ttl_seconds": 3_600}
        options = {"ledger": url, "registry": cached}
    spaces = _with_home(make(**options))
    asked, answers = FORKS.Queue(), FORKS.Queue()
    names = (str(spaces.tiny.path), spaces.settings.ledger_url, asked, answers)
    process = FORKS.Process(target=_serve, args=names)
    process.start()
    try:
        for revision, space in enumerate((1, 2, 1, 2, 1), start=1):
            if revision > 1:
                _move(spaces, space)
            asked.put("read")
            got = answers.get(timeout=60)
            assert got[:2] == (space, revision)
            assert np.array_equal(np.array(got[2], np.float32), _of(spaces, space))
    finally:
        asked.put(None)
        process.join(30)
        process.close()


@pytest.mark.parametrize("absent", ["torch", "redis", "ray", "onnxruntime"])
def test_the_client_is_imported_without(absent: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{absent!r}] = None; import materialize.client"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
