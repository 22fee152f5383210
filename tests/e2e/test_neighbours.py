"""Nearest users and items, from training to the command; and builds that are killed anywhere."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from encoder.errors import ArtifactError
from materialize.context import Context
from materialize.neighbours import NeighbourIndex
from materialize.neighbours.build import build_neighbours
from materialize.neighbours.items import ItemNeighbours
from materialize.neighbours.manifest import index_folder
from materialize.neighbours.similar import online_vectors, similar_users
from tests.e2e.conftest import END, Story, run
from tests.e2e.killable import FORKS
from tests.e2e.steps import Step
from tests.sinks import close
from tests.spaces import Spaces, vectors
from transforms.runtime import load_encoder

_SECONDS = 120.0
USERS = list(range(40))
NEW = 999

_BUILD, _MANIFEST = "materialize.neighbours.build", "materialize.neighbours.manifest"
BEFORE_THE_SWAP = {
    "vectors are read": Step(_BUILD, "_copy", "after"),
    "the index is made": Step(_BUILD, "build_cells", "after"),
    "the index is written": Step(_BUILD, "_write_index", "after"),
    "ids are written": Step(_BUILD, "_write_ids", "after"),
    "the manifest waits": Step(_MANIFEST, "Manifest.write", "before"),
}
AFTER_THE_SWAP = {
    "the manifest is in place": Step(_MANIFEST, "Manifest.write", "after"),
    "old versions wait": Step(_BUILD, "_remove_others", "before", nth=2),
}


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spaces]:
    made = Spaces.make(tmp_path_factory.mktemp("killed") / "repo")
    yield made
    close(made.context.store._get_provider().online_store)


def _build_and_kill(step: Step, repo: Path, number: int) -> None:
    process = FORKS.Process(target=_work, args=(step, str(repo), number))
    process.start()
    process.join(_SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code == -signal.SIGKILL, f"the build ended with {code} and not at {step}"
    process.close()


def _work(step: Step, repo: str, number: int) -> None:
    tqdm.set_lock(threading.RLock())
    context = Context(Path(repo))
    step.arm()
    _build(context, number)


def _build(context: Context, number: int) -> str:
    space = context.ledger.space(number)
    return build_neighbours(context.settings, context.ledger, space, progress=False).outcome


@pytest.mark.parametrize("name", [*BEFORE_THE_SWAP, *AFTER_THE_SWAP])
def test_a_killed_build_leaves_a_whole_index_served_and_completes_when_repeated(
    spaces: Spaces, name: str
) -> None:
    space = spaces.add_space(USERS)
    folder = index_folder(spaces.settings, space.number)
    _build(spaces.context, space.number)
    spaces.write(space, [NEW], turn=1)
    step = (BEFORE_THE_SWAP | AFTER_THE_SWAP)[name]
    _build_and_kill(step, spaces.settings.repo, space.number)

    served = NeighbourIndex.open(folder, space.number, space.encoder_version)
    ids, _ = served.search(vectors(space.encoder_version, USERS), 1)
    assert ids[:, 0].tolist() == USERS
    new, _ = served.search(vectors(space.encoder_version, [NEW], 1), 1)
    assert (new[0, 0] == NEW) == (name in AFTER_THE_SWAP)

    outcome = _build(spaces.context, space.number)
    assert outcome == ("unchanged" if name in AFTER_THE_SWAP else "built")
    assert served.refresh() == (name in BEFORE_THE_SWAP)
    new, _ = served.search(vectors(space.encoder_version, [NEW], 1), 1)
    assert new[0, 0] == NEW
    # What the kill left is gone: the version that is served and the one before remain.
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"manifest.json"}


@pytest.fixture(scope="module")
def indexed(story: Story) -> Story:
    report = json.loads(run("palate", "neighbours", "build", "--quiet", cwd=story.repo))
    assert report["outcome"] == "built"
    assert report["users"] > 300
    return story


def _segments(story: Story) -> dict[Any, int]:
    truth = story.truth
    return dict(zip(truth.users.tolist(), truth.segment_at(END).tolist(), strict=True))


def _warm(story: Story, n: int) -> list[Any]:
    """Return users with much history."""
    index = NeighbourIndex.open(
        index_folder(story.context.settings, 1), 1, story.space.encoder_version
    )
    everyone, _ = index.search(np.ones((1, index.manifest.dim)), 10_000)
    rows = story.context.store.get_online_features(
        features=["user_embedding_s1:n_events"],
        entity_rows=[{"user_id": user} for user in everyone[0]],
    ).to_dict()
    order = np.argsort(-np.array(rows["n_events"]), kind="stable")
    return [rows["user_id"][row] for row in order[:n]]


def test_nearest_users_are_of_the_same_taste(indexed: Story) -> None:
    segment, space = _segments(indexed), indexed.space
    index = NeighbourIndex.open(index_folder(indexed.context.settings, 1), 1, space.encoder_version)
    users = _warm(indexed, 30)
    same = [
        segment[found.user] == segment[user]
        for user in users
        for found in similar_users(indexed.context.store, index, space, [user], 10)
    ]
    shares = np.bincount(list(segment.values())) / len(segment)
    by_chance = (shares**2).sum()
    # Three epochs on 400 users: a tendency, two standard errors of the pairs above chance.
    assert np.mean(same) > by_chance + 2 * np.sqrt(by_chance * (1 - by_chance) / len(same))


def test_the_command_answers_after_the_main_job(indexed: Story) -> None:
    one, other = _warm(indexed, 2)
    audience = ("--user", str(one), "--user", str(other), "--top", "7", "--json")
    answer = json.loads(run("palate", "similar", *audience, cwd=indexed.repo))
    assert (answer["space"], answer["of"]) == (1, [one, other])
    assert answer["encoder_version"] == indexed.space.encoder_version
    found = answer["users"]
    assert len(found) == 7
    assert {one, other}.isdisjoint(row["user"] for row in found)
    assert [row["cosine"] for row in found] == sorted((r["cosine"] for r in found), reverse=True)
    assert {row["status"] for row in found} <= {"warm", "onboarded", "cold"}


def test_items_of_a_decoder_that_three_epochs_taught_nothing_are_refused(indexed: Story) -> None:
    """With enough training: tests/unit/materialize/test_neighbour_items.py."""
    artifact = load_encoder(indexed.context.settings.artifacts_url, indexed.space.encoder_version)
    items = ItemNeighbours(artifact)
    assert items.modality == "collaborative"
    vectors_now = online_vectors(indexed.context.store, indexed.space, _warm(indexed, 2))
    with pytest.raises(ArtifactError, match="has learned nothing"):
        items.tastes(vectors_now)
