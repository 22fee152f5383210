"""An encoder of texts that was trained on other people serves the users of a new repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from encoder.errors import DataFault
from encoder.synthetic import simulate_listeners
from materialize.adopt import OTHER_USERS
from materialize.batch import materialize_space, materialize_view
from materialize.cli import main
from materialize.compare import compare_views, sample_users
from materialize.context import Context
from materialize.features import build_features, current_modalities
from materialize.template import init_repository
from materialize.validate import validate
from tests.e2e.conftest import CLUE, END, SMALL, Story, apply
from transforms.clean import CleanTables

pytestmark = pytest.mark.slow


def _palate(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def _build(context: Context) -> None:
    settings = context.settings
    build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    apply(settings.repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]


def _newcomers(folder: Path) -> Path:
    """A repository of other users and items, with texts of a tokenizer of its own."""
    simulate_listeners(folder / "simulated", n_users=150, n_items=90, seed=7)
    repo = folder / "repo"
    init_repository(repo, "simulated")
    config = repo / "palate.yaml"
    config.write_text(config.read_text() + yaml.safe_dump(SMALL))
    _describe(repo, CLUE["texts"])
    settings = Context(repo).settings
    validate(settings.dataset, settings.data_dir, progress=False)
    return repo


def _describe(repo: Path, texts: dict[str, Any]) -> None:
    dataset = repo / "datasets" / "simulated.yaml"
    described = yaml.safe_load(dataset.read_text().replace("${PALATE_DATA}", str(repo.parent)))
    dataset.write_text(yaml.safe_dump(described | {"texts": texts}))


@pytest.fixture(scope="module")
def newcomers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their features are built, and nothing is adopted."""
    repo = _newcomers(tmp_path_factory.mktemp("newcomers"))
    _build(Context(repo))
    return repo


@pytest.fixture(scope="module")
def readers(clue_story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their texts are made by the tokenizer of the encoder, which becomes their space 1."""
    repo = _newcomers(tmp_path_factory.mktemp("readers"))
    _describe(repo, CLUE["texts"] | {"tokenizer": clue_story.space.artifact_url})
    _build(Context(repo))
    return repo


@pytest.fixture(scope="module")
def adopted(clue_story: Story, readers: Path) -> dict[str, Any]:
    """What the first adoption told."""
    artifact = clue_story.space.artifact_url
    dry = _palate("spaces", "adopt", "--repo", str(readers), artifact, "--dry-run")
    assert json.loads(dry.stdout)["space"] is None
    assert not Context(readers).ledger.spaces()
    done = _palate("spaces", "adopt", "--repo", str(readers), artifact, "--other-users")
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_an_encoder_of_texts_of_another_tokenizer_is_refused(
    clue_story: Story, newcomers: Path
) -> None:
    refused = _palate("spaces", "adopt", "--repo", str(newcomers), clue_story.space.artifact_url)
    assert refused.exit_code == 1
    assert "texts.tokenizer" in refused.output
    assert not Context(newcomers).ledger.spaces()


def test_longer_items_than_the_tokenizer_makes_are_refused(
    clue_story: Story, tmp_path: Path
) -> None:
    repo = _newcomers(tmp_path)
    _describe(
        repo, CLUE["texts"] | {"tokenizer": clue_story.space.artifact_url, "max_item_tokens": 9}
    )
    with pytest.raises(DataFault, match=r"max_item_tokens 9 given, the tokenizer of .* makes 8"):
        _build(Context(repo))


def test_an_encoder_of_texts_is_adopted_once_its_tokenizer_is(
    clue_story: Story, readers: Path, adopted: dict[str, Any]
) -> None:
    theirs = current_modalities(clue_story.context.settings.features_dir)
    here = current_modalities(Context(readers).settings.features_dir)
    assert here.texts_version == theirs.texts_version
    assert here.version != theirs.version
    assert (adopted["space"], adopted["encoder_version"]) == (1, clue_story.space.encoder_version)
    assert adopted["new"] is True
    artifact = clue_story.space.artifact_url
    again = _palate("spaces", "adopt", "--repo", str(readers), artifact, "--other-users")
    assert json.loads(again.stdout) == adopted | {"new": False}


@pytest.mark.usefixtures("adopted")
def test_an_adopted_space_is_served_like_any_other(readers: Path) -> None:
    apply(readers)
    context = Context(readers)
    settings, ledger = context.settings, context.ledger
    space = ledger.space(1)
    assert space.facts[OTHER_USERS] is True
    assert str(settings.data_dir) in space.artifact_url  # a copy: theirs may go
    for view in space.facts["raw_views"]:
        materialize_view(context.store, settings, ledger, view, end=END, progress=False)
    report = materialize_space(context.store, settings, ledger, space, end=END, progress=False)
    assert report.outcome == "committed"
    users = sample_users(settings, 1, 50)
    comparison = compare_views(context.store, 1, users)
    assert (comparison.users, comparison.missing) == (len(users), 0)
    assert comparison.max_abs_diff <= 1e-5
    answer = context.store.get_online_features(
        features=["user_embedding_s1:embedding"],
        entity_rows=[{"user_id": user} for user in users],
    ).to_dict()
    assert len({tuple(vector) for vector in answer["embedding"]}) > len(users) / 2


def test_an_autoencoder_of_other_item_vectors_is_refused(
    plain_story: Story, newcomers: Path
) -> None:
    artifact = plain_story.space.artifact_url
    refused = _palate("spaces", "adopt", "--repo", str(newcomers), artifact)
    assert refused.exit_code == 1
    assert "reads features of modality version" in refused.output


def test_what_is_no_artifact_is_refused(newcomers: Path) -> None:
    refused = _palate("spaces", "adopt", "--repo", str(newcomers), str(newcomers / "nothing"))
    assert refused.exit_code == 1
    assert "is no encoder artifact" in refused.output
