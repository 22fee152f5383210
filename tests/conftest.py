"""What every test shares: hypothesis profiles, seeds, the UTC check, real data and real servers."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests import servers
from tests.startup import python_path
from tests.startup.sitecustomize import FOLDER, install

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_Started = TypeVar("_Started")

# 200 in CI: four times the local number, and the whole run still ends in minutes on two cores; a
# search by hand takes `--hypothesis-profile=search`. No deadlines: speed is a benchmark's matter.
_shared: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow],
    "print_blob": True,
}
settings.register_profile("dev", max_examples=50, **_shared)
settings.register_profile("ci", max_examples=200, **_shared)
settings.register_profile("search", max_examples=1000, **_shared)
settings.load_profile("ci" if os.environ.get("CI", "").lower() in {"1", "true"} else "dev")

SEED = 20_260_101
_MOST_WORKERS = 4
"""Each has servers and repositories of its own: more of them cost more than they save."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker a core for the whole suite, and none for files that somebody names."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare what workers and every other process inherit; keep pytest-randomly's order only.

    Its seeds differ from run to run.
    """
    if hasattr(config.option, "randomly_reset_seed"):
        config.option.randomly_reset_seed = False
    if getattr(config.option, "tx", None):  # threads of one worker would wait for the other's
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if FOLDER not in os.environ and hasattr(config, "cache"):
        os.environ[FOLDER] = str(config.cache.mkdir("typeguard"))
        os.environ["PYTHONPATH"] = python_path(*os.environ.get("PYTHONPATH", "").split(os.pathsep))
        install()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Third-party code that draws from global generators draws the same numbers in every run."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - scikit-learn and scipy fall back on this generator


@pytest.fixture(scope="session", autouse=True)
def _elsewhere() -> Iterator[None]:
    """Run in a zone that is not UTC and has no whole-hour offset, so that local time shows."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.fixture(scope="session")
def palate_data() -> Callable[[str], Path]:
    """Return a function: name of a real data set -> its folder; skips where it is not there."""

    def folder(name: str) -> Path:
        root = os.environ.get("PALATE_DATA")
        if not root:
            pytest.skip("PALATE_DATA is not set")
        path = Path(root).resolve() / name
        if not path.is_dir():
            pytest.skip(f"PALATE_DATA holds no {name}")
        return path

    return folder


def _start(stack: ExitStack, server: AbstractContextManager[_Started]) -> _Started:
    try:
        return stack.enter_context(server)
    except servers.ServerMissing as exc:
        if os.environ.get("REQUIRE_SERVERS") == "1":
            pytest.fail(f"REQUIRE_SERVERS=1, but {exc}")
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A running Redis; tests share it, so each uses keys or a database number of its own."""
    with ExitStack() as stack:
        yield _start(stack, servers.redis_server(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Server]:
    """A running PostgreSQL; tests share it, so each uses a schema or database of its own."""
    with ExitStack() as stack:
        yield _start(stack, servers.postgres_server())


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A running NATS with JetStream; tests share it, so each uses a project of its own."""
    with ExitStack() as stack:
        yield _start(stack, servers.nats_server(tmp_path_factory.mktemp("nats")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium, without a window; tests share it, and open pages of their own.

    It ends with its module: while it runs, no test of the process can run an event loop.
    """
    from tests.browser import chromium  # most runs need none

    with ExitStack() as stack:
        yield _start(stack, chromium())


_SERVER_FIXTURES = {"redis_server", "postgres_server", "nats_server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a server as `server`, so that ``-m "not server"`` selects by fact."""
    for item in items:
        if _SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests, with the reason, where no CUDA device answers."""
    if item.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
