"""What an evaluation and a report leave on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder.errors import ArtifactError, DataFault
from encoder.store import ArtifactStore
from materialize.config import RepoSettings, load_settings
from materialize.embedding_rows import encode_rows, ensure_readable
from materialize.ledger import Ledger, Space
from materialize.report.space import report_space
from materialize.results import evaluation_path, save_evaluation
from tests.encoders import tiny_artifact
from tests.repositories import raw_rows, space_of
from tests.unit.materialize.feature_tables import dataset, write_clean
from transforms.names import stored_view


@pytest.fixture
def settings(tmp_path: Path) -> RepoSettings:
    (tmp_path / "palate.yaml").write_text("dataset: small.yaml\n")
    (tmp_path / "small.yaml").write_text(dataset().model_dump_json(exclude_none=True))
    return load_settings(tmp_path)


@pytest.fixture
def space(settings: RepoSettings) -> Space:
    artifact = tiny_artifact()
    ArtifactStore(settings.artifacts_url).save(artifact)
    return space_of(3, artifact.encoder_version)


def _publish(settings: RepoSettings, space: Space, users: list[str], run: str, seed: int) -> None:
    (batch,) = raw_rows(users, seed=seed).combine_chunks().to_batches()
    rows = encode_rows(batch, space, settings.artifacts_url)
    folder = settings.offline_dir / stored_view(space.number)
    ensure_readable(folder, pa.string())
    pq.write_table(pa.Table.from_batches([rows]), folder / f"{run}.parquet")


# --- evaluations


def test_an_evaluation_replaces_the_earlier_one(settings: RepoSettings, space: Space) -> None:
    for auc in (0.5, 0.75):
        path = save_evaluation(settings, space, {"groups": {"embedding": auc}})
        assert path == evaluation_path(settings, space)
    assert json.loads(path.read_text()) == {
        "space": 3,
        "encoder_version": space.encoder_version,
        "probe": {"groups": {"embedding": 0.75}},
    }
    assert [p.name for p in path.parent.iterdir()] == ["user_embedding_s3.json"]


def test_spaces_have_evaluations_of_their_own(settings: RepoSettings) -> None:
    paths = {evaluation_path(settings, space_of(n, "0" * 12)) for n in range(3)}
    assert len(paths) == 3


# --- reports


def test_a_report_shows_the_users_and_their_tastes(
    settings: RepoSettings, space: Space, tmp_path: Path
) -> None:
    write_clean(settings.data_dir, users=20)
    users = [f"u{k}" for k in range(20)]
    _publish(settings, space, users, "run-1", seed=1)
    _publish(settings, space, users[:10], "run-2", seed=2)  # the newest row of each user counts
    path = report_space(settings, space, tmp_path / "out" / "report.html", {"source": "simulated"})
    html = path.read_text(encoding="utf-8")
    assert space.encoder_version in html
    assert "simulated" in html
    assert "genre 1" in html  # a taste
    assert "title 1" in html  # what a sampled user consumed
    assert "country" in html  # a profile category to colour the map by


def test_a_report_draws_the_spaces_of_the_ledger_but_no_retired_one(
    settings: RepoSettings, space: Space, tmp_path: Path
) -> None:
    write_clean(settings.data_dir, users=20)
    _publish(settings, space, [f"u{k}" for k in range(20)], "run-1", seed=1)
    ledger = Ledger(settings.ledger_url)
    for version in ("a" * 12, "b" * 12, space.encoder_version):
        ledger.register(version, "", {})
    ledger.start_retiring(1, who="test", why="old")
    ledger.finish_retiring(1, {}, who="test")
    html = report_space(settings, space, tmp_path / "report.html", ledger=ledger).read_text("utf-8")
    assert 'class="lineage"' in html
    assert "space 2</text>" in html
    assert "space 1</text>" not in html
    assert "1 earlier space is not shown" in html


def test_a_space_without_rows_is_told(settings: RepoSettings, space: Space, tmp_path: Path) -> None:
    write_clean(settings.data_dir, users=4)
    message = r"Space 3 has 0 user\(s\), too few .* `palate materialize --space 3`"
    with pytest.raises(DataFault, match=message):  # before `palate train` made the folder
        report_space(settings, space, tmp_path / "report.html")
    ensure_readable(settings.offline_dir / stored_view(3), pa.string())
    with pytest.raises(DataFault, match=message):
        report_space(settings, space, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_report_needs_validated_data_and_the_encoder(
    settings: RepoSettings, space: Space, tmp_path: Path
) -> None:
    with pytest.raises(DataFault, match="Run `palate data validate` first"):
        report_space(settings, space, tmp_path / "report.html")
    write_clean(settings.data_dir, users=4)
    with pytest.raises(ArtifactError, match="Unknown encoder version 'ffffffffffff'"):
        report_space(settings, space_of(3, "f" * 12), tmp_path / "report.html")
