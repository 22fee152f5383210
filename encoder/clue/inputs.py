"""Raw feature columns -> token ids that a contrastive encoder reads, checked row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.artifact_files import Arrays
from encoder.clue.token_rows import TokenRows
from encoder.columns import RawBatch, TokenColumn
from encoder.errors import ArtifactError, MalformedInput
from encoder.raw_values import RawReader, column_of
from encoder.row_summary import RowSummary, summarise
from encoder.schema import FeatureSchema

__all__ = ["ClueInputs"]

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class ClueInputs:
    """Token ids of a user's newest events, as they stand in the raw features.

    State: limits that the encoder was trained with.

    Parameters
    ----------
    schema : FeatureSchema
        With one ``tokens`` block.
    vocabulary : int
        Token ids are less.
    n_guides : int
        Ids 1 to ``n_guides`` begin an item and name its service.
    max_item_tokens, max_events : int
        Of an item; of a user in a service.

    Raises
    ------
    ValueError
        The schema has no ``tokens`` block, or several.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        vocabulary: int,
        n_guides: int,
        max_item_tokens: int,
        max_events: int,
    ) -> None:
        columns = list(schema.token_columns)
        if len(columns) != 1:
            raise ValueError(
                f"A schema with {len(columns)} columns of token ids given, one expected."
            )
        self.schema = schema
        self.vocabulary, self.n_guides = vocabulary, n_guides
        self.max_item_tokens, self.max_events = max_item_tokens, max_events
        self._column = columns[0]
        numeric = [b.width for b in schema.blocks if b.kind != "tokens"]
        self._reader = RawReader(schema, [0] * len(schema.blocks), max(numeric, default=1))

    @property
    def n_inputs(self) -> int:
        """Most tokens of a row."""
        return self.schema.token_columns[self._column]

    def transform(self, batch: RawBatch) -> Ints:
        """Return the token ids, int32 (n_rows, longest), 0 behind a row's last one.

        Raises
        ------
        MalformedInput
            A column is missing; a row holds what is no token id, does not begin with a service's
            guide token, or holds a longer item or more events of a service than the encoder was
            trained on.
        SpaceMismatch
            A row's tokens were made with another tokenizer.
        """
        self._reader.check(batch)
        self._reader.refuse(batch)
        column = column_of(batch, self._column, TokenColumn)
        tokens = np.where(column.valid[:, None], column.values, 0)  # (n_rows, longest)
        for faulty, what in self._faults(tokens):
            self._raise_for(batch, faulty, what)
        return tokens

    def summary(self, batch: RawBatch) -> RowSummary:
        """Return age, number of events and status of each row.

        Raises
        ------
        MalformedInput
            A column is missing.
        """
        return summarise(batch, self.schema, self._reader)

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return (arrays, JSON types) from which ``from_state`` rebuilds equal inputs."""
        return {}, {
            "vocabulary": self.vocabulary,
            "n_guides": self.n_guides,
            "max_item_tokens": self.max_item_tokens,
            "max_events": self.max_events,
        }

    @classmethod
    def from_state(
        cls, schema: FeatureSchema, arrays: Arrays, config: dict[str, Any]
    ) -> ClueInputs:
        """Rebuild what ``state`` returned.

        Raises
        ------
        ArtifactError
            The state does not fit.
        """
        try:
            if arrays:
                raise ValueError(f"tensors {', '.join(sorted(arrays))} given, none expected.")
            return cls(schema, **config)
        except (TypeError, ValueError) as exc:
            raise ArtifactError(
                f"The preprocessing state does not fit the schema: {exc} Fetch the artifact again."
            ) from exc

    def _faults(self, tokens: Ints) -> list[tuple[Bools, str]]:
        """Return who has a fault, bool (n_rows,), and what it is; what follows needs sound rows."""
        wrong = _any((tokens < 0) | (tokens >= self.vocabulary))
        if wrong.any():
            return [(wrong, f"a token id outside 0 to {self.vocabulary - 1}")]
        there = tokens != 0
        length = there.sum(axis=1)
        wrong = _any(there != (np.arange(tokens.shape[1]) < length[:, None]))
        if tokens.shape[1]:
            wrong = wrong | (tokens[:, 0] > self.n_guides)
        if wrong.any():
            return [(wrong, "a list that does not begin with a service's guide token, or a gap")]
        rows = TokenRows.of(tokens, self.n_guides)
        runs = np.stack([rows.row[rows.sequence], rows.guide[rows.sequence]])
        _, first = np.unique(runs, axis=1, return_index=True)
        again = np.setdiff1d(np.arange(runs.shape[1]), first)
        return [
            (
                _marked(len(tokens), rows.row[rows.length > self.max_item_tokens]),
                f"an item of more than {self.max_item_tokens} tokens",
            ),
            (
                _marked(len(tokens), runs[0][rows.sequence_length > self.max_events]),
                f"more than {self.max_events} events of a service",
            ),
            (_marked(len(tokens), runs[0][again]), "a service's events in several places"),
        ]

    def _raise_for(self, batch: RawBatch, faulty: Bools, what: str) -> None:
        rows = np.flatnonzero(faulty)
        if not rows.size:
            return
        row = int(rows[0])
        user = batch.users[row] if batch.users else None
        raise MalformedInput(
            f"Row {row} ({user or 'an unnamed user'}), column {self._column!r}: {what} given "
            f"({rows.size} such row(s) in the batch). Build the raw features with the encoder's "
            "own item texts and limits.",
            column=self._column,
            row=row,
            user=user,
        )


def _marked(n: int, rows: npt.NDArray[np.int64]) -> Bools:
    found = np.zeros(n, np.bool_)
    found[rows] = True
    return found


def _any(faulty: Bools) -> Bools:
    rows: Bools = np.logical_or.reduce(faulty, axis=1)
    return rows
