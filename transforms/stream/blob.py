"""The bytes of one user's state: format 1.

Little-endian, one after the other::

    header    u8 format, u8 bytes of a context number, u16 0, u32 events, u32 picks, u32 contexts,
              u32 bytes of the profile, i64 sign-up, i64 newest event that is not kept
    events    i64 time [n], i64 item key [n], f32 weight [n], context number [n]
    picks     i64 item key [n], i64 time [n]
    contexts  u32 bytes [n], then each as a JSON list of strings
    profile   JSON: {column: [time, text]}, {column: [time, number]}
    checksum  u32, CRC-32 of everything before it

Events ascend by time, then item key; picks by item key; contexts ascend and are those in use. Equal
states so have equal bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import CorruptState
from transforms.stream.facts import Context, Facts, Ints, Picks
from transforms.stream.merge import NONE
from transforms.stream.profile import NO_PROFILE, Profile

__all__ = ["FORMAT", "decode_blobs", "encode_blobs"]

FORMAT = 1
"""Of the blobs that are written; ``decode_blobs`` says which it reads."""

_HEADER = struct.Struct("<BBHIIIIqq")
_CHECKSUM = struct.Struct("<I")
_NUMBER: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
_ADVICE = "Run `palate stream seed --force`: it makes the states anew from the clean tables."


def decode_blobs(
    users: Sequence[int | str], blobs: Sequence[bytes | None], faults: dict[int, CorruptState]
) -> tuple[Facts, Picks, tuple[Profile, ...], Ints, Ints]:
    """Return events, picks, profiles, sign-ups and newest events not kept of some users.

    Parameters
    ----------
    users : sequence of int or str (n_users,)
    blobs : sequence of bytes or None (n_users,)
        None or b"": nothing is known of the user.
    faults : dict
        Is filled with the users whose blob cannot be read; they come out empty.
    """
    counts = np.zeros((len(users), 3), np.int64)  # events, picks, contexts
    moments = np.full((len(users), 2), NONE, np.int64)  # sign-up, newest not kept
    profiles = [NO_PROFILE] * len(users)
    ts, item, weight, pick_item, pick_ts = _parts(5)
    number: list[Ints] = []
    pool = _ContextPool()
    for user, blob in enumerate(blobs):
        if not blob:
            continue
        fault = _fault(blob)
        if fault is not None:
            faults[user] = CorruptState(
                f"State of user {users[user]!r}: {fault}. {_ADVICE}", user=users[user]
            )
            continue
        _, width, _, n, p, c, length, signed_up, gone = _HEADER.unpack_from(blob)
        counts[user], moments[user] = (n, p, c), (signed_up, gone)
        a = _HEADER.size
        ts.append(blob[a : a + 8 * n])
        item.append(blob[a + 8 * n : a + 16 * n])
        weight.append(blob[a + 16 * n : a + 20 * n])
        a += 20 * n
        number.append(np.frombuffer(blob, _NUMBER[width], n, a) if width else np.zeros(n, np.int64))
        a += width * n
        if p:
            pick_item.append(blob[a : a + 8 * p])
            pick_ts.append(blob[a + 8 * p : a + 16 * p])
            a += 16 * p
        end = len(blob) - _CHECKSUM.size - length
        pool.add(c, blob[a:end])
        if length:
            profiles[user] = Profile.from_bytes(blob[end : end + length])
    starts = _starts(counts)  # (n_users + 1, 3)
    contexts, code = pool.table()
    local = np.concatenate([np.zeros(0, np.int64), *number], dtype=np.int64)
    local += np.repeat(starts[:-1, 2], counts[:, 0])
    facts = Facts(
        np.ascontiguousarray(starts[:, 0]),
        _joined(ts, "<i8"),
        _joined(item, "<i8"),
        _joined(weight, "<f4"),
        code[local],
        contexts,
    )
    picks = Picks(
        np.ascontiguousarray(starts[:, 1]), _joined(pick_item, "<i8"), _joined(pick_ts, "<i8")
    )
    return facts, picks, tuple(profiles), moments[:, 0].copy(), moments[:, 1].copy()


def encode_blobs(
    facts: Facts, picks: Picks, profiles: Sequence[Profile], sign_up: Ints, gone: Ints
) -> list[bytes]:
    """Return each user's blob; ``decode_blobs`` gives the same back."""
    used, use_start, number = _used_contexts(facts)
    json_of = [_context_bytes(context) for context in facts.contexts]
    ts, item = facts.ts.astype("<i8").tobytes(), facts.item.astype("<i8").tobytes()
    weight = facts.weight.astype("<f4").tobytes()
    pick_item, pick_ts = picks.item.astype("<i8").tobytes(), picks.ts.astype("<i8").tobytes()
    blobs: list[bytes] = []
    for user, (a, b, p, q, u, v, signed_up, newest_gone) in enumerate(
        zip(
            *(facts.start[:-1].tolist(), facts.start[1:].tolist()),
            *(picks.start[:-1].tolist(), picks.start[1:].tolist()),
            *(use_start[:-1].tolist(), use_start[1:].tolist()),
            *(sign_up.tolist(), gone.tolist()),
            strict=True,
        )
    ):
        contexts = [json_of[code] for code in used[u:v]]
        width = _width(v - u)
        profile = profiles[user].to_bytes()
        body = b"".join(
            (
                _HEADER.pack(
                    *(FORMAT, width, 0, b - a, q - p, v - u, len(profile), signed_up, newest_gone)
                ),
                ts[8 * a : 8 * b],
                item[8 * a : 8 * b],
                weight[4 * a : 4 * b],
                number[a:b].astype(_NUMBER[width]).tobytes() if width else b"",
                pick_item[8 * p : 8 * q],
                pick_ts[8 * p : 8 * q],
                struct.pack(f"<{v - u}I", *map(len, contexts)),
                *contexts,
                profile,
            )
        )
        blobs.append(body + _CHECKSUM.pack(zlib.crc32(body)))
    return blobs


