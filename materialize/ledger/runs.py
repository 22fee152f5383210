"""Runs: materialisations of views, and how a space becomes ready by them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from encoder.errors import LedgerConflict
from materialize.ledger.connection import Connected, now
from materialize.ledger.lookup import space_row
from materialize.ledger.records import Run, from_row
from materialize.ledger.states import (
    GONE,
    MATERIALISING,
    READY,
    TRAINED,
    job_operator,
    last_change,
    move_space,
)
from materialize.ledger.tables import PartitionRow, RunRow, SpaceRow
from transforms.names import is_bridged_view

__all__ = ["RunsPart"]


class RunsPart(Connected):
    """What a ledger knows of runs."""

    def begin_run(
        self,
        run_id: str,
        view: str,
        key: str,
        plan: Mapping[str, Any],
        *,
        space: int | None = None,
        again: bool = False,
    ) -> Run:
        """Open a run, or return the one with the same view and key to resume or skip it.

        A trained space is materialising from then on.

        Parameters
        ----------
        run_id : str
            16 hex digits, used when the run is new.
        view : str
            Name of the feature view.
        key : str
            Fingerprint of the inputs and options: equal keys mean equal results.
        plan : mapping
            JSON types; what the run is asked to do.
        space : int, optional
            The space whose view it is.
        again : bool
            Open the run also when it is committed; until it is committed again it counts as
            running.

        Raises
        ------
        LedgerConflict
            The space is unknown, retiring or retired.
        """
        with self._change() as session:
            row = session.scalars(
                select(RunRow).where(RunRow.view == view, RunRow.key == key)
            ).first()
            of = space if row is None else row.space
            if of is not None:
                written = _require_present(session, of)
                if written.state == TRAINED and not is_bridged_view(view):
                    why = f"a run of {view} began"
                    move_space(session, written, MATERIALISING, who=job_operator(), why=why)
            if row is None:
                row = RunRow(
                    run_id=run_id,
                    view=view,
                    space=space,
                    key=key,
                    state="running",
                    plan=dict(plan),
                    counts={},
                    started_at=now(),
                )
                session.add(row)
            elif row.state == "failed" or (again and row.state == "committed"):
                row.state, row.error = "running", None
            return from_row(Run, row)

    def commit_run(self, run_id: str, counts: Mapping[str, Any]) -> Run:
        """Mark a run committed and its space ready, in one transaction; safe to repeat.

        A run over history makes no space ready: nobody is online by it.

        Raises
        ------
        LedgerConflict
            The run's space is retiring or retired by now.
        """
        with self._change() as session:
            row = session.get_one(RunRow, run_id)
            if row.state != "committed":
                row.state, row.counts, row.finished_at = "committed", dict(counts), now()
                row.error = None
                if row.space is not None:
                    written = _require_present(session, row.space)
                    served = not is_bridged_view(row.view) and not row.plan.get("from_history")
                    if written.state == MATERIALISING and served:
                        why = f"run {run_id} of {row.view} was committed"
                        move_space(session, written, READY, who=job_operator(), why=why)
                session.execute(delete(PartitionRow).where(PartitionRow.run_id == run_id))
            return from_row(Run, row)

    def record_drift(self, run_id: str, figures: Mapping[str, Any]) -> Run:
        """Add to a committed run's counts, as ``drift``, how far it lies from an earlier one.

        Measured again, the newer figures replace the older ones.

        Parameters
        ----------
        run_id : str
        figures : mapping
            JSON types.

        Raises
        ------
        LedgerConflict
            There is no such run, or it is being repeated: its rows may change yet.
        """
        with self._change() as session:
            row = session.get(RunRow, run_id)
            if row is None or row.state != "committed":
                found = "not there" if row is None else row.state
                raise LedgerConflict(
                    f"Run {run_id} is {found}, a committed one expected. Run `palate spaces show "
                    "N` to see the runs of a space."
                )
            # A new mapping: SQLAlchemy does not see what changes inside one.
            row.counts = {**row.counts, "drift": dict(figures)}
            return from_row(Run, row)

    def fail_run(self, run_id: str, error: str) -> None:
        """Record why a run failed; a committed run stays committed."""
        with self._change() as session:
            row = session.get_one(RunRow, run_id)
            if row.state != "committed":
                row.state, row.error, row.finished_at = "failed", error, now()

    def partition_done(self, run_id: str, number: int, counts: Mapping[str, Any]) -> None:
        """Record that a partition of a run is in every store; safe to repeat.

        Raises
        ------
        LedgerConflict
            The run's space is being retired: what the run still writes, nobody would remove.
        """
        with self._write() as session:
            of = session.scalar(select(RunRow.space).where(RunRow.run_id == run_id))
            if of is not None:
                _require_present(session, of)
            session.merge(
                PartitionRow(run_id=run_id, number=number, counts=dict(counts), finished_at=now())
            )

    def partitions_done(self, run_id: str) -> dict[int, Mapping[str, Any]]:
        """Return the counts of the partitions that a run which resumes need not do again."""
        query = select(PartitionRow).where(PartitionRow.run_id == run_id)
        with self._read() as session:
            return {row.number: row.counts for row in session.scalars(query)}

    def forget_partitions(self, run_id: str) -> None:
        """Let the run's next attempt do every partition again: a store lost what it was given."""
        with self._write() as session:
            session.execute(delete(PartitionRow).where(PartitionRow.run_id == run_id))

    def runs(self, space: int | None = None) -> list[Run]:
        """Return the runs of one space, or of all, oldest first."""
        query = select(RunRow).order_by(RunRow.started_at)
        if space is not None:
            query = query.where(RunRow.space == space)
        with self._read() as session:
            return [from_row(Run, row) for row in session.scalars(query)]

    def last_start(self, view: str, *, from_history: bool = False) -> datetime | None:
        """Return when the newest committed run of a view and kind began; None: there is none.

        A raw row that was written from then on may not have been seen by a run of this kind. A run
        over history writes offline only, so it says nothing about what is online.
        """
        query = (
            select(RunRow)
            .where(RunRow.view == view, RunRow.state == "committed")
            .order_by(RunRow.started_at.desc())
        )
        with self._read() as session:
            for row in session.scalars(query):
                if bool(row.plan.get("from_history")) == from_history:
                    return row.started_at
        return None


def _require_present(session: Session, number: int) -> SpaceRow:
    row = space_row(session, number)
    if row.state in GONE:
        raise LedgerConflict(
            f"Space {number} is {row.state}{last_change(session, 'space', str(number))}: nothing "
            "is written to it any more. Choose another space: `palate spaces list`."
        )
    return row
