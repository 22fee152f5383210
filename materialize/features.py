"""Job: clean tables -> modality encoders -> Parquet of the raw feature views."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from materialize.fitted_items import digest, fitted_encoders, modality_folder
from materialize.meter import StepMeter
from materialize.publish import Publication
from materialize.staging import Staging
from transforms.buckets import DayBuckets, DaySurvey, survey_days
from transforms.clean import CleanTables
from transforms.dataset import Dataset, as_utc_day
from transforms.engine import bounded_connection
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE, TEXTS, RawLayout
from transforms.names import ITEM_VECTORS
from transforms.tables import ViewTables
from transforms.texts import text_tables
from transforms.windows import Emission, activity_tables, bytes_per_day

__all__ = [
    "FeaturesReport",
    "build_features",
    "current_data_fingerprint",
    "current_modalities",
    "current_versions",
]

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass
class FeaturesReport:
    """What a build did.

    Attributes
    ----------
    status : str
        ``built``, ``up to date`` (nothing written) or ``planned`` (dry run).
    modality_version : str or None
        Version of the modality encoders; None in a dry run that would have to fit them.
    snapshots : list of str
        Dates (00:00 UTC) that this build added.
    rows : dict of str to int
        Rows written, by view.
    events : int
        Events in the clean tables.
    events_per_second : float
        Over the whole build; 0 when nothing was built.
    steps : list of dict
        Name, seconds and peak memory (MB) of each step.
    """

    status: str
    modality_version: str | None = None
    snapshots: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    events: int = 0
    events_per_second: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; of the snapshots, which may be thousands, number and ends."""
        days = self.snapshots
        ends = {"first": days[0], "last": days[-1]} if days else {}
        return asdict(self) | {"snapshots": {"added": len(days), **ends}}


def current_modalities(features_dir: Path) -> ModalityEncoders:
    """Return the modality encoders of the published raw features.

    Raises
    ------
    DataFault
        No raw features were built.
    ArtifactError
        The encoders' files are damaged.
    """
    version, *_ = current_versions(features_dir)
    return ModalityEncoders.load(modality_folder(features_dir, version))


def current_versions(features_dir: Path) -> tuple[str, ...]:
    """Return what the published raw features were made with: item vectors, and texts if any.

    Raises
    ------
    DataFault
        No raw features were built.
    """
    state = Publication(features_dir).state()
    if state is None:
        raise DataFault(f"{features_dir} holds no raw features. Run `palate features build` first.")
    texts = state.get("texts_version")
    return (state["modality_version"], *([] if texts is None else [texts]))


def current_data_fingerprint(features_dir: Path) -> str | None:
    """Return the fingerprint of the clean tables that the published raw features were built from.

    None: nothing was built, or by a release that did not record it.
    """
    found: str | None = (Publication(features_dir).state() or {}).get("clean")
    return found


def build_features(
    dataset: Dataset,
    clean: CleanTables,
    out: Path,
    *,
    until: datetime | None = None,
    memory_limit_mb: int = 1024,
    seed: int = 0,
    progress: bool = True,
    dry_run: bool = False,
) -> FeaturesReport:
    """Build or extend the raw feature views.

    Parameters
    ----------
    dataset : Dataset
    clean : CleanTables
    out : Path
        Folder of the views; made when missing.
    until : datetime, optional
        Last snapshot, 00:00 UTC of a day; default: the day after the last event.
    memory_limit_mb : int
        Bounds DuckDB's buffers and the partitions of users, whatever the number of users. Item
        vectors and the interpreter come on top.
    seed : int
    progress : bool
        Bars on standard error.
    dry_run : bool
        Report what would be done; writes no view.

    Returns
    -------
    FeaturesReport

    Raises
    ------
    DataFault
        No clean tables, no event before the cut-off, or a fault in the items' vectors.
    ValueError
        ``until`` is not 00:00 UTC of a day.

    Notes
    -----
    Side effects: writes under ``out``. Safe to kill and to repeat: the earlier files stay as they
    are until the new ones are complete; a repeated call with the same inputs writes nothing.

    New days add rows for new snapshots. Events that arrive late for a day already used add rows,
    with a later created timestamp, for the snapshots whose windows hold that day; rows of users who
    lost every event of a day stay. A change of the configuration, or of events before the cut-off
    (which the modality encoders are fitted on), replaces everything.
    """
    if until is not None and (until.tzinfo is None or until.timestamp() % 86_400):
        raise ValueError(f"until {until.isoformat()} given, 00:00 UTC of a day expected.")
    clean.require()
    publication = Publication(out)
    if not dry_run:
        out.mkdir(parents=True, exist_ok=True)
        publication.recover()
    state = publication.state()
    config = digest(_config(dataset, seed))
    snapshots = dataset.snapshots.model_dump(mode="json")
    request = digest([config, clean.fingerprint(), snapshots, until and until.isoformat()])
    if state is not None and state["request"] == request:
        logger.info("raw features are up to date, modality version %s", state["modality_version"])
        return FeaturesReport("up to date", state["modality_version"], events=state["events"])
    build = _Build(dataset, clean, out, memory_limit_mb, seed, progress)
    return build.plan(state, until) if dry_run else build.run(state, config, request, until)


