"""Task ``universal``: the protocol of the RecSys Challenge 2025."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.errors import EvaluationFault
from encoder.metrics import auc_macro
from encoder.propensity import (
    diversity_of_rows,
    macro_auc_replicates,
    novelty,
    popularity_of_rows,
    weighted_score,
)
from encoder.resampling import Draws, Replicates, column_means, user_draws
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.registry import choose, user_model

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from encoder.universal_probe import ProbeConfig
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.task import Progress

__all__ = [
    "HORIZON_DAYS",
    "MAX_TARGETS",
    "Question",
    "UniversalTask",
    "full_width",
    "questions",
]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HORIZON_DAYS = 14
"""The challenge's target window; the data's own horizon where 14 days do not fit."""

MAX_TARGETS = 100
"""Categories and items that are predicted."""

_MAX_DIM = 2048
_DAY = np.timedelta64(1, "D")


@dataclass(frozen=True, eq=False)
class Question:
    """One of the challenge's tasks.

    Attributes
    ----------
    name : str
        ``churn``, ``category`` or ``item``.
    y : bool (n_rows, n_targets)
    popularity : float64 (n_targets,) or None
        Training users with that target; None where neither novelty nor diversity is asked for.
    """

    name: str
    y: Bools
    popularity: Float64 | None = None

    def figures(self, logits: Float32, rows: Bools, draws: Draws) -> dict[str, Replicates]:
        """Return metrics by name, of all the rows that are given and of resamples of their users.

        Parameters
        ----------
        logits : float32 (n_judged, n_targets)
        rows : bool (n_rows,)
            Which rows of ``y`` they belong to.
        draws : Draws
            Of these.
        """
        found = {"auroc": macro_auc_replicates(self.y[rows], logits, draws)}
        if self.popularity is None:
            return {f"{self.name}_auroc": found["auroc"]}
        columns = [popularity_of_rows(logits, self.popularity), diversity_of_rows(logits)]
        popular, found["diversity"] = column_means(np.column_stack(columns), draws)
        found["novelty"] = _mapped(novelty, popular)
        found["score"] = _mapped(
            weighted_score, found["auroc"], found["novelty"], found["diversity"]
        )
        return {f"{self.name}_{metric}": figure for metric, figure in found.items()}

    def score(self, logits: Float32, rows: Bools) -> float:
        """Return what chooses the epoch: the weighted score, the AUROC of ``churn``."""
        auroc = auc_macro(self.y[rows], logits)
        if self.popularity is None:
            return auroc
        new = float(novelty(popularity_of_rows(logits, self.popularity).mean()))
        return float(weighted_score(auroc, new, diversity_of_rows(logits).mean()))


def questions(known: Cohort) -> tuple[list[Question], dict[str, str]]:
    """Return the challenge's tasks on these users, and those that cannot be asked with the reason.

    Parameters
    ----------
    known : Cohort
        Of ``Cohort.known_users``: everybody known at the cut-off.
    """
    asked = [Question("churn", (known.future_events == 0)[:, None])]
    left_out = {}
    for name, future in (("category", known.future_tags), ("item", known.future)):
        count = np.asarray(future[known.training].astype(np.int64).sum(axis=0)).ravel()
        most = np.argsort(-count, kind="stable")[:MAX_TARGETS]
        most = most[count[most] > 0]
        if len(most) < 2:
            left_out[name] = (
                f"{len(most)} of them consumed by training users within the horizon, at least 2 "
                "expected"
            )
            continue
        y = sparse.csr_array(future[:, most]).toarray().astype(bool)
        asked.append(Question(name, y, count[most].astype(np.float64)))
    judged = []
    for question in asked:
        sides = {"training": known.training, "test": ~known.training}
        poor = [side for side, rows in sides.items() if not _has_both_classes(question.y[rows])]
        if poor:
            left_out[question.name] = f"{' and '.join(poor)} users have one class only"
        else:
            judged.append(question)
    return judged, left_out


class UniversalTask:
    """Judges a representation by a fixed network that is trained on it for three questions.

    The network, its training, the figures and their weights are the challenge's
    (``encoder.universal_probe``, ``encoder.propensity``; https://github.com/Synerise/recsys2025,
    ``training_pipeline``). One row a user who is known at the cut-off (test users: a horizon
    later), at that moment:

    - ``churn_auroc``: no event within the horizon.
    - ``category_*`` and ``item_*``: which of the 100 categories (tags), and of the 100 items, that
      most training users consume within the horizon: AUROC (macro), novelty, diversity, and
      ``score`` = 0.8 AUROC + 0.1 novelty + 0.1 diversity. The best of three epochs counts, chosen
      by this score on the judged users themselves, for every model alike, as the challenge does.

    Where our data force a difference:

    - Training and judged *users* differ (60 % and 40 %): a user must not stand on both sides. The
      judged users' horizon follows the training users', as in the challenge.
    - The horizon is 14 days where two of them fit between cut-off and the end of the data, else the
      data set's own.
    - Thousands of users instead of a million, so that an epoch is as many passes as make 50 steps,
      and the network is an eighth as wide (256 and 512): two CPU cores cannot train 50 million
      weights in minutes. Task ``universal_full`` (``full_width``) has neither of these changes.
    - "Purchase" is any event; everybody who is known has one, so that churn is asked of all users.
    - Items are those known before the cut-off; categories are item clusters where the items have no
      tags. Popularity counts training users, not purchases.
    - A category or item that no judged user consumed is left out of the mean (torchmetrics would
      count it as 0).

    Novelty is the hundredth power of one minus the mean popularity, made for sparse purchases: it
    is 0 for every model where users consume much.

    Figures compare with others' on the same data, not with the challenge's leaderboard.

    Parameters
    ----------
    config : ProbeConfig, optional
        Default: ``encoder.universal_probe.NARROW``.
    name : str
        Of the task, in its measurements.
    """

    def __init__(self, config: ProbeConfig | None = None, name: str = "universal") -> None:
        self._config = config
        self.name = name

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return None: whoever has events can be asked at least one of the questions."""
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
        """Return the figures of the embedding and of the baselines; see ``Task.measure``.

        Raises
        ------
        EvaluationFault
            None of the questions can be asked of these users.
        """
        import torch

        from encoder.universal_probe import NARROW, fit_probe

        config = self._config or NARROW
        device = "cuda" if torch.cuda.is_available() else "cpu"
        known = cohort.known_users(_horizon(cohort))
        asked, left_out = questions(known)
        if not asked:
            raise EvaluationFault(
                f"No question of the universal probe can be asked: {left_out}. Choose a cut-off "
                "with more users before and after it."
            )
        progress.detail("protocol", _protocol(known, asked, left_out, config) | {"device": device})
        judged = ~known.training
        draws = user_draws(known.user_id[judged], n_resamples)
        members = {name: mask[judged] for name, mask in known.groups.items()}
        found: list[Measurement] = []
        for model, vectors in _representations(known, encoder, seed, models, progress):
            for question in asked:
                logits = _best(
                    question,
                    judged,
                    fit_probe(
                        vectors[known.training],
                        question.y[known.training],
                        vectors[judged],
                        config=config,
                        seed=seed,
                        device=device,
                    ),
                )
                for group, member in members.items():
                    if not _has_both_classes(question.y[judged][member]):
                        continue
                    rows = judged.copy()
                    rows[judged] = member
                    ours = draws.take(member)
                    figures = question.figures(logits[member], rows, ours)
                    found += [
                        Measurement.of(
                            figure,
                            ours,
                            task=self.name,
                            metric=metric,
                            group=group,
                            model=model,
                            seed=seed,
                        )
                        for metric, figure in figures.items()
                    ]
                progress.step(f"{self.name}: {model}, {question.name}")
        return found


