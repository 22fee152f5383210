"""Training rows of token ids -> sequences of users, and a token table with each item once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from encoder.clue.inputs import ClueInputs
from encoder.clue.sequences import ServiceEvents, UserSequences
from encoder.clue.token_rows import TokenRows
from encoder.clue.tokenizer import UNKNOWN_SERVICE
from encoder.rows import RowSource, in_share

__all__ = ["OTHER_SERVICES", "RowSequences", "read_sequences"]

OTHER_SERVICES = "(others)"
"""What services without a guide token of their own are called together."""

_SAMPLE_ROWS = 64


@dataclass(frozen=True)
class RowSequences:
    """Training rows as sequences.

    Attributes
    ----------
    sequences : UserSequences
        Users in the order of the rows.
    sample : int32 (at most 64, longest)
        Inputs of the first users, for a proof of the exported graphs.
    """

    sequences: UserSequences
    sample: npt.NDArray[np.int32]


def read_sequences(
    source: RowSource,
    inputs: ClueInputs,
    services: tuple[str, ...],
    *,
    share: float = 1.0,
    progress: bool = True,
) -> RowSequences:
    """Read training rows, one a user.

    Parameters
    ----------
    source : RowSource
    inputs : ClueInputs
    services : tuple of str
        Names of guide tokens 2, 3, ...
    share : float
        Share of the users to keep, by a hash, (0, 1].
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    DataFault
        There is no file, or one lacks a column.
    MalformedInput, SpaceMismatch
        As in ``ClueInputs.transform``.

    Notes
    -----
    Memory holds twelve bytes an event of the users that are kept, and each of their different items
    once.
    """
    number: dict[bytes, int] = {}
    users: list[str] = []
    row_parts, guide_parts, item_parts = [], [], []
    sample = np.zeros((0, 0), np.int32)
    with tqdm(
        total=source.count(), desc="sequences", unit="user", unit_scale=True, disable=not progress
    ) as bar:
        for batch in source.batches():
            kept = in_share(batch.users, share)
            tokens = inputs.transform(batch)[kept]
            if not users:
                sample = tokens[:_SAMPLE_ROWS]
            rows = TokenRows.of(tokens, inputs.n_guides)
            items = np.ascontiguousarray(rows.padded(inputs.max_item_tokens))
            keys, place = np.unique(items.view(f"V{items.strides[0]}").ravel(), return_inverse=True)
            ids = [number.setdefault(bytes(key), len(number)) for key in keys]
            item_parts.append(np.array(ids, np.int32)[place.ravel()])
            row_parts.append(rows.row + len(users))
            guide_parts.append(rows.guide.astype(np.int32))
            users += compress(batch.users, kept)
            bar.update(batch.n_rows)
    row, guide = np.concatenate(row_parts), np.concatenate(guide_parts)
    item = np.concatenate(item_parts)
    table = np.frombuffer(b"".join(number), np.int32).reshape(len(number), inputs.max_item_tokens)
    found = {}
    for k in np.unique(guide).tolist():
        mine = guide == k
        counts = np.bincount(row[mine], minlength=len(users))
        starts = np.concatenate([[0], np.cumsum(counts)])
        known = k != UNKNOWN_SERVICE
        name = services[k - UNKNOWN_SERVICE - 1] if known else OTHER_SERVICES
        found[name] = ServiceEvents(starts, item[mine])
    return RowSequences(UserSequences(table, found, tuple(users)), sample)
