"""Task ``beyond``: what accuracy does not tell of recommendations, the light head's above all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from encoder.errors import EvaluationFault
from encoder.resampling import user_draws
from materialize.evaluate.beyond_lists import (
    ALL,
    LISTED,
    Figure,
    ListSetting,
    chance_figures,
    exposure_figures,
    group_figures,
    list_figures,
    list_setting,
)
from materialize.evaluate.calibration import calibration
from materialize.evaluate.future_pairs import SAMPLINGS, future_pairs, repeats_happen
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.base import Pairs
from materialize.evaluate.models.registry import choose, pair_model
from materialize.evaluate.ranking import judged_rows, ranked

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.models.base import PairModel
    from materialize.evaluate.task import Progress

__all__ = ["CHANCE", "BeyondTask"]

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

CHANCE = "chance"
"""Baseline of the gaps between groups of users: groups drawn by lot."""

_BESIDE = ("mean_vectors", "popularity", "als", "item_knn")
"""Models beside the embedding unless others are asked for: one of each kind."""


_FIT_ROWS = 3_000
"""Rows of training users that models are fitted on at most."""


class BeyondTask:
    """Judges lists of ten unseen items, and probabilities, by what accuracy does not tell.

    Models are fitted as in task ``future``, on pairs of up to 3,000 rows of training users: the
    light head on frozen vectors, and recommenders. One row of each of up to 2,000 test users who
    consume something new gets a list from each model: the items with the largest log odds among
    those that the user has not seen. Items are described by their tags, by their cluster where
    there are none.

    - ``ece@popularity``, ``ece@uniform``: expected calibration error of the probability that a pair
      was consumed, by how negatives are drawn, as in task ``future`` (Guo et al., 2017).
    - ``diversity@10``: mean of 1 - cosine of tags over the pairs of a list (Ziegler et al., 2005).
    - ``novelty@10``: mean bits of ``-log2`` of an item's share of all events (Zhou et al., 2010).
    - ``miscalibration@10``: Kullback-Leibler divergence of the list's tags from those of the user's
      past, in bits (Steck, 2018).
    - ``coverage@10``, ``p90_coverage@10``, ``gini@10``: how many items are recommended to anybody,
      how many make up 90% of all places (PinnerFormer), and how unequally places are dealt out.
    - ``top_exposure@10``: share of the exposure, ``1 / log2(place + 1)``, that the most popular
      tenth of the items gets (Singh and Joachims, 2018).
    - ``exposure_gap_popularity@10``, ``exposure_gap_tags@10``: total variation between how exposure
      and how consumption divide among tenths by popularity, and among tags; 0: each gets what users
      make of it (Biega et al., 2018, equity of attention).
    - ``ndcg_gap@10_<column>``, ``least_ndcg@10_<column>``: largest minus smallest, and smallest
      mean nDCG@10 of the groups of a column with at least 30 users (fairlearn's ``MetricFrame``);
      column ``activity`` is how much is known of the user. Model ``chance`` is the embedding's gap
      between groups drawn by lot: what noise alone makes.

    All intervals are over users. Details keep the bins of the reliability diagrams, exposure by
    tenth, and each group's nDCG.
    """

    name = "beyond"

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why there is nothing to recommend or to learn from, or None."""
        try:
            judged_rows(cohort)
        except EvaluationFault as fault:
            return str(fault)
        if not cohort.future[cohort.training].nnz:
            return "no training user consumes an item of the catalogue within the horizon."
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
        setting = list_setting(cohort, n_resamples)
        repeats = repeats_happen(cohort)
        fit, test = (
            {s: future_pairs(cohort, rows, s, seed, with_repeats=repeats) for s in SAMPLINGS}
            for rows in (_training_rows(cohort), setting.rows)
        )
        together = Pairs.together(list(fit.values()))
        progress.detail("pairs", {"users": len(setting.rows), "fit": len(together)})
        with_groups = find_spec("fairlearn") is not None
        if not with_groups:
            progress.skip(CHANCE, "fairlearn is not installed: pip install 'palate[evaluate]'")
        details: dict[str, dict[str, Any]] = {
            "reliability": {},
            "exposure_by_tenth": {},
            "ndcg_by_group": {},
        }
        found: list[Measurement] = []
        for name in _names(models, progress):
            model = pair_model(name)
            model.fit(cohort, encoder, together, seed)
            figures, details["reliability"][name] = _calibrated(model, test, setting)
            lists = ranked(_EveryItem(model, len(cohort.catalogue)), cohort, setting.rows, LISTED)
            figures += list_figures(lists, setting)
            of_items, details["exposure_by_tenth"][name] = exposure_figures(lists, setting)
            figures += of_items
            if with_groups:
                gaps, details["ndcg_by_group"][name] = group_figures(lists, setting)
                figures += gaps
                if name == EMBEDDING:
                    found += _measured(CHANCE, chance_figures(lists, setting, seed), seed)
            found += _measured(name, figures, seed)
            progress.step(f"{self.name}: {name}")
        for key, value in details.items():
            progress.detail(key, value)
        return found


@dataclass(frozen=True, eq=False)
class _EveryItem:
    """A fitted pair model as a ranking: log odds of each item of the catalogue."""

    model: PairModel
    n_items: int

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def task_specific(self) -> bool:
        return self.model.task_specific

    def fit(self, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> None:
        """Do nothing: the model is fitted on pairs."""

    def scores(self, rows: Int64) -> Float32:
        items = np.tile(np.arange(self.n_items), len(rows))
        of_pairs = self.model.score(np.repeat(rows, self.n_items), items)
        return of_pairs.reshape(len(rows), self.n_items)


def _training_rows(cohort: Cohort) -> Int64:
    """Return the rows to fit on: of training users, in the order of the hash of their ids."""
    training = np.flatnonzero(cohort.training)
    users = user_draws(cohort.user_id[training])
    by_hash = np.argsort(users.keys[users.owner], kind="stable")
    return np.sort(training[by_hash[:_FIT_ROWS]])


def _calibrated(
    model: PairModel, test: Mapping[str, Pairs], setting: ListSetting
) -> tuple[list[Figure], dict[str, list[dict[str, float]]]]:
    """Return the ECE of each sampling and group, and the bins of all users by sampling."""
    figures: list[Figure] = []
    bins: dict[str, list[dict[str, float]]] = {}
    for sampling, pairs in test.items():
        probability = expit(model.score(pairs.row, pairs.item) + pairs.offset)
        place = np.searchsorted(setting.rows, pairs.row)  # rows ascend
        for group, member in setting.members.items():
            asked = member[place]
            if not asked.any():
                continue
            found = calibration(
                pairs.y[asked], probability[asked], setting.draws.take(place[asked])
            )
            of_rows = setting.draws.take(np.unique(place[asked]))
            figures.append(Figure(f"ece@{sampling}", group, found.ece, of_rows, False))
            if group == ALL:
                bins[sampling] = found.to_list()
    return figures, bins


def _names(models: Sequence[str] | None, progress: Progress) -> list[str]:
    beside = _BESIDE if models is None else [name for name in models if name != CHANCE]
    names, left_out = choose("pairs", [EMBEDDING, *beside])
    for name, reason in left_out.items():
        progress.skip(name, reason)
    return names


def _measured(model: str, figures: Sequence[Figure], seed: int) -> list[Measurement]:
    return [
        Measurement.of(
            figure.found,
            figure.draws,
            task=BeyondTask.name,
            metric=figure.metric,
            group=figure.group,
            model=model,
            seed=seed,
            higher_is_better=figure.higher_is_better,
        )
        for figure in figures
    ]
