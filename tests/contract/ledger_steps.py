"""Steps that the tests of a ledger's changes share, and the story that a ledger tells of them."""

from __future__ import annotations

from materialize.ledger import Ledger

__all__ = ["BRIDGE", "make_ready", "serve", "story"]

BRIDGE = "b" * 12


def make_ready(ledger: Ledger, count: int) -> None:
    """Register spaces 1 to count and commit a run of each."""
    for number in range(1, count + 1):
        ledger.register(f"{number:012x}", f"/artifacts/{number}", {})
        run = ledger.begin_run(f"{number:016x}", f"v{number}", "key", {}, space=number)
        ledger.commit_run(run.run_id, {})


def serve(ledger: Ledger, *, source: int, target: int, version: str = BRIDGE) -> None:
    ledger.record_bridge(
        version, source=source, target=target, url="/b", figures={"cosine": 0.9}, who="dora"
    )
    ledger.serve_bridge(version, who="dora", why="loss 0.01")


def story(ledger: Ledger, subject: str, name: str) -> list[tuple[str | None, str | None, str]]:
    return [(t.before, t.after, t.who) for t in ledger.transitions(subject, name)]
