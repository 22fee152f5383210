"""One small repository, taken through the main job once, for all end-to-end tests."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from feast.cli.cli import cli as feast_command

from encoder.synthetic import SimulatedTruth, simulate_listeners
from materialize.batch import materialize_space, materialize_view
from materialize.context import Context
from materialize.features import build_features
from materialize.ledger import Space
from materialize.template import init_repository
from materialize.train import train_space
from materialize.validate import validate
from tests.forks import FORKS, preload
from transforms.clean import CleanTables

END = dt.datetime(2024, 7, 20, tzinfo=dt.timezone.utc)
"""After the simulation's last session, which runs past midnight of its 200th day."""
_APPLIED_SECONDS = 300.0
preload("feast.cli.cli", __name__)

SMALL = {
    "autoencoder": {"embedding_dim": 16, "hidden": [48]},
    "training": {"max_epochs": 3, "device": "cpu"},
    "memory_limit_mb": 512,
}


CLUE: dict[str, Any] = {
    "encoder": "clue",
    "clue": {
        **{"embedding_dim": 16, "width": 32, "head_width": 16},
        **{"item_layers": 1, "service_layers": 1},
    },
    "clue_training": {
        **{"batch_size": 64, "validation_users": 16, "max_epochs": 2, "held_out_share": 0.25},
        "device": "cpu",
    },
    "texts": {"vocabulary": 400, "max_item_tokens": 8, "max_events": 8},
}
"""What `build_story` needs for an encoder of the contrastive kind."""

HYBRID: dict[str, Any] = CLUE | {"encoder": "hybrid", "hybrid": {"space": 1}}
"""For one that reads blocks and texts: space 1 is contrastive, and space 2 is made with it."""


@dataclass(frozen=True)
class Story:
    """A repository whose newest space is materialised up to ``END``."""

    repo: Path
    context: Context
    space: Space
    truth: SimulatedTruth


@dataclass(frozen=True)
class Raw:
    """Simulated listeners on disk."""

    folder: Path
    truth: SimulatedTruth


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Raw:
    folder = tmp_path_factory.mktemp("raw")
    return Raw(folder, simulate_listeners(folder / "simulated", n_users=400, n_items=200))


@pytest.fixture(scope="session")
def plain_story(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Only read: tests that change what is served build a story of their own."""
    return build_story(tmp_path_factory.mktemp("story") / "repo", raw, END)


@pytest.fixture(scope="session")
def clue_story(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The same with an encoder of the contrastive kind; only read."""
    return build_story(tmp_path_factory.mktemp("clue") / "repo", raw, END, **CLUE)


@pytest.fixture(scope="session")
def hybrid_story(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The same with an encoder of blocks and texts; only read."""
    return build_story(tmp_path_factory.mktemp("hybrid") / "repo", raw, END, **HYBRID)


@pytest.fixture(scope="session")
def story(plain_story: Story) -> Story:
    """The story of most tests."""
    return plain_story


def build_story(
    repo: Path,
    raw: Raw,
    end: dt.datetime,
    *,
    request_context: Sequence[str] = (),
    texts: Mapping[str, int] | None = None,
    **changes: Any,
) -> Story:
    """Take a new repository through the main job, materialised up to ``end``.

    ``request_context`` is that of the events, ``texts`` that of the data set, ``changes`` are
    fields of palate.yaml.
    """
    init_repository(repo, "simulated")
    config, dataset = repo / "palate.yaml", repo / "datasets" / "simulated.yaml"
    config.write_text(config.read_text() + yaml.safe_dump(SMALL | changes))
    described = yaml.safe_load(dataset.read_text().replace("${PALATE_DATA}", str(raw.folder)))
    described["events"]["request_context"] = list(request_context)
    if texts is not None:
        described["texts"] = dict(texts)
    dataset.write_text(yaml.safe_dump(described))
    context = Context(repo)
    settings = context.settings
    validate(settings.dataset, settings.data_dir, progress=False)
    build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    apply(repo)
    if settings.file.hybrid is not None:
        made_of = settings.with_encoder("clue")
        train_space(context.store, made_of, context.ledger, progress=False)
    trained = train_space(context.store, settings, context.ledger, progress=False)
    apply(repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]
    for view in trained.space.facts["raw_views"]:
        materialize_view(context.store, settings, context.ledger, view, end=end, progress=False)
    for from_history in (True, False):
        materialize_space(
            context.store,
            settings,
            context.ledger,
            trained.space,
            end=end,
            from_history=from_history,
            progress=False,
        )
    return Story(repo, context, context.ledger.space(), raw.truth)


def apply(repo: Path) -> None:
    """Do `feast apply` as a step on the way: in a process that is forked with Feast imported."""
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder, "printed")
        process = FORKS.Process(target=_apply, args=(repo, printed))
        process.start()
        process.join(_APPLIED_SECONDS)
        code = process.exitcode
        if code is None:
            process.kill()
        assert code == 0, f"feast apply ended with {code}\n{printed.read_text()}"


def _apply(repo: Path, printed: Path) -> None:
    with printed.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.chdir(repo)
    feast_command(["apply"], standalone_mode=False)


def run(command: str, *arguments: str, cwd: Path) -> str:
    """Run `feast` or `palate` of this environment in a process of its own; return its stdout."""
    program = Path(sys.executable).parent / command
    done = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"{command} {arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout
