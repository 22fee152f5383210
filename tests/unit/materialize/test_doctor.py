"""`palate doctor` finds each broken part, names a remedy, and still examines the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from feast import FeatureStore

from materialize.cli import main
from materialize.doctor import Check, examine
from materialize.ledger import Ledger
from tests.repositories import VIEWS, TinyRepository, raw_rows
from tests.unit.materialize.feature_tables import write_clean

PARTS = {
    "python", "feast", "torch", "repository", "clean data", "raw features", "ledger",
    "artifact of space 1", "registry", "feature services", "offline store",
    "online store, space 1",
}  # fmt: skip


def _make(path: Path, user_type: str = "INT64", vectors: str = "float32") -> Path:
    repository = TinyRepository.make(path, user_type)
    settings = repository.settings
    version = repository.save_encoder()
    facts = {"raw_views": list(VIEWS), "vectors": vectors}
    Ledger(settings.ledger_url).register(version, "", facts)
    repository.apply_space(1, version, vectors=vectors)
    users: list[object] = [1, 2] if user_type == "INT64" else ["a", "b"]
    repository.write_raw(raw_rows(users), offline=True)
    write_clean(settings.data_dir, users=4)
    return path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(tmp_path_factory.mktemp("doctor") / "repository")


@pytest.fixture
def repo(healthy: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(healthy, tmp_path / "repository")
    return tmp_path / "repository"


def _by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    assert [c for c in checks if c.outcome != "ok" and not c.remedy] == []
    return found


def _faults(repo: Path) -> dict[str, Check]:
    """Return what is not ok, after checking that everything was examined."""
    found = _by_name(examine(repo))
    assert set(found) == PARTS
    return {name: check for name, check in found.items() if check.outcome != "ok"}


@pytest.mark.parametrize("user_type", ["INT64", "STRING"])
def test_a_healthy_repository_has_no_finding(healthy: Path, tmp_path: Path, user_type: str) -> None:
    repo = healthy if user_type == "INT64" else _make(tmp_path / "strings", user_type)
    found = _by_name(examine(repo))
    assert set(found) == PARTS
    assert {name: c.detail for name, c in found.items() if c.outcome != "ok"} == {}
    assert [name for name, c in found.items() if c.remedy] == []


def test_a_store_without_the_spaces_form_is_told(tmp_path: Path) -> None:
    plugin = "materialize.stores.sqlite.PalateSqliteOnlineStore"
    repo = _make(tmp_path / "repository", vectors="int8")
    faults = _faults(repo)
    assert set(faults) == {"online store, space 1"}
    found = faults["online store, space 1"]
    assert found.outcome == "WARN"
    assert "keeps float32 where the space asks for int8" in found.detail
    config = repo / "feature_store.yaml"
    text = config.read_text(encoding="utf-8")
    assert text.count("type: sqlite") == 1
    config.write_text(text.replace("type: sqlite", f"type: {plugin}"), encoding="utf-8")
    assert _faults(repo) == {}


@pytest.mark.parametrize(
    ("kind", "outcome", "detail"),
    [
        ("duckdb", "ok", "duckdb"),
        ("dask", "WARN", "drops label rows"),
        (
            "postgres\n  host: nowhere.invalid\n  database: d\n  user: u\n  password: p",
            "WARN",
            "postgres was never seen to read Palate's views",
        ),
    ],
    ids=["duckdb", "dask", "postgres"],
)
def test_an_offline_store_that_does_not_suit_is_told(
    repo: Path, kind: str, outcome: str, detail: str
) -> None:
    config = repo / "feature_store.yaml"
    text = config.read_text(encoding="utf-8")
    shipped = "type: materialize.stores.parquet.PalateParquetOfflineStore"
    assert text.count(shipped) == 1
    config.write_text(text.replace(shipped, f"type: {kind}"), encoding="utf-8")
    found = _by_name(examine(repo))["offline store"]
    assert (found.outcome, detail in found.detail) == (outcome, True)


def test_an_artifact_that_was_changed_fails(repo: Path) -> None:
    (weights,) = (repo / "data" / "artifacts").glob("*/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    faults = _faults(repo)
    assert set(faults) == {"artifact of space 1"}
    assert faults["artifact of space 1"].outcome == "FAIL"
    assert "weights.safetensors of encoder version" in faults["artifact of space 1"].detail


def test_an_artifact_that_is_gone_fails(repo: Path) -> None:
    shutil.rmtree(repo / "data" / "artifacts")
    faults = _faults(repo)
    assert set(faults) == {"artifact of space 1"}
    assert "Unknown encoder version" in faults["artifact of space 1"].detail


def test_an_artifact_store_of_an_unknown_kind_fails(repo: Path) -> None:
    with (repo / "palate.yaml").open("a") as file:
        file.write("artifacts: nosuchstore://bucket/encoders\n")
    assert set(_faults(repo)) == {"artifact of space 1"}


def test_a_clean_table_cut_short_fails(repo: Path) -> None:
    (repo / "data" / "clean" / "items" / "part-0.parquet").write_bytes(b"PAR1")
    faults = _faults(repo)
    assert set(faults) == {"clean data"}
    assert faults["clean data"].remedy == "palate data validate"


def test_steps_that_are_still_to_do_are_warnings(repo: Path) -> None:
    shutil.rmtree(repo / "data" / "clean")
    shutil.rmtree(repo / "data" / "features")
    faults = _faults(repo)
    assert {name: (c.outcome, c.remedy) for name, c in faults.items()} == {
        "clean data": ("WARN", "palate data validate"),
        "raw features": ("WARN", "palate features build"),
    }


def test_a_space_that_was_not_applied_is_a_warning(repo: Path) -> None:
    (artifact,) = (p.name for p in (repo / "data" / "artifacts").iterdir())
    ledger = Ledger(f"sqlite:///{repo}/data/ledger.db")
    ledger.register("0" * 12, "", {})
    found = _by_name(examine(repo))
    assert set(found) == PARTS | {"artifact of space 2"}
    assert found["artifact of space 1"].detail == artifact
    assert found["artifact of space 2"].outcome == "FAIL"
    registry = found["registry"]
    assert (registry.outcome, registry.remedy) == ("WARN", "feast apply")
    assert registry.detail == "lacks user_embedding_on_demand_s2, user_embedding_s2"


def test_an_online_store_that_does_not_answer_fails(repo: Path) -> None:
    (repo / "data" / "online.db").write_bytes(b"this is no database" * 100)
    faults = _faults(repo)
    assert set(faults) == {"online store, space 1"}
    assert "DatabaseError" in faults["online store, space 1"].detail


def test_a_registry_that_cannot_be_read_fails(repo: Path) -> None:
    (repo / "feature_store.yaml").write_text("project: [")
    found = _by_name(examine(repo))
    assert set(found) == PARTS - {"feature services", "offline store", "online store, space 1"}
    assert {name for name, c in found.items() if c.outcome != "ok"} == {"registry"}
    assert found["registry"].outcome == "FAIL"


@pytest.mark.parametrize(
    "url",
    [
        "nosuchdatabase://x/y",
        "mysql://nobody@localhost/x",  # SQLAlchemy knows it, its driver is not installed
        "sqlite:////dev/null/ledger.db",
    ],
)
def test_a_ledger_that_cannot_be_opened_fails(repo: Path, url: str) -> None:
    with (repo / "palate.yaml").open("a") as file:
        file.write(f"ledger: {url}\n")
    found = _by_name(examine(repo))
    # Without a ledger no space is known; everything else is examined.
    unseen = {"artifact of space 1", "feature services", "online store, space 1"}
    assert set(found) == PARTS - unseen
    assert {name for name, c in found.items() if c.outcome != "ok"} == {"ledger"}
    assert found["ledger"].remedy == "Check `ledger:` in palate.yaml."


def test_before_anything_ran_every_step_is_named(tmp_path: Path) -> None:
    from materialize.template import init_repository

    init_repository(tmp_path / "new")
    found = _by_name(examine(tmp_path / "new"))
    assert {name: c.remedy for name, c in found.items() if c.outcome == "WARN"} == {
        "clean data": "palate data validate",
        "raw features": "palate features build",
        "ledger": "palate train",
        "registry": "feast apply",
    }


@pytest.mark.parametrize("broken", ["palate.yaml", "tiny.yaml"])
def test_a_fault_in_a_configuration_file_is_told_beside_the_installation(
    repo: Path, broken: str
) -> None:
    with (repo / broken).open("a") as file:
        file.write("colour: red\n")
    found = _by_name(examine(repo))
    assert set(found) == {"python", "feast", "torch", "repository"}
    assert found["repository"].outcome == "FAIL"
    assert "colour: Extra inputs are not permitted" in found["repository"].detail


def test_services_that_lag_behind_the_ledger_are_named(repo: Path) -> None:
    ledger = Ledger(f"sqlite:///{repo}/data/ledger.db")
    ledger.begin_run("r" * 16, "user_embedding_s1", "key", {}, space=1)
    ledger.commit_run("r" * 16, {"rows": 0})
    ledger.add_consumer("home", 1, who="test", why="the process ended before the registry changed")
    found = _faults(repo)["feature services"]
    assert (found.outcome, found.detail) == ("WARN", "behind the ledger: home")
    assert found.remedy == "palate consumers apply"
    CliRunner().invoke(main, ["consumers", "apply", "--repo", str(repo)], catch_exceptions=False)
    assert _faults(repo) == {}
    FeatureStore(repo_path=str(repo)).delete_feature_view("user_embedding_s1")
    found = _by_name(examine(repo))["feature services"]
    assert (found.outcome, found.detail) == ("WARN", "without their view: home")
    assert found.remedy == "feast apply"
    ledger.remove_consumer("home", who="test", why="")
    assert _by_name(examine(repo))["feature services"].detail == "of no consumer: home"


def test_a_retired_space_is_not_missed(repo: Path) -> None:
    ledger = Ledger(f"sqlite:///{repo}/data/ledger.db")
    ledger.register("0" * 12, "", {})
    ledger.start_retiring(2, who="test", why="never used")
    assert "artifact of space 2" in _by_name(examine(repo))
    ledger.finish_retiring(2, {}, who="test")
    assert _faults(repo) == {}
