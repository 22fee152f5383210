"""Whatever is tried in whatever order, the ledger stays in one of its allowed states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from encoder.errors import LedgerConflict
from materialize.ledger import Bridge, Consumer, Ledger, Space, Transition
from materialize.ledger.connection import make_engine, writing
from materialize.ledger.tables import Base
from transforms.names import bridged_view, stored_view

NUMBERS = st.integers(1, 5)
"""Some of these spaces exist, some do not."""
NAMES = st.sampled_from(["ads", "home"])
BRIDGES = st.sampled_from([f"{k:012x}" for k in range(3)])
MAYBE_BRIDGE = st.none() | BRIDGES
WHO = {"who": "alice", "why": "tried"}

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


class LedgerMachine(RuleBasedStateMachine):
    """Every operation, with arguments that are often wrong.

    ``undo`` and ``default`` are the model: the pins and defaults that roll backs return to.
    """

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self.url, pooled=True)
        self.undo: dict[str, list[tuple[int, str | None]]] = {}
        self.default: list[int] = []
        self.forced: set[str] = set()
        self.runs: set[str] = set()

    @initialize()
    def empty(self) -> None:
        with writing(make_engine(self.url)).begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(delete(table))
        self.seen = self._look()

    def teardown(self) -> None:
        self.ledger.close()

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
    def _trying(self) -> Iterator[list[bool]]:
        """Try a change: it is made with one transition for each state it moves, or not at all."""
        done, before = [True], self.seen
        try:
            yield done
        except LedgerConflict:
            done[0] = False
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

    @rule(version=NUMBERS)
    def register(self, version: int) -> None:
        with self._trying():
            self.ledger.register(f"{version:012x}", "/a", {})

    @rule(space=NUMBERS, key=st.sampled_from("xy"), again=st.booleans())
    def begin(self, space: int, key: str, again: bool) -> None:
        run_id = f"{space}{key}".rjust(16, "0")
        with self._trying() as done:
            self.ledger.begin_run(run_id, stored_view(space), key, {}, space=space, again=again)
        if done[0]:
            self.runs.add(run_id)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.runs)))
        with self._trying():
            self.ledger.commit_run(run_id, {})

    @rule(version=NUMBERS)
    def make_ready(self, version: int) -> None:
        """The way that most spaces go; without it few examples get to the interesting states."""
        self.register(version)
        number = next(s.number for s in self.seen.spaces if s.encoder_version == f"{version:012x}")
        self.begin(number, "x", again=False)
        run_id = f"{number}x".rjust(16, "0")
        if run_id in self.runs:
            with self._trying():
                self.ledger.commit_run(run_id, {})

    @rule(space=NUMBERS, expected=st.none() | NUMBERS, honest=st.booleans())
    def promote(self, space: int, expected: int | None, honest: bool) -> None:
        current = self.default[-1] if self.default else None
        with self._trying() as done:
            self.ledger.promote(space, **WHO, expected=current if honest else expected)
        if done[0]:
            assert honest or expected == current
            if space != current:
                self.default.append(space)

    @rule()
    def roll_back_default(self) -> None:
        with self._trying() as done:
            self.ledger.roll_back_default(**WHO)
        if done[0]:
            self.default.pop()

    @rule(name=NAMES, space=NUMBERS, bridge=MAYBE_BRIDGE)
    def add(self, name: str, space: int, bridge: str | None) -> None:
        new = name not in self.undo
        with self._trying() as done:
            self.ledger.add_consumer(name, space, bridge=bridge, **WHO)
        if done[0] and new:
            self.undo[name] = [(space, bridge)]

    @rule(
        name=NAMES,
        space=NUMBERS,
        bridge=MAYBE_BRIDGE,
        forced=st.booleans(),
        late=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def move(self, name: str, space: int, bridge: str | None, forced: bool, late: int) -> None:
        found = {c.name: c.revision for c in self.seen.consumers}
        with self._trying() as done:
            self.ledger.move_consumer(
                name,
                space,
                bridge=bridge,
                expected_revision=found.get(name, 1) + late,
                forced=forced,
                **WHO,
            )
        if done[0]:
            assert late == 0
            if self.undo[name][-1] != (space, bridge):
                self.undo[name].append((space, bridge))
            if forced:
                self.forced.add(name)

    @rule(name=NAMES)
    def roll_back(self, name: str) -> None:
        found = {c.name: c.revision for c in self.seen.consumers}
        with self._trying() as done:
            revision = found.get(name, 1)
            self.ledger.roll_back_consumer(name, expected_revision=revision, **WHO)
        if done[0]:
            self.undo[name].pop()

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        with self._trying() as done:
            self.ledger.remove_consumer(name, **WHO)
        if done[0]:
            del self.undo[name]
            self.forced.discard(name)

    @rule(version=BRIDGES, pair=st.tuples(NUMBERS, NUMBERS))
    def record_bridge(self, version: str, pair: tuple[int, int]) -> None:
        source, target = pair
        if source != target:
            with self._trying():
                self.ledger.record_bridge(
                    version, source=source, target=target, url="/b", figures={}, who="alice"
                )

    @rule(version=BRIDGES)
    def serve_bridge(self, version: str) -> None:
        with self._trying():
            self.ledger.serve_bridge(version, **WHO)

    @rule(version=BRIDGES)
    def retire_bridge(self, version: str) -> None:
        with self._trying():
            self.ledger.retire_bridge(version, **WHO)

    @rule(space=NUMBERS)
    def start_retiring(self, space: int) -> None:
        with self._trying():
            self.ledger.start_retiring(space, **WHO)

    @rule(space=NUMBERS)
    def finish_retiring(self, space: int) -> None:
        with self._trying():
            self.ledger.finish_retiring(space, {"online": 1}, who="alice")

    # --- what holds at any time

    @invariant()
    def what_is_needed_is_there(self) -> None:
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

    @invariant()
    def there_is_one_default_once_there_was_any(self) -> None:
        default = self.seen.default
        assert (None if default is None else default.number) == (
            self.default[-1] if self.default else None
        )
        assert default is None or default.state == "ready"

    @invariant()
    def consumers_read_what_the_model_says(self) -> None:
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

    @invariant()
    def every_history_is_a_chain(self) -> None:
        at: dict[Subject, str | None] = {}
        for change in self.seen.transitions:
            key = (change.subject, change.name)
            assert change.before == at.get(key)
            assert change.before != change.after
            at[key] = change.after
        assert {key: state for key, state in at.items() if state is not None} == self.seen.states()

    @invariant()
    def live_spaces_are_those_that_are_read_and_the_newest(self) -> None:
        present = [s.number for s in self.seen.spaces if s.state not in ("retiring", "retired")]
        read = {c.space for c in self.seen.consumers if c.bridge is None}
        read |= {b.source for b in self.seen.bridges if b.state == "serving"}
        read |= {max(present)} if present else set()
        read |= {self.default[-1]} if self.default else set()
        assert [s.number for s in self.ledger.live_spaces()] == sorted(read)


def _hold(url: str, examples: int) -> None:
    machine = type("Machine", (LedgerMachine,), {"url": url})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=40)
    )


@pytest.mark.slow
def test_no_sequence_of_operations_breaks_the_ledger_on_sqlite(tmp_path: Path) -> None:
    _hold(f"sqlite:///{tmp_path / 'ledger.db'}", settings().max_examples // 2)


@pytest.mark.slow
def test_no_sequence_of_operations_breaks_the_ledger_on_postgres(postgres_schema: str) -> None:
    _hold(postgres_schema, settings().max_examples // 5)
