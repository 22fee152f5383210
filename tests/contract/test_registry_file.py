"""A registry's file while it is written: whole to every reader, and after a kill.

Feast's own store differs; the difference is declared, so that a release that mends it is noticed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureService, FeatureStore
from feast.errors import FeatureViewNotFoundException

from materialize.template import template_folder
from tests.spaces import Spaces
from transforms.names import stored_view

OURS = "materialize.stores.registry.PalateRegistryStore"
STOCK = "feast.infra.registry.file.FileRegistryStore"

_APPLY = """
import pathlib, sys
from feast import FeatureStore
store, stop = FeatureStore(repo_path=sys.argv[1]), pathlib.Path(sys.argv[2])
services = store.list_feature_services()
while not stop.exists():
    store.apply(services)
    print("applied", flush=True)
"""

# Dies when the file is to be written, after half of the bytes.
_DIE = """
import os, signal, sys
from feast import FeatureStore
from feast.protos.feast.core.Registry_pb2 import Registry
import pathlib
store = FeatureStore(repo_path=sys.argv[1])
services = store.list_feature_services()
fsync = os.fsync
def killing(handle):
    os.ftruncate(handle, os.fstat(handle).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = killing
store.apply(services)
"""


def _made(path: Path, kind: str) -> Spaces:
    registry = {"path": "data/registry.db", "registry_store_type": kind}
    spaces = Spaces.make(path, registry=registry)
    spaces.register()
    view = spaces.context.store.get_feature_view(stored_view(1))
    spaces.context.store.apply([FeatureService(name="home", features=[view])])
    return spaces


def _look(store: FeatureStore, *, cached: bool) -> str:
    try:
        store.registry.get_feature_view(stored_view(1), store.project, allow_cache=cached)
    except FeatureViewNotFoundException:
        return "no view"
    except Exception as exc:  # noqa: BLE001 - protobuf's, when it meets half of a message
        return type(exc).__name__
    return "whole"


@pytest.mark.parametrize(("kind", "torn"), [(OURS, False), (STOCK, True)])
def test_a_reader_meets_the_whole_registry_while_another_process_applies(
    tmp_path: Path, kind: str, torn: bool
) -> None:
    spaces = _made(tmp_path / "repo", kind)
    stop = tmp_path / "stop"
    writer = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _APPLY, str(spaces.tiny.path), str(stop)],
        stdout=subprocess.PIPE,
        text=True,
    )
    found: Counter[str] = Counter()
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "applied\n"
        with spaces.elsewhere() as store:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and found.total() < 3_000:
                found[_look(store, cached=found.total() % 2 == 0)] += 1
                if torn and set(found) - {"whole"}:
                    break
    finally:
        stop.touch()
        writer.communicate(timeout=60)
    assert bool(set(found) - {"whole"}) == torn, found
    assert found.total() > 0


@pytest.mark.parametrize(("kind", "survives"), [(OURS, True), (STOCK, False)])
def test_a_process_that_is_killed_while_it_writes_leaves_the_registry_as_it_was(
    tmp_path: Path, kind: str, survives: bool
) -> None:
    spaces = _made(tmp_path / "repo", kind)
    path = spaces.tiny.path / "data" / "registry.db"
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DIE, str(spaces.tiny.path)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert (path.read_bytes() == before) == survives
    if survives:
        with spaces.elsewhere() as store:
            store.apply(store.list_feature_services())
            assert _look(store, cached=False) == "whole"


def test_every_write_is_seen_however_soon_it_follows(tmp_path: Path) -> None:
    spaces = _made(tmp_path / "repo", OURS)
    store = spaces.context.store
    view = store.get_feature_view(stored_view(1))
    with spaces.elsewhere() as other:
        for number in range(200):
            service = FeatureService(name="home", features=[view], description=str(number))
            store.registry.apply_feature_service(service, store.project)
            cached = other.get_feature_service("home", allow_cache=True)
            assert cached.description == str(number)


def test_a_registry_that_cannot_be_written_stays_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = _made(tmp_path / "repo", OURS)
    folder = spaces.tiny.path / "data"
    before = {path.name: path.read_bytes() for path in folder.glob("*registry*")}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        spaces.context.store.apply(spaces.context.store.list_feature_services())
    assert {path.name: path.read_bytes() for path in folder.glob("*registry*")} == before
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("name", ["feature_store.yaml", "feature_store.redis.yaml"])
def test_the_shipped_file_registries_are_replaced_in_one_step(name: str) -> None:
    assert f"registry_store_type: {OURS}" in (template_folder() / name).read_text(encoding="utf-8")
