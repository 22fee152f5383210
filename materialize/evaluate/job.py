"""``palate evaluate``: a space judged by a linear probe on a point-in-time training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import EvaluationFault
from materialize.config import RepoSettings
from materialize.evaluate.item_kinds import cluster_targets, has_tags
from materialize.evaluate.labels import Labels, build_labels
from materialize.evaluate.probe import run_probe
from materialize.evaluate.probe_results import ProbeReport
from materialize.features import current_modalities
from materialize.ledger import Space
from transforms.clean import CleanTables
from transforms.layout import ACTIVITY, field
from transforms.names import USER_KEY, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["Evaluation", "TrainingSet", "evaluate_space", "repository_labels", "training_set"]

_ROW = "label_row"


@dataclass(frozen=True)
class TrainingSet:
    """What was known of each labelled user at the label's time, in label order.

    Attributes
    ----------
    embeddings : float32 (n_rows, dim)
        NaN where the user had no embedding yet.
    raw : float32 (n_rows, n_features)
        Pooled vectors of all windows and modalities, NaN likewise.
    as_of : datetime64[us] (n_rows,)
    n_events : int64 (n_rows,)
    rows_in, rows_out : int
        Rows of the entity frame and of Feast's answer; they must be equal.
    """

    embeddings: npt.NDArray[np.float32]
    raw: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.datetime64]
    n_events: npt.NDArray[np.int64]
    rows_in: int
    rows_out: int


@dataclass(frozen=True)
class Evaluation:
    """Labels, the training set and what the probe made of them."""

    labels: Labels
    training_set: TrainingSet
    probe: ProbeReport


def evaluate_space(store: FeatureStore, settings: RepoSettings, space: Space) -> Evaluation:
    """Judge one space on the repository's data set.

    Parameters
    ----------
    store : FeatureStore
        With the space's view applied and its history materialised.
    settings : RepoSettings
    space : Space

    Raises
    ------
    DataFault
        No validated data, or no label.
    EvaluationFault
        A leak, or a control that beats chance.
    """
    labels = repository_labels(settings)
    rows = training_set(store, space, labels)
    probe = run_probe(
        labels,
        rows.embeddings,
        rows.raw,
        as_of=rows.as_of,
        n_events=rows.n_events,
        seed=settings.file.seed,
    )
    return Evaluation(labels, rows, probe)


def repository_labels(settings: RepoSettings) -> Labels:
    """Return the labels of a repository's validated data. Raises as `evaluate_space` does."""
    return build_labels(
        settings.dataset,
        CleanTables(settings.data_dir),
        memory_limit_mb=settings.file.memory_limit_mb,
        seed=settings.file.seed,
        item_targets=(
            None
            if has_tags(settings.dataset)
            else cluster_targets(current_modalities(settings.features_dir))
        ),
    )


def training_set(store: FeatureStore, space: Space, labels: Labels) -> TrainingSet:
    """Fetch what was known at each label's time through ``get_historical_features``."""
    entities = labels.entities()
    frame = pd.DataFrame(
        {
            USER_KEY: entities.column(USER_KEY).to_pandas(),
            "event_timestamp": entities.column("event_timestamp").to_pandas(),
            _ROW: np.arange(entities.num_rows),
        }
    )
    view, pooled = stored_view(space.number), field(ACTIVITY, "pooled")
    answer = store.get_historical_features(
        entity_df=frame,
        features=[
            f"{view}:embedding",
            f"{view}:as_of",
            f"{view}:n_events",
            f"{ACTIVITY}:{pooled}",
        ],
    ).to_arrow()
    rows_out = answer.num_rows
    if rows_out != len(frame):
        raise EvaluationFault(
            f"{len(frame)} labelled rows went into the point-in-time join and {rows_out} came out. "
            "Use an offline store that keeps every row (`duckdb`; `dask` and `file` do not)."
        )
    answer = answer.take(pc.sort_indices(answer, [(_ROW, "ascending")]))
    as_of = answer.column("as_of").combine_chunks()
    return TrainingSet(
        embeddings=_matrix(answer.column("embedding").combine_chunks()),
        raw=_matrix(answer.column(pooled).combine_chunks()),
        as_of=as_of.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False),
        n_events=pc.fill_null(answer.column("n_events"), 0).to_numpy().astype(np.int64),
        rows_in=len(frame),
        rows_out=rows_out,
    )


def _matrix(column: pa.Array) -> npt.NDArray[np.float32]:
    """Return a list column as rows of equal width, NaN for null rows."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    flat: npt.NDArray[Any] = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    width = len(flat) // int(valid.sum()) if valid.any() else 1
    matrix = np.full((len(column), width), np.nan, np.float32)
    matrix[valid] = flat.reshape(-1, width)
    return matrix
