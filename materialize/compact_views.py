"""Compaction of feature views by name, as the registry knows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.errors import DataFault
from materialize.source import applied_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["compactable_views"]


def compactable_views(store: FeatureStore, names: Sequence[str] = ()) -> dict[str, Path]:
    """Return the folders of feature views that pushes append to.

    Parameters
    ----------
    store : FeatureStore
    names : sequence of str
        Views; none: every view of the registry that has such a folder.

    Returns
    -------
    dict of str to Path
        View -> folder, in the order of ``names``, else by name. A folder that several views read
        stands under the first.

    Raises
    ------
    DataFault
        A view of ``names`` is not applied, or its rows are not in a local folder of Parquet.
    """
    from feast import FileSource

    from materialize.stores.parquet_files import folder_of, is_local_parquet

    views = [applied_view(store, name) for name in names]
    found: dict[str, Path] = {}
    for view in views or sorted(store.list_batch_feature_views(), key=lambda view: view.name):
        source = view.batch_source
        folder = (
            folder_of(store.config, source)
            if isinstance(source, FileSource) and is_local_parquet(source)
            else None
        )
        if folder is not None and folder.is_dir():
            if folder not in found.values():
                found[view.name] = folder
        elif names:
            where = type(source).__name__ if folder is None else repr(str(folder))
            raise DataFault(
                f"View {view.name!r} has no local folder of Parquet files to compact: its rows "
                f"are in {where}."
            )
    return found
