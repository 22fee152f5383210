"""Users' events as batches with two views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from encoder.clue.sequences import Noise, Pairs, ServiceEvents, UserSequences
from encoder.clue.tokenizer import PAD, UNKNOWN_SERVICE
from encoder.errors import DataFault
from encoder.rows import held_out
from tests.unit.encoder.clue.planted import planted


def _pairs(sequences: UserSequences, **changes: object) -> Pairs:
    given: dict[str, object] = {"positives": "services", "max_events": 5} | changes
    return Pairs(sequences, "training", 0.1, **given)  # type: ignore[arg-type]


def test_a_window_is_cut_from_the_newest_on() -> None:
    events = ServiceEvents(np.array([0, 3, 3, 5]), np.array([7, 8, 9, 4, 5], np.int32))
    users = np.array([0, 2, 1])
    found, there = events.windows(users, np.array([1, 0, 0]), np.array([2, 2, 0]), 3)
    assert there.tolist() == [[True, True, False], [True, True, False], [False] * 3]
    assert found[there].tolist() == [8, 9, 4, 5]


def test_a_batch_holds_each_item_once_and_the_users_own_events() -> None:
    sequences, _, _ = planted()
    pairs = _pairs(sequences)
    (batch, *_) = pairs.batches(20, (3, 1))
    assert batch.n_users == 20
    assert len(np.unique(batch.tokens, axis=0)) == len(batch.tokens)
    lengths = (batch.tokens != PAD).sum(1)
    assert (np.diff(lengths) <= 0).all()
    assert batch.n_tokens == lengths.sum()
    # The newest five of a user, in order; users are told by their tokens.
    known = {}
    for u in pairs.users:
        key = []
        for service in sequences.services.values():
            mine = service.items[service.starts[u] : service.starts[u + 1]][:5]
            key.append(sequences.tokens[mine].tobytes())
        known[tuple(key)] = u
    for k in range(20):
        told = tuple(batch.tokens[v.events[k][v.there[k]]].tobytes() for v in (batch.a, batch.b))
        assert told in known


def test_batches_follow_from_the_seed_and_go_on_where_they_stopped() -> None:
    sequences, _, _ = planted()
    pairs = _pairs(sequences, noise=Noise(0.5, 0.3, 0.3))
    whole = list(pairs.batches(20, (0, 0)))
    assert len(whole) == pairs.n_batches(20, (0, 0)) > 3
    rest = list(pairs.batches(20, (0, 0), first=2))
    assert len(rest) == len(whole) - 2
    for one, other in zip(rest, whole[2:], strict=True):
        assert one.tokens.tobytes() == other.tokens.tobytes()
        assert one.a.events.tobytes() == other.a.events.tobytes()
        assert one.b.there.tobytes() == other.b.there.tobytes()
    another = next(iter(pairs.batches(20, (0, 1))))
    assert another.a.events.tobytes() != whole[0].a.events.tobytes()


def test_held_out_users_and_users_of_one_service_are_not_met() -> None:
    sequences, _, _ = planted()
    training = _pairs(sequences).users
    validation = Pairs(sequences, "validation", 0.1, positives="services", max_events=5).users
    kept = held_out(sequences.users, 0.1)
    assert not kept[training].any()
    assert kept[validation].all()
    assert min(training.min(), validation.min()) >= 60  # the first 60 have one service or none
    assert len(training) + len(validation) == 240


def test_crops_are_stretches_of_one_service_that_do_not_overlap() -> None:
    sequences, _, _ = planted()
    pairs = _pairs(sequences, positives="crops", max_events=20)
    assert (pairs.users < 30).any()  # who has one service is enough
    for batch in pairs.batches(30, (0, 0)):
        guides = {
            int(batch.tokens[e[t], 0][0])
            for v in (batch.a, batch.b)
            for e, t in zip(v.events, v.there, strict=True)
        }
        assert len(guides) == 1
        assert batch.a.there[:, 0].all()
        assert batch.b.there[:, 0].all()
        assert ((batch.a.there.sum(1) + batch.b.there.sum(1)) >= 3).all()


def test_both_contrasts_share_the_users_out_anew_each_epoch() -> None:
    """Who has one service gets two stretches of it, one event in each service two services."""
    lengths = np.array([[5, 0], [0, 5], [1, 1], [1, 0], [0, 0]]).repeat([9, 9, 9, 9, 9], axis=0)
    lengths = np.concatenate([lengths, np.full((400, 2), 4)])
    events = [
        ServiceEvents(np.append(0, np.cumsum(n)), np.zeros(n.sum(), np.int32)) for n in lengths.T
    ]
    tokens, users = np.ones((1, 4), np.int32), tuple(map(str, range(len(lengths))))
    sequences = UserSequences(tokens, {"shop": events[0], "news": events[1]}, users)
    pairs = _pairs(sequences, positives="both")
    assert set(pairs.users) == set(np.flatnonzero(~held_out(users, 0.1))) - set(range(27, 45))
    epochs = []
    for epoch in range(2):
        plan = pairs._plan(10, (0, epoch), whole_only=False)
        assert sorted(np.concatenate([piece for _, piece in plan])) == list(pairs.users)
        epochs.append({int(user): pair for pair, piece in plan for user in piece})
        for first, last, pair in ((0, 9, (0, 0)), (9, 18, (1, 1)), (18, 27, (0, 1))):
            assert {epochs[-1].get(user, pair) for user in range(first, last)} == {pair}
        rest = [pair for user, pair in epochs[-1].items() if user >= 45]
        assert 0.4 < rest.count((0, 1)) / len(rest) < 0.6
        assert 0.15 < rest.count((0, 0)) / len(rest) < 0.35
    assert epochs[0] != epochs[1]
    held = Pairs(sequences, "validation", 0.1, positives="both", max_events=5)
    asked = {int(u): pair for pair, piece in held._plan(10, (0, 0), False) for u in piece}
    assert {pair for user, pair in asked.items() if user >= 18} == {(0, 1)}
    assert set(asked) == set(held.users)


def test_a_view_loses_events_but_never_all_and_keeps_their_order() -> None:
    sequences, _, _ = planted()
    whole = _pairs(sequences, max_events=20)
    noisy = _pairs(sequences, max_events=20, noise=Noise(event_dropout=0.5))
    kept = total = 0
    for before, after in zip(whole.batches(40, (0, 0)), noisy.batches(40, (0, 0)), strict=True):
        for one, other in ((before.a, after.a), (before.b, after.b)):
            assert other.there[:, 0].all()
            # Moved up: nothing stands behind a gap.
            assert (np.diff(other.there.astype(int), axis=1) <= 0).all()
            kept, total = kept + other.there.sum(), total + one.there.sum()
            for k in range(40):
                items = [before.tokens[e].tobytes() for e in one.events[k][one.there[k]]]
                left = [after.tokens[e].tobytes() for e in other.events[k][other.there[k]]]
                rest = iter(items)
                assert all(item in rest for item in left)  # a subsequence
    assert 0.4 < kept / total < 0.65


def test_almost_all_events_left_out_is_one_a_user_and_not_always_the_newest() -> None:
    sequences, _, _ = planted()
    noisy = _pairs(sequences, max_events=20, noise=Noise(event_dropout=0.999))
    whole = _pairs(sequences, max_events=20)
    newest = []
    for before, after in zip(whole.batches(40, (0, 0)), noisy.batches(40, (0, 0)), strict=True):
        assert after.a.there.sum(1).max() <= 2
        for k in range(40):
            first = before.tokens[before.a.events[k, 0]]
            newest.append((after.tokens[after.a.events[k, 0]] == first).all())
    assert 0.05 < np.mean(newest) < 0.6


def test_tokens_are_left_out_but_for_the_guide() -> None:
    sequences, _, _ = planted()
    (whole, *_) = _pairs(sequences).batches(40, (0, 0))
    (batch, *_) = _pairs(sequences, noise=Noise(token_dropout=0.4)).batches(40, (0, 0))
    assert batch.tokens.shape == whole.tokens.shape
    assert (batch.tokens[:, 0] != PAD).all()
    there = batch.tokens != PAD
    assert (np.diff(there.astype(int), axis=1) <= 0).all()
    lengths = there.sum(1)
    assert (np.diff(lengths) <= 0).all()  # longest first, of what is left
    before = (whole.tokens != PAD).sum() - len(whole.tokens)
    assert 0.5 < (lengths.sum() - len(batch.tokens)) / before < 0.7


def test_guide_tokens_are_forgotten_now_and_then() -> None:
    sequences, _, _ = planted()
    (batch, *_) = _pairs(sequences, noise=Noise(guide_dropout=0.5)).batches(100, (0, 0))
    share = (batch.tokens[:, 0] == UNKNOWN_SERVICE).mean()
    assert 0.3 < share < 0.7
    assert not (sequences.tokens[:, 0] == UNKNOWN_SERVICE).any()  # the table is as it was


def test_a_share_of_users_is_the_same_every_time() -> None:
    sequences, _, _ = planted()
    half, again = (_pairs(sequences, share=0.5).users for _ in range(2))
    assert (half == again).all()
    assert 0.35 < len(half) / len(_pairs(sequences).users) < 0.65


def test_more_than_two_services_are_paired_at_random_one_pair_a_batch() -> None:
    sequences, _, _ = planted()
    three = UserSequences(
        sequences.tokens,
        {**sequences.services, "more": sequences.services["news"]},
        sequences.users,
    )
    pairs = _pairs(three)
    plan = pairs._plan(10, (0, 0), whole_only=False)
    assert {pair for pair, _ in plan} == {(0, 1), (0, 2), (1, 2)}
    users = np.concatenate([piece for _, piece in plan])
    assert sorted(users) == sorted(pairs.users)  # each once


def test_what_is_written_is_what_is_mapped(tmp_path: Path) -> None:
    sequences, _, _ = planted()
    sequences.save(tmp_path / "s")
    again = UserSequences.open(tmp_path / "s")
    assert again.fingerprint() == sequences.fingerprint()
    assert isinstance(again.tokens, np.memmap)
    (tmp_path / "s" / "sequences.json").unlink()
    with pytest.raises(DataFault, match="no finished sequences"):
        UserSequences.open(tmp_path / "s")


def test_nobody_with_two_views_is_told() -> None:
    one, _, _ = planted(services=1)
    with pytest.raises(DataFault, match=r"No user with events in two services .* shop"):
        _pairs(one)
    for positives in ("crops", "both"):
        pairs = _pairs(one, positives=positives)
        assert {pair for pair, _ in pairs._plan(10, (0, 0), whole_only=True)} == {(0, 0)}
