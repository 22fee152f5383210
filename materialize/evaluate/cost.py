"""Task ``cost``: what a downstream task pays with raw features, and with the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from materialize.config import RepoSettings
    from materialize.evaluate.cohort import Cohort, LoadedEncoder
    from materialize.evaluate.measurement import Measurement
    from materialize.evaluate.task import Progress

__all__ = ["CostTask"]


class CostTask:
    """Reads, bytes, and training of a downstream model: raw features against the embedding.

    Parameters
    ----------
    settings : RepoSettings
        The repository whose own online store is read through Feast.
    """

    name = "cost"

    def __init__(self, settings: RepoSettings) -> None:
        self._settings = settings

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why the task cannot run on this cohort, or None."""
        return None

    def measure(
        self,
        cohort: Cohort,
        encoder: LoadedEncoder,
        seed: int,
        *,
        models: Sequence[str] | None,
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        """Return the figures of ``embedding`` and of the baseline ``raw``."""
        raise NotImplementedError
