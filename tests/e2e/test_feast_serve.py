"""`feast serve` as it is: over HTTP it answers what Feast answers in process, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import redis
import requests
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

from materialize.consumers import add_consumer, move_consumer
from materialize.embedding_rows import ensure_readable
from materialize.ledger import Space
from materialize.template import template_folder
from tests.repositories import VIEWS, raw_rows, write_online
from tests.servers import FeastServer, Server, feast_server
from tests.servers import redis_server as own_redis
from tests.sinks import close, marked
from tests.spaces import Spaces
from tests.startup import python_path
from tests.stores import PROFILES
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, column
from transforms.names import EMBEDDING_ALIAS, USER_KEY, on_demand_view, stored_view

pytestmark = pytest.mark.slow

USERS = [1, 2, 3, 4]
"""1 and 2 are everywhere, 3 has picks and a profile, 4 a profile only."""
PRESENT = {
    ACTIVITY: [True, True, False, False],
    PROFILE: [True, True, True, True],
    ONBOARDING: [True, False, True, False],
}
NOBODY = 999
WIDE, NOT_A_NUMBER = 66, 67
"""Raw activity of another width; a stored vector that holds NaN."""
NAMES = ("embedding", "as_of", "space", "encoder_version", "status", "n_events")
STORED, ON_DEMAND = stored_view(1), on_demand_view(1)
WHO = {"who": "test", "why": "a test"}
PREWARM = "static_artifacts.py"


@dataclass(frozen=True)
class Served:
    """A repository with two spaces, the consumer `home` of space 1, and `feast serve` over it."""

    spaces: Spaces
    server: FeastServer

    def ask(self, **body: Any) -> requests.Response:
        return requests.post(f"{self.server.url}/get-online-features", json=body, timeout=30)


@pytest.fixture(scope="module")
def torch_free(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `import torch` fails as where it is not installed."""
    folder = tmp_path_factory.mktemp("torch-free")
    (folder / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n", encoding="utf-8"
    )
    return {"PYTHONPATH": python_path(folder)}


@pytest.fixture(scope="module", params=[marked("palate-redis"), "palate-sqlite"])
def served(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    torch_free: dict[str, str],
) -> Iterator[Served]:
    profile = PROFILES[request.param]
    server = request.getfixturevalue(profile.server) if profile.server else None
    folder = tmp_path_factory.mktemp("serve")
    online = profile.settings(server, str(folder))
    with (
        _repository(folder / "repo", online) as spaces,
        feast_server(spaces.tiny.path, folder, environment=torch_free) as feast,
    ):
        yield Served(spaces, feast)


@contextmanager
def _repository(path: Path, online: dict[str, Any]) -> Iterator[Spaces]:
    """Yield a repository with raw features, real encoders and made-up stored vectors.

    The stored vectors are not what the encoder gives, so that no path can pass for the other.
    """
    made = Spaces.make(path, online=online)
    tiny = replace(made.tiny, store=made.context.store)
    spaces = replace(made, tiny=tiny)
    shutil.copy(template_folder() / PREWARM, path)
    for seed in (0, 1):
        spaces.write(_register(spaces, tiny.save_encoder(seed)), USERS)
    tiny.write_raw(raw_rows(USERS, PRESENT))
    tiny.write_raw(_with_a_wider_activity([WIDE]))
    _write_nan(spaces)
    add_consumer(made.context.store, spaces.ledger, "home", 1, **WHO)
    try:
        yield spaces
    finally:
        close(made.context.store._get_provider().online_store)


def _register(spaces: Spaces, encoder_version: str) -> Space:
    facts = {"raw_views": list(VIEWS), "embedding_dim": spaces.dim}
    space = spaces.ledger.register(encoder_version, spaces.settings.artifacts_url, facts)
    ensure_readable(spaces.settings.offline_dir / stored_view(space.number), spaces.user_type)
    spaces.apply(space)
    return space


def _with_a_wider_activity(users: list[int]) -> pa.Table:
    rows = raw_rows(users)
    name = column(ACTIVITY, "counts")
    wider = pa.array([[*row, 1.0] for row in rows.column(name).to_pylist()], rows.field(name).type)
    return rows.set_column(rows.column_names.index(name), name, wider)


def _write_nan(spaces: Spaces) -> None:
    space = spaces.ledger.space(1)
    rows = spaces.rows(space, [NOT_A_NUMBER])
    index = rows.column_names.index("embedding")
    vector = [float("nan"), float("inf"), -float("inf"), *range(spaces.dim - 3)]
    rows = rows.set_column(
        index, rows.schema.field(index), pa.array([vector], rows.field(index).type)
    )
    write_online(spaces.context.store, STORED, rows.to_batches())


