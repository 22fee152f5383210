"""Training rows carry what came next, and nothing from the cut-off on is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from encoder.errors import DataFault
from encoder.rows import RowSource
from encoder.training_config import TrainingConfig
from materialize.config import RepoSettings, load_settings
from materialize.features import build_features, current_modalities
from materialize.fitting import fit_encoder
from materialize.source import RawSource, RawView
from materialize.training_rows import (
    future_of,
    predicted_schema,
    raw_schema,
    with_future,
    write_rows,
)
from tests.unit.materialize.feature_tables import DAY_US, FIRST_DAY, N_DAYS, dataset, write_clean
from transforms import buckets
from transforms.clean import CleanTables

CUT_DAY, SPANS, MEMORY_MB = 10, (2, 4), 256
CONFIG = TrainingConfig(prediction_days=SPANS)


def _repository(root: Path, days: int = N_DAYS) -> RepoSettings:
    """Build the raw features of the first ``days`` days; the cut-off is after day 10."""
    clean = write_clean(root / "data", days=days)
    described = dataset().model_dump(mode="json", exclude_none=True)
    (root / "small.yaml").write_text(yaml.safe_dump(described))
    (root / "palate.yaml").write_text(f"dataset: small.yaml\nmemory_limit_mb: {MEMORY_MB}\n")
    settings = load_settings(root)
    build_features(
        settings.dataset,
        clean,
        settings.features_dir,
        memory_limit_mb=MEMORY_MB,
        progress=False,
    )
    return settings


def _source(settings: RepoSettings) -> RawSource:
    schema = raw_schema(settings, current_modalities(settings.features_dir))
    views: dict[str, list[str]] = {}
    for name in schema.columns:
        view, field = name.split("__")
        views.setdefault(view, []).append(field)
    return RawSource(
        [
            RawView(
                view,
                settings.features_dir / view,
                tuple(fields),
                "event_timestamp",
                "created_timestamp",
            )
            for view, fields in views.items()
        ],
        end=settings.dataset.evaluation.cutoff,
        history=True,
        memory_limit_mb=MEMORY_MB,
        spill=settings.data_dir / "spill",
    )


def _rows(settings: RepoSettings, folder: Path, config: TrainingConfig = CONFIG) -> Path:
    modalities = current_modalities(settings.features_dir)
    source = with_future(
        _source(settings), settings, modalities, config, folder / "future", progress=False
    )
    path = folder / "rows.parquet"
    schema = raw_schema(settings, modalities)
    future = predicted_schema(settings, modalities, config)
    write_rows(source, path, schema, future=future, progress=False)
    return path


def _content(rows: Path) -> list[str]:
    """Return the rows as text, in which a NaN equals itself."""
    return [repr(row) for row in pq.read_table(rows).to_pylist()]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RepoSettings:
    return _repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def rows(settings: RepoSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _rows(settings, tmp_path_factory.mktemp("rows"))


def test_a_row_counts_from_the_first_day_that_it_knows_nothing_of(
    settings: RepoSettings, rows: Path
) -> None:
    events = pq.read_table(settings.data_dir / "clean" / "events")
    user, day = events["user_id"].to_numpy(), pc.floor_temporal(events["ts"], unit="day")
    day = day.cast("int64").to_numpy() // DAY_US
    seen: set[str] = set()
    for row in pq.read_table(rows).to_pylist():
        profile, activity = (row[f"user_{view}__{view}_as_of"] for view in ("profile", "activity"))
        moment = max(profile, activity or 0)
        fresh = activity is not None and activity // DAY_US == moment // DAY_US
        first = moment // DAY_US + fresh
        seen.add("activity" if fresh else "profile alone")
        for span in SPANS:
            counts = row[f"user_future__future_counts_{span}d"]
            if first + span > FIRST_DAY + CUT_DAY:
                assert counts is None
                continue
            own = day[(user == row["user_id"]) & (day >= first) & (day < first + span)]
            assert counts == [len(own), len(set(own.tolist()))]
    assert seen == {"activity", "profile alone"}


def test_events_from_the_cut_off_on_change_no_training_row(rows: Path, tmp_path: Path) -> None:
    """With the later events never collected, every training row is the same, bit for bit."""
    blind = _rows(_repository(tmp_path / "blind", days=CUT_DAY), tmp_path / "rows")
    assert _content(blind) == _content(rows)


def test_partitions_of_users_change_no_row(
    settings: RepoSettings, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_ENTRY_BYTES", MEMORY_MB * 2**20 // 300)
    other = _repository(tmp_path / "partitioned")
    state = yaml.safe_load((other.features_dir / "buckets" / "buckets.json").read_text())
    assert state["partitions"] > 1
    assert _content(_rows(other, tmp_path / "rows")) == _content(rows)


def test_the_file_tells_what_it_holds_and_the_row_source_reads_it(
    settings: RepoSettings, rows: Path
) -> None:
    modalities = current_modalities(settings.features_dir)
    future = future_of(rows)
    assert future == predicted_schema(settings, modalities, CONFIG)
    source = RowSource(rows, raw_schema(settings, modalities), future=future)
    (batch,) = source.batches()
    assert set(future.columns) < set(batch.columns)  # type: ignore[union-attr]


def test_the_spans_are_the_horizon_and_four_times_that_unless_told(
    settings: RepoSettings,
) -> None:
    modalities = current_modalities(settings.features_dir)

    def spans(**training: Any) -> list[str]:
        schema = predicted_schema(settings, modalities, TrainingConfig(**training))
        assert schema is not None
        return [b.name for b in schema.blocks if b.kind == "counts"]

    assert spans() == ["counts_next_7d", "counts_next_28d"]
    assert spans(prediction_days=(3,)) == ["counts_next_3d"]


def test_without_a_prediction_no_event_is_read(settings: RepoSettings, tmp_path: Path) -> None:
    off = TrainingConfig(prediction_weight=0.0)
    modalities, source = current_modalities(settings.features_dir), _source(settings)
    assert predicted_schema(settings, modalities, off) is None
    assert with_future(source, settings, modalities, off, tmp_path / "future") is source
    assert not (tmp_path / "future").exists()
    assert future_of(_rows(settings, tmp_path, off)) is None


def test_rows_without_a_future_are_refused_where_one_is_to_be_predicted(
    settings: RepoSettings, tmp_path: Path
) -> None:
    modalities = current_modalities(settings.features_dir)
    bare = _rows(settings, tmp_path, TrainingConfig(prediction_weight=0.0))
    with pytest.raises(DataFault, match=r"does not say what came next, .* set it to 0"):
        fit_encoder(
            bare,
            raw_schema(settings, modalities),
            TrainingConfig(),
            modalities,
            tmp_path / "fit",
            facts={},
            data_cutoff=settings.dataset.evaluation.cutoff,
        )


def test_events_that_are_gone_are_told(settings: RepoSettings, tmp_path: Path) -> None:
    other = _repository(tmp_path / "other")
    CleanTables(other.data_dir).report.unlink()
    modalities = current_modalities(other.features_dir)
    with pytest.raises(DataFault, match="Run `palate data validate` first"):
        with_future(_source(other), other, modalities, CONFIG, tmp_path / "future", progress=False)


def test_content_is_pooled_from_the_item_vectors_of_the_raw_features(
    settings: RepoSettings, rows: Path
) -> None:
    """A user's one event of a span: its pooled vector is that item's."""
    modalities = current_modalities(settings.features_dir)
    events = pq.read_table(settings.data_dir / "clean" / "events").to_pylist()
    checked = 0
    for row in pq.read_table(rows).to_pylist():
        if row["user_future__future_counts_2d"] != [1.0, 1.0]:
            continue
        profile, activity = (row[f"user_{view}__{view}_as_of"] for view in ("profile", "activity"))
        moment = max(profile, activity or 0)
        first = moment // DAY_US + (activity is not None and activity // DAY_US == moment // DAY_US)
        (item,) = (
            e["item_id"]
            for e in events
            if e["user_id"] == row["user_id"]
            and first <= round(e["ts"].timestamp() * 1e6) // DAY_US < first + 2
        )
        at = modalities.item_ids.to_pylist().index(item)
        expected = np.concatenate([m.vectors[at] for m in modalities.modalities])
        own = row["user_future__future_pooled"][: len(expected)]
        np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
        checked += 1
    assert checked > 3
