"""Training rows: what was known at each moment and, beside it, what came next."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from materialize.config import RepoSettings
from materialize.source import RawSource, RawView, read_files
from transforms.buckets import DayBuckets
from transforms.clean import CleanTables
from transforms.dataset import as_utc_day
from transforms.engine import DAY_US, arrow_table, bounded_connection, quoted
from transforms.future import FUTURE, future_schema, future_tables
from transforms.layout import ACTIVITY, RawLayout
from transforms.names import USER_KEY
from transforms.tables import CREATED, EVENT_TIME
from transforms.windows import bytes_per_day

if TYPE_CHECKING:
    from encoder.training_config import TrainingConfig

__all__ = [
    "future_note",
    "future_of",
    "layout_of",
    "predicted_schema",
    "raw_schema",
    "with_future",
    "write_rows",
]

_ROW_GROUP = 8_192
_LONGER = 4
"""Times the evaluation's horizon: the second span, where the settings name none."""
_NOTE = b"palate.future"


def raw_schema(settings: RepoSettings, modalities: ModalityEncoders) -> FeatureSchema:
    """Return the schema of a repository's raw features, all blocks."""
    return layout_of(settings, modalities).schema(modalities.version)


def predicted_schema(
    settings: RepoSettings, modalities: ModalityEncoders, config: TrainingConfig
) -> FeatureSchema | None:
    """Return the blocks that training predicts; None: the settings ask for no prediction."""
    if config.prediction_weight == 0:
        return None
    return future_schema(
        layout_of(settings, modalities), _spans(settings, config), modalities.version
    )


def write_rows(
    source: RawSource,
    path: Path,
    schema: FeatureSchema,
    *,
    future: FeatureSchema | None = None,
    progress: bool,
    keep: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None,
) -> int:
    """Write the training rows once, ordered, so that equal data give an equal encoder.

    Returns their number. A file that is there is kept. ``keep`` returns what is wanted of a batch:
    some of its rows, or columns of the schema that the source does not have; None: all as it is.
    ``future``: columns that the source has, too (``with_future``); the file
    tells of them.

    Raises
    ------
    DataFault
        There is no row before the source's end.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".parquet.tmp")
        columns = [USER_KEY, *schema.columns, *(future.columns if future else ())]
        writer: pq.ParquetWriter | None = None
        with tqdm(
            total=source.count(), desc="training rows", unit="row", disable=not progress
        ) as bar:
            for batch in source.batches(batch_rows=_ROW_GROUP, ordered=True):
                rows = (batch if keep is None else keep(batch)).select(columns)
                if writer is None:
                    noted = rows.schema.with_metadata(future_note(future))
                    writer = pq.ParquetWriter(temporary, noted, compression="zstd")
                writer.write_batch(rows, row_group_size=_ROW_GROUP)
                bar.update(batch.num_rows)
        if writer is None:
            raise DataFault(
                f"No raw feature row lies before the cut-off {source.end.isoformat()}. "
                "Move evaluation.cutoff in dataset.yaml, then build the features again."
            )
        writer.close()
        os.replace(temporary, path)
    return int(pq.read_metadata(path).num_rows)


def future_of(rows: Path) -> FeatureSchema | None:
    """Return the schema of what comes next that a file of training rows holds; None: nothing."""
    note = (pq.read_schema(rows).metadata or {}).get(_NOTE)
    return None if note is None else FeatureSchema.from_dict(json.loads(note))


def future_note(future: FeatureSchema | None) -> dict[bytes, bytes] | None:
    """Return the metadata by which a file of training rows tells what comes next it holds."""
    return None if future is None else {_NOTE: json.dumps(future.to_dict()).encode()}


def with_future(
    source: RawSource,
    settings: RepoSettings,
    modalities: ModalityEncoders,
    config: TrainingConfig,
    folder: Path,
    *,
    progress: bool = True,
) -> RawSource:
    """Return a source with what came next of each row: before the source's end, and no later.

    Parameters
    ----------
    source : RawSource
        Of all raw views, with history; it ends at 00:00 UTC of a day.
    settings : RepoSettings
    modalities : ModalityEncoders
        Those that the raw features were built with.
    config : TrainingConfig
        Says how many days. With ``prediction_weight`` 0 the source comes back as it is.
    folder : Path
        Takes the further columns, once: written beside it, then renamed. The caller removes it when
        the rows are written.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    DataFault
        There are no clean tables to see the events in.

    Notes
    -----
    Goes through the day buckets of the raw features, one partition of users at a time, so memory
    does not grow with the users.
    """
    if config.prediction_weight == 0:
        return source
    layout, spans = layout_of(settings, modalities), _spans(settings, config)
    schema = future_schema(layout, spans, modalities.version)
    if not folder.exists():
        clean = CleanTables(settings.data_dir)
        clean.require()
        buckets = DayBuckets(
            settings.features_dir / "buckets",
            clean,
            memory_limit_mb=source.memory_limit_mb,
            bytes_per_day=bytes_per_day(layout),
        )
        buckets.update()
        _write_future(source, buckets, modalities, spans, folder, progress=progress)
    fields = tuple(name.split("__")[1] for name in schema.columns)
    return RawSource(
        [*source.views, RawView(FUTURE, folder, fields, EVENT_TIME, CREATED, source.key)],
        end=source.end,
        history=source.history,
        memory_limit_mb=source.memory_limit_mb,
        spill=source.spill,
        threads=source.threads,
    )


def _write_future(
    source: RawSource,
    buckets: DayBuckets,
    modalities: ModalityEncoders,
    spans: Sequence[int],
    folder: Path,
    *,
    progress: bool,
) -> None:
    temporary, moments = (folder.with_name(f"{folder.name}.{part}") for part in ("tmp", "moments"))
    for leftover in (temporary, moments):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_moments(source, buckets, moments)
    for partition in tqdm(
        range(buckets.partitions), desc="what came next", unit="partition", disable=not progress
    ):
        files = sorted(moments.glob(f"part={partition}/*.parquet"))
        if not files:
            continue
        with bounded_connection(source.memory_limit_mb, source.spill) as db:
            query = f"SELECT * FROM {read_files(files)} ORDER BY {USER_KEY}, {EVENT_TIME}"
            chosen = arrow_table(db, query)
        data = buckets.load(partition, pc.min(chosen.column("first")).as_py())
        writer: pq.ParquetWriter | None = None
        for table in future_tables(
            chosen, data, modalities, spans=spans, end=as_utc_day(source.end)
        ):
            if writer is None:
                path = temporary / f"{partition:05d}.parquet"
                writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    shutil.rmtree(moments)
    os.replace(temporary, folder)


def _write_moments(source: RawSource, buckets: DayBuckets, folder: Path) -> None:
    """Write each row's user, moment and first day that it knows nothing of, by user partition."""
    names = [view.name for view in source.views]
    newest = f"epoch_us(ts{names.index(ACTIVITY)})" if ACTIVITY in names else "NULL"
    today = f"epoch_us(moment) // {DAY_US}"
    # What happened on a day of which the row has no event is news, even before the row's moment.
    first = f"{today} + CASE WHEN {newest} // {DAY_US} = {today} THEN 1 ELSE 0 END"
    part = buckets.partition_of(f'"{source.key}"')
    with source.connection() as db:
        source.match(db)
        db.execute(
            f'COPY (SELECT "{source.key}" AS {USER_KEY}, moment AS {EVENT_TIME}, '
            f"moment AS {CREATED}, ({first})::BIGINT AS first, "
            f"{part} AS part FROM matched) "
            f"TO {quoted(folder)} (FORMAT parquet, PARTITION_BY (part))"
        )


def layout_of(settings: RepoSettings, modalities: ModalityEncoders) -> RawLayout:
    """Return the layout of a repository's raw features."""
    return RawLayout.of(settings.dataset, {m.name: m.dim for m in modalities.modalities})


def _spans(settings: RepoSettings, config: TrainingConfig) -> tuple[int, ...]:
    days = settings.dataset.evaluation.horizon_days
    return config.prediction_days or (days, _LONGER * days)