class _Build:
    """One build; holds what its steps share."""

    def __init__(
        self,
        dataset: Dataset,
        clean: CleanTables,
        out: Path,
        memory_limit_mb: int,
        seed: int,
        progress: bool,
    ) -> None:
        self.dataset, self.clean, self.out = dataset, clean, out
        self.memory_limit_mb, self.seed, self.progress = memory_limit_mb, seed, progress
        self.publication = Publication(out)
        self.meter = StepMeter()
        self.rows: dict[str, int] = {}

    def run(
        self, state: dict[str, Any] | None, config: str, request: str, until: datetime | None
    ) -> FeaturesReport:
        began, fingerprint = time.perf_counter(), self.clean.fingerprint()
        with self.meter.step("modality encoders"):
            encoders = fitted_encoders(
                self.dataset,
                self.clean,
                self.out,
                memory_limit_mb=self.memory_limit_mb // 2,
                seed=self.seed,
            )
        layout = RawLayout.of(self.dataset, {m.name: m.dim for m in encoders.modalities})
        buckets = DayBuckets(
            self.out / "buckets",
            self.clean,
            memory_limit_mb=self.memory_limit_mb,
            bytes_per_day=bytes_per_day(layout),
            events=layout.texts is not None,
        )
        with self.meter.step("day buckets"):
            found = buckets.update()
        versions: dict[str, str | None] = {
            "modality_version": encoders.version,
            "texts_version": encoders.texts_version,
        }
        base = state if state and _extends(state, {**versions, "config": config}) else None
        done = [int(d) for d in base["snapshots"]] if base else []
        added = [d for d in _snapshots(self.dataset, found, until) if d not in done]
        if base and added and added[0] < done[-1]:
            # A snapshot between two older ones would split a range that rows were already made for.
            base, added = None, sorted({*done, *added})
            done = []
        late = found.stale_in(base["day_prints"]) if base else set()
        emission = Emission(
            np.array([*done, *added], np.int64),
            len(done),
            tuple(sorted(d for d in late if d < done[-1])),
        )
        work = digest([request, *versions.values(), emission.first, buckets.partitions])
        staging = Staging(self.publication, work, self.clean, layout, replace=base is None)
        with self.meter.step(ACTIVITY):
            self._activity(staging, buckets, encoders, layout, emission)
        if layout.texts is not None:
            with self.meter.step(TEXTS):
                self._texts(staging, buckets, encoders, layout, emission)
        with self.meter.step("profiles and items"):
            self._others(staging, encoders, layout, known=base is not None)
        with self.meter.step("publish"):
            new_state = {
                "request": request,
                "clean": fingerprint,
                "config": config,
                **versions,
                "snapshots": [*done, *added],
                "day_prints": found.prints,
                "events": found.n_events,
            }
            self.publication.commit(work, new_state, replace=base is None)
        seconds = time.perf_counter() - began
        logger.info(
            "raw features: rows %s, modality %s, %.1f s", self.rows, encoders.version, seconds
        )
        return FeaturesReport(
            "built",
            encoders.version,
            [_date(d) for d in added],
            self.rows,
            found.n_events,
            round(found.n_events / seconds, 1),
            self.meter.to_list(),
        )

    def plan(self, state: dict[str, Any] | None, until: datetime | None) -> FeaturesReport:
        """Return the snapshots that a run would add, from the events' days alone."""
        found = survey_days(self.clean, self.memory_limit_mb // 2)  # its days alone are looked at
        done = set(state["snapshots"]) if state else set()
        added = [_date(d) for d in _snapshots(self.dataset, found, until) if d not in done]
        version = state["modality_version"] if state else None
        return FeaturesReport("planned", version, added, events=found.n_events)

    def _activity(
        self,
        staging: Staging,
        buckets: DayBuckets,
        encoders: ModalityEncoders,
        layout: RawLayout,
        emission: Emission,
    ) -> None:
        rows = 0
        first_day = emission.first_day(max(layout.windows))
        for partition in self._partitions(buckets, "raw features"):
            data = buckets.load(partition, first_day)
            tables = (
                activity_tables(data, encoders, layout, emission) if data is not None else iter(())
            )
            rows += staging.add(ACTIVITY, f"{partition:05d}", tables, keep_empty=partition == 0)
        self.rows[ACTIVITY] = rows

    def _texts(
        self,
        staging: Staging,
        buckets: DayBuckets,
        encoders: ModalityEncoders,
        layout: RawLayout,
        emission: Emission,
    ) -> None:
        """Add texts beside the activity rows that are staged, of the same users and moments."""
        rows = 0
        first_day = emission.first_day(max(layout.windows))
        for partition in self._partitions(buckets, "texts"):
            part = f"{partition:05d}"
            beside = staging.rows_of(ACTIVITY, part)
            events = buckets.load_events(partition, first_day)
            tables = iter(()) if events is None else text_tables(beside, events, encoders, layout)
            rows += staging.add(TEXTS, part, tables, keep_empty=partition == 0)
        self.rows[TEXTS] = rows

    def _partitions(self, buckets: DayBuckets, what: str) -> Iterable[int]:
        return tqdm(
            range(buckets.partitions), desc=what, unit="partition", disable=not self.progress
        )

    def _others(
        self, staging: Staging, encoders: ModalityEncoders, layout: RawLayout, *, known: bool
    ) -> None:
        with bounded_connection(self.memory_limit_mb // 2, self.out) as connection:
            tables = ViewTables(connection, self.clean, layout, self.out if known else None)
            cutoff = self.dataset.item_vectors_cutoff
            sources = {ITEM_VECTORS: tables.item_vectors(encoders, cutoff)}
            if PROFILE in layout.views:
                sources[PROFILE] = tables.profiles()
            if ONBOARDING in layout.views:
                sources[ONBOARDING] = tables.onboarding(encoders)
            for view, source in sources.items():
                self.rows[view] = staging.add(view, "00000", source, keep_empty=True)


def _extends(state: dict[str, Any], now: dict[str, str | None]) -> bool:
    """Return whether rows made now can stand beside those that the state tells of."""
    return all(state.get(name) == value for name, value in now.items())


def _snapshots(dataset: Dataset, found: DaySurvey, until: datetime | None) -> list[int]:
    """Return the days at whose 00:00 UTC history is cut, ascending."""
    cutoff, every = as_utc_day(dataset.evaluation.cutoff), dataset.snapshots.every_days
    first, end = found.days[0] + 1, found.days[-1] + 1
    if dataset.snapshots.first is not None:
        first = as_utc_day(dataset.snapshots.first)
    if until is not None:
        end = as_utc_day(until)
    # The grid runs through the cut-off, in both directions.
    days = set(range(cutoff - (cutoff - first) // every * every, end + 1, every))
    return sorted({*days, end} | ({cutoff} if cutoff <= end else set()))


def _config(dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return what decides the numbers in a row, besides the data."""
    users, items, until = dataset.users, dataset.items, dataset.item_vectors_until
    # Named only where it is given, so that what was built before it existed stays up to date.
    own: dict[str, Any] = {} if until is None else {"item_vectors_until": until.isoformat()}
    own |= {} if dataset.texts is None else {"texts": dataset.texts.model_dump()}
    return own | {
        "format": _FORMAT,
        "seed": seed,
        "windows": dataset.windows,
        "modalities": [(n, m.model_dump()) for n, m in dataset.modalities.items()],
        "cutoff": dataset.evaluation.cutoff.isoformat(),
        "context": dataset.events.context,
        "profile": [users.categories, users.numbers, users.onboarding] if users else [],
        "vectors": sorted(items.vectors) if items else [],
    }


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, tz=timezone.utc).date().isoformat()
