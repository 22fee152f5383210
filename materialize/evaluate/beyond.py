"""Task ``beyond``: what accuracy does not tell of recommendations, the light head's above all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from encoder.errors import EvaluationFault
from materialize.evaluate.beyond_lists import (
    ALL,
    LISTED,
    Figure,
    ListSetting,
    exposure_figures,
    group_figures,
    list_figures,
    list_setting,
)
from materialize.evaluate.calibration import calibration
from materialize.evaluate.future_pairs import SAMPLINGS, future_pairs, repeats_happen
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.base import Pairs
from materialize.evaluate.models.registry import choose, full_ranker, pair_model
from materialize.evaluate.ranking import judged_rows, ranked

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.models.base import PairModel
    from materialize.evaluate.models.registry import Kind
    from materialize.evaluate.task import Progress

__all__ = ["CHANCE", "BeyondTask"]

CHANCE = "chance"
"""Baseline of the gaps between groups of users: groups drawn by lot."""

_BESIDE = ("mean_vectors", "popularity", "als", "item_knn")
"""Models beside the embedding unless others are asked for: one of each kind."""


class BeyondTask:
    """Judges lists of ten unseen items, and probabilities, by what accuracy does not tell.

    One row of each of up to 2,000 test users who consume something new gets a list from each model,
    made as in task ``ranking``. Items are described by their tags, by their cluster where there are
    none.

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
        found: list[Measurement] = []
        for name, figures in self._of_lists(cohort, encoder, seed, models, setting, progress):
            found += _measured(name, figures, seed)
        for name, figures in self._of_pairs(cohort, encoder, seed, models, setting, progress):
            found += _measured(name, figures, seed)
        return found

    def _of_lists(
        self,
        cohort: Cohort,
        encoder: EncoderArtifact,
        seed: int,
        models: Sequence[str] | None,
        setting: ListSetting,
        progress: Progress,
    ) -> Iterator[tuple[str, list[Figure]]]:
        with_groups = find_spec("fairlearn") is not None
        if not with_groups:
            progress.skip(CHANCE, "fairlearn is not installed: pip install 'palate[evaluate]'")
        exposure: dict[str, Any] = {}
        by_group: dict[str, Any] = {}
        for name in _names("ranking", models, progress):
            model = full_ranker(name)
            model.fit(cohort, encoder, seed)
            lists = ranked(model, cohort, setting.rows, LISTED)
            of_items, exposure[name] = exposure_figures(lists, setting)
            yield name, list_figures(lists, setting) + of_items
            if with_groups:
                gaps, by_lot, by_group[name] = group_figures(lists, setting, seed)
                yield name, gaps
                if name == EMBEDDING:
                    yield CHANCE, by_lot
            progress.step(f"{self.name}: {name}, lists")
        progress.detail("exposure_by_tenth", exposure)
        progress.detail("ndcg_by_group", by_group)

    def _of_pairs(
        self,
        cohort: Cohort,
        encoder: EncoderArtifact,
        seed: int,
        models: Sequence[str] | None,
        setting: ListSetting,
        progress: Progress,
    ) -> Iterator[tuple[str, list[Figure]]]:
        repeats = repeats_happen(cohort)
        training = np.flatnonzero(cohort.training)
        fit, test = (
            {s: future_pairs(cohort, rows, s, seed, with_repeats=repeats) for s in SAMPLINGS}
            for rows in (training, setting.rows)
        )
        reliability: dict[str, Any] = {}
        for name in _names("pairs", models, progress):
            model = pair_model(name)
            model.fit(cohort, encoder, Pairs.together(list(fit.values())), seed)
            reliability[name] = {}
            figures: list[Figure] = []
            for sampling, pairs in test.items():
                of_groups, bins = _calibrated(model, pairs, sampling, setting)
                figures += of_groups
                reliability[name][sampling] = bins
            yield name, figures
            progress.step(f"{self.name}: {name}, calibration")
        progress.detail("reliability", reliability)


def _calibrated(
    model: PairModel, pairs: Pairs, sampling: str, setting: ListSetting
) -> tuple[list[Figure], list[dict[str, float]]]:
    """Return the ECE of each group, and the bins of all users."""
    probability = expit(model.score(pairs.row, pairs.item) + pairs.offset)
    place = np.searchsorted(setting.rows, pairs.row)  # rows ascend
    figures: list[Figure] = []
    bins: list[dict[str, float]] = []
    for group, member in setting.members.items():
        asked = member[place]
        if not asked.any():
            continue
        found = calibration(pairs.y[asked], probability[asked], setting.draws.take(place[asked]))
        of_rows = setting.draws.take(np.unique(place[asked]))
        figures.append(Figure(f"ece@{sampling}", group, found.ece, of_rows, False))
        if group == ALL:
            bins = found.to_list()
    return figures, bins


def _names(kind: Kind, models: Sequence[str] | None, progress: Progress) -> list[str]:
    beside = _BESIDE if models is None else [name for name in models if name != CHANCE]
    names, left_out = choose(kind, [EMBEDDING, *beside])
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
