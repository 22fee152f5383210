"""Task ``probe``: which kinds of item the user will consume, read off by a linear model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from encoder.columns import batch_from_arrow
from encoder.resampling import Replicates, user_draws
from materialize.evaluate.kind_cohort import item_kind_matrix
from materialize.evaluate.labels import Labels
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.probe import (
    BASELINES,
    ProbeScores,
    judge_groups,
    probe_report,
    probe_scores,
)
from transforms.layout import ACTIVITY, column

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.task import Progress

__all__ = [
    "NETWORK",
    "RAW_INPUTS",
    "RAW_POOLED",
    "ProbeTask",
    "cohort_labels",
    "pooled_vectors",
]

_Masks = dict[str, npt.NDArray[np.bool_]]

RAW_POOLED, POPULARITY = BASELINES

RAW_INPUTS = "raw_inputs"
"""Linear probe on all that the encoder reads, preprocessed."""

NETWORK = "raw"
"""Network on all that the encoder reads, trained for this task alone: the bar."""

_MAX_TARGETS = 30
_HIDDEN = 256


class ProbeTask:
    """Judges vectors by a linear model that predicts kinds of item from them.

    A row's labels are the 30 most frequent tags (item clusters where items have no tags): does the
    user consume an item with it after the moment and before the horizon's end? One logistic
    regression, whose L2 held-out training users choose, reads the embedding, or for comparison the
    pooled vectors of all windows (``raw_pooled``), or all that the encoder reads
    (``raw_inputs``). ``raw`` is a network of one hidden layer on all that the encoder reads,
    trained for this task alone: the bar for a frozen vector. ``popularity`` says the same of
    everybody.

    Metrics: ``auc_micro`` over all (row, target) pairs, ``auc_macro`` the mean over targets.
    Details: ``report`` as ``ProbeReport.to_dict``, with the shuffled-label control.
    """

    name = "probe"

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why there is nothing to predict, or None."""
        if not cohort.tag_names:
            return "items have neither tags nor clusters."
        return None

    def measure(
        self,
        cohort: Cohort,
        encoder: EncoderArtifact,
        seed: int,
        *,
        models: Sequence[str] | None,
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        """Return the figures of the embedding and of the baselines; see ``Task.measure``."""
        labels = cohort_labels(cohort)
        names = (RAW_POOLED, RAW_INPUTS, NETWORK, POPULARITY)
        wanted = names if models is None else [name for name in names if name in models]
        features = {EMBEDDING: cohort.encode(encoder)}
        if RAW_POOLED in wanted:
            features[RAW_POOLED] = pooled_vectors(cohort)
        for name, other in cohort.others.items():
            features[name] = cohort.encode(other)
        if RAW_INPUTS in wanted:
            features[RAW_INPUTS] = cohort.inputs(encoder)
        fitted = probe_scores(
            labels, features, as_of=cohort.as_of, seed=seed, n_bootstrap=n_resamples
        )
        progress.step("probe: linear models")
        scores = dict(fitted.scores)
        if NETWORK in wanted:
            scores[NETWORK] = _network_scores(cohort.inputs(encoder), labels, fitted.training, seed)
            progress.step("probe: network")
        if POPULARITY not in wanted:
            del scores[POPULARITY]
        judged_scores = ProbeScores(
            fitted.training, scores, fitted.l2, fitted.missing, fitted.control
        )
        groups = _groups(cohort, ~fitted.training, labels.y)
        judged = judge_groups(labels, judged_scores, groups, n_resamples=n_resamples)
        report = probe_report(labels, judged_scores, groups, judged, seed)
        progress.detail("report", report.to_dict())
        draws = user_draws(cohort.user_id[~fitted.training], n_resamples)
        return [
            Measurement.of(
                figure,
                draws.take(groups[group]),
                task=self.name,
                metric=metric,
                group=group,
                model=model,
                seed=seed,
            )
            for group, of_models in judged.items()
            for model, auc in of_models.items()
            for metric, figure in (
                ("auc_micro", Replicates(auc.micro, auc.micro_replicates)),
                ("auc_macro", Replicates(auc.macro, auc.macro_replicates)),
            )
        ]


def cohort_labels(cohort: Cohort) -> Labels:
    """Return which of the 30 most frequent kinds of item each row's user consumes."""
    n = min(_MAX_TARGETS, len(cohort.tag_names))
    popularity = cohort.catalogue.popularity
    events = popularity @ item_kind_matrix(cohort)[:, :n]
    return Labels(
        user_id=cohort.user_id,
        event_timestamp=cohort.moment,
        y=cohort.future_tags[:, :n].toarray().astype(bool),
        targets=cohort.tag_names[:n],
        popularity=np.asarray(events / popularity.sum(), np.float64),
        cutoff=cohort.cutoff,
        horizon_days=cohort.horizon_days,
    )


def _groups(cohort: Cohort, test: npt.NDArray[np.bool_], y: npt.NDArray[np.bool_]) -> _Masks:
    """Return the groups' test rows, without groups that have one class only."""
    members = {name: member[test] for name, member in cohort.groups.items()}
    return {
        name: rows
        for name, rows in members.items()
        if name == "all" or (y[test][rows].any() and not y[test][rows].all())
    }


def pooled_vectors(cohort: Cohort) -> npt.NDArray[np.float32]:
    """Return the pooled vectors of all windows and modalities, NaN for a user without any."""
    name = column(ACTIVITY, "pooled")
    batch = batch_from_arrow(cohort.raw, {name: cohort.schema.array_columns[name]}, {}, ())
    pooled = batch.columns[name]
    values = np.array(pooled.values, np.float32)
    values[~pooled.valid] = np.nan
    return values


def _network_scores(
    x: npt.NDArray[np.float32], labels: Labels, training: npt.NDArray[np.bool_], seed: int
) -> npt.NDArray[np.float32]:
    # Here and not above: reading a stored evaluation must not wait for torch.
    from encoder.network_probe import NetworkProbe

    network = NetworkProbe(_HIDDEN).fit(
        x[training], labels.y[training], labels.user_id[training], seed=seed
    )
    return network.scores(x[~training])
