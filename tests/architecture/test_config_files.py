"""Every configuration file that ships can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.architecture.modules import ROOT
from transforms.dataset import load_dataset

SHIPPED = sorted(
    path
    for folder in ("feature_repo", "encoder", "transforms", "materialize", "docs", "benchmarks")
    for pattern in ("*.yaml", "*.yml")
    for path in (ROOT / folder).rglob(pattern)
    if "data" not in path.relative_to(ROOT).parts[:-1]
)
DATASETS = sorted((ROOT / "feature_repo" / "datasets").glob("*.yaml"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_yaml_parses_to_a_mapping(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize("path", DATASETS, ids=_name)
def test_dataset_is_valid_without_its_data(path: Path) -> None:
    dataset = load_dataset(path, environ={})
    assert dataset.name == path.stem
    tables = [t for t in (dataset.events, dataset.users, dataset.items) if t is not None]
    # Data is reached through the environment only: nothing names a folder of one machine.
    assert [t.path for t in tables if not t.path.startswith("${PALATE_DATA}")] == []


def test_the_two_main_data_sets_are_declared() -> None:
    assert {"globo_news", "ml1m"} <= {path.stem for path in DATASETS}
