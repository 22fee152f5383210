"""An encoder of blocks and texts is trained, judged and quantised; what it is not made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from encoder.artifact import EncoderArtifact
from encoder.clue.inputs import ClueInputs
from encoder.columns import raw_batch
from encoder.errors import DataFault, LedgerConflict
from encoder.hybrid.inputs import HybridInputs
from materialize import recipe_hybrid
from materialize.adopt import OTHER_USERS
from materialize.batch import open_source
from materialize.cli import main
from materialize.config import RepoSettings
from materialize.context import Context
from materialize.ledger import Ledger
from materialize.quantise import quantise_space
from materialize.recipes import recipe_of
from materialize.train import train_space
from tests.e2e.conftest import END, Story, apply
from transforms.runtime import load_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def context(hybrid_story: Story, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A copy of the repository: space 1 is contrastive, space 2 made with it."""
    repo = tmp_path_factory.mktemp("hybrid") / "repo"
    shutil.copytree(hybrid_story.repo, repo)
    apply(repo)  # the registry names the folder that it was copied from
    return Context(repo)


def _encoder(context: Context, space: int) -> EncoderArtifact:
    version = context.ledger.space(space).encoder_version
    return load_encoder(context.settings.artifacts_url, version)


def _changed(context: Context, **fields: Any) -> RepoSettings:
    settings = context.settings
    file = settings.file.model_validate(settings.file.model_dump() | fields)
    return RepoSettings(settings.repo, file)


# --- what is made


def test_the_same_rows_and_settings_give_the_same_encoder_again(context: Context) -> None:
    where = (context.store, context.settings, context.ledger)
    again = train_space(*where, resume=False, progress=False)
    assert (again.space.number, again.new) == (2, False)
    assert not list((context.settings.data_dir / "training").glob("*/rows.parquet"))


