"""Is everything in a training frame of one space? Refuse to train on it otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import DataFault, SpaceMismatch

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["require_one_space"]

_SPACE, _ENCODER, _EMBEDDING = "space", "encoder_version", "embedding"


def require_one_space(frame: pd.DataFrame | pa.Table, prefix: str | None = None) -> tuple[int, str]:
    """Return the one space of a training frame's embeddings, or refuse.

    A model must be trained on, and then served, the vectors of one space. Rows without an
    embedding (the user was not known at that moment) are fine beside others.

    Parameters
    ----------
    frame : DataFrame or Table
        As ``get_historical_features`` answers it, with the features ``space`` and
        ``encoder_version`` under short, full or aliased names; not modified.
    prefix : str, optional
        View or alias before ``__`` in the columns' names; ``""`` for short names. Default: found,
        if the frame holds the features of one embedding view only.

    Returns
    -------
    (int, str)
        Space and encoder version; of bridged vectors, the target space and the bridge's version.

    Raises
    ------
    SpaceMismatch
        Rows of several spaces or encoder versions, or vectors that do not say whose they are.
    DataFault
        No row has an embedding.
    ValueError
        The frame lacks the columns, or has several views' and ``prefix`` names none.

    Examples
    --------
    >>> require_one_space(
    ...     pa.table({"space": [2, None], "encoder_version": ["c0ffee123456", None]})
    ... )
    (2, 'c0ffee123456')
    """
    names = frame.column_names if isinstance(frame, pa.Table) else [str(c) for c in frame.columns]
    start = _start(names, prefix)
    space = _column(frame, start + _SPACE).cast(pa.int64())
    encoder = _column(frame, start + _ENCODER).cast(pa.string())
    counted = pc.or_(pc.is_valid(space), pc.is_valid(encoder))
    if start + _EMBEDDING in names:
        # A vector that does not say whose it is counts as one of an unknown space.
        counted = pc.or_(counted, pc.is_valid(_column(frame, start + _EMBEDDING)))
    marks = pa.table({_SPACE: space, _ENCODER: encoder}).filter(counted)
    groups = marks.group_by([_SPACE, _ENCODER]).aggregate([([], "count_all")]).to_pylist()
    if not groups:
        raise DataFault(
            f"None of the {len(space)} rows has an embedding. Fill the past with `palate "
            "materialize --from-history --space N`, or check the rows' ids and moments."
        )
    if len(groups) > 1 or None in groups[0].values():
        raise SpaceMismatch(
            f"The training frame holds {_listed(groups)}; rows of one space are expected. Build it "
            "anew from one feature service; `palate consumers list` says which space each reads."
        )
    return groups[0][_SPACE], groups[0][_ENCODER]


def _start(names: list[str], prefix: str | None) -> str:
    """Return what stands before the names of the embedding's features."""
    found = [
        name.removesuffix(_SPACE)
        for name in names
        if name == _SPACE or name.endswith(f"__{_SPACE}")
    ]
    found = [start for start in found if start + _ENCODER in names]
    if prefix is not None:
        found = [start for start in found if start == (f"{prefix}__" if prefix else "")]
    if len(found) == 1:
        return found[0]
    if found:
        views = ", ".join(sorted(repr(start.removesuffix("__")) for start in found))
        raise ValueError(
            f"The frame holds the embeddings of several views: {views}. Name one as `prefix`."
        )
    raise ValueError(
        f"The frame has the columns {', '.join(sorted(names))}; those of an embedding view"
        f"{'' if prefix is None else f' under prefix {prefix!r}'} are expected, with {_SPACE!r} "
        f"and {_ENCODER!r} among the features."
    )


def _column(frame: pd.DataFrame | pa.Table, name: str) -> pa.ChunkedArray | pa.Array:
    if isinstance(frame, pa.Table):
        return frame.column(name)
    return pa.array(frame[name], from_pandas=True)


def _listed(groups: list[dict[str, Any]]) -> str:
    largest_first = sorted(groups, key=lambda group: -int(group["count_all"]))
    return " and ".join(
        f"{group['count_all']} rows of space {group[_SPACE] or 'unknown'} "
        f"({group[_ENCODER] or 'no encoder version'})"
        for group in largest_first
    )
