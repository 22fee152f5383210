"""Start a real Redis, NATS, PostgreSQL or `feast serve` for a test, and stop it again.

Each server runs in its own folder on a port that was free, and is ready when it answers its own
protocol. As root, PostgreSQL runs as the ``postgres`` account, because it refuses to run as root.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis
import requests

START_SECONDS = 120.0
STOP_SECONDS = 20.0
_LOG = "server.log"


class ServerMissing(Exception):
    """The server's program is not on this machine."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    host: str
    port: int
    url: str


@dataclass(frozen=True)
class FeastServer:
    """A running `feast serve`."""

    url: str
    log: Path
    """What it and its workers print."""
    process: subprocess.Popen[bytes]
    """The one that starts the workers."""


_PORTS = range(10_000, 20_000)
"""Below those that Linux gives to outgoing connections: one of them may go before a server starts.

Redis Cluster also listens 10,000 ports above its own, and these are below them, too.
"""


def free_port(together: int = 1) -> int:
    """Return a TCP port that nothing listens on at this moment, nor on those behind it.

    ``together`` is the number of consecutive ports that must be free.
    """
    chance = random.SystemRandom()  # not seeded: several processes of the suite ask side by side
    while True:
        port = chance.choice(_PORTS)
        if all(_is_free(each) for each in range(port, port + together)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def find_program(*names: str) -> Path:
    """Return the first of ``names`` found where PostgreSQL hides its programs, or in PATH."""
    folders: list[str] = []
    if shutil.which("pg_config"):
        asked = subprocess.run(
            ["pg_config", "--bindir"], capture_output=True, text=True, check=True
        )
        folders.append(asked.stdout.strip())
    folders += [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))[::-1]]
    # initdb and postgres of one folder belong together, so that folder goes before PATH.
    for name in names:
        for path in (*folders, None):
            found = shutil.which(name, path=path)
            if found:
                return Path(found)
    raise ServerMissing(f"{' or '.join(names)} is neither in PATH nor in {folders}")


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"server exited with {process.returncode}:\n{log.read_text()}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"server not ready after {START_SECONDS} s:\n{log.read_text()}")
        time.sleep(0.02)


@contextmanager
def running(
    command: list[str],
    folder: Path,
    ready: Callable[[], bool],
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends, from when it is ready; ``folder`` holds its log.

    ``stop`` is what it is sent then.
    """
    log = folder / _LOG
    environ = None if environment is None else {**os.environ, **environment}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environ, **_as(user)
        )
    try:
        _wait(ready, process, log)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _as(user: str | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[Server]:
    """Run a Redis that keeps nothing on disk; ``folder`` holds its log, options extend its line."""
    program = find_program("redis-server", "valkey-server")
    port = free_port()

    def ready() -> bool:
        try:
            with redis.Redis(port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with running([*command, "--appendonly", "no", *options], folder, ready):
        yield Server("127.0.0.1", port, f"redis://127.0.0.1:{port}")


@contextmanager
def redis_cluster(folder: Path) -> Iterator[Server]:
    """Run a Redis cluster of one node that owns every slot: no call may touch keys of two slots."""
    options = ("--cluster-enabled", "yes", "--dir", str(folder))
    with redis_server(folder, *options) as server:
        with closing(redis.Redis.from_url(server.url)) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            pause, deadline = threading.Event(), time.monotonic() + START_SECONDS
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"The cluster was not ready within {START_SECONDS} seconds.")
                pause.wait(0.05)
        yield server


@contextmanager
def nats_server(folder: Path, *options: str, port: int | None = None) -> Iterator[Server]:
    """Run a NATS server with JetStream; ``folder`` holds its log and its streams."""
    program = find_program("nats-server")
    port = free_port() if port is None else port

    def ready() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False

    command = [str(program), "--addr", "127.0.0.1", "--port", str(port)]
    command += ["--jetstream", "--store_dir", str(folder), *options]
    with running(command, folder, ready):
        yield Server("127.0.0.1", port, f"nats://127.0.0.1:{port}")


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a PostgreSQL with a database, user and password all called ``palate``.

    Its folder is directly under the temporary folder and not under pytest's, which other accounts
    may not enter.
    """
    initdb, postgres = find_program("initdb"), find_program("postgres")
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise ServerMissing(
                "PostgreSQL refuses root, and no account is called postgres"
            ) from None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="palate-postgres-") as name:
        folder = Path(name)
        password = folder / "password"
        password.write_text("palate", encoding="utf-8")
        if user is not None:
            for path in (folder, password):
                shutil.chown(path, user, user)
        data = folder / "data"
        subprocess.run(
            [
                *(initdb, "-D", data, "-U", "palate", "--pwfile", password),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            cwd=folder,
            check=True,
            capture_output=True,
            **_as(user),
        )
        parts: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": port,
            "user": "palate",
            "password": "palate",
        }

        def ready() -> bool:
            try:
                with psycopg.connect(**parts, dbname="postgres", autocommit=True) as connection:
                    connection.execute("CREATE DATABASE palate")
            except psycopg.OperationalError:
                return False
            return True

        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]
        command = [str(postgres), "-D", str(data), "-p", str(port), "-k", str(folder), *options]
        # At SIGTERM it waits for its clients, whose pools live on: for all of STOP_SECONDS.
        with running(command, folder, ready, user, stop=signal.SIGINT):
            yield Server("127.0.0.1", port, f"postgresql://palate:palate@127.0.0.1:{port}/palate")


@contextmanager
def feast_server(
    repo: Path,
    folder: Path,
    *options: str,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[FeastServer]:
    """Run `feast serve` on a repository; ready when ``/health`` answers and all workers are up.

    ``options`` extend its line, ``environment`` its environment; ``folder`` holds its log.
    """
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / _LOG

    def ready() -> bool:
        try:
            if requests.get(f"{url}/health", timeout=2).status_code != 200:
                return False
        except (requests.ConnectionError, requests.Timeout):
            return False
        # One worker's answer says nothing of the others.
        return log.read_text(encoding="utf-8").count("Application startup complete") >= workers

    program = Path(sys.executable).parent / "feast"
    command = [str(program), "-c", str(repo), "serve", "-p", str(port), "--no-access-log"]
    command += ["--workers", str(workers), *options]
    with running(command, folder, ready, environment=environment) as process:
        yield FeastServer(url, log, process)
