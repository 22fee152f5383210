"""``palate compact``: what it merges, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from materialize.cli import main
from materialize.stores.append import append_rows, live_files, reading
from tests.repositories import TinyRepository
from transforms.layout import ACTIVITY, PROFILE


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> TinyRepository:
    return TinyRepository.make(tmp_path_factory.mktemp("compact"))


@pytest.fixture
def pushed(repository: TinyRepository) -> TinyRepository:
    """Five pushed files in one view, one in another, beside a batch file."""
    for name, count in ((ACTIVITY, 5), (PROFILE, 1)):
        folder = repository.settings.features_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.parquet"):
            path.unlink()
        pq.write_table(pa.table({"user_id": [0]}), folder / "batch.parquet")
        for user in range(1, count + 1):
            append_rows(folder, pa.table({"user_id": [user]}))
    return repository


def _compact(repository: TinyRepository, *arguments: object) -> Result:
    line = ["compact", "--repo", repository.path, "--quiet", *arguments]
    return CliRunner().invoke(main, [str(a) for a in line])


def _answers(result: Result) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return {row.pop("view"): row for row in json.loads(result.stdout)}


def _users(folder: Path) -> list[int]:
    return sorted(u for f in live_files(folder) for u in pq.read_table(f)["user_id"].to_pylist())


def test_all_views_are_compacted_and_a_repeat_finds_nothing(pushed: TinyRepository) -> None:
    folder = pushed.settings.features_dir / ACTIVITY
    answers = _answers(_compact(pushed))
    assert answers == {
        ACTIVITY: {"merged": 5, "rows": 5, "pending": False},
        PROFILE: {"merged": 0, "rows": 0, "pending": False},
    }, "a view whose folder is not there yet is passed over"
    assert _users(folder) == [0, 1, 2, 3, 4, 5]
    assert len(live_files(folder)) == 2
    assert _answers(_compact(pushed))[ACTIVITY]["merged"] == 0


def test_a_dry_run_prints_the_plan_and_changes_nothing(pushed: TinyRepository) -> None:
    folder = pushed.settings.features_dir / ACTIVITY
    before = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in folder.glob("push-*"))
    assert _answers(_compact(pushed, ACTIVITY, "--dry-run")) == {
        ACTIVITY: {"files": 5, "rows": 5, "size_bytes": size, "unfinished": False}
    }
    assert sorted(folder.iterdir()) == before


def test_files_that_are_large_enough_stay(pushed: TinyRepository) -> None:
    answers = _answers(_compact(pushed, ACTIVITY, "--below-mb", 1e-6))
    assert answers[ACTIVITY]["merged"] == 0


def test_files_in_use_are_removed_by_the_next_call(pushed: TinyRepository) -> None:
    folder = pushed.settings.features_dir / ACTIVITY
    with reading(folder) as files:
        result = _compact(pushed, ACTIVITY, "--wait", 0)
        assert _answers(result)[ACTIVITY]["pending"]
        assert "Run `palate compact` again" in result.stderr
        assert all(path.exists() for path in files)
        assert _answers(_compact(pushed, ACTIVITY, "--dry-run"))[ACTIVITY]["unfinished"]
    assert not _answers(_compact(pushed, ACTIVITY))[ACTIVITY]["pending"]
    assert len(list(folder.glob("*.parquet"))) == 2
    assert _users(folder) == [0, 1, 2, 3, 4, 5]


def test_unknown_views_and_views_without_a_folder_are_refused(pushed: TinyRepository) -> None:
    result = _compact(pushed, "nobody")
    assert result.exit_code == 1
    assert "no feature view 'nobody'" in result.stderr
    result = _compact(pushed, "user_onboarding")
    assert result.exit_code == 1
    assert "no local folder of Parquet files" in result.stderr
