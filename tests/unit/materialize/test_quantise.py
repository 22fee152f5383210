"""Quantising a space: another space of the same facts, made once, with its error on the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from encoder.errors import ArtifactError, DataFault, LedgerConflict, SpaceMismatch
from encoder.store import ArtifactStore
from materialize.cli import main
from materialize.context import Context
from materialize.ledger import Space
from materialize.quantise import QuantisationReport, quantise_space
from materialize.source import parquet_files
from tests.repositories import VIEWS, TinyRepository, raw_rows
from transforms.layout import ACTIVITY, column
from transforms.names import stored_view

FACTS = {"raw_views": list(VIEWS), "dataset": "tiny", "vectors": "float16", "training_key": "k"}
USERS = list(range(300))


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRepository:
    """Raw features of 300 users, and space 1."""
    made = TinyRepository.make(tmp_path / "repo")
    made.write_raw(raw_rows(USERS), offline=True)
    version = made.save_encoder()
    ledger = Context(made.path).ledger
    ledger.register(version, made.settings.artifacts_url, FACTS)
    return made


def _quantise(tiny: TinyRepository, number: int = 1, **options: Any) -> QuantisationReport:
    return quantise_space(
        tiny.store, tiny.settings, Context(tiny.path).ledger, number, progress=False, **options
    )


def _spaces(tiny: TinyRepository) -> list[Space]:
    return Context(tiny.path).ledger.spaces()


def test_the_int8_form_is_the_next_space_with_the_facts_of_the_first(tiny: TinyRepository) -> None:
    report = _quantise(tiny)
    first, second = _spaces(tiny)
    assert (report.space, report.new, second.state) == (2, True, "trained")
    assert report.encoder_version == second.encoder_version != first.encoder_version
    assert report.quantised_from == second.facts["quantised_from"] == first.encoder_version
    assert second.facts["precision"] == "int8"
    assert {k: second.facts[k] for k in FACTS} == FACTS
    assert second.facts["quantisation"] == report.figures
    error = report.figures["error"]
    assert 0.0 < error["cosine_error_mean"] < 1e-2
    assert error["rows"] + report.figures["calibration_rows"] == len(USERS)
    assert report.figures["graph_bytes"]["int8"] < report.figures["graph_bytes"]["float32"]
    stored = ArtifactStore(tiny.settings.artifacts_url).load(second.encoder_version)
    assert stored.manifest.precision == "int8"
    (empty,) = parquet_files(tiny.settings.offline_dir / stored_view(2))
    assert pq.read_table(empty).num_rows == 0


def test_repeated_it_changes_nothing_even_when_raw_features_came(tiny: TinyRepository) -> None:
    first = _quantise(tiny)
    tiny.write_raw(raw_rows([*USERS, 1000, 1001], seed=5), offline=True)
    second = _quantise(tiny, rows=7)
    assert second.to_dict() == first.to_dict() | {"new": False}
    assert len(_spaces(tiny)) == 2


def test_a_kill_before_the_view_became_readable_is_made_good(tiny: TinyRepository) -> None:
    _quantise(tiny)
    (empty,) = parquet_files(tiny.settings.offline_dir / stored_view(2))
    empty.unlink()
    _quantise(tiny)
    assert parquet_files(tiny.settings.offline_dir / stored_view(2)) == [empty]


def test_a_dry_run_measures_and_keeps_nothing(tiny: TinyRepository) -> None:
    planned = _quantise(tiny, dry_run=True)
    assert (planned.space, planned.new) == (None, True)
    assert len(_spaces(tiny)) == 1
    assert len(ArtifactStore(tiny.settings.artifacts_url).list()) == 1
    assert not (tiny.settings.offline_dir / stored_view(2)).exists()
    made = _quantise(tiny)
    assert (made.encoder_version, made.figures) == (planned.encoder_version, planned.figures)
    assert _quantise(tiny, dry_run=True).to_dict() == made.to_dict() | {"new": False}


def test_fewer_rows_are_taken_when_asked_for_and_no_user_is_on_both_sides(
    tiny: TinyRepository,
) -> None:
    figures = _quantise(tiny, rows=60, dry_run=True).figures
    assert 40 <= figures["calibration_rows"] <= 80
    assert 40 <= figures["error"]["rows"] <= 80
    with pytest.raises(ValueError, match="rows 0 given, at least 1 expected"):
        _quantise(tiny, rows=0)


def test_what_cannot_be_quantised_is_refused(tiny: TinyRepository) -> None:
    with pytest.raises(LedgerConflict, match="Unknown space 9"):
        _quantise(tiny, 9)
    _quantise(tiny)
    with pytest.raises(DataFault, match=r"Space 2 is int8 already, made from encoder version '"):
        _quantise(tiny, 2)
    ledger = Context(tiny.path).ledger
    ledger.start_retiring(1, who="anna", why="a test")
    with pytest.raises(LedgerConflict, match="Space 1 is retiring: its encoder goes, or is gone"):
        _quantise(tiny)


def test_an_int8_space_that_was_retired_does_not_come_back(tiny: TinyRepository) -> None:
    _quantise(tiny)
    tiny.save_encoder(seed=1)
    ledger = Context(tiny.path).ledger
    ledger.start_retiring(2, who="anna", why="a test")
    with pytest.raises(LedgerConflict, match="space 2, which is retiring"):
        _quantise(tiny)


def test_raw_features_of_other_modality_encoders_are_refused(tiny: TinyRepository) -> None:
    rows = raw_rows(USERS)
    name = column(ACTIVITY, "modality")
    place = rows.column_names.index(name)
    other = [["fedcba987654"] * len(USERS)]
    tiny.write_raw(rows.set_column(place, name, other), offline=True)
    with pytest.raises(SpaceMismatch, match="'fedcba987654' given"):
        _quantise(tiny)
    assert len(_spaces(tiny)) == 1


def test_one_user_is_too_few(tiny: TinyRepository) -> None:
    tiny.write_raw(raw_rows([1]), offline=True)
    with pytest.raises(DataFault, match=r"1 user\(s\) have raw features before the cut-off 2026"):
        _quantise(tiny)


def test_a_lost_artifact_is_named(tiny: TinyRepository) -> None:
    ledger = Context(tiny.path).ledger
    ledger.register("0" * 12, tiny.settings.artifacts_url, FACTS)
    with pytest.raises(ArtifactError, match="Unknown encoder version '000000000000'"):
        _quantise(tiny, 2)


def test_the_command_prints_the_error_and_what_comes_next(tiny: TinyRepository) -> None:
    def palate(*arguments: str) -> Any:
        command = ["spaces", *arguments, "--repo", str(tiny.path)]
        return CliRunner().invoke(main, command, catch_exceptions=False)

    planned = palate("quantise", "1", "--dry-run", "--quiet")
    assert (planned.exit_code, planned.stderr) == (0, "")
    assert json.loads(planned.stdout)["space"] is None
    done = palate("quantise", "1", "--quiet")
    assert "Next: `feast apply`" in done.stderr
    assert json.loads(done.stdout)["figures"]["error"]["cosine_error_max"] > 0
    again = palate("quantise", "1", "--quiet")
    assert (again.exit_code, again.stderr) == (0, "")
    assert json.loads(again.stdout)["new"] is False
    assert palate("quantise", "2", "--quiet").exit_code == 1
    assert palate("quantise", "1", "--rows", "0").exit_code == 2