def _columns(answer: requests.Response) -> dict[str, dict[str, list[Any]]]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return dict(zip(body["metadata"]["feature_names"], body["results"], strict=True))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@pytest.mark.parametrize("view", [STORED, ON_DEMAND])
@pytest.mark.parametrize("full", [False, True])
def test_a_view_is_answered_as_in_process(served: Served, view: str, full: bool) -> None:
    features = [f"{view}:{name}" for name in NAMES]
    _check(served, {"features": features, "full_feature_names": full}, features, full)


@pytest.mark.parametrize("full", [False, True])
def test_a_consumers_service_is_answered_as_in_process(served: Served, full: bool) -> None:
    service = served.spaces.context.store.get_feature_service("home")
    got = _check(served, {"feature_service": "home", "full_feature_names": full}, service, full)
    prefix = f"{EMBEDDING_ALIAS}__" if full else ""
    assert set(got) == {USER_KEY, *(f"{prefix}{name}" for name in NAMES)}


def _check(served: Served, asked: dict[str, Any], features: Any, full: bool) -> dict[str, Any]:
    """Compare names, values and statuses; known users and one whom nobody has heard of."""
    users = [*USERS, NOBODY]
    got = _columns(served.ask(**asked, entities={USER_KEY: users}))
    answer = served.spaces.context.store.get_online_features(
        features=features, entity_rows=[{USER_KEY: u} for u in users], full_feature_names=full
    )
    expected = answer.to_dict()
    assert set(got) == set(expected)
    for name, values in expected.items():
        # Equal as numbers: a float32 keeps every digit in JSON.
        assert got[name]["values"] == [_plain(value) for value in values], name
    names = list(answer.proto.metadata.feature_names.val)
    for name, result in zip(names, answer.proto.results, strict=True):
        assert got[name]["statuses"] == [FieldStatus.Name(s) for s in result.statuses], name
    return got


def test_vectors_come_back_as_the_float32_that_was_stored(served: Served) -> None:
    got = _columns(served.ask(features=[f"{STORED}:embedding"], entities={USER_KEY: USERS}))
    space = served.spaces.ledger.space(1)
    stored = served.spaces.rows(space, USERS).column("embedding").to_pylist()
    sent = np.array(got["embedding"]["values"], np.float64)
    assert np.array_equal(sent, np.array(stored, np.float32).astype(np.float64))


def test_nobody_is_null_in_the_stored_view_and_cold_on_demand(served: Served) -> None:
    users = {USER_KEY: [USERS[0], NOBODY]}
    names = ("embedding", "status")
    stored = _columns(served.ask(features=[f"{STORED}:{n}" for n in names], entities=users))
    assert stored["embedding"]["values"][1] is None
    assert stored["embedding"]["statuses"] == ["PRESENT", "NOT_FOUND"]
    demand = _columns(served.ask(features=[f"{ON_DEMAND}:{n}" for n in names], entities=users))
    assert demand["status"]["values"] == ["warm", "cold"]
    assert len(demand["embedding"]["values"][1]) == served.spaces.dim
    assert demand["embedding"]["statuses"] == ["PRESENT", "PRESENT"]


def test_numbers_that_json_does_not_have_are_strings(served: Served) -> None:
    users = {USER_KEY: [NOT_A_NUMBER]}
    (vector,) = _columns(served.ask(features=[f"{STORED}:embedding"], entities=users))["embedding"][
        "values"
    ]
    assert vector[:4] == ["NaN", "Infinity", "-Infinity", 0.0]


ONE = {USER_KEY: [1]}
_EMBEDDING = [f"{ON_DEMAND}:embedding"]


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"features": _EMBEDDING}, 422, "Field required"),
        ({"features": _EMBEDDING, "entities": {USER_KEY: 1}}, 422, "valid list"),
        ({"features": ["nothing:embedding"], "entities": ONE}, 404, "nothing does not exist"),
        ({"feature_service": "nothing", "entities": ONE}, 404, "nothing does not exist"),
        ({"features": [f"{ON_DEMAND}:nothing"], "entities": ONE}, 500, "nothing not found"),
        ({"features": [], "entities": ONE}, 500, "No features specified"),
        ({"features": _EMBEDDING, "entities": {"other": [1]}}, 500, f"['{USER_KEY}']"),
        ({"features": _EMBEDDING, "entities": {USER_KEY: ["a"]}}, 500, "'a'"),
        ({"features": _EMBEDDING, "entities": {USER_KEY: [1], "b": [1, 2]}}, 500, "entity rows"),
    ],
)
def test_a_malformed_request_is_refused(
    served: Served, body: dict[str, Any], status: int, part: str
) -> None:
    answer = served.ask(**body)
    assert (answer.status_code, part in answer.text) == (status, True), answer.text


