"""How far a space's newest run lies from the one before it: the same users, another day."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from encoder.alignment import cosines
from encoder.errors import DataFault, EmbeddingError, LedgerConflict
from encoder.metrics import bootstrap_mean
from encoder.two_sample import LEAST_USERS, two_sample_auc
from materialize.config import RepoSettings
from materialize.embedding_rows import embedding_matrix
from materialize.ledger import Ledger, Run, Space
from materialize.source import parquet_files
from materialize.stability import DRAW
from materialize.stores.append import reading
from materialize.view_run import run_folder
from transforms.engine import DAY_US, bounded_connection
from transforms.names import stored_view

__all__ = ["DriftReport", "after_run", "measure_drift"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftReport:
    """What was measured of a run.

    Attributes
    ----------
    space : int
    run_id : str
        In the ledger, the figures are this run's.
    figures : mapping
        JSON types. ``against`` (the earlier run), ``users`` and ``seed`` of the draw; ``cosine`` of
        a user's two vectors: its ``mean`` with an interval and its 5th percentile, ``p5``;
        ``two_sample_auc`` (`encoder.two_sample`) with an interval; ``as_of_gap_days``, between a
        user's two moments: ``median`` and ``max``; ``unchanged``, the share of users whose moment
        is the same; ``seconds``.
    """

    space: int
    run_id: str
    figures: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"space": self.space, "run_id": self.run_id, **self.figures}


def measure_drift(
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    *,
    users: int = 10_000,
    seed: int = 0,
    n_bootstrap: int = 500,
) -> DriftReport:
    """Compare a space's last two committed runs over all users, and record it with the newer one.

    Parameters
    ----------
    settings : RepoSettings
    ledger : Ledger
    space : Space
    users : int
        Users at most, of those that both runs have, drawn by a hash of id and ``seed``; memory
        holds their vectors and no others'.
    seed : int
        Of the draw and the resamples.
    n_bootstrap : int
        Resamples of each interval.

    Raises
    ------
    DataFault
        There are not two such runs, their files are gone, or too few users are in both.
    LedgerConflict
        The run is being repeated meanwhile.

    Notes
    -----
    Safe to repeat: the newer figures replace the older ones. Runs over a range (``--start``) and
    over history are left out: they have some users, or other moments.
    """
    runs = _whole_runs(ledger, space)
    if len(runs) < 2:
        raise DataFault(
            f"Space {space.number} has {len(runs)} committed run(s) over all users, two expected. "
            f"Run `palate materialize --space {space.number}` when raw features are newer."
        )
    return _measure(settings, ledger, space, runs[-2], runs[-1], users, seed, n_bootstrap)


def after_run(settings: RepoSettings, ledger: Ledger, space: Space) -> DriftReport | None:
    """Measure the drift of a space's newest run over all users, once.

    Does nothing for a first run, or when it is recorded already. What stops the measurement is
    logged and recorded with the run as ``not_measured``, not raised: the run is right without it.
    """
    runs = _whole_runs(ledger, space)
    if len(runs) < 2 or "drift" in runs[-1].counts:
        return None
    earlier, later = runs[-2:]
    try:
        return _measure(settings, ledger, space, earlier, later, seed=settings.file.seed)
    except (EmbeddingError, duckdb.Error, OSError) as exc:  # files that are gone or damaged
        reason = str(exc)
    _log.warning("run %s of space %s: no drift is measured: %s", later.run_id, space.number, reason)
    try:
        ledger.record_drift(later.run_id, {"against": earlier.run_id, "not_measured": reason})
    except LedgerConflict as exc:  # it is being repeated, and will be measured after that
        _log.warning("run %s: %s", later.run_id, exc)
    return None


def _whole_runs(ledger: Ledger, space: Space) -> list[Run]:
    """Return the committed runs that gave every user the newest row, in the order of commits."""
    view = stored_view(space.number)
    whole = [
        run
        for run in ledger.runs(space.number)
        if run.view == view
        and run.state == "committed"
        and run.finished_at is not None
        and run.plan.get("start") is None
        and not run.plan.get("from_history")
    ]
    return sorted(whole, key=lambda run: (run.finished_at, run.started_at))


def _measure(
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    earlier: Run,
    later: Run,
    users: int = 10_000,
    seed: int = 0,
    n_bootstrap: int = 500,
) -> DriftReport:
    began = time.perf_counter()
    rows = _read_pairs(settings, space, earlier, later, users, seed)
    before, after = (
        embedding_matrix(rows.column(name).combine_chunks()) for name in ("earlier", "later")
    )
    gap = rows.column("gap").to_numpy()
    cosine = cosines(before, after)
    how = {"n_resamples": n_bootstrap, "seed": seed}
    figures: dict[str, Any] = {
        "against": earlier.run_id,
        "users": len(gap),
        "seed": seed,
        "cosine": {
            "mean": bootstrap_mean(cosine, **how).to_dict(),
            "p5": float(np.percentile(cosine, 5)),
        },
        "two_sample_auc": two_sample_auc(before, after, **how).to_dict(),
        "as_of_gap_days": {
            "median": float(np.median(gap)) / DAY_US,
            "max": float(gap.max()) / DAY_US,
        },
        "unchanged": float((gap == 0).mean()),
        "seconds": round(time.perf_counter() - began, 3),
    }
    ledger.record_drift(later.run_id, figures)
    _log.info(
        "run %s of space %s against %s: %s users, cosine %.4f, two-sample AUC %.4f, %.1f s",
        *(later.run_id, space.number, earlier.run_id, len(gap)),
        *(figures["cosine"]["mean"]["value"], figures["two_sample_auc"]["value"]),
        figures["seconds"],
    )
    return DriftReport(space.number, later.run_id, figures)


def _read_pairs(
    settings: RepoSettings, space: Space, earlier: Run, later: Run, users: int, seed: int
) -> pa.Table:
    """Return ``earlier`` and ``later`` vectors, and ``gap`` (us), of users that both runs have."""
    view = stored_view(space.number)
    # Held: nothing retires the space meanwhile.
    with (
        reading(settings.offline_dir / view),
        bounded_connection(settings.file.memory_limit_mb) as db,
    ):
        for name, run in (("earlier_rows", earlier), ("later_rows", later)):
            paths = [str(p) for p in parquet_files(run_folder(settings, view, run.run_id))]
            if not paths:
                raise DataFault(
                    f"Run {run.run_id} of space {space.number} has no files any more, so it cannot "
                    "be compared. The space's next two runs can be."
                )
            db.read_parquet(paths, hive_partitioning=False).create_view(name)
        db.execute(DRAW)
        db.execute(_CHOSEN, [str(seed), users])
        rows = db.sql(_PAIRS).to_arrow_table()
    if rows.num_rows < LEAST_USERS:
        raise DataFault(
            f"{rows.num_rows} user(s) have a row of both runs {earlier.run_id} and {later.run_id} "
            f"of space {space.number}, at least {LEAST_USERS} expected. Nothing can be said of so "
            "few."
        )
    return rows


_CHOSEN = """
CREATE TEMP TABLE chosen AS
SELECT user_id, row_number() OVER (ORDER BY draw, user_id) AS number
FROM (
    SELECT user_id, draw(user_id, $1) AS draw FROM later_rows SEMI JOIN earlier_rows USING (user_id)
    ORDER BY draw, user_id LIMIT $2
)
"""

_PAIRS = """
SELECT e.embedding AS earlier, l.embedding AS later, l.as_of - e.as_of AS gap
FROM chosen JOIN earlier_rows e USING (user_id) JOIN later_rows l USING (user_id)
ORDER BY number
"""
