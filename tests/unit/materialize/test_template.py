"""`palate init`: a repository that works as it is, and never over something that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from encoder.errors import DataFault
from materialize.config import CONFIG_FILE, load_settings
from materialize.template import init_repository, shipped_datasets, template_folder
from transforms.dataset import load_dataset


@pytest.mark.parametrize("dataset", shipped_datasets())
def test_a_new_repository_is_accepted_with_every_shipped_data_set(
    tmp_path: Path, dataset: str
) -> None:
    files = init_repository(tmp_path / "a" / "repository", dataset)
    settings = load_settings(tmp_path / "a" / "repository")
    assert settings.dataset.name == dataset
    assert settings.dataset_path == tmp_path / "a" / "repository" / "datasets" / f"{dataset}.yaml"
    assert files == sorted(files)
    assert all(path.is_file() for path in files)
    datasets = [path for path in files if path.parent.name == "datasets"]
    assert sorted(path.stem for path in datasets) == shipped_datasets()
    assert [load_dataset(path).name for path in datasets] == [path.stem for path in datasets]


def test_a_relative_folder_is_made_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    init_repository(Path("mine"))
    assert load_settings(tmp_path / "mine").dataset.name == "my_data"


def test_everything_but_built_data_is_copied(tmp_path: Path) -> None:
    files = init_repository(tmp_path / "mine")
    copied = {path.relative_to(tmp_path / "mine").as_posix(): path for path in files}
    wanted = {
        path.relative_to(template_folder()).as_posix(): path
        for path in template_folder().rglob("*")
        if path.is_file()
        and not {"data", "__pycache__"} & set(path.relative_to(template_folder()).parts)
    }
    assert set(copied) == set(wanted)
    assert {".feastignore", "definitions.py", "feature_store.yaml", CONFIG_FILE} < set(copied)
    for name, path in wanted.items():
        if name != CONFIG_FILE:
            assert copied[name].read_bytes() == path.read_bytes()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert init_repository(tmp_path, "ml1m")


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataFault, match=r"is not empty. Name a new folder"):
        init_repository(tmp_path)
    with pytest.raises(DataFault, match=r"is a file. Name a new folder"):
        init_repository(tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_data_set_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"Unknown data set 'films'. Shipped: .*ml1m, my_data"):
        init_repository(tmp_path / "mine", "films")
    assert not (tmp_path / "mine").exists()
