"""dataset.yaml: what may stand in it, and what is said of what may not."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml

from encoder.errors import DataFault
from transforms.dataset import Dataset, as_utc_day, load_dataset

DATASETS = Path(__file__).parents[3] / "feature_repo" / "datasets"
SHORTEST = """\
name: tiny
events: {path: e.parquet, user: u, item: i, timestamp: t}
evaluation: {cutoff: 2024-03-01T00:00:00Z}
"""


def load(folder: Path, text: str, **environ: str) -> Dataset:
    path = folder / "dataset.yaml"
    path.write_text(text, encoding="utf-8")
    return load_dataset(path, environ)


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_description_is_valid(path: Path) -> None:
    dataset = load_dataset(path, {"PALATE_DATA": "/data"})
    assert dataset.name == path.stem


@pytest.mark.parametrize(
    "name", ["amazon_crossdomain", "globo_news", "ml100k", "ml1m", "simulated"]
)
def test_known_sets_lie_in_their_folder_under_palate_data(name: str) -> None:
    dataset = load_dataset(DATASETS / f"{name}.yaml", {"PALATE_DATA": "/data"})
    tables = [t for t in (dataset.events, dataset.users, dataset.items) if t is not None]
    assert len(tables) >= 2
    assert all(t.path.startswith(f"/data/{name}/") for t in tables)


@pytest.mark.parametrize(
    "name", ["amazon_crossdomain", "globo_news", "ml100k", "ml1m", "simulated"]
)
def test_known_sets_say_their_licence_and_why_these_windows(name: str) -> None:
    text = (DATASETS / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nname: ")].splitlines()
    assert all(line.startswith("# ") for line in head)
    assert any(line.startswith("# Licence: ") for line in head)
    assert any(line.startswith("# Windows: ") for line in head)


def test_shortest_description_has_the_documented_defaults(tmp_path: Path) -> None:
    dataset = load(tmp_path, SHORTEST)
    assert dataset.windows == (7, 30, 180)
    assert list(dataset.modalities) == ["collaborative"]
    assert dataset.snapshots.every_days == 1
    assert dataset.evaluation.horizon_days == 7
    assert dataset.users is None
    assert dataset.items is None


def test_a_time_column_is_a_name_or_a_mapping(tmp_path: Path) -> None:
    assert load(tmp_path, SHORTEST).events.timestamp.column == "t"
    text = SHORTEST.replace("timestamp: t", "timestamp: {column: t, unit: ms}")
    assert load(tmp_path, text).events.timestamp.unit == "ms"


def test_variables_in_paths_come_from_the_environment(tmp_path: Path) -> None:
    text = SHORTEST.replace("e.parquet", "'${ROOT}/${DAY}.parquet'")
    assert load(tmp_path, text, ROOT="/r", DAY="d").events.path == "/r/d.parquet"
    assert load(tmp_path, text, ROOT="/r").events.path == "/r/${DAY}.parquet"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: tiny", "name: Tiny Set", r"name: String should match pattern"),
        ("user: u, ", "", r"events\.user: Field required"),
        ("user: u", "usr: u", r"events\.usr: Extra inputs are not permitted"),
        (
            "timestamp: t",
            "timestamp: {column: t, unit: h}",
            r"events\.timestamp.*'s', 'ms' or 'us'",
        ),
        ("00:00:00Z", "06:00:00Z", r"06:00:00\+00:00 given, 00:00 UTC of a day expected"),
        ("T00:00:00Z", "T00:00:00", r"evaluation\.cutoff: .*timezone"),
        (
            "evaluation:",
            "item_vectors_until: 2024-03-02T00:00:00Z\nevaluation:",
            r"item_vectors_until 2024-03-02.* up to the evaluation cut-off 2024-03-01",
        ),
        ("evaluation", "windows: [30, 7]\nevaluation", r"\[30, 7\] given, ascending days >= 1"),
        ("evaluation", "windows: [7, 7]\nevaluation", r"\[7, 7\] given, ascending days >= 1"),
        ("evaluation", "windows: [0, 7]\nevaluation", r"\[0, 7\] given, ascending days >= 1"),
        (
            "evaluation",
            "modalities: {audio: {}}\nevaluation",
            r"audio given, known are collaborative, content .*items\.vectors",
        ),
        (
            "evaluation",
            "modalities: {content: {}}\nevaluation",
            r"content needs items\.text or items\.tags",
        ),
        (
            "evaluation",
            "modalities: {collaborative: {dim: 1}}\nevaluation",
            r"modalities\.collaborative\.dim: .*greater than or equal to 2",
        ),
    ],
)
def test_a_fault_names_the_field_as_it_was_written(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SHORTEST
    with pytest.raises(DataFault, match=message):
        load(tmp_path, SHORTEST.replace(old, new, 1))


def test_all_faults_are_listed_together(tmp_path: Path) -> None:
    text = SHORTEST.replace("user: u, ", "").replace("name: tiny", "name: 5")
    with pytest.raises(DataFault, match=r"(?s)has 2 fault\(s\).*name: .*events\.user: "):
        load(tmp_path, text)


def test_a_brought_vector_is_a_modality(tmp_path: Path) -> None:
    text = SHORTEST + "items: {path: i, item: i, vectors: {audio: a}}\nmodalities: {audio: {}}\n"
    assert list(load(tmp_path, text).modalities) == ["audio"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "holds list, a mapping is expected"), ("a: [1", "is not valid YAML")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataFault, match=message):
        load(tmp_path, text)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(DataFault, match=re.escape(f"{path} does not exist. `palate init DIR`")):
        load_dataset(path)


def test_days_are_counted_in_utc() -> None:
    assert as_utc_day(datetime(1970, 1, 1, 23, 59, tzinfo=timezone.utc)) == 0
    assert as_utc_day(datetime.fromisoformat("1970-01-02T00:30:00+02:00")) == 0
    assert as_utc_day(datetime.fromisoformat("1969-12-31T23:59:59+00:00")) == -1


@pytest.mark.parametrize("given", ["[device]", "[country, device]", "[]"])
def test_request_context_is_some_of_the_context(tmp_path: Path, given: str) -> None:
    line = "context: [device, country], request_context: "
    text = SHORTEST.replace("user: u", f"user: u, {line}{given}")
    assert list(load(tmp_path, text).events.request_context) == yaml.safe_load(given)


@pytest.mark.parametrize(
    ("context", "given", "message"),
    [
        ("device", "[hour]", "some of the context columns expected, each once: device"),
        ("device", "[device, device]", "each once"),
        ("status", "[status]", "status is a name of Palate's or Feast's own"),
        ("user_id", "[user_id]", "rename the column"),
        ("activity_counts", "[activity_counts]", "rename the column"),
    ],
)
def test_request_context_that_cannot_be_asked_for_is_refused(
    tmp_path: Path, context: str, given: str, message: str
) -> None:
    line = f"context: [{context}], request_context: {given}"
    text = SHORTEST.replace("user: u", f"user: u, {line}")
    with pytest.raises(DataFault, match=message):
        load(tmp_path, text)
