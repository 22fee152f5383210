"""Binary COPY rows of the PostgreSQL plugin: whole, and in the order in which they are merged."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from materialize.stores.postgres import _copy_rows
from materialize.stores.rows import EncodedRows


def _fields(stream: bytes) -> Iterator[tuple[bytes | None, ...]]:
    """Yield the rows of a COPY stream without head and end."""
    at = 0
    while at < len(stream):
        (count,) = struct.unpack_from(">h", stream, at)
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", stream, at)
            at += 4
            row.append(None if length < 0 else stream[at : at + length])
            at += max(length, 0)
        yield tuple(row)


def test_rows_arrive_in_the_order_of_keys_and_features_whole() -> None:
    n = 2_345  # more than two pieces
    number = np.random.default_rng(0).permutation(n)
    keys = [b"user-%05d" % k for k in number]
    rows = EncodedRows(
        ("vector", "as_of"),
        keys,
        [[b"v" + key for key in keys], [b"a" + key for key in keys]],
        [["täxt"] * n, [None] * n],
        number.astype(np.int64),
        np.zeros(n, np.int64),
        number % 2 == 0,
    ).sorted_by_key()
    found = list(_fields(b"".join(_copy_rows(rows))))
    assert len(found) == 2 * n
    assert [(row[0], row[1]) for row in found] == sorted(
        (row[0] or b"", row[1] or b"") for row in found
    )
    for k in (0, 1, 999, 1000, n - 1):
        key = b"user-%05d" % k
        as_of, vector = found[2 * k : 2 * k + 2]
        moment = struct.pack(">q", k - 946_684_800_000_000)
        created = struct.pack(">q", -946_684_800_000_000) if k % 2 == 0 else None
        assert as_of == (key, b"as_of", b"a" + key, None, moment, created)
        assert vector == (key, b"vector", b"v" + key, "täxt".encode(), moment, created)
