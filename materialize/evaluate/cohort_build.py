"""Builds a cohort from a repository's clean tables and item vectors, once; repeats load it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from encoder.columns import raw_batch
from encoder.errors import DataFault
from encoder.modality import ModalityEncoders
from encoder.preprocessing import Preprocessor
from encoder.row_summary import RowSummary
from encoder.schema import FeatureSchema
from materialize.config import RepoSettings
from materialize.evaluate.cohort import Catalogue, Cohort
from materialize.evaluate.cohort_events import CohortEvents, daily_counts, read_past
from materialize.evaluate.cohort_files import load_cohort, save_cohort
from materialize.evaluate.item_kinds import item_kinds
from materialize.evaluate.moments import Population, choose_rows, open_events
from materialize.features import current_data_fingerprint, current_modalities
from transforms.clean import CleanTables
from transforms.engine import DAY_US
from transforms.layout import ONBOARDING, RawLayout, column
from transforms.texts import texts_schema

__all__ = ["build_cohort"]

_log = logging.getLogger(__name__)

_FORMAT = 5
_ESTABLISHED_FROM, _COLD_UP_TO = 20, 10
_ROWS = 4096


def build_cohort(
    settings: RepoSettings,
    *,
    max_rows: int = 20_000,
    seed: int = 0,
    horizon_days: int | None = None,
    population: Population = "returning",
    progress: bool = True,
) -> Cohort:
    """Return the cohort of a repository's data set; kept under ``data_dir/evaluations``.

    Parameters
    ----------
    settings : RepoSettings
        With validated data and built features.
    max_rows : int
        Users are taken whole, in the order of a stable hash, while their rows fit: the sample of a
        data set that grows stays.
    seed : int
        Chooses the label times of users with more than three.
    horizon_days : int, optional
        Default: ``evaluation.horizon_days``.
    population : {"returning", "known"}
        ``returning``: label rows and newcomers. ``known``: every user with an event in the longest
        window before one moment, at that moment, see ``Cohort.known_users``.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    ValueError
        ``max_rows`` or ``horizon_days`` below 1.
    DataFault
        No validated data or features, features of other data, a horizon that does not fit into the
        data, or no row.

    Notes
    -----
    Side effects: writes ``cohort-<fingerprint>`` in a temporary folder, then renames it; safe to
    kill, to repeat and to run twice at once.

    Memory: DuckDB's limit (``memory_limit_mb``) and what the sample needs, whatever the number of
    users and events; item vectors and item counts are held for all items. 600 million users cost
    passes over the events' user, time and item columns (moments, item counts, the sample's events),
    and no row of a user outside the sample leaves DuckDB.
    """
    if max_rows < 1 or (horizon_days is not None and horizon_days < 1):
        raise ValueError(
            f"max_rows {max_rows} and horizon_days {horizon_days} given, at least 1 expected."
        )
    dataset, clean = settings.dataset, CleanTables(settings.data_dir)
    encoders = current_modalities(settings.features_dir)
    data = clean.fingerprint()
    built_from = current_data_fingerprint(settings.features_dir)
    if built_from != data:
        raise DataFault(
            f"Raw features were built from data {built_from}, the clean tables are {data}. "
            "Run `palate features build` first."
        )
    layout = RawLayout.of(dataset, {m.name: m.dim for m in encoders.modalities})
    schema = layout.schema(encoders.version)
    texts = None if layout.texts is None else texts_schema(layout, encoders)
    horizon = horizon_days or dataset.evaluation.horizon_days
    evaluation = dataset.evaluation.model_dump(mode="json", exclude={"horizon_days", "max_targets"})
    wanted = [_FORMAT, data, schema.to_dict(), evaluation, horizon, max_rows, seed, population]
    wanted += [] if texts is None else [texts.to_dict()]
    fingerprint = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    folder = settings.data_dir / "evaluations" / f"cohort-{fingerprint}"

    def known_users(days: int) -> Cohort:
        return build_cohort(
            settings,
            max_rows=max_rows,
            seed=seed,
            horizon_days=days,
            population="known",
            progress=progress,
        )

    if not folder.exists():
        made = _Builder(settings, clean, encoders, layout, schema, texts, horizon, seed, progress)
        save_cohort(made.build(fingerprint, population, max_rows), folder)
    # What was just made is read too: a repeat sees the same types and the same order.
    return replace(load_cohort(folder, encoders), _known=known_users)


class _Builder:
    """One build; holds what its steps share."""

    def __init__(
        self,
        settings: RepoSettings,
        clean: CleanTables,
        encoders: ModalityEncoders,
        layout: RawLayout,
        schema: FeatureSchema,
        texts: FeatureSchema | None,
        horizon_days: int,
        seed: int,
        progress: bool,
    ) -> None:
        self.settings, self.clean, self.encoders = settings, clean, encoders
        self.layout, self.schema, self.texts = layout, schema, texts
        self.horizon_days = horizon_days
        self.seed, self.progress = seed, progress

    def build(self, fingerprint: str, population: Population, max_rows: int) -> Cohort:
        began = time.perf_counter()
        evaluation = self.settings.dataset.evaluation
        with open_events(
            self.settings.dataset,
            self.clean,
            memory_limit_mb=self.settings.file.memory_limit_mb,
            seed=self.seed,
            horizon_days=self.horizon_days,
        ) as db:
            rows = choose_rows(db, evaluation.label_times, population, max_rows)
            if not rows.num_rows:
                raise DataFault(
                    f"evaluation.cutoff {evaluation.cutoff.isoformat()}, population "
                    f"{population!r}: no user has events both before and after a moment. "
                    "Choose another cut-off."
                )
            daily = daily_counts(db, self.encoders)
            ((judged_from,),) = db.execute("SELECT getvariable('test_from')").fetchall()
            later = int(judged_from - _instant(evaluation.cutoff).astype(np.int64)) // DAY_US
            popularity = np.asarray(daily[: daily.shape[0] - later].sum(axis=0), np.float64)
            known = np.flatnonzero(popularity > 0)
            kinds = item_kinds(db, self.settings.dataset, self.clean, self.encoders, popularity)
            events = CohortEvents(db, rows, self.encoders, self.layout, progress=self.progress)
            found = events.read(kinds.matrix, known)
            views = events.user_views(self.clean)
            past = read_past(db, self.encoders, known)
            ((data_end,),) = db.execute("SELECT getvariable('data_end')").fetchall()
        folded = {name: found.folded[name] for name in found.folded.column_names}
        names = [*self.schema.columns, *(self.texts.columns if self.texts else ())]
        raw = pa.table(folded | views).select(names)
        summary, profile = _summary(self.schema, raw)
        user_id = rows["user_id"].to_numpy()
        as_of = summary.as_of.astype("datetime64[us]")
        as_of[summary.as_of == 0] = np.datetime64("NaT")
        cohort = Cohort(
            name=self.settings.dataset.name,
            cutoff=_instant(evaluation.cutoff),
            judged_from=np.datetime64(int(judged_from), "us"),
            vectors_cutoff=_instant(datetime.fromisoformat(self.encoders.cutoff)),
            data_end=np.datetime64(int(data_end), "us"),
            horizon_days=self.horizon_days,
            fingerprint=fingerprint,
            user_id=user_id,
            moment=rows["us"].to_numpy().astype("datetime64[us]"),
            training=rows["training"].to_numpy(),
            raw=raw,
            schema=self.schema,
            texts=self.texts,
            as_of=as_of,
            n_events=summary.n_events,
            status=summary.status,
            groups=_groups(rows["newcomer"].to_numpy(), summary, raw),
            profile=profile,
            history=found.history,
            future=found.future,
            history_tags=found.history_tags,
            future_tags=found.future_tags,
            tag_names=kinds.names,
            future_events=found.future_events,
            future_outside=found.future_outside,
            catalogue=Catalogue(
                item_ids=self.encoders.item_ids.take(pa.array(known)),
                popularity=popularity[known],
                daily=sparse.csr_array(daily[:, known]),
                tags=kinds.tags,
                vectors={m.name: m.vectors[known] for m in self.encoders.modalities},
                clusters={m.name: m.cluster_of[known] for m in self.encoders.modalities},
            ),
            past_events=past.events,
            past=past.matrix,
            past_users=past.users,
            sequences=past.sequences,
            history_sequences=found.sequences,
        )
        _log.info(
            "cohort %s: %d rows of %d users, %d items, %.1f s",
            *(fingerprint, len(cohort), len(pc.unique(rows["user_id"]))),
            *(len(cohort.catalogue), time.perf_counter() - began),
        )
        return cohort


def _instant(moment: datetime) -> np.datetime64:
    return np.datetime64(round(moment.timestamp() * 1_000_000), "us")


def _summary(
    schema: FeatureSchema, raw: pa.Table
) -> tuple[RowSummary, dict[str, npt.NDArray[np.object_]]]:
    """Return age, events and status by the encoder's rule, and the category blocks' texts."""
    categories = [b for b in schema.blocks if b.kind == "category"]
    width = sum(b.width for b in schema.blocks)
    # Values do not matter to a summary: no state was learned, and none is used.
    plain = Preprocessor(
        schema,
        np.zeros(width, np.float32),
        np.ones(width, np.float32),
        {b.name: () for b in categories},
        {b.name: 1.0 for b in categories},
    )
    summaries: list[RowSummary] = []
    texts: dict[str, list[npt.NDArray[np.object_]]] = {b.name: [] for b in categories}
    for start in range(0, raw.num_rows, _ROWS):
        batch = raw_batch(raw.slice(start, _ROWS), schema)
        summaries.append(plain.summary(batch))
        for block in categories:
            values: Any = batch.columns[block.column].values
            texts[block.name].append(values[:, block.offset])
    parts = zip(*summaries, strict=True)
    return RowSummary(*map(np.concatenate, parts)), {
        name: np.concatenate(found) for name, found in texts.items()
    }


def _groups(
    newcomer: npt.NDArray[np.bool_], summary: RowSummary, raw: pa.Table
) -> dict[str, npt.NDArray[np.bool_]]:
    groups = {
        "all": np.ones(len(newcomer), np.bool_),
        "established": (summary.n_events >= _ESTABLISHED_FROM) & ~newcomer,
        "cold": (summary.n_events <= _COLD_UP_TO) | newcomer,
        "newcomer": newcomer,
    }
    picks = column(ONBOARDING, "pooled")
    if picks in raw.column_names:
        picked = raw[picks].is_valid().to_numpy()
        groups["newcomer_onboarded"] = newcomer & picked
        groups["newcomer_skipped"] = newcomer & ~picked
    return {name: members for name, members in groups.items() if members.any()}
