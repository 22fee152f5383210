"""Retraining a part of the chain gives a new space whose diff names that part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from encoder.errors import LedgerConflict
from materialize.context import Context
from materialize.features import build_features
from materialize.ledger import Space
from materialize.lineage import chain, diff_spaces
from materialize.retirement import retire_space
from materialize.template import init_repository
from materialize.train import train_space
from materialize.validate import validate
from tests.e2e.conftest import SMALL, Raw, apply, run
from transforms.clean import CleanTables


class Repository:
    """A repository that is trained again and again with one change each time."""

    def __init__(self, folder: Path, raw: Raw) -> None:
        init_repository(folder, "simulated")
        self.folder = folder
        self.dataset = folder / "datasets" / "simulated.yaml"
        text = self.dataset.read_text().replace("${PALATE_DATA}", str(raw.folder))
        self.dataset.write_text(text)
        self.template = (folder / "palate.yaml").read_text()
        self.configure()
        validate(self.context.settings.dataset, self.context.settings.data_dir, progress=False)

    def configure(self, **training: object) -> None:
        settings = SMALL | {"training": SMALL["training"] | training}  # type: ignore[operator]
        (self.folder / "palate.yaml").write_text(self.template + yaml.safe_dump(settings))
        self.context = Context(self.folder)

    def train(self) -> Space:
        settings = self.context.settings
        clean = CleanTables(settings.data_dir)
        build_features(settings.dataset, clean, settings.features_dir, progress=False)
        apply(self.folder)
        store, ledger = self.context.store, self.context.ledger
        return train_space(store, settings, ledger, progress=False).space


@pytest.fixture(scope="module")
def trained(raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Space 1; space 2 with another seed of the training; space 3 with other item clusters."""
    repository = Repository(tmp_path_factory.mktemp("chain") / "repo", raw)
    repository.train()
    repository.configure(seed=7)
    repository.train()
    content = yaml.safe_load(repository.dataset.read_text())
    content["modalities"]["collaborative"]["clusters"] += 4
    repository.dataset.write_text(yaml.safe_dump(content))
    repository.configure(seed=7)
    repository.train()
    assert [space.number for space in repository.context.ledger.spaces()] == [1, 2, 3]
    return repository


def test_a_space_tells_the_data_and_encoders_that_it_came_from(trained: Repository) -> None:
    settings, space = trained.context.settings, trained.context.ledger.space(1)
    parts = {part.label: part for part in chain(settings, space).parts}
    data = parts["data simulated"]
    assert data.version == CleanTables(settings.data_dir).fingerprint()
    assert data.settings["cutoff"] == space.facts["cutoff"]
    assert {"modality encoder collaborative", "modality encoder content"} <= set(parts)
    assert parts["autoencoder"].settings["model.embedding_dim"] == 16


def test_the_autoencoder_anew_is_named_alone(trained: Repository) -> None:
    ledger = trained.context.ledger
    diff = diff_spaces(trained.context.settings, ledger.space(1), ledger.space(2))
    assert diff.anew == ("autoencoder",)
    (change,) = diff.changes
    assert change.settings == {"training.seed": (0, 7)}
    assert len(diff.same) >= 5
    assert diff.untold == ()
    first, second = diff.figures["validation_loss"]
    assert first != second


def test_a_modality_encoder_anew_is_named_with_what_follows(trained: Repository) -> None:
    ledger = trained.context.ledger
    diff = diff_spaces(trained.context.settings, ledger.space(2), ledger.space(3))
    assert diff.anew == ("modality encoder collaborative",)
    changes = {change.part: change for change in diff.changes}
    before, after = changes["modality encoder collaborative"].settings["clusters"]
    assert after == before + 4
    assert set(changes) == {
        *("modality encoder collaborative", "input schema", "preprocessing", "autoencoder")
    }
    assert changes["autoencoder"].follows == (
        *("modality encoder collaborative", "input schema", "preprocessing"),
    )
    assert {"data simulated", "modality encoder content"} <= set(diff.same)


def test_diff_and_show_print_it(trained: Repository) -> None:
    told = run("palate", "spaces", "diff", "1", "2", cwd=trained.folder)
    assert told.splitlines()[0] == "space 1 -> space 2: made anew: autoencoder"
    assert "training.seed: 0 -> 7" in told
    assert "validation_loss" in told
    diff = json.loads(run("palate", "spaces", "diff", "2", "3", "--json", cwd=trained.folder))
    assert diff["anew"] == ["modality encoder collaborative"]
    shown = run("palate", "spaces", "show", "3", cwd=trained.folder)
    record = json.loads(run("palate", "spaces", "show", "3", "--json", cwd=trained.folder))
    for part in record["chain"]["parts"]:
        assert part["version"] in shown


def test_a_retired_space_is_not_trained_again(trained: Repository) -> None:
    context = trained.context
    where = (context.store, context.settings, context.ledger)
    context.store.refresh_registry()
    retire_space(*where, 3, who="test", why="over", progress=False)
    with pytest.raises(LedgerConflict, match="is that of space 3, which is retired"):
        trained.train()
    assert "modality encoder" in run("palate", "spaces", "show", "3", cwd=trained.folder)
