"""What was readable online is kept offline: after redelivery, a lost answer, a failed write."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from encoder.errors import DataFault, TransientError
from materialize.stream.apply import Applier, ApplyReport
from materialize.stream.atomic import UserHashes
from materialize.stream.offline import OfflineRows
from materialize.stream.read_users import ReadUsers
from tests.contract.stream_apply.applying import (
    BRIDGED,
    FIRST,
    HOUR,
    SECOND,
    USERS,
    change,
    everything,
    online_settings,
    pick,
)
from tests.e2e.redis_faults import Line
from tests.servers import Server
from tests.streams import DAY, NOON, TinyStream, apply, consume, deliveries
from transforms.layout import ACTIVITY, ONBOARDING, PROFILE


def test_redelivered_events_give_their_offline_rows_again(
    stream: TinyStream, applier: Applier
) -> None:
    user = next(USERS)
    events = [consume(user, k, NOON + k) for k in range(3)]
    reports = [apply(applier, event) for event in events]
    again = applier.apply(deliveries([*events, pick(user, 4, NOON)], redelivered=True))
    assert again.outcomes == {("consume", "duplicate"): 3, ("onboarding_pick", "applied"): 1}
    fresh = next(USERS)
    newer = applier.apply(deliveries([consume(fresh, 1, NOON)], redelivered=True))
    assert newer.outcomes == {("consume", "applied"): 1}
    assert len(newer.offline[ACTIVITY]) == 1
    rows = {row["event_timestamp"]: row for row in again.offline[ACTIVITY].to_pylist()}
    for report in reports:
        (row,) = report.offline[ACTIVITY].to_pylist()
        twin = rows.pop(row["event_timestamp"], None)
        if twin is not None:
            assert twin | {"created_timestamp": None} == row | {"created_timestamp": None}
    assert rows == {}
    embedded = again.offline[FIRST].to_pylist()
    assert {row["as_of"] for row in embedded} == {NOON, NOON + 1, NOON + 2}
    made_then = {
        row["as_of"]: row["embedding"]
        for report in reports
        for row in report.offline[FIRST].to_pylist()
    }
    # At its time the user had not picked yet, except at the first event, which is of the same time.
    assert {r["as_of"]: r["n_events"] for r in embedded} == {NOON: 1, NOON + 1: 2, NOON + 2: 3}
    assert made_then.keys() == {row["as_of"] for row in embedded}


def test_redelivery_alone_writes_nothing_and_returns_what_is_online(
    stream: TinyStream, applier: Applier, hashes: UserHashes
) -> None:
    user = next(USERS)
    events = [consume(user, k, NOON + k) for k in range(3)]
    reports = [apply(applier, event) for event in events]
    before = everything(hashes, user)
    again = applier.apply(deliveries(events, redelivered=True))
    assert again.written == 0
    assert everything(hashes, user) == before
    for view in (ACTIVITY, FIRST, SECOND, BRIDGED):
        then = [row for report in reports for row in report.offline[view].to_pylist()]
        now = sorted(again.offline[view].to_pylist(), key=lambda row: row["event_timestamp"])
        assert now[-1] == then[-1], "the newest row with its own times"
        blank = {"created_timestamp": None}
        assert [row | blank for row in now] == [row | blank for row in then]


def test_a_redelivered_profile_change_is_kept_offline_beside_a_new_event_of_the_user(
    stream: TinyStream, applier: Applier
) -> None:
    """The new event writes other views: what they have at hand is not the profile's row."""
    user = next(USERS)
    changed = change(user, NOON, gender="f", age=20.0)
    (row,) = apply(applier, changed).offline[PROFILE].to_pylist()
    again = applier.apply(deliveries([changed, consume(user, 1, NOON)], redelivered=True))
    assert again.outcomes == {("profile_change", "duplicate"): 1, ("consume", "applied"): 1}
    assert again.offline[PROFILE].to_pylist() == [row]


def test_a_row_that_is_made_again_is_created_after_what_came_late_and_is_in_it(
    stream: TinyStream, applier: Applier
) -> None:
    user = next(USERS)
    first, newest, late = (consume(user, k, NOON + at) for k, at in ((1, 1), (2, 2), (3, 0)))
    before = apply(applier, first).offline[ACTIVITY].to_pylist()
    apply(applier, newest)
    apply(applier, late)
    again = applier.apply(deliveries([first], redelivered=True)).offline
    rows = [
        row for row in before + again[ACTIVITY].to_pylist() if row["activity_as_of"] == NOON + 1
    ]
    then, now = sorted(rows, key=lambda row: row["created_timestamp"])
    assert (then["activity_counts"][0], now["activity_counts"][0]) == (1, 2)
    once_more = applier.apply(deliveries([first], redelivered=True)).offline
    assert once_more == again, "the same state, the same rows, whenever they are made"