def test_a_malformed_raw_row_names_user_and_column_and_stops_nobody_else(served: Served) -> None:
    answer = served.ask(features=_EMBEDDING, entities={USER_KEY: [1, WIDE]})
    assert answer.status_code == 500
    name = column(ACTIVITY, "counts")
    assert f"User {WIDE}, column {name!r}" in answer.json()
    assert "is expected" in answer.json()
    assert served.ask(features=_EMBEDDING, entities=ONE).status_code == 200


def test_a_move_is_answered_from_the_next_request_on(served: Served) -> None:
    store, ledger = served.spaces.context.store, served.spaces.ledger
    asked = {"feature_service": "home", "entities": ONE}
    assert _columns(served.ask(**asked))["space"]["values"] == [1]
    move_consumer(store, ledger, "home", 2, **WHO)
    try:
        assert _columns(served.ask(**asked))["space"]["values"] == [2]
    finally:
        move_consumer(store, ledger, "home", 1, **WHO)


def test_torch_cannot_be_imported_there(torch_free: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], env=torch_free, capture_output=True, check=False
    )
    assert b"ModuleNotFoundError: No module named 'torch'" in done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Spaces]:
    """Another repository, on SQLite, whose artifacts a test may remove."""
    online = PROFILES["palate-sqlite"].settings(None, str(tmp_path))
    with _repository(tmp_path / "repo", online) as spaces:
        yield spaces


def test_workers_load_encoders_before_they_answer_and_end_at_sigterm(
    repository: Spaces, tmp_path: Path, torch_free: dict[str, str]
) -> None:
    running = feast_server(repository.tiny.path, tmp_path, workers=2, environment=torch_free)
    with running as server:
        workers = psutil.Process(server.process.pid).children()
        assert len(workers) == 2
        shutil.rmtree(repository.settings.artifacts_url)
        # 20 requests on connections of their own reach both workers.
        for _ in range(20):
            answer = Served(repository, server).ask(features=_EMBEDDING, entities=ONE)
            assert answer.status_code == 200, answer.text
    assert server.process.returncode == 0
    assert [worker for worker in workers if worker.is_running()] == []
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{server.url}/health", timeout=2)


def test_without_its_artifacts_a_server_starts_says_so_and_serves_what_is_stored(
    repository: Spaces, tmp_path: Path, torch_free: dict[str, str]
) -> None:
    shutil.rmtree(repository.settings.artifacts_url)
    version = repository.ledger.space(1).encoder_version
    with feast_server(repository.tiny.path, tmp_path, environment=torch_free) as server:
        served = Served(repository, server)
        assert served.ask(features=[f"{STORED}:embedding"], entities=ONE).status_code == 200
        refused = served.ask(features=_EMBEDDING, entities=ONE)
    assert (refused.status_code, version in refused.text) == (500, True)
    (warning,) = [
        line for line in server.log.read_text().splitlines() if "static artifacts" in line
    ]
    assert version in warning


def test_faulty_rows_are_answered_one_by_one_when_the_environment_asks(
    repository: Spaces, tmp_path: Path, torch_free: dict[str, str]
) -> None:
    environment = torch_free | {"PALATE_ON_ERROR": "row"}
    features = [f"{ON_DEMAND}:{name}" for name in ("embedding", "status")]
    with feast_server(repository.tiny.path, tmp_path, environment=environment) as server:
        served = Served(repository, server)
        got = _columns(served.ask(features=features, entities={USER_KEY: [1, WIDE]}))
        alone = _columns(served.ask(features=features, entities=ONE))
    assert got["status"]["values"] == ["warm", "error"]
    assert got["embedding"]["values"] == [*alone["embedding"]["values"], None]


@pytest.mark.server
def test_a_redis_that_hangs_is_given_up_and_read_again_once_it_answers(
    redis_server: Server, tmp_path: Path, torch_free: dict[str, str]
) -> None:
    del redis_server  # asks for the program; this test stops a server of its own
    folder = tmp_path / "redis"
    folder.mkdir()
    with own_redis(folder) as own:
        online = PROFILES["palate-redis"].settings(own, str(tmp_path))
        online["connection_string"] += ",socket_timeout=0.5,socket_connect_timeout=0.5"
        with (
            _repository(tmp_path / "repo", online) as spaces,
            feast_server(spaces.tiny.path, tmp_path, environment=torch_free) as feast,
            redis.Redis(own.host, own.port) as client,
        ):
            served = Served(spaces, feast)
            asked = {"features": [f"{STORED}:embedding"], "entities": ONE}
            before = served.ask(**asked)
            assert before.status_code == 200
            process = psutil.Process(client.info("server")["process_id"])
            process.suspend()
            try:
                answer = served.ask(**asked)  # raises after 30 s
                assert (answer.status_code, "Timeout" in answer.text) == (500, True), answer.text
                health = requests.get(f"{feast.url}/health", timeout=10)
                assert health.status_code == 200, "which asks the registry, not the store"
            finally:
                process.resume()
            assert served.ask(**asked).json() == before.json()
