"""What a retrieval from Parquet returns to Feast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import ibis
import pandas as pd
import pyarrow as pa
from feast import OnDemandFeatureView
from feast.infra.offline_stores.duckdb import _write_data_source
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage

__all__ = ["BATCH_ROWS", "ParquetJob"]

BATCH_ROWS = 65_536
"""Largest number of rows of a batch, unless the caller names another."""


class ParquetJob(RetrievalJob):
    """A retrieval that runs each time its result is asked for.

    Parameters
    ----------
    result : callable
        Largest number of rows of a batch -> context that yields a reader of the result.
    combine : bool
        Return one chunk a column: Feast's own materialisation reads no further than the first.
    on_demand : list of OnDemandFeatureView
        Applied to the whole table by ``to_arrow`` and ``to_df``.
    full_names : bool
    metadata : RetrievalMetadata or None
    repo_path : str
    """

    def __init__(
        self,
        result: Callable[[int], AbstractContextManager[pa.RecordBatchReader]],
        *,
        combine: bool = False,
        on_demand: list[OnDemandFeatureView] | None = None,
        full_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        repo_path: str = "",
    ) -> None:
        super().__init__()
        self._result, self._combine = result, combine
        self._on_demand, self._full_names = on_demand or [], full_names
        self._metadata, self._repo_path = metadata, repo_path

    def to_record_batches(self, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the result in batches of at most ``batch_rows``, without on-demand features.

        The rows' files stay in place until the iterator is exhausted or closed.
        """
        with self._result(batch_rows) as reader:
            yield from reader

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        with self._result(BATCH_ROWS) as reader:
            table = reader.read_all()
        return table.combine_chunks() if self._combine else table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal().to_pandas()
        return frame

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The views that ``to_arrow`` and ``to_df`` compute from the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for; None for pulls."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result where Feast's own store would, on-demand features included."""
        source = storage.to_data_source()
        table = ibis.memtable(self.to_arrow())
        _write_data_source(table, source, self._repo_path, "overwrite", allow_overwrite)
