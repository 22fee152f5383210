"""The bytes of a state: format 1."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import CorruptState, TerminalError
from tests.unit.transforms.stream.histories import DAY, DAY_0, KEPT, add, empty, mixed
from transforms.stream.blob import FORMAT
from transforms.stream.events import StreamEvent
from transforms.stream.state import UserStates

# Two events, one pick, a sign-up at 1 and two columns of the profile, as the module describes them.
GOLDEN = bytes.fromhex(
    "01" "01" "0000"  # format, one byte a context number
    "02000000" "01000000" "02000000" "26000000"  # events, picks, contexts, bytes of the profile
    "0100000000000000" "0000000000000080"  # sign-up at 1; nothing left out
    "0500000000000000" "0900000000000000"  # events at 5 and 9
    "fdffffffffffffff" "0700000000000000"  # of the items -3 and 7
    "0000803f" "00002040"  # weights 1 and 2.5
    "00" "01"  # contexts
    "0b00000000000000" "0300000000000000"  # a pick of item 11 at 3
    "04000000" "06000000"  # bytes of the contexts
    + b'[""]["br"][{"country":[4,"it"]},{"age":[4,1.5]}]'.hex()
    + "2dcda8f3"
)  # fmt: skip


def golden_events() -> list[StreamEvent]:
    return [
        StreamEvent("consume", 1, 9, 7, 2.5, ("br",)),
        StreamEvent("consume", 1, 5, -3, 1.0, ("",)),
        StreamEvent("onboarding_pick", 1, 3, 11),
        StreamEvent("sign_up", 1, 1),
        StreamEvent("profile_change", 1, 4, categories={"country": "it"}, numbers={"age": 1.5}),
    ]


def states_of(*blobs: bytes | None) -> tuple[UserStates, dict[int, CorruptState]]:
    faults: dict[int, CorruptState] = {}
    return UserStates.decode(list(range(len(blobs))), blobs, faults), faults


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_format_1_is_written_as_it_always_was():
    states = UserStates.decode([1], [None], {}).apply([golden_events()], **KEPT).states
    assert states.encode() == [GOLDEN]


def test_format_1_is_read_as_it_always_was():
    states, faults = states_of(GOLDEN)
    assert not faults
    facts = states.facts
    assert facts.ts.tolist() == [5, 9]
    assert facts.item.tolist() == [-3, 7]
    assert facts.weight.tolist() == [1.0, 2.5]
    assert [facts.contexts[k] for k in facts.context] == [("",), ("br",)]
    assert (states.picks.item.tolist(), states.picks.ts.tolist()) == ([11], [3])
    assert states.profiles[0].categories == {"country": (4, "it")}
    assert states.profiles[0].numbers == {"age": (4, 1.5)}
    assert states.sign_up.tolist() == [1]
    assert states.encode() == [GOLDEN]


@given(events=mixed())
def test_what_is_read_is_written_again_bit_for_bit(events):
    states = add(empty([0, 1, 2], "string"), events).states
    blobs = states.encode()
    read = UserStates.decode(states.users, blobs, {})
    assert read.encode() == blobs
    assert read.facts.contexts == tuple(sorted(set(read.facts.contexts)))
    # Alone or among others, a user's bytes are the same.
    for user, blob in enumerate(blobs):
        assert UserStates.decode([states.users[user]], [blob], {}).encode() == [blob]


@pytest.mark.parametrize("n", [1, 2, 256, 257, 65_536, 65_537])
def test_any_number_of_contexts_survives(n):
    events = [
        StreamEvent("consume", 1, DAY_0 * DAY + k, k, 1.0, (f"{k % n}", 'a"\n\u0000ü'))
        for k in range(n)
    ]
    limits = KEPT | {"max_events": 100_000}
    states = UserStates.decode([1], [None], {}).apply([events], **limits).states
    (blob,) = states.encode()
    assert blob[1] == (0 if n == 1 else 1 if n <= 256 else 2 if n <= 65_536 else 4)
    facts = UserStates.decode([1], [blob], {}).facts
    assert [facts.contexts[k] for k in facts.context[[0, -1]]] == [
        events[0].context, events[-1].context,
    ]  # fmt: skip
    assert UserStates.decode([1], [blob], {}).encode() == [blob]


@given(at=st.integers(0, len(GOLDEN) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_and_leaves_the_other_users_alone(at, bit):
    damaged = bytearray(GOLDEN)
    damaged[at] ^= 1 << bit
    states, faults = states_of(GOLDEN, bytes(damaged), GOLDEN)
    assert list(faults) == [1]
    assert faults[1].user == 1
    assert len(states.facts.ts) == 4
    assert states.encode()[0] == states.encode()[2] == GOLDEN


@pytest.mark.parametrize("length", [1, 2, 35, 40, len(GOLDEN) - 1])
def test_cut_bytes_are_noticed_and_name_the_user_and_what_to_do(length):
    faults: dict[int, CorruptState] = {}
    UserStates.decode(["ann"], [GOLDEN[:length]], faults)
    message = rf"user 'ann': {length} bytes found.*checksum.*palate stream seed"
    with pytest.raises(TerminalError, match=message):
        raise faults[0]


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_state_or_a_fault(blob):
    states, faults = states_of(blob)
    assert (0 in faults) != (states.encode() == [blob])


@pytest.mark.parametrize("number", [0, 2, 255])
def test_another_format_is_refused(number):
    _, faults = states_of(sealed(bytes([number]) + GOLDEN[1:-4]))
    assert f"format {number} found, {FORMAT} expected" in str(faults[0])


@pytest.mark.parametrize("nothing", [None, b""])
def test_no_bytes_are_a_user_of_whom_nothing_is_known(nothing):
    states, faults = states_of(nothing)
    assert not faults
    assert len(states.facts.ts) == len(states.picks.ts) == 0
    assert not states.known(1)[0]


def test_an_event_costs_twenty_bytes_where_there_is_one_context():
    sizes = []
    for n in (10, 110):
        events = [StreamEvent("consume", 1, DAY_0 * DAY + k, k) for k in range(n)]
        states = UserStates.decode([1], [None], {}).apply([events], **KEPT).states
        sizes.append(len(states.encode()[0]))
    assert sizes[1] - sizes[0] == 100 * 20
    assert np.isclose(sizes[0], 10 * 20, atol=60)
