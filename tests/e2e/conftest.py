"""One small repository, taken through the main job once, for all end-to-end tests."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from encoder.synthetic import SimulatedTruth, simulate_listeners
from materialize.batch import materialize_raw, materialize_space
from materialize.context import Context
from materialize.features import build_features
from materialize.ledger import Space
from materialize.template import init_repository
from materialize.train import train_space
from materialize.validate import validate
from transforms.clean import CleanTables

END = dt.datetime(2024, 7, 20, tzinfo=dt.timezone.utc)
"""After the simulation's last session, which runs past midnight of its 200th day."""

SMALL = {
    "autoencoder": {"embedding_dim": 16, "hidden": [48]},
    "training": {"max_epochs": 3, "device": "cpu"},
    "memory_limit_mb": 512,
}


@dataclass(frozen=True)
class Story:
    """A repository whose space 1 is materialised up to ``END``."""

    repo: Path
    context: Context
    space: Space
    truth: SimulatedTruth


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    before = os.environ.get("PALATE_DATA")
    os.environ["PALATE_DATA"] = str(folder / "raw")
    try:
        truth = simulate_listeners(folder / "raw" / "simulated", n_users=400, n_items=200)
        yield _build(folder / "repo", truth)
    finally:
        if before is None:
            del os.environ["PALATE_DATA"]
        else:
            os.environ["PALATE_DATA"] = before


def _build(repo: Path, truth: SimulatedTruth) -> Story:
    init_repository(repo, "simulated")
    config = repo / "palate.yaml"
    config.write_text(config.read_text() + yaml.safe_dump(SMALL))
    context = Context(repo)
    settings = context.settings
    validate(settings.dataset, settings.data_dir, progress=False)
    build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    run("feast", "apply", cwd=repo)
    trained = train_space(context.store, settings, context.ledger, progress=False)
    run("feast", "apply", cwd=repo)
    context.store.refresh_registry()
    materialize_raw(
        context.store, settings, tuple(trained.space.facts["raw_views"]), end=END, progress=False
    )
    for from_history in (True, False):
        materialize_space(
            context.store,
            settings,
            context.ledger,
            trained.space,
            end=END,
            from_history=from_history,
            progress=False,
        )
    return Story(repo, context, context.ledger.space(), truth)


def run(command: str, *arguments: str, cwd: Path) -> str:
    """Run `feast` or `palate` of this environment in a process of its own; return its stdout."""
    program = Path(sys.executable).parent / command
    done = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, f"{command} {arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout
