"""The batch job: raw features -> encode -> offline -> online -> verify -> ledger last."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.schema import FeatureSchema
from materialize.config import RepoSettings
from materialize.embedding_rows import encode_rows
from materialize.ledger import Ledger, Run, Space
from materialize.online import write_online
from materialize.source import RawSource, RawView, applied_view, parquet_files, resolve_views
from materialize.verify import verify_offline, verify_online
from transforms.names import stored_view
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["RunReport", "materialize_space", "materialize_view", "open_source"]

_log = logging.getLogger(__name__)

_ROW_GROUP = 16_384
_ONLINE_ROWS = 4_096


@dataclass(frozen=True)
class RunReport:
    """What a run did, or (``dry_run``) would do.

    Attributes
    ----------
    run_id : str
    space : int
    outcome : str
        ``committed``, ``unchanged`` (the same run was committed before) or ``planned``.
    rows, partitions : int
    online_rows : int
        Rows written online; 0 for a run over history.
    seconds : float
    """

    run_id: str
    space: int
    outcome: str
    rows: int
    partitions: int
    online_rows: int
    seconds: float


def materialize_space(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    *,
    end: datetime,
    start: datetime | None = None,
    from_history: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> RunReport:
    """Materialise one space over ``[start, end)``.

    Parameters
    ----------
    store : FeatureStore
        With the raw views and the space's view applied.
    settings : RepoSettings
    ledger : Ledger
    space : Space
    end : datetime
        Raw rows with an event time before it are seen.
    start : datetime or None
        Only users with a raw row in ``[start, end)``, or with one that was written since the last
        run of the space began (it came late). None: all users.
    from_history : bool
        False: one row a user, offline and online. True: one row for each moment at which a user's
        raw features changed, offline only (training sets read them point-in-time).
    force : bool
        Write also when the same run was committed before (the online store was lost).
    dry_run : bool
        Count rows and return the plan; writes nothing.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    RunReport

    Raises
    ------
    DataFault
        The space's view or a raw view is not applied, or raw features are not built.
    MalformedInput, SpaceMismatch
        A raw row does not fit the encoder.
    VerificationFailed
        A store answers other rows than were written.

    Notes
    -----
    Safe to repeat. A committed run with the same inputs is a no-op. After a crash the run resumes:
    encoded partitions are kept in a staging folder, the folder is published by one rename, online
    writes are idempotent, and the ledger row comes last.
    """
    began = time.perf_counter()
    name = stored_view(space.number)
    applied_view(store, name)
    source = open_source(
        store,
        settings,
        _schema(settings, space),
        end=end,
        start=start,
        created_since=_since(ledger, name, start, from_history=from_history),
        history=from_history,
    )
    key = _digest(f"{space.number} {space.encoder_version}", source)
    run_id = key[:16]
    if dry_run:
        rows = source.count()
        return RunReport(run_id, space.number, "planned", rows, source.partitions, 0, 0.0)
    run = ledger.begin_run(run_id, name, key, _plan(source), space=space.number)
    if run.state == "committed" and not force:
        _log.info("run %s of space %s is committed already", run_id, space.number)
        return _report(run_id, space, "unchanged", run.counts, source.partitions, began)
    source.created_since = _planned_since(run)
    with _recorded(ledger, run_id):
        view_folder = settings.offline_dir / name
        published = view_folder / f"run-{run_id}"
        if not published.exists():
            staging = settings.offline_dir / "_staging" / run_id
            _stage(source, space, settings, staging, progress=progress)
            view_folder.mkdir(parents=True, exist_ok=True)
            os.replace(staging, published)
        rows = verify_offline(published, source.count(), space)
        online_rows = 0
        if not from_history:
            online_rows = _push(store, space, published, rows, progress=progress)
            verify_online(store, name, published)
    counts = {"rows": rows, "online_rows": online_rows}
    ledger.commit_run(run_id, counts)
    report = _report(run_id, space, "committed", counts, source.partitions, began)
    _log.info("run %s space %s: %s", run_id, space.number, report)
    return report


def materialize_view(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    name: str,
    *,
    end: datetime,
    start: datetime | None = None,
    force: bool = False,
    progress: bool = True,
) -> int:
    """Write the newest rows of a stored raw view online, as the on-demand views need them.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    name : str
        A feature view with one join key and Parquet files.
    end : datetime
        Rows with an event time before it are seen.
    start : datetime or None
        Only entities with a row in ``[start, end)``, or with a row that was written since the last
        run of this view began (it came late). None: all entities.
    force : bool
        Write also when the same run was committed before (the online store was lost).
    progress : bool

    Returns
    -------
    int
        Rows that the run wrote, now or when it was committed. Safe to repeat.

    Raises
    ------
    DataFault
        The view is not applied, or has no Parquet files, or several join keys.
    """
    (view,) = resolve_views(store, [name])
    since = _since(ledger, name, start)
    source = _source(settings, [view], end=end, start=start, created_since=since)
    key = _digest(name, source)
    run = ledger.begin_run(key[:16], name, key, _plan(source))
    if run.state == "committed" and not force:
        return int(run.counts["online_rows"])
    source.created_since = _planned_since(run)
    with _recorded(ledger, run.run_id):
        total = source.count()
        with tqdm(total=total, desc=f"online {name}", unit="row", disable=not progress) as bar:
            rows = write_online(store, name, _raw_batches(source, view), bar.update)
    ledger.commit_run(run.run_id, {"online_rows": rows})
    return rows


def open_source(
    store: FeatureStore,
    settings: RepoSettings,
    schema: FeatureSchema,
    *,
    end: datetime,
    start: datetime | None = None,
    created_since: datetime | None = None,
    history: bool = False,
) -> RawSource:
    """Return the point-in-time source of the raw views that a schema names."""
    names = tuple(dict.fromkeys(column.split("__")[0] for column in schema.columns))
    return _source(
        settings,
        resolve_views(store, names),
        end=end,
        start=start,
        created_since=created_since,
        history=history,
    )


def _schema(settings: RepoSettings, space: Space) -> FeatureSchema:
    return load_encoder(settings.artifacts_url, space.encoder_version).preprocessor.schema


def _source(
    settings: RepoSettings,
    views: list[RawView],
    *,
    end: datetime,
    start: datetime | None = None,
    created_since: datetime | None = None,
    history: bool = False,
) -> RawSource:
    return RawSource(
        views,
        end=end,
        start=start,
        created_since=created_since,
        history=history,
        memory_limit_mb=settings.file.memory_limit_mb,
        spill=settings.data_dir / "spill",
    )


def _digest(what: str, source: RawSource) -> str:
    """Return a digest that is equal only for runs that would write the same rows."""
    return hashlib.sha256(json.dumps([what, source.fingerprint]).encode()).hexdigest()


def _since(
    ledger: Ledger, view: str, start: datetime | None, *, from_history: bool = False
) -> datetime | None:
    """Return from when on a written row is new to a run over a range; None: no range."""
    return None if start is None else ledger.last_start(view, from_history=from_history)


def _planned_since(run: Run) -> datetime | None:
    """Return it as the run was begun: one that resumes or is forced must see the same rows."""
    since = run.plan["created_since"]
    return None if since is None else datetime.fromisoformat(since)


def _plan(source: RawSource) -> dict[str, Any]:
    """Return what a run is asked to do, for the ledger."""
    return {
        "start": None if source.start is None else source.start.isoformat(),
        "end": source.end.isoformat(),
        "created_since": (
            None if source.created_since is None else source.created_since.isoformat()
        ),
        "from_history": source.history,
        "partitions": source.partitions,
    }


@contextmanager
def _recorded(ledger: Ledger, run_id: str) -> Iterator[None]:
    """Record in the ledger why a job failed; its outermost edge, so the error goes on."""
    try:
        yield
    except BaseException as exc:
        ledger.fail_run(run_id, f"{type(exc).__name__}: {exc}")
        raise


def _stage(
    source: RawSource, space: Space, settings: RepoSettings, staging: Path, *, progress: bool
) -> None:
    """Encode every partition that is not staged yet, each into a file of its own."""
    staging.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=source.count(), desc=f"encode space {space.number}", unit="row", disable=not progress
    ) as bar:
        for partition in range(source.partitions):
            path = staging / f"part-{partition:05d}.parquet"
            if path.exists():
                bar.update(pq.read_metadata(path).num_rows)
                continue
            temporary = path.with_suffix(".parquet.tmp")
            writer: pq.ParquetWriter | None = None
            for batch in source.batches(partition, batch_rows=_ROW_GROUP):
                rows = encode_rows(batch, space, settings.artifacts_url)
                if writer is None:
                    writer = pq.ParquetWriter(temporary, rows.schema, compression="zstd")
                writer.write_batch(rows, row_group_size=_ROW_GROUP)
                bar.update(rows.num_rows)
            if writer is not None:
                writer.close()
                os.replace(temporary, path)


def _push(store: FeatureStore, space: Space, published: Path, rows: int, *, progress: bool) -> int:
    with tqdm(
        total=rows, desc=f"online space {space.number}", unit="row", disable=not progress
    ) as bar:
        return write_online(
            store, stored_view(space.number), _published_batches(published), bar.update
        )


def _published_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    for path in parquet_files(folder):
        yield from pq.ParquetFile(path).iter_batches(_ONLINE_ROWS)


def _raw_batches(source: RawSource, view: RawView) -> Iterator[pa.RecordBatch]:
    """Yield the newest row of each user under the view's own column names."""
    prefix = f"{view.name}__"
    for partition in range(source.partitions):
        for batch in source.batches(partition, batch_rows=_ONLINE_ROWS):
            created = pa.array(
                [datetime.now(timezone.utc)] * batch.num_rows, pa.timestamp("us", tz="UTC")
            )
            names = [name.removeprefix(prefix) for name in batch.schema.names]
            yield batch.rename_columns(names).append_column("created_timestamp", created)


def _report(
    run_id: str,
    space: Space,
    outcome: str,
    counts: Mapping[str, Any],
    partitions: int,
    began: float,
) -> RunReport:
    seconds = round(time.perf_counter() - began, 3)
    return RunReport(
        run_id, space.number, outcome, counts["rows"], partitions, counts["online_rows"], seconds
    )
