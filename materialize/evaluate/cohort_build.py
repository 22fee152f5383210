"""Builds a cohort from a repository's clean tables and item vectors, once; repeats load it."""

from __future__ import annotations

from typing import Literal

from materialize.config import RepoSettings
from materialize.evaluate.cohort import Cohort

__all__ = ["Population", "build_cohort"]

Population = Literal["returning", "known"]


def build_cohort(
    settings: RepoSettings,
    *,
    max_rows: int = 20_000,
    seed: int = 0,
    horizon_days: int | None = None,
    population: Population = "returning",
    progress: bool = True,
) -> Cohort:
    """Return the cohort of a repository's data set; kept under ``data_dir/evaluations``.

    Parameters
    ----------
    settings : RepoSettings
        With validated data and built features.
    max_rows : int
        Users are taken in the order of a stable hash while their rows fit, so that the sample of a
        data set that grows stays.
    seed : int
        Chooses the label times of users with more than three.
    horizon_days : int, optional
        Default: ``evaluation.horizon_days``.
    population : {"returning", "known"}
        ``returning``: label rows and newcomers. ``known``: every user with an event in the longest
        window before the cut-off, at the cut-off, see ``Cohort.known_users``.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    DataFault
        No validated data or features, or no row (see ``build_labels``).
    """
    raise NotImplementedError
