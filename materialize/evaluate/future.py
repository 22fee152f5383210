"""Task ``future``: whether the user will consume the item in the next days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from encoder.metrics import auc_by_group, best_threshold
from encoder.resampling import (
    Draws,
    Replicates,
    auc_replicates,
    mean_replicates,
    resampled_sums,
    user_draws,
)
from materialize.evaluate.future_pairs import SAMPLINGS, future_pairs, repeats_happen, rows_for
from materialize.evaluate.kind_cohort import kind_cohort
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.base import PairModel, Pairs
from materialize.evaluate.models.registry import choose, pair_model

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.task import Progress

__all__ = ["FutureTask", "balanced_accuracy"]

_MANY_ITEMS = 20_000
_LEAST_KNOWN = 0.25
_FIT_PAIRS, _FIT_PAIRS_OF_KINDS = 250_000, 100_000


@dataclass(frozen=True, eq=False)
class _Question:
    """What is asked of every model: pairs to fit on, and test pairs by sampling."""

    cohort: Cohort
    fit: Pairs
    test: dict[str, Pairs]
    prefix: str
    """Of the metrics' names."""


class FutureTask:
    """Judges scores of (user, item) pairs: consumed in the next days, or a sampled item.

    A row has up to 20 positives, what the user consumes after the moment and before its horizon's
    end, and four times as many negatives: drawn ``by popularity`` (hard: popularity itself knows
    nothing) and ``uniform`` (what popularity already answers well); both are shown. Models are
    fitted on pairs of both samplings of training users (whole rows, about 250,000 pairs, 100,000 of
    kinds) and judged on all rows of test users.

    Metrics, for each sampling s:

    - ``auc@s``: over all pairs, so that scores must be comparable between users.
    - ``auc_row@s``: mean over rows (a user at a moment) of the AUC inside the row.
    - ``accuracy@s``: share of right answers, positives and negatives weighed the same; the
      threshold is chosen on training users' pairs.

    The same with the prefix ``kind_`` for kinds of item (tags, or item clusters) where the
    catalogue has more than 20,000 items, most of which hardly anybody consumes. Where less than a
    quarter of the test rows with a future have one among the items that were known at the cut-off
    (news: what is read next week is not written yet), kinds alone are asked: the few old items that
    are read again are told by nothing but their age.

    References
    ----------
    The papers' future listening task: AUC and accuracy over the next 7 days, see docs/quality.md.
    """

    name = "future"

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why nothing can be asked, or None."""
        for side, rows in (("training", cohort.training), ("test", ~cohort.training)):
            if cohort.future[rows].nnz == 0:
                return f"no {side} user consumes an item of the catalogue within the horizon."
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
        wanted = None if models is None else [EMBEDDING, *models]
        names, skipped = choose("pairs", wanted, cohort.others)
        for name, reason in skipped.items():
            progress.skip(name, reason)
        questions = []
        kinds = kind_cohort(cohort) if len(cohort.catalogue) > _MANY_ITEMS else None
        known, asked = _with_a_future(cohort), _with_a_future(cohort if kinds is None else kinds)
        if known < _LEAST_KNOWN * asked:
            progress.skip(
                "single items",
                f"of {asked:,} test rows with a future, {known:,} have one among the items that "
                "were known at the cut-off. Their kinds are asked.",
            )
        else:
            questions.append(_question(cohort, seed, "", _FIT_PAIRS))
        if kinds is not None:
            questions.append(_question(kinds, seed, "kind_", _FIT_PAIRS_OF_KINDS))
        for question in questions:
            progress.detail(
                f"{question.prefix}pairs",
                {"fit": len(question.fit)}
                | {sampling: len(pairs) for sampling, pairs in question.test.items()},
            )
        found: list[Measurement] = []
        for name in names:
            for question in questions:
                model = pair_model(name)
                model.fit(question.cohort, encoder, question.fit, seed)
                found += _judge(model, question, seed, n_resamples)
            progress.step(f"{self.name}: {name}")
        return found


def _with_a_future(cohort: Cohort) -> int:
    """Return how many test rows consume something of the catalogue within the horizon."""
    return int((np.diff(cohort.future.indptr)[~cohort.training] > 0).sum())


def _question(cohort: Cohort, seed: int, prefix: str, most_fit_pairs: int) -> _Question:
    repeats = repeats_happen(cohort)

    def pairs(rows: npt.NDArray[np.int64], sampling: str) -> Pairs:
        return future_pairs(cohort, rows, sampling, seed, with_repeats=repeats)

    to_fit = rows_for(cohort, np.flatnonzero(cohort.training), most_fit_pairs, seed)
    to_judge = np.flatnonzero(~cohort.training)
    return _Question(
        cohort=cohort,
        fit=Pairs.together([pairs(to_fit, sampling) for sampling in SAMPLINGS]),
        test={sampling: pairs(to_judge, sampling) for sampling in SAMPLINGS},
        prefix=prefix,
    )


def _judge(model: PairModel, question: _Question, seed: int, n_resamples: int) -> list[Measurement]:
    """Return a fitted model's figures on all groups."""
    cohort = question.cohort
    everybody = user_draws(cohort.user_id, n_resamples)
    fit_scores = model.score(question.fit.row, question.fit.item) + question.fit.offset
    threshold = best_threshold(question.fit.y, fit_scores)
    found: list[Measurement] = []
    for sampling, pairs in question.test.items():
        scores = model.score(pairs.row, pairs.item) + pairs.offset
        inside = auc_by_group(pairs.y, scores, pairs.row, len(cohort))
        for group, member in cohort.groups.items():
            asked = np.flatnonzero(member[pairs.row])
            if not asked.size:
                continue
            draws = everybody.take(pairs.row[asked])
            rows = np.unique(pairs.row[asked])
            of_rows = everybody.take(rows)
            y, s = pairs.y[asked], scores[asked]
            figures = {
                "auc": auc_replicates(y, s, draws),
                "auc_row": mean_replicates(inside[rows], of_rows),
                "accuracy": balanced_accuracy(y, s >= threshold, draws),
            }
            found += [
                replace(
                    Measurement.of(
                        figure,
                        of_rows,
                        task=FutureTask.name,
                        metric=f"{question.prefix}{metric}@{sampling}",
                        group=group,
                        model=model.name,
                        seed=seed,
                    ),
                )
                for metric, figure in figures.items()
            ]
    return found


def balanced_accuracy(
    y: npt.NDArray[np.bool_], answer: npt.NDArray[np.bool_], draws: Draws
) -> Replicates:
    """Return the mean of the shares of positives and of negatives that are answered rightly."""
    sums = resampled_sums(np.column_stack([y & answer, y, ~y & ~answer, ~y]), draws)
    counts = np.where(sums == 0, np.nan, sums)
    return Replicates.of((sums[:, 0] / counts[:, 1] + sums[:, 2] / counts[:, 3]) / 2)
