"""Whatever is tried in whatever order, the ledger stays in one of its allowed states."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from sqlalchemy import delete, text

from encoder.errors import LedgerConflict
from materialize.ledger import Bridge, Consumer, Ledger, Space, Transition
from materialize.ledger.connection import make_engine, writing
from materialize.ledger.tables import Base
from transforms.names import bridged_view, stored_view

WHO = {"who": "alice", "why": "tried"}
NAMES = ("ads", "home")
BRIDGES = tuple(f"{k:012x}" for k in range(6))

Subject = tuple[str, str]


@dataclass(frozen=True)
class Seen:
    """All that a ledger holds."""

    spaces: list[Space]
    bridges: list[Bridge]
    consumers: list[Consumer]
    default: Space | None
    transitions: list[Transition]

    def states(self) -> dict[Subject, str]:
        """Return the state of everything that has one."""
        states: dict[Subject, str] = {}
        for space in self.spaces:
            states["space", str(space.number)] = space.state
        for bridge in self.bridges:
            states["bridge", bridge.version] = bridge.state
        for consumer in self.consumers:
            pin = f"{consumer.space}" + (f" through {consumer.bridge}" if consumer.bridge else "")
            states["consumer", consumer.name] = pin
        if self.default is not None:
            states["default", "default"] = str(self.default.number)
        return states


class Walk:
    """Operations drawn at random, with arguments that are often wrong, and what must hold between.

    ``undo`` and ``default`` are the model: the pins and defaults that roll backs return to.
    """

    def __init__(self, url: str, seed: int) -> None:
        # Hypothesis draws the seed and the length only: its own choice of rules tries few of them
        # again and again, and hardly ever got to a space that somebody reads.
        self.draw = random.Random(seed)  # noqa: S311 - nothing secret
        self.ledger = Ledger(url, pooled=True)
        if url.startswith("sqlite"):  # nothing is killed here, so nothing waits for the disk
            with self.ledger._single.connect() as connection:
                connection.execute(text("PRAGMA synchronous = OFF"))
        with writing(make_engine(url)).begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(delete(table))
        self.undo: dict[str, list[tuple[int, str | None]]] = {}
        self.default: list[int] = []
        self.forced: set[str] = set()
        self.runs: set[str] = set()
        self.done: Counter[tuple[str, bool]] = Counter()
        self.seen = self._look()

    def run(self, steps: int) -> None:
        """Take so many steps and check after each."""
        operations = [
            self.register, self.begin, self.begin, self.commit, *[self.make_ready] * 4,
            *[self.promote] * 2, self.roll_back_default,
            *[self.add] * 2, *[self.move] * 5, *[self.roll_back] * 3, self.remove,
            *[self.record_bridge] * 4, *[self.serve_bridge] * 4, *[self.retire_bridge] * 2,
            *[self.start_retiring] * 2, self.finish_retiring,
        ]  # fmt: skip
        for _ in range(3):
            self.make_ready()
        for _ in range(steps):
            operation = self.draw.choice(operations)
            note(operation.__name__)
            operation()
            self._what_is_needed_is_there()
            self._the_default_is_the_models()
            self._consumers_read_what_the_model_says()
            self._every_history_is_a_chain()
            self._live_spaces_are_those_that_are_read_and_the_newest()

    def close(self) -> None:
        self.ledger.close()

    def _number(self) -> int:
        """Return a space: a ready one, mostly."""
        ready = [space.number for space in self.seen.spaces if space.state == "ready"]
        if ready and self.draw.random() < 0.7:
            return self.draw.choice(ready)
        return self.draw.randint(1, len(self.seen.spaces) + 1)

    def _name(self) -> str:
        """Return a consumer: one that is there, mostly."""
        known = [consumer.name for consumer in self.seen.consumers]
        return self.draw.choice(known if known and self.draw.random() < 0.8 else NAMES)

    def _bridge(self) -> str:
        return self.draw.choice(BRIDGES)

    def _pin(self) -> tuple[int, str | None]:
        """Return a space and a bridge, one that leads there, mostly."""
        if self.draw.random() < 0.6:
            return self._number(), None
        known = {bridge.version: bridge.target for bridge in self.seen.bridges}
        serving = [bridge.version for bridge in self.seen.bridges if bridge.state == "serving"]
        version = self.draw.choice(serving) if serving else self._bridge()
        wrong = self.draw.random() < 0.2 or version not in known
        return (self._number() if wrong else known[version]), version

    def _revision(self, name: str) -> int:
        found = {c.name: c.revision for c in self.seen.consumers}
        return found.get(name, 1)

    def _look(self) -> Seen:
        ledger = self.ledger
        return Seen(
            ledger.spaces(),
            ledger.bridges(),
            ledger.consumers(),
            ledger.default_space(),
            ledger.transitions(),
        )

    @contextmanager
    def _trying(self, what: str) -> Iterator[list[bool]]:
        """Try a change: it is made with one transition for each state it moves, or not at all."""
        done, before = [True], self.seen
        try:
            yield done
        except LedgerConflict:
            done[0] = False
        self.done[what, done[0]] += 1
        after = self.seen = self._look()
        was, now = before.states(), after.states()
        changed = {
            key: (was.get(key), now.get(key)) for key in was | now if was.get(key) != now.get(key)
        }
        assert after.transitions[: len(before.transitions)] == before.transitions
        added = after.transitions[len(before.transitions) :]
        assert {(t.subject, t.name): (t.before, t.after) for t in added} == changed
        assert len(added) == len(changed) <= 1
        assert done[0] or not changed, "what is refused changes nothing"
        revisions = {c.name: c.revision for c in before.consumers}
        for consumer in after.consumers:
            if consumer.name in revisions:
                moved = ("consumer", consumer.name) in changed
                assert consumer.revision == revisions[consumer.name] + moved

    # --- operations

    def register(self) -> None:
        self._register(self.draw.randint(1, len(self.seen.spaces) + 1))

    def _register(self, version: int) -> None:
        with self._trying("register"):
            self.ledger.register(f"{version:012x}", "/a", {})

    def begin(self) -> None:
        self._begin(self._number(), self.draw.choice("xy"), again=self.draw.random() < 0.5)

    def _begin(self, space: int, key: str, *, again: bool) -> str:
        run_id = f"{space}{key}".rjust(16, "0")
        with self._trying("begin") as done:
            self.ledger.begin_run(run_id, stored_view(space), key, {}, space=space, again=again)
        if done[0]:
            self.runs.add(run_id)
        return run_id

    def commit(self) -> None:
        if self.runs:
            self._commit(self.draw.choice(sorted(self.runs)))

    def _commit(self, run_id: str) -> None:
        with self._trying("commit"):
            self.ledger.commit_run(run_id, {})

    def make_ready(self) -> None:
        new = self.draw.random() < 0.6 or not self.seen.spaces
        version = len(self.seen.spaces) + 1 if new else self._number()
        self._register(version)
        number = next(s.number for s in self.seen.spaces if s.encoder_version == f"{version:012x}")
        run_id = self._begin(number, "x", again=False)
        if run_id in self.runs:
            self._commit(run_id)

    def promote(self) -> None:
        current = self.default[-1] if self.default else None
        space, honest = self._number(), self.draw.random() < 0.7
        expected = current if honest else self.draw.choice([None, 1, 2, 3])
        with self._trying("promote") as done:
            self.ledger.promote(space, **WHO, expected=expected)
        if done[0]:
            assert expected == current
            if space != current:
                self.default.append(space)

    def roll_back_default(self) -> None:
        with self._trying("roll back default") as done:
            self.ledger.roll_back_default(**WHO)
        if done[0]:
            self.default.pop()

    def add(self) -> None:
        name, (space, bridge) = self.draw.choice(NAMES), self._pin()
        new = name not in self.undo
        with self._trying("add") as done:
            self.ledger.add_consumer(name, space, bridge=bridge, **WHO)
        if done[0] and new:
            self.undo[name] = [(space, bridge)]

    def move(self) -> None:
        name, (space, bridge) = self._name(), self._pin()
        forced, late = self.draw.random() < 0.2, self.draw.choice([0, 0, 0, 0, -1, 1])
        with self._trying("forced move" if forced else "move") as done:
            self.ledger.move_consumer(
                name,
                space,
                bridge=bridge,
                expected_revision=self._revision(name) + late,
                forced=forced,
                **WHO,
            )
        if done[0]:
            assert late == 0
            if self.undo[name][-1] != (space, bridge):
                self.undo[name].append((space, bridge))
            if forced:
                self.forced.add(name)

    def roll_back(self) -> None:
        name = self._name()
        with self._trying("roll back") as done:
            revision = self._revision(name)
            self.ledger.roll_back_consumer(name, expected_revision=revision, **WHO)
        if done[0]:
            self.undo[name].pop()

    def remove(self) -> None:
        name = self.draw.choice(NAMES)
        with self._trying("remove") as done:
            self.ledger.remove_consumer(name, **WHO)
        if done[0]:
            del self.undo[name]
            self.forced.discard(name)

    def record_bridge(self) -> None:
        source, target = self._number(), self._number()
        if source != target:
            with self._trying("record bridge"):
                self.ledger.record_bridge(
                    self._bridge(), source=source, target=target, url="/b", figures={}, who="alice"
                )

    def serve_bridge(self) -> None:
        with self._trying("serve bridge"):
            self.ledger.serve_bridge(self._bridge(), **WHO)

    def retire_bridge(self) -> None:
        with self._trying("retire bridge"):
            self.ledger.retire_bridge(self._bridge(), **WHO)

    def start_retiring(self) -> None:
        with self._trying("start retiring"):
            self.ledger.start_retiring(self._number(), **WHO)

    def finish_retiring(self) -> None:
        retiring = [space.number for space in self.seen.spaces if space.state == "retiring"]
        number = self.draw.choice([*retiring, self._number()])
        with self._trying("finish retiring"):
            self.ledger.finish_retiring(number, {"online": 1}, who="alice")

    # --- what holds at any time

    def _what_is_needed_is_there(self) -> None:
        states = {space.number: space.state for space in self.seen.spaces}
        bridges = {bridge.version: bridge for bridge in self.seen.bridges}
        present = {"trained", "materialising", "ready"}
        for consumer in self.seen.consumers:
            allowed = present if consumer.name in self.forced else {"ready"}
            assert states[consumer.space] in allowed, "a pinned space is never taken down"
            if consumer.bridge is not None:
                bridge = bridges[consumer.bridge]
                assert (bridge.state, bridge.target) == ("serving", consumer.space)
        pairs = []
        for bridge in bridges.values():
            if bridge.state == "serving":
                assert states[bridge.source] == "ready"
                assert states[bridge.target] in present
                pairs.append((bridge.source, bridge.target))
        assert len(pairs) == len(set(pairs)), "two serving bridges would share a view"

    def _the_default_is_the_models(self) -> None:
        default = self.seen.default
        assert (None if default is None else default.number) == (
            self.default[-1] if self.default else None
        )
        assert default is None or default.state == "ready"

    def _consumers_read_what_the_model_says(self) -> None:
        spaces = {space.number: space for space in self.seen.spaces}
        bridges = {bridge.version: bridge for bridge in self.seen.bridges}
        assert {c.name for c in self.seen.consumers} == set(self.undo)
        for name, pins in self.undo.items():
            space, bridge = pins[-1]
            pin = self.ledger.pin(name)
            assert pin.space == space
            if bridge is None:
                expected = (stored_view(space), spaces[space].encoder_version)
            else:
                expected = (bridged_view(space, bridges[bridge].source), bridge)
            assert (pin.view, pin.encoder_version) == expected

    def _every_history_is_a_chain(self) -> None:
        at: dict[Subject, str | None] = {}
        for change in self.seen.transitions:
            key = (change.subject, change.name)
            assert change.before == at.get(key)
            assert change.before != change.after
            at[key] = change.after
        assert {key: state for key, state in at.items() if state is not None} == self.seen.states()

    def _live_spaces_are_those_that_are_read_and_the_newest(self) -> None:
        present = [s.number for s in self.seen.spaces if s.state not in ("retiring", "retired")]
        read = {c.space for c in self.seen.consumers if c.bridge is None}
        read |= {b.source for b in self.seen.bridges if b.state == "serving"}
        read |= {max(present)} if present else set()
        read |= {self.default[-1]} if self.default else set()
        assert [s.number for s in self.ledger.live_spaces()] == sorted(read)


def _hold(url: str, examples: int, steps: int) -> Counter[tuple[str, bool]]:
    """Take many walks; return how often each operation was done and refused."""
    done: Counter[tuple[str, bool]] = Counter()

    @settings(max_examples=examples)
    @given(seed=st.integers(0, 2**32 - 1), steps=st.integers(steps // 4, steps))
    def walk(seed: int, steps: int) -> None:
        one = Walk(url, seed)
        try:
            one.run(steps)
        finally:
            one.close()
        done.update(one.done)

    walk()
    return done


@pytest.mark.slow
def test_no_sequence_of_operations_breaks_the_ledger_on_sqlite(tmp_path: Path) -> None:
    done = _hold(f"sqlite:///{tmp_path / 'ledger.db'}", settings().max_examples // 2, 160)
    assert [what for what, _ in done if not done[what, True]] == [], "each operation was done"


@pytest.mark.slow
def test_no_sequence_of_operations_breaks_the_ledger_on_postgres(postgres_schema: str) -> None:
    done = _hold(postgres_schema, settings().max_examples // 5, 60)
    assert done["move", True]
    assert done["move", False]
