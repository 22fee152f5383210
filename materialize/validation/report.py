"""What a validation found: faults with counts and examples, and rows per table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from encoder.errors import DataFault

__all__ = ["FatalFaults", "Fault", "TableCounts", "ValidationReport"]


@dataclass(frozen=True)
class Fault:
    """One kind of fault in one column.

    Attributes
    ----------
    code : str
        Stable name, for example ``null_id``; also the ``reason`` of rejected rows.
    severity : {"fatal", "tolerable"}
    table : {"events", "users", "items"}
    column : str
        As it is called in the user's table; several are joined with a comma.
    count : int
        Rows at fault (1 for a missing file or zone).
    examples : tuple of str
        Up to five.
    expected : str
        What would be right.
    advice : str
        What to do (fatal) or what was done with the rows (tolerable).
    """

    code: str
    severity: Literal["fatal", "tolerable"]
    table: str
    column: str
    count: int
    examples: tuple[str, ...]
    expected: str
    advice: str

    def __str__(self) -> str:
        """Return the fault as three lines: what was given, what was expected, what to do."""
        shown = "; ".join(self.examples) or "none"
        return (
            f"[{self.code}] {self.table}.{self.column}: count {self.count:,}; examples: {shown}\n"
            f"    expected: {self.expected}\n"
            f"    {self.advice}"
        )


class FatalFaults(DataFault):
    """A data set has faults that make it unusable; nothing was written.

    Parameters
    ----------
    dataset : str
        Its name.
    faults : sequence of Fault
        Every fatal one, in the order events, users, items.
    """

    def __init__(self, dataset: str, faults: Sequence[Fault]) -> None:
        listed = "\n".join(f"  {fault}" for fault in faults)
        super().__init__(
            f"Data set {dataset!r} cannot be used: {len(faults)} fatal fault(s). "
            f"Nothing was written.\n{listed}"
        )
        self.faults = tuple(faults)


@dataclass(frozen=True)
class TableCounts:
    """Rows of one table: ``kept + rejected == rows_in``; ``added`` came from other tables."""

    rows_in: int = 0
    kept: int = 0
    rejected: int = 0
    added: int = 0


@dataclass(frozen=True)
class ValidationReport:
    """What ``palate data validate`` found and wrote.

    Attributes
    ----------
    dataset : str
        Name of the data set.
    fingerprint : str
        12 hex digits of the input files and of what dataset.yaml says about them.
    now : datetime
        Later timestamps counted as being in the future.
    tables : mapping of str to TableCounts
        ``events``, ``users``, ``items``.
    faults : tuple of Fault
        The tolerable ones (a fatal one is raised).
    first_event, last_event : datetime or None
        Of the kept events.
    seconds : float
    unchanged : bool
        True: the input was validated before and nothing was done again.
    """

    dataset: str
    fingerprint: str
    now: datetime
    tables: Mapping[str, TableCounts]
    faults: tuple[Fault, ...]
    first_event: datetime | None
    last_event: datetime | None
    seconds: float
    unchanged: bool = field(default=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``from_dict`` gives an equal report back."""
        data = asdict(self)
        data.pop("unchanged")
        for name in ("now", "first_event", "last_event"):
            moment = data[name]
            data[name] = None if moment is None else moment.astimezone(timezone.utc).isoformat()
        data["faults"] = [asdict(fault) for fault in self.faults]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ValidationReport:
        """Rebuild a report written by ``to_dict``."""
        moments = {
            name: None if data[name] is None else datetime.fromisoformat(data[name])
            for name in ("first_event", "last_event")
        }
        return cls(
            dataset=data["dataset"],
            fingerprint=data["fingerprint"],
            now=datetime.fromisoformat(data["now"]),
            tables={name: TableCounts(**counts) for name, counts in data["tables"].items()},
            faults=tuple(
                Fault(**{**fault, "examples": tuple(fault["examples"])}) for fault in data["faults"]
            ),
            seconds=data["seconds"],
            first_event=moments["first_event"],
            last_event=moments["last_event"],
        )

    def as_table(self) -> list[str]:
        """Return the report as lines of text: one a table, then the faults."""
        lines = [f"{'table':<8}{'in':>14}{'kept':>14}{'rejected':>14}{'added':>14}"]
        lines += [
            f"{name:<8}{c.rows_in:>14,}{c.kept:>14,}{c.rejected:>14,}{c.added:>14,}"
            for name, c in self.tables.items()
        ]
        if self.first_event is not None and self.last_event is not None:
            lines.append(
                f"events from {self.first_event:%Y-%m-%d %H:%M} "
                f"to {self.last_event:%Y-%m-%d %H:%M} UTC"
            )
        for fault in self.faults:
            lines += str(fault).split("\n")
        return lines
