"""What a stream carries: one JSON object an event, and how it is checked."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from encoder.modality import ModalityEncoders
    from transforms.clean import IdType
    from transforms.dataset import Dataset

__all__ = [
    "CONSUME",
    "ONBOARDING_PICK",
    "PROFILE_CHANGE",
    "SIGN_UP",
    "BadEvent",
    "EventParser",
    "StreamEvent",
    "event_payload",
]

CONSUME, ONBOARDING_PICK = "consume", "onboarding_pick"
PROFILE_CHANGE, SIGN_UP = "profile_change", "sign_up"

_JSON = TypeAdapter(dict[str, Any])
_INSTANT = TypeAdapter(AwareDatetime)
_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")
"""How an ISO 8601 instant begins; pydantic alone would also take a number in quotes for one."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EARLIEST_US = (datetime(1900, 1, 1, tzinfo=timezone.utc) - _EPOCH) // timedelta(microseconds=1)
_INT64 = range(-(2**63), 2**63)
_FLOAT32_END = 2.0**128 - 2.0**103
"""The least number that rounds to infinity as a 32-bit one."""
_FLOAT32_ZERO = 2.0**-150
"""The largest number that rounds to 0 as a 32-bit one."""
_SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of one user.

    Attributes
    ----------
    type : {"consume", "onboarding_pick", "profile_change", "sign_up"}
    user_id : int or str
    timestamp_us : int
        Microseconds since 1970-01-01 UTC.
    item_id : int, str or None
        Of ``consume`` and ``onboarding_pick``.
    weight : float
        How much a ``consume`` counts; positive, finite as a 32-bit number.
    context : tuple of str or None
        Circumstances of a ``consume`` in the order of ``events.context``, "" for a missing one;
        None on any other type, and where the data set has no context columns.
    service : str or None
        Where a ``consume`` came from; None for none.
    categories, numbers : mapping
        Columns of the users table that a ``profile_change`` or ``sign_up`` sets; "" and NaN mean
        that the value is missing from now on.
    """

    type: str
    user_id: int | str
    timestamp_us: int
    item_id: int | str | None = None
    weight: float = 1.0
    context: tuple[str, ...] | None = None
    service: str | None = None
    categories: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class BadEvent(Exception):
    """An event that cannot be applied: an answer about the event, not a failure of the job.

    Parameters
    ----------
    reason : str
        A code of docs/guides/stream.md.
    detail : str
        What was given, what was expected, what to do.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class EventParser:
    """Turns payloads into events of one data set.

    State: immutable after it was made; new items or columns need a new parser.

    Parameters
    ----------
    dataset : Dataset
    user_type, item_type : {"int64", "string"}
    future_seconds : float
        How far ahead of this machine's clock a timestamp may lie.
    known_items : ModalityEncoders or None
        Items that exist. Only looked at when the data set has an items table: without one every
        item exists, as in ``palate data validate``.
    clock : callable, optional
        Seconds since 1970-01-01 UTC.
    """

    def __init__(
        self,
        dataset: Dataset,
        user_type: IdType,
        item_type: IdType,
        *,
        future_seconds: float,
        known_items: ModalityEncoders | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._user_type, self._item_type = user_type, item_type
        self._future_us = round(future_seconds * 1e6)
        self._clock = clock
        self._context = dataset.events.context
        self._weighted = dataset.events.weight is not None
        self._items: frozenset[int | str] | None = None
        if dataset.items is not None and known_items is not None:
            self._items = frozenset(known_items.item_ids.to_pylist())
        users = dataset.users
        self._categories = frozenset(users.categories if users else ())
        self._numbers = frozenset(users.numbers if users else ())
        columns = {"categories"} if self._categories else set()
        columns |= {"numbers"} if self._numbers else set()
        common = {"type", "user_id", "timestamp"}
        self._fields: dict[str, frozenset[str]] = {
            CONSUME: frozenset(common | {"item_id", "weight", "context"})
        }
        if dataset.events.service is not None:
            self._fields[CONSUME] |= {"service"}
        if users is not None:
            self._fields[SIGN_UP] = frozenset(common | columns)
            if users.onboarding:
                self._fields[ONBOARDING_PICK] = frozenset(common | {"item_id"})
            if columns:
                self._fields[PROFILE_CHANGE] = frozenset(common | columns)

    def parse(self, payload: bytes) -> StreamEvent:
        """Return the event of a payload.

        Raises
        ------
        BadEvent
            And nothing else, whatever the payload.
        """
        try:
            raw = _JSON.validate_json(payload)
        except ValidationError as exc:
            raise BadEvent(
                "not_json",
                f"{_shown(payload)} given, one JSON object in UTF-8 expected: "
                f"{exc.errors(include_url=False, include_input=False)[0]['msg']}.",
            ) from None
        kind = raw.get("type")
        allowed = self._fields.get(kind) if isinstance(kind, str) else None
        if allowed is None or not isinstance(kind, str):
            raise BadEvent(
                "unknown_type",
                f"type: {_shown(kind)} given, one of {', '.join(sorted(self._fields))} expected "
                "(what dataset.yaml does not name has no events).",
            )
        if not raw.keys() <= allowed:
            extra = min(raw.keys() - allowed)
            raise _wrong(str(extra), "given", f"only {', '.join(sorted(allowed))} in a {kind}")
        user = _id("user_id", raw.get("user_id"), self._user_type)
        moment = self._moment(raw.get("timestamp"))
        if kind == CONSUME:
            item = self._item(raw.get("item_id"))
            weight = self._weight(raw["weight"]) if "weight" in raw else 1.0
            service = raw.get("service")
            if service is not None:
                service = _category("service", service)
            return StreamEvent(kind, user, moment, item, weight, self._context_of(raw), service)
        if kind == ONBOARDING_PICK:
            return StreamEvent(kind, user, moment, self._item(raw.get("item_id")))
        categories = _mapping("categories", raw, self._categories, _category)
        numbers = _mapping("numbers", raw, self._numbers, _number)
        if kind == PROFILE_CHANGE and not categories and not numbers:
            raise _wrong("categories and numbers", "none given", "at least one column to change")
        return StreamEvent(kind, user, moment, categories=categories, numbers=numbers)

    def _moment(self, value: Any) -> int:
        if value is None:
            raise BadEvent(
                "null_timestamp", "timestamp: none given, a time in every event expected."
            )
        moment = _microseconds(value)
        latest = int(self._clock() * 1e6) + self._future_us
        if moment > latest:
            raise BadEvent(
                "timestamp_in_future",
                f"timestamp: {_shown(value)} given, a time up to {_iso(latest)} expected. "
                "Check the unit (microseconds) or the clock.",
            )
        if moment < _EARLIEST_US:
            raise BadEvent(
                "timestamp_out_of_range",
                f"timestamp: {_shown(value)} given, a time after the year 1900 expected. "
                "Check the unit (microseconds).",
            )
        return moment

    def _item(self, value: Any) -> int | str:
        item = _id("item_id", value, self._item_type)
        if self._items is not None and item not in self._items:
            raise BadEvent(
                "unknown_item",
                f"item_id: {_shown(item)} given, an id that the items table had at the last "
                "`palate features build` expected. Build again, then replay the dead letter.",
            )
        return item

    def _weight(self, value: Any) -> float:
        if type(value) not in (int, float) or not _FLOAT32_ZERO < value < _FLOAT32_END:
            raise BadEvent(
                "invalid_weight",
                f"weight: {_shown(value)} given, a positive, finite 32-bit number expected.",
            )
        # Without such a column the batch counts every event as 1, and so must the stream.
        return float(value) if self._weighted else 1.0

    def _context_of(self, raw: Mapping[str, Any]) -> tuple[str, ...] | None:
        given = raw.get("context")
        if type(given) is dict and len(given) == len(self._context):
            # Nearly always all of them are given, and are text: a third of the time of `parse`.
            values: tuple[Any, ...] = tuple(map(given.get, self._context))
            if set(map(type, values)) == {str}:
                return values
        given = _mapping("context", raw, self._context, _category)
        return tuple([given.get(name, "") for name in self._context]) if self._context else None


def event_payload(event: StreamEvent, context: Sequence[str] = ()) -> bytes:
    """Return the payload that a parser turns into an equal event.

    Parameters
    ----------
    event : StreamEvent
    context : sequence of str
        Names of the context columns, in the order of ``events.context``.

    Raises
    ------
    ValueError
        The event has circumstances, and not one for each name.
    """
    values = event.context or ()
    if values and len(values) != len(context):
        raise ValueError(
            f"{len(values)} circumstances and the names {list(context)} were given, a name for "
            "each expected: pass the data set's events.context."
        )
    body: dict[str, Any] = {
        "type": event.type,
        "user_id": event.user_id,
        "timestamp": event.timestamp_us,
    }
    if event.item_id is not None:
        body["item_id"] = event.item_id
    if event.weight != 1.0:
        body["weight"] = event.weight
    if values:
        body["context"] = dict(zip(context, values, strict=True))
    if event.service is not None:
        body["service"] = event.service
    if event.categories:
        body["categories"] = dict(event.categories)
    if event.numbers:
        body["numbers"] = {n: None if math.isnan(v) else v for n, v in event.numbers.items()}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _id(name: str, value: Any, kind: IdType) -> int | str:
    given: int | str
    if kind == "int64" and type(value) is int:
        given = value
        if value in _INT64:
            return given
    elif kind == "string" and isinstance(value, str):
        given = value
        if given:
            return given
    elif value is not None:
        expected = "an integer" if kind == "int64" else "a string"
        raise _wrong(name, _shown(value), f"{expected}, as in the data set,")
    shown = "none" if value is None else _shown(value)
    raise BadEvent(
        "null_id", f"{name}: {shown} given, an id expected: not empty, an integer within 64 bits."
    )


def _microseconds(value: Any) -> int:
    if type(value) is int:
        return value
    fault = _wrong(
        "timestamp",
        _shown(value),
        "whole microseconds since 1970-01-01 UTC, or ISO 8601 with a zone ('2026-01-31T08:00:00Z')",
    )
    if not isinstance(value, str) or not _DATE.match(value):
        raise fault
    try:
        return (_INSTANT.validate_python(value) - _EPOCH) // timedelta(microseconds=1)
    except ValidationError:
        raise fault from None


def _mapping(
    name: str,
    raw: Mapping[str, Any],
    columns: frozenset[str] | tuple[str, ...],
    convert: Callable[[str, Any], Any],
) -> dict[str, Any]:
    """Return the columns that an event gives under ``name``; none for an absent or null field."""
    given = raw.get(name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _wrong(name, _shown(given), "an object of column names and values")
    for column in given:
        if column not in columns:
            known = ", ".join(sorted(columns)) or "none: dataset.yaml names no such columns"
            raise _wrong(f"{name}.{column[:_SHOWN]}", "given", f"only {known}")
    return {column: convert(f"{name}.{column}", value) for column, value in given.items()}


def _category(name: str, value: Any) -> str:
    """Return what the batch makes of a category: text, empty for null."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    # Databases differ in how they print fractions; the batch may read another text.
    raise _wrong(name, _shown(value), "a string, an integer, true, false or null")


def _number(name: str, value: Any) -> float:
    """Return what the batch makes of a number: NaN for null."""
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not -_FLOAT32_END < value < _FLOAT32_END:
        raise _wrong(name, _shown(value), "a finite 32-bit number, or null for a missing one")
    return float(value)


def _wrong(name: str, given: str, expected: str) -> BadEvent:
    verb = given if given.endswith("given") else f"{given} given"
    return BadEvent("wrong_field", f"{name}: {verb}, {expected} expected.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _iso(moment_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=moment_us)).isoformat()
