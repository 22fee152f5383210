"""Rows of an embedding view: stored fields in, arrays and faults out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoder.errors import EmbeddingError, SpaceMismatch
from materialize.ledger import Pin
from materialize.reader.fields import Found, Users
from materialize.stores.wire import Faults, Place, Stored, float_lists, integers, texts
from transforms.names import is_bridged_view

__all__ = ["FIELDS", "Rows", "parse_rows", "require_pinned"]

FIELDS = ("embedding", "as_of", "n_events", "status", "space", "encoder_version")
"""Features of an embedding view in the order in which they are read."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What the online store has of n users.

    Attributes
    ----------
    found : bool (n,)
        Users with a whole row; the arrays hold NaN, -1 and ``""`` for the others.
    embedding : float32 (n, d)
    as_of, n_events : int64 (n,)
    status : object (n,) of str
    space : int64 (n,)
        As the rows say, also those with a fault; -1: they do not, or there is none.
    encoder_version : object (n,) of str
        Likewise; ``""``.
    faults : mapping of int to EmbeddingError
        By row.
    """

    found: npt.NDArray[np.bool_]
    embedding: npt.NDArray[np.float32]
    as_of: npt.NDArray[np.int64]
    n_events: npt.NDArray[np.int64]
    status: npt.NDArray[np.object_]
    space: npt.NDArray[np.int64]
    encoder_version: npt.NDArray[np.object_]
    faults: Mapping[int, EmbeddingError]


def parse_rows(found: Found, view: str, users: Users, *, form: str, width: int | None) -> Rows:
    """Return the rows that stored fields hold.

    Parameters
    ----------
    found : Found
        Its first columns are ``FIELDS``.
    view : str
    users : sequence or array, n
    form : str
        In which the view's vectors are stored, of ``VECTOR_FORMS``.
    width : int or None
        Of the vectors; None: what most of them have.
    """
    embedding, as_of, n_events, status, space, encoder_version = found.columns[: len(FIELDS)]
    faults: Faults = {}

    def place(field: str) -> Place:
        return Place(view, field, users)

    for row, what in found.broken.items():
        faults[row] = place("embedding").fault(row, what, "a hash of features")
    vectors, valid = float_lists(
        embedding,
        place("embedding"),
        form=form,
        width=width,
        finite=True,
        fill=np.nan,
        faults=faults,
    )
    (moments, known), (events, counted) = _integers(
        [(as_of, place("as_of")), (n_events, place("n_events"))], faults
    )
    words, told = texts(status, place("status"), faults=faults)
    for field, here in (("as_of", known), ("n_events", counted), ("status", told)):
        if not here[valid].all():
            for row in np.flatnonzero(valid & ~here).tolist():
                faults.setdefault(row, place(field).fault(row, "missing", "a value"))
    if faults:
        wrong = np.fromiter(faults, np.int64)
        valid = valid.copy()
        valid[wrong] = False
        vectors[wrong] = np.nan
    if not valid.all():
        moments[~valid], events[~valid], words[~valid] = -1, -1, ""
    spaces, versions = _marks(space, encoder_version)
    return Rows(valid, vectors, moments, events, words, spaces, versions, faults)


def _integers(
    columns: Sequence[tuple[Stored, Place]], faults: Faults
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Return columns of integers, -1 where absent; read at once, which takes the time of one."""
    wrong: Faults = {}
    joined = [value for values, _ in columns for value in values]
    numbers, valid = integers(joined, Place("", ""), fill=-1, faults=wrong)
    if wrong:
        return [integers(values, place, fill=-1, faults=faults) for values, place in columns]
    parts = len(columns)
    return list(zip(np.split(numbers, parts), np.split(valid, parts), strict=True))


def _marks(
    space: Stored, encoder_version: Stored
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Return what rows say of their space; what says nothing legible says nothing."""
    faults: Faults = {}
    place = Place("", "")
    numbers, _ = integers(space, place, fill=-1, faults=faults)
    versions, _ = texts(encoder_version, place, faults=faults)
    return numbers, versions


def require_pinned(rows: Rows, pin: Pin) -> None:
    """Refuse rows that are not of the pin's space and encoder version, or do not say so.

    A row with a fault counts only when it says of which other space it is.

    Raises
    ------
    SpaceMismatch
    """
    other = (rows.space != pin.space) | (rows.encoder_version != pin.encoder_version)
    if not other.any():
        return
    counted = rows.found.copy()
    for row in rows.faults:
        counted[row] = rows.space[row] >= 0 and rows.encoder_version[row] != ""
    wrong = np.flatnonzero(other & counted)
    if not len(wrong):
        return
    space, encoder_version = int(rows.space[wrong[0]]), rows.encoder_version[wrong[0]]
    remedy = (
        "`palate materialize --force` writes the live spaces and bridges anew"
        if is_bridged_view(pin.view)
        else f"`palate materialize --space {pin.space} --force` writes the view anew"
    )
    raise SpaceMismatch(
        f"{len(wrong)} of {int(counted.sum())} rows of {pin.view} are of space "
        f"{'unknown' if space < 0 else space} ({encoder_version or 'no encoder version'}); "
        f"consumer {pin.consumer!r} reads space {pin.space} ({pin.encoder_version}). No vector "
        f"is handed out. {remedy}."
    )