def test_a_training_that_was_killed_goes_on_with_the_rows_that_it_has(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are there whole or not at all: vectors are computed anew until they are."""
    recipe = recipe_of(context.store, context.settings, context.ledger)
    path = context.settings.data_dir / "training" / "killed" / "rows.parquet"
    add = recipe_hybrid._Vectors.__call__
    calls: list[int] = []

    def cut(self: recipe_hybrid._Vectors, rows: Any) -> Any:
        calls.append(rows.num_rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(self, rows.slice(0, 100))

    with monkeypatch.context() as patch:
        patch.setattr(recipe_hybrid._Vectors, "__call__", cut)
        patch.setattr("materialize.training_rows._ROW_GROUP", 500)
        with pytest.raises(KeyboardInterrupt):
            recipe.write(path, progress=False)
    assert not path.exists()
    assert recipe.write(path, progress=False) == context.ledger.space(2).facts["training_rows"]
    shutil.rmtree(path.parent)


def test_the_autoencoder_learns_the_vector_of_texts_as_it_does_the_other_blocks(
    context: Context,
) -> None:
    first, *_, last = _encoder(context, 2).manifest.training["history"]
    for block in ("clue", "collaborative_30d"):
        assert last["block_errors"][block] < 0.9 * first["block_errors"][block]


def test_texts_move_the_embeddings_of_users_and_the_space_tells_what_it_is_made_of(
    context: Context,
) -> None:
    artifact, made_of = _encoder(context, 2), _encoder(context, 1)
    facts = context.ledger.space(2).facts
    schema = artifact.preprocessor.schema
    assert schema.texts_modality is not None
    assert facts["clue_space"] == 1
    assert facts["clue_encoder_version"] == made_of.encoder_version
    assert facts["texts_version"] == schema.texts_modality.version != schema.modality_version
    assert facts["modality_version"] == schema.modality_version
    assert {"user_texts", "user_activity", "user_onboarding"} <= set(facts["raw_views"])
    source = open_source(context.store, context.settings, schema, end=END)
    batch = raw_batch(next(source.batches(ordered=True)), schema)
    (name,) = schema.token_columns
    column = batch.columns[name]
    nothing: Any = replace(column, valid=np.zeros_like(column.valid))
    without = replace(batch, columns={**batch.columns, name: nothing})
    moved = np.abs(artifact.encode(batch) - artifact.encode(without)).max(axis=1)
    there = column.valid & column.values.any(axis=1)
    assert there.sum() > 100
    assert (moved[there] > 1e-4).all()
    assert not moved[~there].any()
    assert isinstance(artifact.preprocessor, HybridInputs)


def test_its_lineage_and_the_report_know_its_parts(context: Context, tmp_path: Path) -> None:
    where = ["--repo", str(context.settings.repo)]
    done = CliRunner().invoke(main, ["spaces", "diff", "1", "2", *where, "--json"])
    assert done.exit_code == 0, done.output
    parts = {change["part"] for change in json.loads(done.stdout)["changes"]}
    assert {"contrastive encoder", "hybrid encoder", "input schema"} <= parts
    page = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["report", *where, "--space", "2", "--output", str(page)])
    assert done.exit_code == 0, done.output
    assert "hybrid encoder" in page.read_text()


def test_it_is_judged_beside_what_it_was_made_of(context: Context) -> None:
    arguments = ["evaluate", "--repo", str(context.settings.repo), "--space", "2", "--beside", "1"]
    arguments += ["--task", "probe", "--task", "ranking", "--model", "popularity"]
    arguments += ["--seeds", "1", "--resamples", "20", "--quiet", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["beside"] == {"space_1": _encoder(context, 1).encoder_version}
    for task in ("probe", "ranking"):
        models = {row["model"] for row in summary["results"] if row["task"] == task}
        assert {"embedding", "space_1"} <= models, task


def test_its_int8_form_lies_near(context: Context) -> None:
    where = (context.store, context.settings, context.ledger)
    report = quantise_space(*where, 2, dry_run=True, progress=False)
    assert report.encoder_version != report.quantised_from
    assert 0.0 < report.figures["error"]["cosine_error_mean"] < 1e-2
    sizes = report.figures["graph_bytes"]
    assert sizes["int8"] < sizes["float32"]


# --- what it is not made of

_OTHER = "f" * 12


def _with_schema(artifact: EncoderArtifact, **changes: Any) -> EncoderArtifact:
    schema = replace(artifact.preprocessor.schema, **changes)
    inputs = ClueInputs.from_state(schema, *artifact.preprocessor.state())
    return replace(artifact, preprocessor=inputs)


def _shorter(artifact: EncoderArtifact) -> EncoderArtifact:
    first, *others = artifact.preprocessor.schema.blocks
    return _with_schema(artifact, blocks=(replace(first, width=first.width - 1), *others))


def _with_manifest(artifact: EncoderArtifact, **changes: Any) -> EncoderArtifact:
    return replace(artifact, manifest=replace(artifact.manifest, **changes))


_UNFIT: dict[str, Callable[[EncoderArtifact], EncoderArtifact]] = {
    f"it reads item texts {_OTHER}, those of the raw features are": lambda a: _with_schema(
        a, modality_version=_OTHER
    ),
    "`texts` in dataset.yaml allows longer texts now than": _shorter,
    "its encoder is int8; name the space that it was made from": lambda a: _with_manifest(
        a, model=a.manifest.model | {"precision": "int8"}
    ),
    "it learned from events up to 2024-06-01": lambda a: _with_manifest(
        a, data_cutoff="2024-06-01T00:00:00+00:00"
    ),
}


@pytest.mark.parametrize("fault", sorted(_UNFIT))
def test_a_contrastive_encoder_that_does_not_fit_is_refused(
    context: Context, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    unfit = _UNFIT[fault](_encoder(context, 1))
    monkeypatch.setattr(recipe_hybrid, "load_encoder", lambda *_: unfit)
    with pytest.raises(DataFault, match=f"hybrid: space 1 cannot give the vector .*: {fault}"):
        recipe_of(context.store, context.settings, context.ledger)


def test_a_contrastive_encoder_of_other_users_may_know_later_events(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adopted one, of whose training users none is here."""
    later = _with_manifest(_encoder(context, 1), data_cutoff="2030-01-01T00:00:00+00:00")
    space = context.ledger.space(1)
    space = replace(space, facts={**space.facts, OTHER_USERS: True})
    monkeypatch.setattr(Ledger, "space", lambda *_: space)
    monkeypatch.setattr(recipe_hybrid, "load_encoder", lambda *_: later)
    assert recipe_of(context.store, context.settings, context.ledger).facts["clue_space"] == 1


def test_a_space_of_another_kind_is_refused(context: Context) -> None:
    settings = _changed(context, hybrid={"space": 2})
    with pytest.raises(DataFault, match=r"space 2 .* of kind hybrid, clue is expected"):
        recipe_of(context.store, settings, context.ledger)


def test_a_space_that_is_not_there_is_refused(context: Context) -> None:
    with pytest.raises(LedgerConflict, match=r"Unknown space 9. Known: 1, 2\."):
        recipe_of(context.store, _changed(context, hybrid={"space": 9}), context.ledger)


def test_a_space_that_goes_is_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    space = replace(context.ledger.space(1), state="retiring")
    monkeypatch.setattr(Ledger, "space", lambda *_: space)
    with pytest.raises(DataFault, match=r"space 1 .* it is retiring, its encoder goes"):
        recipe_of(context.store, context.settings, context.ledger)


def test_the_section_is_asked_for(context: Context) -> None:
    with pytest.raises(DataFault, match=r"no section `hybrid`.*Add `hybrid: \{space: N\}`"):
        recipe_of(context.store, _changed(context, hybrid=None), context.ledger)


def test_compatible_training_is_refused(context: Context) -> None:
    settings = _changed(context, compatibility={"space": 2})
    with pytest.raises(DataFault, match="compatibility: an encoder of kind hybrid is not"):
        recipe_of(context.store, settings, context.ledger)


def test_a_data_set_without_texts_is_refused(plain_story: Story) -> None:
    context = plain_story.context
    settings = _changed(context, hybrid={"space": 1}, encoder="hybrid")
    with pytest.raises(DataFault, match=r"Name `texts` in dataset\.yaml"):
        recipe_of(context.store, settings, context.ledger)