def full_width() -> UniversalTask:
    """Return the task with the challenge's own network and epochs: 50 million weights, for a GPU.

    On two CPU cores a representation of 20,000 users takes about half an hour.
    """
    from encoder.universal_probe import CHALLENGE

    return UniversalTask(CHALLENGE, "universal_full")


def _horizon(cohort: Cohort) -> int:
    # Once to fit on, once to judge on.
    fits = cohort.cutoff + 2 * HORIZON_DAYS * _DAY <= cohort.data_end
    return HORIZON_DAYS if fits else cohort.horizon_days


def _protocol(
    known: Cohort, asked: list[Question], left_out: dict[str, str], config: ProbeConfig
) -> dict[str, Any]:
    return {
        "horizon_days": known.horizon_days,
        "probe": asdict(config),
        "training_users": int(known.training.sum()),
        "judged_users": int((~known.training).sum()),
        "targets": {question.name: question.y.shape[1] for question in asked},
        "positive_share": {q.name: float(q.y[~known.training].mean()) for q in asked},
        "left_out": left_out,
    }


def _representations(
    known: Cohort,
    encoder: EncoderArtifact,
    seed: int,
    models: Sequence[str] | None,
    progress: Progress,
) -> Iterator[tuple[str, Float32]]:
    asked = None if models is None else [EMBEDDING, *models]
    names, left_out = choose("vectors", asked, known.others)
    for name, reason in left_out.items():
        progress.skip(name, reason)
    for name in names:
        vectors = user_model(name).vectors(known, encoder, seed)
        if vectors.shape[1] > _MAX_DIM and name != EMBEDDING:
            progress.skip(name, f"{vectors.shape[1]} numbers, the challenge takes {_MAX_DIM}")
            continue
        yield name, vectors


def _best(question: Question, judged: Bools, epochs: Iterator[Float32]) -> Float32:
    """Return the logits of the epoch with the best score on the judged users."""
    return max(epochs, key=lambda logits: question.score(logits, judged))


def _has_both_classes(y: Bools) -> bool:
    return bool((y.any(axis=0) & ~y.all(axis=0)).any()) if len(y) else False


def _mapped(formula: Any, *figures: Replicates) -> Replicates:
    """Return a formula of figures, on all users and on each resample."""
    return Replicates(
        float(formula(*(f.value for f in figures))),
        np.asarray(formula(*(f.replicates for f in figures)), np.float64),
    )
