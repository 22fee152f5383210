"""Raw features as they lie in an online store, and the batches that encoders read of them.

On-demand reads and the stream encode through it, so that both make the same embedding of the same
stored bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from encoder.columns import ArrayColumn, Column, RawBatch, ScalarColumn, TextColumn, TokenColumn
from encoder.schema import FeatureSchema
from materialize.stores import messages
from materialize.stores.wire import Faults, Place, Stored, float_lists, integers, text_lists, texts
from materialize.stores.wire_tokens import token_lists
from transforms.encoders import load_encoder

__all__ = ["Parse", "StoredColumns", "encoder_columns", "schema_columns"]

Parse = Callable[[Stored, Place, int, Faults], Column]
"""Reads stored values of a place as a column of a width; a damaged value is null and a fault."""


class StoredColumns:
    """Stored bytes of some users' raw features.

    Parameters
    ----------
    stored : mapping of str to sequence of bytes or None
        Column ``view__field`` -> a value a user; None where the user has no row of that view.
    users : sequence of str
        Ids, for errors.

    Attributes
    ----------
    faults : dict of int to CorruptValue
        Row -> what is wrong with it, of the columns that were read so far. Such a row is null in
        the column at fault, so nobody may use its embedding.

    Notes
    -----
    State: each column is read once, however many encoders ask for it.
    """

    def __init__(self, stored: Mapping[str, Stored], users: Sequence[str]) -> None:
        self.faults: Faults = {}
        self._stored, self._users = stored, tuple(users)
        self._read: dict[tuple[str, int], Column] = {}

    def batch(self, store: str, encoder_version: str) -> RawBatch:
        """Return the columns of an encoder's schema.

        Raises
        ------
        ArtifactError
            The encoder cannot be loaded.
        KeyError
            A column is not among those stored.
        """
        columns = {}
        for name, parse, width in encoder_columns(store, encoder_version):
            if (name, width) not in self._read:
                view, _, field = name.partition("__")
                place = Place(view, field, self._users)
                self._read[name, width] = parse(self._stored[name], place, width, self.faults)
            columns[name] = self._read[name, width]
        return RawBatch(columns, len(self._users), self._users)


@lru_cache(maxsize=64)
def encoder_columns(store: str, encoder_version: str) -> tuple[tuple[str, Parse, int], ...]:
    """Return an encoder's `schema_columns`.

    Raises
    ------
    ArtifactError
        The encoder cannot be loaded.
    """
    return schema_columns(load_encoder(store, encoder_version).preprocessor.schema)


def schema_columns(schema: FeatureSchema) -> tuple[tuple[str, Parse, int], ...]:
    """Return a schema's columns, how each is read and its width.

    Width 0 is one value; of token ids, it is the most that a list may have.
    """
    return (
        *((name, _floats, width) for name, width in schema.array_columns.items()),
        *((name, _strings, width) for name, width in schema.text_columns.items()),
        *((name, _tokens, most) for name, most in schema.token_columns.items()),
        *((name, _whole, 0) for name in schema.as_of_columns),
        *((name, _words, 0) for name in schema.modality_columns),
    )


def _floats(stored: Stored, place: Place, width: int, faults: Faults) -> Column:
    return ArrayColumn(*float_lists(stored, place, width=width, faults=faults))


def _strings(stored: Stored, place: Place, width: int, faults: Faults) -> Column:
    try:
        rows = [_texts(value, width) if value else None for value in stored]
    except messages.NoValue:
        return TextColumn(*text_lists(stored, place, width=width, faults=faults))
    valid = np.array([row is not None for row in rows], np.bool_)
    text = np.full((len(rows), width), "", object)
    if valid.any():
        text[valid] = [row for row in rows if row is not None]
    return TextColumn(text, valid)


@lru_cache(maxsize=16_384)
def _texts(value: bytes, width: int) -> tuple[str, ...] | None:
    """Return a list of strings; users share theirs, such as a country and a kind of device."""
    found = messages.read_texts(value, width)
    return None if found is None else tuple(found)


def _tokens(stored: Stored, place: Place, most: int, faults: Faults) -> Column:
    return TokenColumn.of_lists(*token_lists(stored, place, most=most, faults=faults))


def _whole(stored: Stored, place: Place, width: int, faults: Faults) -> Column:
    return ScalarColumn(*integers(stored, place, faults=faults))


def _words(stored: Stored, place: Place, width: int, faults: Faults) -> Column:
    return ScalarColumn(*texts(stored, place, faults=faults))
