"""palate.yaml: what it may say, and what is said about its faults."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from encoder.autoencoder import AutoencoderConfig
from encoder.errors import DataFault
from encoder.training import TrainingConfig
from materialize.config import CONFIG_FILE, load_settings
from materialize.recipes import training_config

MINIMAL = "dataset: datasets/x.yaml\n"


def _write(folder: Path, text: str) -> Path:
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return folder


def test_defaults_lie_under_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, MINIMAL)
    monkeypatch.chdir(tmp_path)
    for repo in (tmp_path, ".", str(tmp_path)):
        settings = load_settings(repo)
        assert settings.repo == tmp_path
        assert settings.dataset_path == tmp_path / "datasets" / "x.yaml"
        assert settings.data_dir == tmp_path / "data"
        assert settings.features_dir == tmp_path / "data" / "features"
        assert settings.offline_dir == tmp_path / "data" / "offline"
        assert settings.ledger_url == f"sqlite:///{tmp_path}/data/ledger.db"
        assert settings.artifacts_url == str(tmp_path / "data" / "artifacts")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("sqlite:///my/ledger.db", "sqlite:///{repo}/my/ledger.db"),
        ("sqlite:////var/ledger.db", "sqlite:////var/ledger.db"),
        ("postgresql://u:p@h/db", "postgresql://u:p@h/db"),
    ],
)
def test_a_relative_ledger_is_the_repositorys(tmp_path: Path, written: str, meant: str) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL + f"ledger: {written}\n"))
    assert settings.ledger_url == meant.format(repo=tmp_path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("../encoders", "{parent}/encoders"),
        ("/srv/encoders", "/srv/encoders"),
        ("s3://bucket/encoders", "s3://bucket/encoders"),
    ],
)
def test_a_relative_artifact_store_is_the_repositorys(
    tmp_path: Path, written: str, meant: str
) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL + f"artifacts: {written}\n"))
    assert settings.artifacts_url == meant.format(parent=tmp_path.parent)


def test_data_may_lie_elsewhere(tmp_path: Path) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL + "data_dir: /srv/palate\n"))
    assert settings.data_dir == Path("/srv/palate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "palate.yaml: Input should be a valid dict"),
        ("- a\n", "palate.yaml: Input should be a valid dict"),
        ("a: [", "is not valid YAML"),
        ("data_dir: x\n", "dataset: Field required"),
        (MINIMAL + "colour: red\n", "colour: Extra inputs are not permitted"),
        (MINIMAL + "seed: many\n", "seed: Input should be a valid integer"),
        (
            MINIMAL + "memory_limit_mb: 12\n",
            "memory_limit_mb: Input should be greater than or equal to 256",
        ),
        (MINIMAL + "encoder: tree\n", "encoder: Input should be 'autoencoder', 'clue' or 'hybrid'"),
        (
            MINIMAL + "hybrid: {space: 0}\n",
            "hybrid.space: Input should be greater than or equal to 1",
        ),
        (MINIMAL + "training: fast\n", "training: Input should be a valid dict"),
    ],
)
def test_a_fault_names_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataFault, match=message) as caught:
        load_settings(_write(tmp_path, text))
    assert str(tmp_path / CONFIG_FILE) in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"2 fault\(s\)"):
        load_settings(_write(tmp_path, "colour: red\n"))


def test_a_folder_without_settings_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"has no palate.yaml.*`palate init DIR`"):
        load_settings(tmp_path)


def test_a_missing_dataset_is_told_when_it_is_read(tmp_path: Path) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL))
    with pytest.raises(DataFault, match=r"datasets/x.yaml does not exist"):
        _ = settings.dataset


# --- what reaches training


def test_training_takes_the_fields_that_differ(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + "seed: 7\nautoencoder: {hidden: [9, 8], embedding_dim: 5}\ntraining: {batch_size: 11}\n"
    )
    config = training_config(load_settings(_write(tmp_path, text)))
    assert config == TrainingConfig(
        model=AutoencoderConfig(embedding_dim=5, hidden=(9, 8), seed=7), batch_size=11, seed=7
    )
    default = training_config(load_settings(_write(tmp_path, MINIMAL)))
    for field in fields(TrainingConfig):
        if field.name not in ("model", "seed"):
            assert getattr(default, field.name) == getattr(TrainingConfig(), field.name)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("autoencoder", {"dims": 5}, "autoencoder: .*unexpected keyword argument 'dims'"),
        ("autoencoder", {"embedding_dim": 0}, "autoencoder: embedding_dim 0 .* given"),
        ("training", {"epochs": 5}, "training: .*unexpected keyword argument 'epochs'"),
        ("training", {"batch_size": 0}, "training: batch_size 0 given, at least 1 expected"),
        ("training", {"learning_rate": "1e-3"}, "training: .*'str'"),  # YAML's number needs a dot
    ],
)
def test_a_training_field_at_fault_is_named(
    tmp_path: Path, part: str, value: dict[str, object], message: str
) -> None:
    settings = load_settings(_write(tmp_path, MINIMAL + yaml.safe_dump({part: value})))
    with pytest.raises(DataFault, match=message) as caught:
        training_config(settings)
    assert str(tmp_path / CONFIG_FILE) in str(caught.value)
