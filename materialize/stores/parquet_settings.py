"""Settings of the Parquet offline store, and the DuckDB connection that they describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig
from feast.repo_config import RepoConfig
from pydantic import ConfigDict, Field

from transforms.engine import bounded_connection
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE
from transforms.names import ITEM_VECTORS

__all__ = ["ParquetSettings", "connection", "settings_of"]


class ParquetSettings(DuckDBOfflineStoreConfig):
    """All settings but ``type``: Feast seeks the store's class where its config's class is."""

    model_config = ConfigDict(extra="forbid")

    memory_limit_mb: int = Field(default=4096, ge=128)
    """What DuckDB may hold in memory (MiB); more is spilled to disk. Results come on top."""
    spill_folder: str | None = None
    """Existing folder for spilled data; default: the system's folder for temporary files."""
    threads: int | None = Field(default=None, ge=1)
    """Of DuckDB; default: one a core."""
    filter_by_created_timestamp: bool = True
    """Hide rows that were created after an entity row's time, in every view with such a column."""
    recomputed_views: tuple[str, ...] = (
        ACTIVITY,
        PROFILE,
        ONBOARDING,
        ITEM_VECTORS,
        "user_embedding_s*",
    )
    """Views (``*`` allowed) whose batch files count from their event time on, because a job
    recomputes them from dated events; their pushed rows count from their created time on."""


def settings_of(config: RepoConfig) -> ParquetSettings:
    """Return the store's settings.

    Raises
    ------
    TypeError
        The repository names another offline store.
    """
    settings = config.offline_store
    if not isinstance(settings, ParquetSettings):
        raise TypeError(
            f"offline_store is configured by {type(settings).__name__}; set its type to "
            "'materialize.stores.parquet.PalateParquetOfflineStore'."
        )
    return settings


@contextmanager
def connection(
    settings: ParquetSettings,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection of its own, bounded as configured."""
    spill = Path(settings.spill_folder) if settings.spill_folder else None
    with bounded_connection(settings.memory_limit_mb, spill) as db:
        if settings.threads is not None:
            db.execute(f"SET threads = {settings.threads}")
        yield db
