"""`palate neighbours build` and `palate similar`: what they print, and how they exit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from encoder.store import ArtifactStore
from materialize.cli import main
from materialize.neighbours.items import ItemNeighbours
from materialize.neighbours.manifest import index_folder
from tests.neighbours import nearest
from tests.repositories import VIEWS
from tests.sinks import close
from tests.spaces import Spaces, vectors
from tests.tastes import make_world
from transforms.names import stored_view

USERS = list(range(100, 140))


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spaces]:
    """Spaces 1 and 2; space 1 has an index."""
    made = Spaces.make(tmp_path_factory.mktemp("similar") / "repo")
    made.add_space(USERS)
    made.add_space(USERS)
    assert palate(made, "neighbours", "build", "--space", 1, "--quiet").exit_code == 0
    yield made
    close(made.context.store._get_provider().online_store)


def palate(spaces: Spaces, *arguments: object) -> Result:
    repo = str(spaces.settings.repo)
    return CliRunner().invoke(main, [*map(str, arguments), "--repo", repo])


def _expected(spaces: Spaces, asked: list[int], k: int) -> list[int]:
    known = vectors(spaces.ledger.space(1).encoder_version, USERS)
    rows = [USERS.index(user) for user in asked]
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    order, _ = nearest(known, unit[rows].mean(axis=0, keepdims=True), len(USERS))
    return [USERS[row] for row in order[0] if row not in rows][:k]


@pytest.mark.parametrize("asked", [[100], [100, 117, 121]], ids=["one", "audience"])
def test_similar_prints_the_nearest_others(spaces: Spaces, asked: list[int]) -> None:
    options = [part for user in asked for part in ("--user", user)]
    done = palate(spaces, "similar", "--space", 1, "--top", 5, "--json", *options)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["space"], answer["of"]) == (1, asked)
    assert answer["encoder_version"] == spaces.ledger.space(1).encoder_version
    assert [row["user"] for row in answer["users"]] == _expected(spaces, asked, 5)
    assert {row["status"] for row in answer["users"]} == {"warm"}
    text = palate(spaces, "similar", "--space", 1, "--top", 5, *options).stdout.splitlines()
    assert [line.split()[1:] for line in text] == [
        [str(user), "warm"] for user in _expected(spaces, asked, 5)
    ]
    assert float(text[0].split()[0]) == pytest.approx(answer["users"][0]["cosine"], abs=1e-4)


def test_a_dry_run_prints_the_plan(spaces: Spaces) -> None:
    report = json.loads(palate(spaces, "neighbours", "build", "--dry-run").stdout)
    assert (report["space"], report["outcome"], report["users"]) == (2, "planned", len(USERS))
    assert not index_folder(spaces.settings, 2).exists()
    again = json.loads(palate(spaces, "neighbours", "build", "--space", 1).stdout)
    assert again["outcome"] == "unchanged"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--space", 1, "--user", 7), 1, "no embedding of user(s) 7 online"),
        (("--space", 2, "--user", 100), 1, "palate neighbours build --space 2"),
        (("--space", 1, "--user", "anna"), 2, "whole numbers"),
        (("--space", 1), 2, "--user"),
        (("--space", 1, "--user", 100, "--modality", "content"), 2, "--modality goes with --items"),
        (("--space", 1, "--user", 100, "--top", 0), 2, "--top"),
    ],
)
def test_a_question_without_an_answer_says_why(
    spaces: Spaces, arguments: tuple[object, ...], code: int, message: str
) -> None:
    done = palate(spaces, "similar", *arguments)
    assert (done.exit_code, message in done.stderr) == (code, True), done.output
    assert done.stdout == ""


def test_an_index_of_older_rows_answers_with_a_note(tmp_path: Path) -> None:
    made = Spaces.make(tmp_path / "repo")
    space = made.add_space(USERS)
    palate(made, "neighbours", "build")
    made.write(space, [999], turn=1)
    done = palate(made, "similar", "--user", 100, "--top", 3)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 3
    assert "the space has other rows since" in done.stderr
    palate(made, "neighbours", "build")
    assert palate(made, "similar", "--user", 999, "--top", 1).stderr == ""
    close(made.context.store._get_provider().online_store)


def test_an_online_row_of_another_encoder_is_refused(tmp_path: Path) -> None:
    made = Spaces.make(tmp_path / "repo")
    space = made.add_space(USERS)
    palate(made, "neighbours", "build")
    made.write(space, [100], encoder_version="0" * 12, view=stored_view(space.number), turn=1)
    done = palate(made, "similar", "--user", 100)
    assert done.exit_code == 1
    assert "'000000000000'" in done.stderr
    close(made.context.store._get_provider().online_store)


def test_items_are_those_of_the_decoded_vectors(tmp_path: Path) -> None:
    made = Spaces.make(tmp_path / "repo")
    artifact = make_world(tmp_path).artifact
    url = ArtifactStore(made.settings.artifacts_url).save(artifact)
    space = made.ledger.register(artifact.encoder_version, url, {"raw_views": list(VIEWS)})
    made.apply(space)
    made.write(space, USERS)
    items = ItemNeighbours(artifact)
    for asked in ([100], [100, 117]):
        options = [part for user in asked for part in ("--user", user)]
        done = palate(made, "similar", "--items", "--top", 7, "--json", *options)
        assert done.exit_code == 0, done.output
        tastes = items.tastes(vectors(space.encoder_version, asked))
        ids, cosine = items.search(tastes.mean(axis=0, keepdims=True), 7)
        found = json.loads(done.stdout)["items"]
        assert [row["item"] for row in found] == ids[0].tolist()
        np.testing.assert_allclose([row["cosine"] for row in found], cosine[0], atol=1e-6)
    done = palate(made, "similar", "--items", "--user", 100, "--modality", "audio")
    assert done.exit_code == 2
    assert "one of collaborative expected" in done.stderr
    close(made.context.store._get_provider().online_store)


def test_without_the_library_the_command_names_the_extra(
    spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    for command in (("neighbours", "build"), ("similar", "--space", 1, "--user", 100)):
        done = palate(spaces, *command)
        assert done.exit_code == 1
        assert "pip install 'palate[neighbours]'" in done.stderr
