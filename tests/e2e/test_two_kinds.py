"""A repository that serves an autoencoder's space goes on to serve one of texts beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from materialize.batch import materialize_spaces, materialize_view
from materialize.cli import main
from materialize.compare import compare_views, sample_users
from materialize.context import Context
from materialize.features import build_features
from materialize.live import live_targets
from materialize.train import train_space
from tests.e2e.conftest import CLUE, END, Story, apply
from transforms.clean import CleanTables
from transforms.names import stored_view

pytestmark = pytest.mark.slow


def _stored(context: Context, space: int, users: list[Any]) -> list[Any]:
    name = f"{stored_view(space)}:embedding"
    answer = context.store.get_online_features(
        features=[name], entity_rows=[{"user_id": user} for user in users]
    ).to_dict()
    vectors: list[Any] = answer["embedding"]
    return vectors


@dataclass(frozen=True)
class Both:
    """A repository with a space of each kind, the second trained after texts were added."""

    context: Context
    users: list[Any]
    before: list[Any]
    """Their vectors of space 1, as they were served without texts."""


@pytest.fixture(scope="module")
def both(plain_story: Story, tmp_path_factory: pytest.TempPathFactory) -> Both:
    repo = tmp_path_factory.mktemp("both") / "repo"
    shutil.copytree(plain_story.repo, repo)
    apply(repo)  # the registry names the folder that it was copied from
    users = sample_users(Context(repo).settings, 1, 50)
    before = _stored(Context(repo), 1, users)

    dataset, config = repo / "datasets" / "simulated.yaml", repo / "palate.yaml"
    described = yaml.safe_load(dataset.read_text()) | {"texts": CLUE["texts"]}
    dataset.write_text(yaml.safe_dump(described))
    told = {name: value for name, value in CLUE.items() if name != "texts"}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | told))
    context = Context(repo)
    settings, ledger = context.settings, context.ledger
    built = build_features(
        settings.dataset, CleanTables(settings.data_dir), settings.features_dir, progress=False
    )
    assert built.rows["user_texts"] == built.rows["user_activity"] > 0
    apply(repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]
    assert not live_targets(settings, ledger).skipped
    second = train_space(context.store, settings, ledger, progress=False).space
    assert second.number == 2
    apply(repo)
    context.store.refresh_registry()  # type: ignore[no-untyped-call]
    return Both(context, users, before)


def test_spaces_that_read_vectors_stay_fresh_when_texts_are_added(both: Both) -> None:
    context = both.context
    settings, ledger = context.settings, context.ledger
    spaces = [ledger.space(1), ledger.space(2)]
    reports = materialize_spaces(
        context.store, settings, ledger, spaces, end=END, force=True, progress=False
    )
    assert {report.outcome for report in reports} == {"committed"}
    assert _stored(context, 1, both.users) == both.before
    for view in ("user_activity", "user_profile", "user_onboarding", "user_texts"):
        materialize_view(context.store, settings, ledger, view, end=END, progress=False)
    for space in (1, 2):
        comparison = compare_views(context.store, space, sample_users(settings, space, 50))
        assert (comparison.users, comparison.missing) == (50, 0)
        assert comparison.max_abs_diff <= 1e-5


def test_a_space_is_judged_beside_another_on_the_same_users(both: Both) -> None:
    arguments = ["evaluate", "--repo", str(both.context.settings.repo), "--space", "1"]
    tasks = ("probe", "future", "clusters", "ranking")
    arguments += [word for task in tasks for word in ("--task", task)]
    arguments += ["--beside", "2", "--model", "popularity", "--seeds", "1", "--resamples", "20"]
    done = CliRunner().invoke(main, [*arguments, "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    second = both.context.ledger.space(2)
    assert summary["beside"] == {"space_2": second.encoder_version}
    assert "--beside 2" in summary["command"]
    for task in tasks:
        models = {row["model"] for row in summary["results"] if row["task"] == task}
        assert {"embedding", "space_2"} <= models, task
    compared = [row for row in summary["results"] if row["model"] == "space_2"]
    assert all(row["embedding_against"] for row in compared if row["group"] == "all")
