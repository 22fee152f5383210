"""The batch job: raw features -> encode -> offline -> online -> verify -> ledger last."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from encoder.schema import FeatureSchema
from materialize.config import RepoSettings
from materialize.ledger import Ledger, Space
from materialize.source import RawSource, RawView, applied_view, resolve_views
from materialize.view_run import RunReport, ViewRun
from transforms.names import stored_view
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["materialize_space", "materialize_view", "open_source"]


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
        ``materialize:`` says on how many workers, in what partitions and how fast.
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
        Show bars on stderr.

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
    LedgerConflict
        Another process works on the same run.

    Notes
    -----
    Safe to repeat. A committed run with the same inputs is a no-op. After a crash the run resumes:
    the ledger knows which partitions are in every store, encoded ones are kept in a staging folder
    that one rename publishes, online writes are idempotent, and the run's commit comes last.
    """
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
    what = f"{space.number} {space.encoder_version}"
    run = ViewRun(store, settings, ledger, name, source, what, space=space, online=not from_history)
    if dry_run:
        return run.plan()
    return run.execute(force=force, progress=progress)


def materialize_view(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    name: str,
    *,
    end: datetime,
    start: datetime | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> RunReport:
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
    dry_run : bool
        Count rows and return the plan; writes nothing.
    progress : bool

    Returns
    -------
    RunReport
        Safe to repeat: of a committed run, its counts.

    Raises
    ------
    DataFault
        The view is not applied, or has no Parquet files, or several join keys.
    LedgerConflict
        Another process works on the same run.
    """
    (view,) = resolve_views(store, [name])
    since = _since(ledger, name, start)
    source = _source(settings, [view], end=end, start=start, created_since=since)
    run = ViewRun(store, settings, ledger, name, source, name)
    if dry_run:
        return run.plan()
    return run.execute(force=force, progress=progress)


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


def _since(
    ledger: Ledger, view: str, start: datetime | None, *, from_history: bool = False
) -> datetime | None:
    """Return from when on a written row is new to a run over a range; None: no range."""
    return None if start is None else ledger.last_start(view, from_history=from_history)
