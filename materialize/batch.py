"""The batch job: raw features -> encode -> offline -> online -> verify -> ledger last."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from encoder.schema import FeatureSchema
from materialize.config import RepoSettings
from materialize.ledger import Bridge, Ledger, Space
from materialize.raw_pass import RawPass
from materialize.source import RawSource, RawView, applied_view, resolve_views
from materialize.stores.compact import compact_form
from materialize.view_run import RunReport, ViewRun
from transforms.names import bridged_view, stored_view
from transforms.runtime import load_encoder

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["materialize_space", "materialize_spaces", "materialize_view", "open_source"]


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
    """Materialise one space over ``[start, end)``; see `materialize_spaces`."""
    (report,) = materialize_spaces(
        store,
        settings,
        ledger,
        [space],
        end=end,
        start=start,
        from_history=from_history,
        force=force,
        dry_run=dry_run,
        progress=progress,
    )
    return report


def materialize_spaces(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    spaces: Sequence[Space],
    bridges: Sequence[Bridge] = (),
    *,
    end: datetime,
    start: datetime | None = None,
    from_history: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> list[RunReport]:
    """Materialise spaces, and spaces through bridges, over ``[start, end)``.

    Spaces whose encoders read the same raw views share one pass over these.

    Parameters
    ----------
    store : FeatureStore
        With the raw views and the views of spaces and bridges applied.
    settings : RepoSettings
        ``materialize:`` says on how many workers, in what partitions and how fast.
    ledger : Ledger
    spaces : sequence of Space
    bridges : sequence of Bridge
    end : datetime
        Raw rows with an event time before it are seen.
    start : datetime or None
        Only users with a raw row in ``[start, end)``, or with one that was written since the last
        run of one of the views began (it came late). None: all users.
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
    list of RunReport
        One a space, then one a bridge.

    Raises
    ------
    DataFault
        A space's view or a raw view is not applied, or raw features are not built.
    MalformedInput, SpaceMismatch
        A raw row does not fit an encoder.
    VerificationFailed
        A store answers other rows than were written.
    LedgerConflict
        Another process works on the same run.

    Notes
    -----
    Safe to repeat. A committed run with the same inputs is a no-op. After a crash each run resumes:
    the ledger knows which partitions are in every store, encoded ones are kept in a staging folder
    that one rename publishes, online writes are idempotent, and the run's commit comes last.
    """
    wanted: list[tuple[str, Space, Bridge | None]] = [
        (stored_view(space.number), space, None) for space in spaces
    ]
    for bridge in bridges:
        view = bridged_view(bridge.target, bridge.source)
        wanted.append((view, ledger.space(bridge.source), bridge))
    forms = {view: compact_form(applied_view(store, view)) for view, _, _ in wanted}
    schemas = {space.number: _schema(settings, space) for _, space, _ in wanted}
    reports: dict[str, RunReport] = {}
    for names in dict.fromkeys(_raw_views(schemas[space.number]) for _, space, _ in wanted):
        group = [one for one in wanted if _raw_views(schemas[one[1].number]) == names]
        source = _source(
            settings,
            resolve_views(store, names),
            end=end,
            start=start,
            created_since=_since(ledger, [v for v, _, _ in group], start, history=from_history),
            history=from_history,
        )
        fingerprint = source.fingerprint
        runs = [
            ViewRun(
                store,
                settings,
                ledger,
                view,
                [_encoded_as(space, bridge), fingerprint],
                space=space,
                bridge=bridge,
                vectors=forms[view],
                online=not from_history,
            )
            for view, space, bridge in group
        ]
        raw_pass = RawPass(store, settings, ledger, source, runs)
        done = raw_pass.plan() if dry_run else raw_pass.execute(force=force, progress=progress)
        reports |= {report.view: report for report in done}
    return [reports[view] for view, _, _ in wanted]


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
    since = _since(ledger, [name], start)
    source = _source(settings, [view], end=end, start=start, created_since=since)
    run = ViewRun(store, settings, ledger, name, [name, source.fingerprint])
    raw_pass = RawPass(store, settings, ledger, source, [run])
    (report,) = raw_pass.plan() if dry_run else raw_pass.execute(force=force, progress=progress)
    return report


def open_source(
    store: FeatureStore,
    settings: RepoSettings,
    schema: FeatureSchema,
    *,
    end: datetime,
    start: datetime | None = None,
    history: bool = False,
) -> RawSource:
    """Return the point-in-time source of the raw views that a schema names."""
    return _source(
        settings, resolve_views(store, _raw_views(schema)), end=end, start=start, history=history
    )


def _schema(settings: RepoSettings, space: Space) -> FeatureSchema:
    return load_encoder(settings.artifacts_url, space.encoder_version).preprocessor.schema


def _raw_views(schema: FeatureSchema) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column.split("__")[0] for column in schema.columns))


def _encoded_as(space: Space, bridge: Bridge | None) -> str:
    """Return what decides, together with the raw rows, which rows are written."""
    through = "" if bridge is None else f" {bridge.version}"
    return f"{space.number} {space.encoder_version}{through}"


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
    ledger: Ledger, views: Sequence[str], start: datetime | None, *, history: bool = False
) -> datetime | None:
    """Return from when on a written row is new to a run over a range; None: no range.

    Views that share a pass take the earliest: what one of them has seen already is written again.
    """
    if start is None:
        return None
    began = [ledger.last_start(view, from_history=history) for view in views]
    return min((moment for moment in began if moment is not None), default=None)
