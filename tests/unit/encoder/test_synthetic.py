"""The planted structure of the simulated listeners is there, and the same every time."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2_contingency

from encoder.synthetic import GENRES, SimulatedTruth, simulate_listeners
from materialize.validate import validate
from transforms.clean import CleanTables
from transforms.dataset import load_dataset

YAML = Path(__file__).parents[3] / "feature_repo" / "datasets" / "simulated.yaml"
FILES = ("events", "items", "truth", "users")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulatedTruth]:
    root = tmp_path_factory.mktemp("data")
    return root, simulate_listeners(root / "simulated", n_users=1500, n_items=400, days=120)


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / f"{f}.parquet").read_bytes()).hexdigest() for f in FILES]


def test_equal_arguments_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    size = {"n_users": 60, "n_items": 50, "days": 30}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate_listeners(tmp_path / name, seed=seed, **size)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert all(a != c for a, c in zip(hashes(tmp_path / "a"), hashes(tmp_path / "c"), strict=True))


def test_partitions_are_written_apart_and_share_the_catalogue(tmp_path: Path) -> None:
    one = simulate_listeners(tmp_path / "1", n_users=90, n_items=50, days=30)
    three = simulate_listeners(tmp_path / "3", n_users=90, n_items=50, days=30, n_partitions=3)
    assert pq.read_metadata(tmp_path / "3" / "users.parquet").num_row_groups == 3
    assert list(one.users) == list(three.users)
    assert hashes(tmp_path / "1")[1] == hashes(tmp_path / "3")[1]
    sessions = pq.read_table(tmp_path / "3" / "events.parquet", columns=["listener", "session-id"])
    owners = set(zip(*sessions.to_pydict().values(), strict=True))
    assert len(owners) == len({session for _, session in owners})


def test_users_hear_the_genres_of_their_segment_at_that_time(
    world: tuple[Path, SimulatedTruth],
) -> None:
    root, truth = world
    events = pq.read_table(root / "simulated" / "events.parquet")
    index = {name: k for k, name in enumerate(truth.users)}
    user = np.array([index[name] for name in events["listener"].to_pylist()])
    played = events["played at"].to_numpy().astype("datetime64[us]").astype(np.int64)
    day = (played - truth.start.timestamp() * 1e6) / 86_400e6
    segment = np.where(truth.drift_day[user] <= day, truth.later_segment[user], truth.segment[user])
    genre = truth.item_genre[events["track id"].to_numpy() - 1]
    heard = np.zeros(truth.segment_genres.shape)
    np.add.at(heard, (segment, genre), 1)
    heard /= heard.sum(1, keepdims=True)
    lift = heard / heard.mean(0)
    favourite = truth.segment_genres.argmax(1)
    assert (lift[np.arange(len(lift)), favourite] > 2).all()
    # A segment that is not the user's shows no lift: the structure is in the pairing.
    shuffled = np.random.default_rng(0).permutation(segment)
    control = np.zeros_like(heard)
    np.add.at(control, (shuffled, genre), 1)
    control /= control.sum(1, keepdims=True)
    assert (control[np.arange(len(lift)), favourite] / control.mean(0)[favourite] < 1.3).all()


@pytest.mark.parametrize("column", ["Country", "age group"])
def test_demographics_depend_on_the_segment(
    world: tuple[Path, SimulatedTruth], column: str
) -> None:
    root, truth = world
    values = np.array(pq.read_table(root / "simulated" / "users.parquet")[column].to_pylist())
    known = np.array([v is not None for v in values])
    assert 0 < (~known).mean() < 0.3
    labels, codes = np.unique(values[known].astype(str), return_inverse=True)
    table = np.zeros((truth.segment.max() + 1, len(labels)))
    np.add.at(table, (truth.segment[known], codes), 1)
    assert chi2_contingency(table).pvalue < 1e-6
    np.random.default_rng(0).shuffle(codes)
    table[:] = 0
    np.add.at(table, (truth.segment[known], codes), 1)
    assert chi2_contingency(table).pvalue > 0.001


def test_popularity_is_skewed(world: tuple[Path, SimulatedTruth]) -> None:
    events = pq.read_table(world[0] / "simulated" / "events.parquet")
    counts = np.sort(np.bincount(events["track id"].to_numpy()))[::-1]
    assert counts[:20].sum() / counts.sum() > 0.25  # 5 % of the items; 0.05 if all were equal


def test_sessions_are_coherent(world: tuple[Path, SimulatedTruth]) -> None:
    root, truth = world
    events = pq.read_table(root / "simulated" / "events.parquet").to_pandas()
    events["genre"] = truth.item_genre[events["track id"].to_numpy() - 1]
    events = events.sort_values(["session-id", "played at"])
    same = events["session-id"].to_numpy()[1:] == events["session-id"].to_numpy()[:-1]
    genre = events["genre"].to_numpy()
    together = (genre[1:] == genre[:-1])[same].mean()
    apart = (np.random.default_rng(0).permutation(genre)[1:] == genre[:-1])[same].mean()
    assert together > 3 * apart
    gaps = np.diff(events["played at"].to_numpy())[same]
    assert gaps.min() > np.timedelta64(0)


def test_users_arrive_over_time_and_most_pick_items(world: tuple[Path, SimulatedTruth]) -> None:
    root, truth = world
    users = pq.read_table(root / "simulated" / "users.parquet")
    joined = users["Signed up"].to_pylist()
    late = np.mean([moment > truth.start for moment in joined])
    assert 0.35 < late < 0.45
    picked = np.mean([len(picks) > 0 for picks in users["first picks"].to_pylist()])
    assert 0.75 < picked < 0.85


def test_segments_change_for_the_share_that_drifts(world: tuple[Path, SimulatedTruth]) -> None:
    truth = world[1]
    before = truth.segment_at(truth.start)
    after = truth.segment_at(truth.start + timedelta(days=120))
    assert np.array_equal(before, truth.segment)
    assert 0.2 < (before != after).mean() < 0.3
    written = pq.read_table(world[0] / "simulated" / "truth.parquet")
    assert written.num_rows == 1500 + (before != after).sum()


def test_simulated_data_pass_validation_without_a_fault(
    world: tuple[Path, SimulatedTruth], tmp_path: Path
) -> None:
    root, truth = world
    dataset = load_dataset(YAML, {"PALATE_DATA": str(root)})
    now = datetime(2024, 12, 1, tzinfo=timezone.utc)
    report = validate(dataset, tmp_path / "out", now=now, progress=False)
    assert report.faults == ()
    assert report.tables["events"].kept == truth.n_events
    assert report.tables["users"].kept == 1500
    clean = CleanTables(tmp_path / "out")
    assert (clean.user_type(), clean.item_type()) == ("string", "int64")
    tags = pq.read_table(clean.files("items")[0])["tags"].to_pylist()
    assert {tag for row in tags for tag in row} == set(GENRES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_items": 10}, "n_items=10 given, at least 32 expected"),
        ({"n_users": 5, "n_partitions": 6}, "n_partitions=6 given, 1 to n_users=5 expected"),
    ],
)
def test_impossible_sizes_are_refused(
    tmp_path: Path, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_listeners(tmp_path, **arguments)
