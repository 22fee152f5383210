"""A study: train each variant on the same rows, judge it on the same cohort, keep what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from materialize.config import RepoSettings

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["run_study", "study_path"]


def study_path(settings: RepoSettings, study: str) -> Path:
    """Return where the newest summary of a study is kept, see ``summary.summarise``."""
    return settings.data_dir / "studies" / f"{study}.json"


def run_study(
    store: FeatureStore,
    settings: RepoSettings,
    study: str,
    *,
    variants: Sequence[str] = (),
    seeds: Sequence[int] = (),
    tasks: Sequence[str] = (),
    max_rows: int = 20_000,
    n_resamples: int = 500,
    resume: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a study and return its summary."""
    raise NotImplementedError
