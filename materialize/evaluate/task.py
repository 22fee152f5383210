"""What an evaluation task is, and how it tells what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.measurement import Measurement

__all__ = ["MAX_ROWS", "RESAMPLES", "SEEDS", "Progress", "Task"]

MAX_ROWS = 20_000
"""Rows of a cohort at most, unless one asks for others."""

RESAMPLES = 1_000
"""Of the users: two-sided p-values reach down to 2 / 1001, corrected for 15 models to 0.03."""

SEEDS = 5
"""Number of seeds, from 0 on."""


class Progress:
    """What a task tells while it runs: steps done, models left out, details for the report.

    State: ``skipped`` and ``details`` grow; the runner stores both beside the measurements.

    Attributes
    ----------
    skipped : dict of str to str
        Model -> why it did not run (a missing extra, no such data).
    details : dict of str to object
        JSON types, for example the bins of a calibration curve or a control's AUC.
    """

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.details: dict[str, Any] = {}

    def step(self, done: str) -> None:
        """Say that one part of the task is done, in a few words (``future: als``)."""

    def skip(self, model: str, reason: str) -> None:
        """Say that a model is left out, and why; it is counted and shown."""
        self.skipped[model] = reason

    def detail(self, name: str, value: Any) -> None:
        """Keep something for the report, JSON types without NaN."""
        self.details[name] = value


class Task(Protocol):
    """A way to judge an encoder on a cohort."""

    @property
    def name(self) -> str:
        """As in ``palate evaluate --task``; the ``task`` of its measurements."""

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why the task cannot run on this cohort, or None: it can.

        For what the data lack (no tags, no profile). Missing extras are the registry's business.
        """

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
        """Return the figures of the embedding and of the baselines.

        Parameters
        ----------
        cohort : Cohort
        encoder : EncoderArtifact
            Only what ``cohort.encode`` makes of it may be used: no space, no store (task ``cost``
            apart).
        seed : int
            Of fits and samples. The resamples must not depend on it: ``user_draws(users,
            n_resamples)`` with its default seed.
        models : sequence of str or None
            Baselines to run beside the embedding; None: all that are there. ``()``: the embedding
            alone, as studies want it.
        n_resamples : int
        progress : Progress

        Raises
        ------
        EvaluationFault
            A leak.
        """
