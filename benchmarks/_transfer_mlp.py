"""Vectors under a network of one hidden layer, for the benchmark `transfer`: frozen vector and MLP.

Judged on all test rows, and across services: on those whose user begins to use a service within the
horizon, which no event of the past can tell of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from benchmarks._transfer_plan import METRIC
from benchmarks._transfer_repo import note
from encoder.metrics import bootstrap_auc
from encoder.network_probe import NetworkProbe
from encoder.resampling import Replicates, user_draws
from materialize.config import RepoSettings
from materialize.evaluate.cohort import Cohort
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.probe import with_presence
from materialize.evaluate.probe_task import cohort_labels
from materialize.evaluate.units import Unit, read_unit, write_unit
from transforms.clean import CleanTables
from transforms.engine import bounded_connection

__all__ = ["ALL", "NEW_SERVICE", "Vectors", "begins_a_service", "under_a_network"]

ALL, NEW_SERVICE = "all", "new_service"

Vectors = Callable[[Cohort], npt.NDArray[Any]]

_TASK, _SEED, _HIDDEN = "mlp", 0, 256


def under_a_network(
    settings: RepoSettings,
    cohort: Callable[[], Cohort],
    folder: Path,
    vectors: Mapping[str, Vectors],
    *,
    n_resamples: int,
) -> list[Measurement]:
    """Return the micro AUC of each model on all test rows and on those of a new service.

    Parameters
    ----------
    settings : RepoSettings
    cohort : callable
        Gives the cohort, called when something is left to do.
    folder : Path
        Keeps what is measured, a file for each model.
    vectors : mapping of str to callable
        Model -> its frozen vectors, float (n_rows, dim), NaN for none.
    n_resamples : int
        Of the users.
    """
    found: list[Measurement] = []
    known: Cohort | None = None
    groups: dict[str, npt.NDArray[np.bool_]] = {}
    for model, of in vectors.items():
        kept = folder / _TASK / model.replace(" ", "_")
        unit = read_unit(kept, _TASK, _SEED)
        if unit is None:
            note(f"network on {model}")
            if known is None:
                known = cohort()
                groups = {ALL: known.groups[ALL], NEW_SERVICE: _begins(settings, known)}
            unit = _measured(known, groups, model, of(known), n_resamples)
            write_unit(kept, unit)
        found += unit.measurements
    return found


def _measured(
    cohort: Cohort,
    groups: Mapping[str, npt.NDArray[np.bool_]],
    model: str,
    vectors: npt.NDArray[Any],
    n_resamples: int,
) -> Unit:
    started = time.perf_counter()
    labels, training, test = cohort_labels(cohort), cohort.training, ~cohort.training
    x = with_presence(vectors, training)
    network = NetworkProbe(_HIDDEN).fit(
        x[training], labels.y[training], labels.user_id[training], seed=_SEED
    )
    scores, y, users = network.scores(x[test]), labels.y[test], labels.user_id[test]
    draws = user_draws(users, n_resamples)
    measurements = []
    for name, member in groups.items():
        rows = member[test]
        if not rows.any():
            continue
        auc = bootstrap_auc(y[rows], scores[rows], users[rows], n_resamples=n_resamples)
        measurements.append(
            Measurement.of(
                Replicates(auc.micro, auc.micro_replicates),
                draws.take(rows),
                task=_TASK,
                metric=METRIC,
                group=name,
                model=model,
                seed=_SEED,
            )
        )
    return Unit(_TASK, _SEED, measurements, {}, {}, time.perf_counter() - started)


def _begins(settings: RepoSettings, cohort: Cohort) -> npt.NDArray[np.bool_]:
    """Return the rows whose user begins to use a service within the horizon, bool (n_rows,)."""
    clean = CleanTables(settings.data_dir)
    with bounded_connection(settings.file.memory_limit_mb, settings.data_dir) as db:
        offered = (
            db.read_parquet(clean.events).project("item_id, service").distinct().to_arrow_table()
        )
    rows = pc.index_in(offered["item_id"], value_set=pa.array(cohort.catalogue.item_ids))
    row = pc.fill_null(rows, -1).to_numpy()
    names = sorted(set(offered["service"].to_pylist()))
    columns = [names.index(name) for name in offered["service"].to_pylist()]
    there = row >= 0
    services = sparse.csr_array(
        (np.ones(int(there.sum())), (row[there], np.array(columns)[there])),
        shape=(len(cohort.catalogue.item_ids), len(names)),
    )
    return begins_a_service(cohort.history, cohort.future, services)


def begins_a_service(
    history: sparse.csr_array, future: sparse.csr_array, services: sparse.csr_array
) -> npt.NDArray[np.bool_]:
    """Return who has a past and uses a service in the future that is not in it, bool (n_rows,).

    Parameters
    ----------
    history, future : csr_array (n_rows, n_items)
        Not zero: consumed.
    services : csr_array (n_items, n_services)
        Not zero: offers the item. One that several services offer counts for each.
    """
    past, then = (
        (m.astype(bool).astype(float) @ services).toarray() > 0 for m in (history, future)
    )
    begins: npt.NDArray[np.bool_] = (then & ~past).any(axis=1) & past.any(axis=1)
    return begins
