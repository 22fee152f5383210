"""How far a new space lies from an earlier one, and what a bridge between them would cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from encoder.alignment import OrthogonalMap, cosines, neighbour_overlap, orthogonal_map
from encoder.bridge import BridgeArtifact, BridgeStore
from encoder.errors import DataFault, EvaluationFault
from encoder.metrics import bootstrap_mean
from materialize.config import RepoSettings
from materialize.context import operator_name
from materialize.embedding_rows import embedding_matrix
from materialize.evaluate.checks import check_no_leak
from materialize.evaluate.job import repository_labels, training_set
from materialize.evaluate.old_head import OldHeadReport, judge_old_head
from materialize.evaluate.split import training_users
from materialize.ledger import Bridge, Ledger, Space
from materialize.source import applied_view, parquet_files
from materialize.stores.append import reading
from transforms.engine import bounded_connection
from transforms.names import USER_KEY, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = [
    "DRAW",
    "Anchors",
    "StabilityReport",
    "after_first_run",
    "measure_stability",
    "read_anchors",
]

_log = logging.getLogger(__name__)

DRAW = "CREATE MACRO draw(user, seed) AS md5(concat_ws(':', user, seed))"
"""SQL: by what users are drawn, the seed as text; those with the lowest are chosen."""

_NEIGHBOURS = 50
_NEIGHBOUR_SHARE = 10
"""Neighbours are at most one in so many others: among few users all would be neighbours."""


@dataclass(frozen=True)
class Anchors:
    """Users with a row of both spaces at the same moment.

    Attributes
    ----------
    user_id : (n,)
    new, old : float32 (n, dim)
        Row i of both is the same user at the same ``as_of``.
    """

    user_id: npt.NDArray[Any]
    new: npt.NDArray[np.float32]
    old: npt.NDArray[np.float32]


@dataclass(frozen=True)
class StabilityReport:
    """What was measured, and the bridge that it is the record of.

    Attributes
    ----------
    bridge : Bridge
        As the ledger has it; from the new space to the earlier one.
    figures : mapping
        JSON types. ``anchors`` (users, and how many of them the map was fitted and judged on),
        ``cosine`` and ``overlap`` of the judged ones ``before`` and ``after`` the map (before is
        None where widths differ), ``probe`` (`OldHeadReport`) or None with ``no_probe``, the
        reason.
    """

    bridge: Bridge
    figures: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        bridge = self.bridge
        return {
            "space": bridge.source,
            "against": bridge.target,
            "bridge": bridge.version,
            "state": bridge.state,
            **self.figures,
        }


def measure_stability(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    previous: Space,
    *,
    anchors: int = 10_000,
    seed: int = 0,
    n_bootstrap: int = 500,
    progress: bool = True,
) -> StabilityReport:
    """Fit the orthogonal map from ``space`` to ``previous``, measure it, and record it.

    The map is fitted on the users that a probe trains on (60%, by a hash of the id) and judged on
    the others, so that no figure comes from a user whom the map or a head has seen.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    space, previous : Space
        Both with rows offline; the head's loss needs their history (`--from-history`).
    anchors : int
        Users at most, drawn by a hash of id and ``seed``.
    seed : int
        Of the draw, the heads and the resamples.
    n_bootstrap : int
        Resamples of each interval.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    StabilityReport
        Without labels its ``probe`` is None, and the bridge cannot be served unforced.

    Raises
    ------
    DataFault
        Too few users have rows of both spaces at the same moment.
    EvaluationFault
        A leak, or a point-in-time join that lost rows.
    LedgerConflict
        A space is retiring or retired.
    ValueError
        Both are the same space.

    Notes
    -----
    Safe to repeat: the map is stored under its content hash, and the ledger comes last. Rows that
    came since give another map, and with it another bridge.
    """
    if space.number == previous.number:
        raise ValueError(f"Space {space.number} given twice, two spaces expected.")
    with tqdm(total=3, desc="stability", unit="step", disable=not progress) as bar:
        found = read_anchors(settings, space, previous, anchors, seed)
        fit = training_users(found.user_id)
        fitted = _fitted(found, fit, space, previous)
        bar.update()
        figures = {
            "anchors": {
                "users": len(fit),
                "fit": int(fit.sum()),
                "held_out": int((~fit).sum()),
                "seed": seed,
            },
            **_geometry(found.new[~fit], found.old[~fit], fitted, n_bootstrap, seed),
            "history": _has_history(ledger, space) and _has_history(ledger, previous),
        }
        bar.update()
        probe: OldHeadReport | None = None
        reason: str | None = None
        try:
            probe = _probe(store, settings, space, previous, fitted, n_bootstrap, seed)
        except DataFault as exc:
            reason = str(exc)
            _log.warning("space %s: no head's loss is measured: %s", space.number, reason)
        figures |= {"probe": None if probe is None else probe.to_dict(), "no_probe": reason}
        bar.update()
    artifact = BridgeArtifact(
        source=space.encoder_version,
        target=previous.encoder_version,
        map=fitted,
        facts={"source_space": space.number, "target_space": previous.number},
    )
    url = BridgeStore(settings.artifacts_url).save(artifact)
    bridge = ledger.record_bridge(
        artifact.version,
        source=space.number,
        target=previous.number,
        url=url,
        figures=figures,
        who=operator_name(),
    )
    _log.info(
        "bridge %s from space %s to %s: %s users, cosine after %.4f",
        *(bridge.version, space.number, previous.number, len(fit)),
        figures["cosine"]["after"]["value"],
    )
    return StabilityReport(bridge, figures)


def after_first_run(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    *,
    progress: bool = True,
) -> StabilityReport | None:
    """Measure a space whose run was just committed against the ready one before it.

    Does nothing when there is none, or when it was measured; a measurement without a head's loss is
    made again once both spaces have their history. What stops the measurement is logged, not
    raised: the run that was committed is right without it.
    """
    older = [s for s in ledger.spaces() if s.number < space.number and s.state == "ready"]
    if not older:
        return None
    previous = older[-1]
    history = _has_history(ledger, space) and _has_history(ledger, previous)
    for bridge in ledger.bridges(source=space.number, target=previous.number):
        known = bridge.figures
        if known.get("probe") is not None or known.get("history") or not history:
            return None
    try:
        return measure_stability(
            store, settings, ledger, space, previous, seed=settings.file.seed, progress=progress
        )
    except (DataFault, EvaluationFault, ModuleNotFoundError) as exc:  # a probe needs torch
        _log.warning(
            "space %s is not measured against space %s: %s", space.number, previous.number, exc
        )
        return None


def read_anchors(
    settings: RepoSettings, space: Space, previous: Space, n: int, seed: int
) -> Anchors:
    """Return up to ``n`` users with their newest rows of the same ``as_of`` in both spaces.

    Which users is decided by a hash of id and seed; memory holds their vectors and no others'.

    Raises
    ------
    DataFault
        There is none.
    """
    views = [stored_view(each.number) for each in (space, previous)]
    with ExitStack() as stack:
        for view in views:
            folder = settings.offline_dir / view
            if not folder.exists():
                raise _no_rows(0, space, previous)
            stack.enter_context(reading(folder))
        db = stack.enter_context(bounded_connection(settings.file.memory_limit_mb))
        for name, view in zip(("new_rows", "old_rows"), views, strict=True):
            paths = [str(path) for path in parquet_files(settings.offline_dir / view)]
            db.read_parquet(paths, hive_partitioning=False).create_view(name)
        db.execute(DRAW)
        db.execute(_CHOSEN, [str(seed), n])
        new, old = (db.sql(query).to_arrow_table() for query in (_NEW_VECTORS, _OLD_VECTORS))
    if not new.num_rows:
        raise _no_rows(0, space, previous)
    return Anchors(
        new.column(USER_KEY).to_numpy(),
        *(embedding_matrix(_column(table)) for table in (new, old)),
    )


def _column(table: pa.Table) -> pa.Array:
    return table.column("embedding").combine_chunks()


def _fitted(
    found: Anchors, fit: npt.NDArray[np.bool_], space: Space, previous: Space
) -> OrthogonalMap:
    width = max(found.new.shape[1], found.old.shape[1])
    # Two to be neighbours of each other, and as many pairs as the map has dimensions.
    if fit.sum() < width or (~fit).sum() < 2:
        raise _no_rows(len(fit), space, previous, 2 * width)
    return orthogonal_map(found.new[fit], found.old[fit])


def _no_rows(users: int, space: Space, previous: Space, expected: int = 1) -> DataFault:
    return DataFault(
        f"{users} user(s) have rows of spaces {space.number} and {previous.number} at the same "
        f"moment, at least {expected} expected. Materialise both up to the same end: `palate "
        f"materialize --space {space.number}`, `palate materialize --space {previous.number}`."
    )


def _geometry(
    new: npt.NDArray[np.float32],
    old: npt.NDArray[np.float32],
    fitted: OrthogonalMap,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """Return cosine and neighbour overlap with the old space, before and after the map."""

    def mean(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
        return bootstrap_mean(values, n_resamples=n_bootstrap, seed=seed).to_dict()

    mapped = fitted.apply(new)
    k = max(1, min(_NEIGHBOURS, (len(new) - 1) // _NEIGHBOUR_SHARE))
    same_width = new.shape[1] == old.shape[1]
    return {
        "cosine": {
            "before": mean(cosines(new, old)) if same_width else None,
            "after": mean(cosines(mapped, old)),
        },
        "overlap": {
            "neighbours": k,
            "before": mean(neighbour_overlap(new, old, k)),
            "after": mean(neighbour_overlap(mapped, old, k)),
        },
    }


def _probe(
    store: FeatureStore,
    settings: RepoSettings,
    space: Space,
    previous: Space,
    fitted: OrthogonalMap,
    n_bootstrap: int,
    seed: int,
) -> OldHeadReport:
    for each in (space, previous):
        applied_view(store, stored_view(each.number))
    labels = repository_labels(settings)
    new, old = (training_set(store, each, labels) for each in (space, previous))
    both = new.as_of == old.as_of  # NaT equals nothing
    check_no_leak(labels, old.as_of, training_users(labels.user_id))
    old.embeddings[~both] = np.nan
    known = ~np.isnan(new.embeddings).any(axis=1) & both
    bridged = np.full((len(known), fitted.matrix.shape[1]), np.nan, np.float32)
    if known.any():
        bridged[known] = fitted.apply(new.embeddings[known])
    return judge_old_head(
        labels, old.embeddings, new.embeddings, bridged, seed=seed, n_bootstrap=n_bootstrap
    )


def _has_history(ledger: Ledger, space: Space) -> bool:
    return any(
        run.state == "committed" and run.plan.get("from_history")
        for run in ledger.runs(space.number)
    )


_CHOSEN = """
CREATE TEMP TABLE chosen AS
WITH common AS (
    SELECT user_id, max(as_of) AS as_of
    FROM (SELECT DISTINCT user_id, as_of FROM new_rows)
    JOIN (SELECT DISTINCT user_id, as_of FROM old_rows) USING (user_id, as_of)
    GROUP BY user_id
)
SELECT user_id, as_of, row_number() OVER (ORDER BY draw, user_id) AS number
FROM (SELECT *, draw(user_id, $1) AS draw FROM common)
ORDER BY draw, user_id LIMIT $2
"""

_NEW_VECTORS = """
SELECT user_id, arg_max(embedding, created_timestamp) AS embedding
FROM new_rows JOIN chosen USING (user_id, as_of) GROUP BY user_id, number ORDER BY number
"""

_OLD_VECTORS = _NEW_VECTORS.replace("new_rows", "old_rows")
