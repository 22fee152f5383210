"""An index of a space: of whom it is, what replaces it, and what is refused."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import (
    ArtifactError,
    DataFault,
    LedgerConflict,
    SpaceMismatch,
    TransientError,
)
from materialize.ledger import Space
from materialize.neighbours import NeighbourIndex
from materialize.neighbours.build import BuildReport, build_neighbours, is_current
from materialize.neighbours.manifest import IDS, INDEX, MANIFEST, Manifest, index_folder
from materialize.retirement import plan_retirement, retire_space
from materialize.stores.append import append_rows, locked
from tests.neighbours import nearest
from tests.sinks import close
from tests.spaces import Spaces, vectors
from transforms.names import stored_view

USERS = list(range(100, 160))
WHO = {"who": "anna", "why": "a test"}


@pytest.fixture
def spaces(tmp_path: Path) -> Iterator[Spaces]:
    made = Spaces.make(tmp_path / "repo")
    yield made
    close(made.context.store._get_provider().online_store)


@pytest.fixture
def space(spaces: Spaces) -> Space:
    return spaces.add_space(USERS)


def _build(spaces: Spaces, space: Space, **options: bool) -> BuildReport:
    now = spaces.ledger.space(space.number)
    return build_neighbours(spaces.settings, spaces.ledger, now, progress=False, **options)


def _open(spaces: Spaces, space: Space) -> NeighbourIndex:
    folder = index_folder(spaces.settings, space.number)
    return NeighbourIndex.open(folder, space.number, space.encoder_version)


def _folders(spaces: Spaces, space: Space) -> set[str]:
    return {p.name for p in index_folder(spaces.settings, space.number).iterdir() if p.is_dir()}


def test_answers_are_those_of_brute_force(spaces: Spaces, space: Space) -> None:
    report = _build(spaces, space)
    assert (report.outcome, report.users) == ("built", len(USERS))
    known = vectors(space.encoder_version, USERS)
    queries = np.random.default_rng(0).standard_normal((7, known.shape[1]))
    ids, cosine = _open(spaces, space).search(queries, 5)
    position, exact = nearest(known, queries.astype(np.float32), 5)
    assert ids.dtype == np.int64
    np.testing.assert_allclose(cosine, exact, atol=1e-3)
    # The index keeps half-precision vectors: users who are as near as that may change places.
    place = {user: k for k, user in enumerate(USERS)}
    found = np.array([[place[user] for user in row] for row in ids.tolist()])
    of_found = [_cosines(known, q)[row] for q, row in zip(queries, found, strict=True)]
    np.testing.assert_allclose(of_found, exact, atol=1e-3)
    assert (found == position).mean() > 0.8


def _cosines(
    known: npt.NDArray[np.float32], query: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(known, axis=1) * np.linalg.norm(query)
    return np.asarray(known @ query / lengths)


def test_a_user_is_nearest_to_itself_and_length_does_not_matter(
    spaces: Spaces, space: Space
) -> None:
    _build(spaces, space)
    index = _open(spaces, space)
    for factor in (1.0, 1e-6, 1e6):
        ids, cosine = index.search(factor * vectors(space.encoder_version, USERS), 1)
        assert ids[:, 0].tolist() == USERS
        np.testing.assert_allclose(cosine, 1.0, atol=1e-3)


def test_the_manifest_says_what_it_is_of(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    manifest = _open(spaces, space).manifest
    assert (manifest.space, manifest.encoder_version) == (space.number, space.encoder_version)
    assert (manifest.count, manifest.dim, manifest.metric) == (len(USERS), spaces.dim, "cosine")
    assert (manifest.library, manifest.user_type) == ("faiss", "int64")
    assert manifest.runs == tuple(run.run_id for run in spaces.ledger.runs(space.number))
    assert set(manifest.files) == {IDS, INDEX}
    folder = index_folder(spaces.settings, space.number) / manifest.folder
    assert {p.name for p in folder.iterdir()} == {IDS, INDEX}  # no scratch is left


def test_ids_may_be_texts(tmp_path: Path) -> None:
    made = Spaces.make(tmp_path / "repo", user_type="STRING")
    users = [f"user-ü-{n}" for n in range(30)]
    space = made.add_space(users)
    _build(made, space)
    index = _open(made, space)
    ids, _ = index.search(vectors(space.encoder_version, users), 3)
    assert ids[:, 0].tolist() == users
    assert index.manifest.user_type == "string"
    close(made.context.store._get_provider().online_store)


def test_the_newest_row_of_each_user_counts(spaces: Spaces, space: Space) -> None:
    spaces.write(space, USERS[:10], turn=1)
    spaces.write(space, USERS[5:20], turn=-1)  # committed later, of an earlier moment
    _build(spaces, space)
    ids, cosine = _open(spaces, space).search(
        np.concatenate(
            [
                vectors(space.encoder_version, USERS[:10], 1),
                vectors(space.encoder_version, USERS[10:]),
            ]
        ),
        1,
    )
    assert ids[:, 0].tolist() == USERS
    np.testing.assert_allclose(cosine, 1.0, atol=1e-3)


def test_rows_of_an_unfinished_run_and_of_a_bridge_do_not_count(
    spaces: Spaces, space: Space
) -> None:
    newer = spaces.add_space(USERS)
    spaces.add_bridge(newer, space, [*USERS, 999])
    unfinished = spaces.settings.offline_dir / stored_view(space.number) / "run-0123456789abcdef"
    unfinished.mkdir()
    pq.write_table(spaces.rows(space, [777], turn=5), unfinished / "part.parquet")
    assert _build(spaces, space).users == len(USERS)
    everyone = np.zeros((1, spaces.dim), np.float32)
    everyone[0, 0] = 1
    ids, _ = _open(spaces, space).search(everyone, 1_000)
    assert sorted(ids[0].tolist()) == USERS


def test_a_push_counts_and_a_row_that_is_pushed_twice_is_one_user(
    spaces: Spaces, space: Space
) -> None:
    for _ in range(2):
        append_rows(
            spaces.settings.offline_dir / stored_view(space.number),
            spaces.rows(space, [555], turn=1),
        )
    assert _build(spaces, space).users == len(USERS) + 1
    ids, _ = _open(spaces, space).search(vectors(space.encoder_version, [555], 1), 1)
    assert ids.tolist() == [[555]]


def test_repeating_a_build_changes_nothing_until_rows_come(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    folders = _folders(spaces, space)
    assert _build(spaces, space).outcome == "unchanged"
    assert _folders(spaces, space) == folders
    manifest = _open(spaces, space).manifest
    assert is_current(spaces.settings, spaces.ledger, space, manifest)
    spaces.write(space, [999], turn=1)
    assert not is_current(spaces.settings, spaces.ledger, space, manifest)
    assert (_build(spaces, space).outcome, len(_folders(spaces, space))) == ("built", 2)


def test_a_dry_run_counts_and_writes_nothing(spaces: Spaces, space: Space) -> None:
    report = _build(spaces, space, dry_run=True)
    assert (report.outcome, report.users) == ("planned", len(USERS))
    assert not index_folder(spaces.settings, space.number).parent.exists()
    _build(spaces, space)
    assert _build(spaces, space, dry_run=True).outcome == "unchanged"


def test_a_reader_keeps_its_version_until_it_asks(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    index = _open(spaces, space)
    first = index.manifest.folder
    assert index.refresh() is False
    query = vectors(space.encoder_version, [999], 1)
    for turn in (1, 2, 3):  # from the second on, the files of the open version are gone
        spaces.write(space, [999], turn=turn)
        _build(spaces, space)
        assert 999 not in index.search(query, 1_000)[0]
    assert first not in _folders(spaces, space)
    assert index.refresh() is True
    assert 999 in index.search(query, 1_000)[0]
    assert len(_folders(spaces, space)) == 2  # the served one, and one that may be being opened


def test_threads_search_while_the_index_is_replaced(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    index = _open(spaces, space)
    queries = vectors(space.encoder_version, USERS)
    stop, wrong, done = threading.Event(), [], [0, 0]

    def search(n: int) -> None:
        while not stop.is_set():
            ids, _ = index.search(queries, 1)
            if ids[:, 0].tolist() != USERS:
                wrong.append(ids)
            done[n] += 1

    threads = [threading.Thread(target=search, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(4):
        spaces.write(space, [1_000 + turn], turn=1)
        _build(spaces, space)
        assert index.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(done) > 4


@pytest.mark.parametrize("which", ["space", "encoder version"])
def test_an_index_of_another_space_is_refused(spaces: Spaces, space: Space, which: str) -> None:
    _build(spaces, space)
    folder = index_folder(spaces.settings, space.number)
    number = 7 if which == "space" else space.number
    version = "f" * 12 if which == "encoder version" else space.encoder_version
    with pytest.raises(SpaceMismatch, match="neighbours build"):
        NeighbourIndex.open(folder, number, version)


def test_a_folder_without_an_index_says_how_to_build_it(spaces: Spaces, space: Space) -> None:
    with pytest.raises(ArtifactError, match=f"palate neighbours build --space {space.number}"):
        _open(spaces, space)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", [INDEX, IDS])
@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink], ids=["flipped", "cut", "missing"])
def test_a_damaged_file_is_refused_and_the_open_version_goes_on(
    spaces: Spaces, space: Space, name: str, damage: Callable[[Path], None]
) -> None:
    _build(spaces, space)
    index = _open(spaces, space)
    spaces.write(space, [999], turn=1)
    _build(spaces, space)
    folder = index_folder(spaces.settings, space.number)
    newest = Manifest.read(folder)
    assert newest is not None
    damage(folder / newest.folder / name)
    with pytest.raises(ArtifactError, match=name):
        _open(spaces, space)
    with pytest.raises(ArtifactError, match=name):
        index.refresh()
    ids, _ = index.search(vectors(space.encoder_version, USERS), 1)
    assert ids[:, 0].tolist() == USERS


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "{",
        lambda text: "[]",
        lambda text: text.replace('"probes"', '"prob"'),
        lambda text: json.dumps(json.loads(text) | {"format_version": 99}),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(
    spaces: Spaces, space: Space, change: Callable[[str], str]
) -> None:
    _build(spaces, space)
    path = index_folder(spaces.settings, space.number) / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(ArtifactError, match=MANIFEST):
        _open(spaces, space)


def test_queries_without_a_meaning_are_refused(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    index = _open(spaces, space)
    good = np.ones((2, spaces.dim), np.float32)
    for shape in ((2, spaces.dim + 1), (spaces.dim,)):
        with pytest.raises(ValueError, match=rf"\(n, {spaces.dim}\) expected"):
            index.search(np.ones(shape, np.float32), 1)
    for value in (0.0, np.nan, np.inf):
        bad = good.copy()
        bad[1] = value
        with pytest.raises(ValueError, match="Vector 1 "):
            index.search(bad, 1)
    with pytest.raises(ValueError, match="k 0 given"):
        index.search(good, 0)


def test_two_builds_at_once_are_one_too_many(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    with (
        locked(index_folder(spaces.settings, space.number), fcntl.LOCK_EX),
        pytest.raises(TransientError, match="Another build"),
    ):
        _build(spaces, space)


def test_a_space_without_rows_has_nobody_to_index(spaces: Spaces) -> None:
    empty = spaces.register()
    with pytest.raises(DataFault, match="no committed rows"):
        _build(spaces, empty)
    with pytest.raises(DataFault, match="no committed rows"):
        _build(spaces, empty, dry_run=True)
    assert not _folders(spaces, empty)


def test_rows_of_another_space_stop_the_build(spaces: Spaces, space: Space) -> None:
    _build(spaces, space)
    spaces.write(space, [999], encoder_version="0" * 12, turn=1)
    before = _folders(spaces, space)
    with pytest.raises(SpaceMismatch, match="of space 1 \\(000000000000\\)"):
        _build(spaces, space)
    assert _folders(spaces, space) == before
    assert 999 not in _open(spaces, space).search(np.ones((1, spaces.dim)), 1_000)[0]


def test_a_vector_without_direction_stops_the_build_and_names_the_user(
    spaces: Spaces, space: Space
) -> None:
    rows = spaces.rows(space, [4242], turn=1)
    zeros = pa.array([[0.0] * spaces.dim], pa.list_(pa.float32()))
    rows = rows.set_column(rows.column_names.index("embedding"), "embedding", zeros)
    append_rows(spaces.settings.offline_dir / stored_view(space.number), rows)
    with pytest.raises(DataFault, match="user 4242"):
        _build(spaces, space)
    assert not _folders(spaces, space)


def test_retirement_takes_the_index_along(spaces: Spaces, space: Space) -> None:
    spaces.add_space(USERS)
    report = _build(spaces, space)
    where = (spaces.context.store, spaces.settings, spaces.ledger, space.number)
    place = f"neighbours {stored_view(space.number)}"
    planned = plan_retirement(*where, progress=False)
    assert planned.removed[place]["bytes"] > report.size_bytes
    done = retire_space(*where, **WHO, progress=False)
    assert done.freed["neighbours"] == planned.removed[place]["bytes"]
    assert not index_folder(spaces.settings, space.number).exists()
    with pytest.raises(LedgerConflict, match="retired"):
        _build(spaces, space)


def test_a_space_that_is_retired_during_a_build_gets_no_index(spaces: Spaces, space: Space) -> None:
    spaces.add_space(USERS)
    known = spaces.ledger.space(space.number)
    spaces.ledger.start_retiring(space.number, **WHO)
    with pytest.raises(LedgerConflict, match="retiring"):
        build_neighbours(spaces.settings, spaces.ledger, known, progress=False)
    assert not _folders(spaces, space)