@pytest.mark.parametrize("late", ["pick", "consume"])
def test_a_row_made_again_of_what_was_read_earlier_is_not_created_later(
    stream: TinyStream, applier: Applier, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Stopped behind its reading, a worker ends after another one has made the same row of more."""
    user = next(USERS)
    first, newest = consume(user, 1, NOON + 1), consume(user, 2, NOON + 2)
    apply(applier, first)
    apply(applier, newest)
    came = pick(user, 3, NOON) if late == "pick" else consume(user, 3, NOON)
    meanwhile: list[ApplyReport] = []

    class Sleepy(ReadUsers):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            monkeypatch.undo()
            other = stream.applier()
            apply(other, came)
            meanwhile.append(other.apply(deliveries([first], redelivered=True)))

    monkeypatch.setattr("materialize.stream.redelivered.ReadUsers", Sleepy)
    less = applier.apply(deliveries([first], redelivered=True))
    (more,) = meanwhile
    for view in (ACTIVITY, FIRST, SECOND, BRIDGED):
        name = "activity_as_of" if view == ACTIVITY else "as_of"
        knew, knows = (
            row["created_timestamp"]
            for report in (less, more)
            for row in report.offline[view].to_pylist()
            if row[name] == NOON + 1
        )
        assert knew < knows, view


class LosesAnswer(Line):
    """A line that, once armed, passes the next script call on and breaks instead of its answer."""

    def __init__(self, port: int) -> None:
        self.armed = threading.Event()
        self._called = threading.Event()
        super().__init__(port)

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        from_client = here.getsockname()[1] == self.port
        with suppress(OSError, ValueError):  # it was closed
            while not self._closed:
                if not select.select([here], [], [], 0.05)[0]:
                    continue
                data = here.recv(65_536)
                if not data:
                    break
                if from_client and self.armed.is_set() and b"EVALSHA" in data:
                    self._called.set()
                elif not from_client and self._called.is_set():
                    self._called.clear()
                    self.armed.clear()
                    break
                there.sendall(data)
        for one in (here, there):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_a_step_whose_answer_was_lost_keeps_its_offline_rows(
    tmp_path: Path, redis_server: Server
) -> None:
    """The same deliveries are duplicates then, and nobody has kept their rows yet."""
    with closing(LosesAnswer(redis_server.port)) as line:
        server = Server("127.0.0.1", line.port, f"redis://127.0.0.1:{line.port}")
        stream = TinyStream.make(tmp_path / "repository", online_settings(server, tmp_path))
        stream.add_space()
        applier, hand = stream.applier(), deliveries([consume(1, 1, NOON)])
        apply(applier, consume(2, 1, NOON))  # the script is known to the server
        line.armed.set()
        with pytest.raises(TransientError, match="does not take part"):
            applier.apply(hand)
        assert stream.online(FIRST, [1])["as_of"] == [NOON]
        report = applier.apply(hand)
        assert report.outcomes == {("consume", "duplicate"): 1}
        assert len(report.offline[ACTIVITY]) == len(report.offline[FIRST]) == 1
        assert applier.apply(hand).offline == {}, "nothing is in doubt any more"


def test_offline_rows_answer_at_each_moment_what_was_readable_online(
    tmp_path: Path, redis_server: Server
) -> None:
    stream = TinyStream.make(tmp_path / "repository", online_settings(redis_server, tmp_path))
    first, second = stream.add_space(), stream.add_space(1, vectors="int8")
    stream.pin(first)
    store = stream.context.store
    applier, offline = stream.applier(), OfflineRows(store, flush_seconds=30, flush_rows=10_000)
    readable: list[tuple[datetime, dict[str, list[Any]]]] = []
    base = time.time_ns() // 1000 - 3 * DAY
    views = (ACTIVITY, PROFILE, ONBOARDING, FIRST, SECOND)
    for k in range(4):
        report = apply(
            applier,
            *(consume(user, k + user, base + k * HOUR) for user in (1, 2)),
            *(consume(1, 9, base - DAY), change(2, base + k, age=float(k)), pick(1, k, base + k)),
        )
        for view, table in report.offline.items():
            offline.add(view, table, now=float(k))
        found: dict[str, list[Any]] = {}
        for view in views:
            found |= {f"{view}__{n}": v for n, v in stream.online(view, [1, 2]).items()}
        readable.append((datetime.now(timezone.utc), found))
    assert not offline.due(29.9)
    assert offline.due(30.0)
    held = len(offline)
    assert held > 0
    assert offline.flush() == 0, "nothing was set off"
    offline.set_off()
    assert offline.flush() == held
    assert len(offline) == 0
    assert not offline.due(1e9)
    for view in (FIRST, SECOND):
        folder = stream.offline(first if view == FIRST else second)
        assert len(list(folder.glob("push-*.parquet"))) == 1
    frame = pd.DataFrame(
        [(user, moment) for moment, _ in readable for user in (1, 2)],
        columns=["user_id", "event_timestamp"],
    )
    names = [f"{view}:{f.name}" for view in views for f in store.get_feature_view(view).features]
    table = store.get_historical_features(frame, names, full_feature_names=True).to_arrow()
    for row, (_, found) in enumerate(readable):
        for at in (0, 1):
            for name, values in found.items():
                if not name.endswith("__user_id"):
                    answer = table[name].to_pylist()[2 * row + at]
                    assert answer == values[at], (name, row, at)


def test_offline_rows_stay_held_while_a_view_cannot_be_written(
    stream: TinyStream, applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = OfflineRows(stream.context.store, flush_seconds=30, flush_rows=2)
    report = apply(applier, consume(next(USERS), 1, NOON))
    offline.add(ACTIVITY, report.offline[ACTIVITY], 0.0)
    offline.add("user_embedding_s99", report.offline[FIRST], 0.0)
    assert offline.due(0.0), "two rows"
    offline.set_off()
    folder = stream.context.settings.features_dir / ACTIVITY
    before = len(list(folder.glob("push-*.parquet")))
    for _ in range(2):
        with pytest.raises(DataFault, match="user_embedding_s99"):
            offline.flush()
    assert len(list(folder.glob("push-*.parquet"))) == before + 1