class _ContextPool:
    """Gives each context of several users one number; users of equal contexts cost one look-up."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._of_user: dict[bytes, list[int]] = {}
        self._codes: list[int] = []

    def add(self, n: int, section: bytes) -> None:
        """Append the contexts of one user, as they stand in the blob."""
        codes = self._of_user.get(section)
        if codes is None:
            codes = []
            at = 4 * n
            for length in struct.unpack_from(f"<{n}I", section):
                text = section[at : at + length]
                codes.append(self._number.setdefault(text, len(self._number)))
                at += length
            self._of_user[section] = codes
        self._codes += codes

    def table(self) -> tuple[tuple[Context, ...], Ints]:
        """Return the contexts, ascending, and where each appended one stands there."""
        contexts = [tuple(json.loads(text)) for text in self._number]
        order = sorted(range(len(contexts)), key=contexts.__getitem__)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return tuple(contexts[k] for k in order), place[np.array(self._codes, np.int64)]


def _used_contexts(facts: Facts) -> tuple[list[int], Ints, Ints]:
    """Return each user's contexts in use, where a user's begin, and each event's among them."""
    n_users, n_contexts = len(facts.start) - 1, max(len(facts.contexts), 1)
    pair = facts.user * n_contexts + facts.context
    # Hashing is several times faster than numpy's sorting, and leaves few to sort.
    distinct = pa.array(pair).dictionary_encode()
    pairs = distinct.dictionary.to_numpy()
    order = np.argsort(pairs)
    user, context = np.divmod(pairs[order], n_contexts)
    start = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=n_users))])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - start[user]
    return context.tolist(), start, place[distinct.indices.to_numpy()]


def _context_bytes(context: Context) -> bytes:
    return json.dumps(context, ensure_ascii=False, separators=(",", ":")).encode()


def _width(n_contexts: int) -> int:
    """Return how many bytes tell so many contexts apart."""
    if n_contexts <= 1:
        return 0
    return 1 if n_contexts <= 2**8 else 2 if n_contexts <= 2**16 else 4


def _fault(blob: bytes) -> str | None:
    """Return what is wrong with a blob, in words; None for nothing."""
    if blob[0] != FORMAT:
        return f"format {blob[0]} found, {FORMAT} expected (another release wrote it?)"
    whole = len(blob) >= _HEADER.size + _CHECKSUM.size
    if not whole or zlib.crc32(blob[: -_CHECKSUM.size]) != _CHECKSUM.unpack(blob[-4:])[0]:
        return f"{len(blob)} bytes found that do not fit their checksum"
    return None


def _starts(counts: Ints) -> Ints:
    return np.concatenate([np.zeros((1, counts.shape[1]), np.int64), np.cumsum(counts, axis=0)])


def _parts(n: int) -> list[list[bytes]]:
    return [[] for _ in range(n)]


def _joined(parts: list[bytes], kind: str) -> npt.NDArray[Any]:
    return np.frombuffer(b"".join(parts), kind)
