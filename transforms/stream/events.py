"""What a stream carries: one JSON object an event, and how it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from encoder.modality import ModalityEncoders
from transforms.clean import IdType

if TYPE_CHECKING:
    from transforms.dataset import Dataset

__all__ = ["BadEvent", "EventParser", "StreamEvent", "event_payload"]


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
    categories: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class BadEvent(Exception):  # noqa: N818 (it is an answer about an event, not a failure of the job)
    """An event that cannot be applied.

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

    Parameters
    ----------
    dataset : Dataset
    user_type, item_type : {"int64", "string"}
    future_seconds : float
        How far ahead of this machine's clock a timestamp may lie.
    known_items : ModalityEncoders or None
        Items that exist. Only looked at when the data set has an items table.
    """

    def __init__(
        self,
        dataset: Dataset,
        user_type: IdType,
        item_type: IdType,
        *,
        future_seconds: float,
        known_items: ModalityEncoders | None,
    ) -> None:
        raise NotImplementedError

    def parse(self, payload: bytes) -> StreamEvent:
        """Return the event of a payload.

        Raises
        ------
        BadEvent
            And nothing else, whatever the payload.
        """
        raise NotImplementedError


def event_payload(event: StreamEvent, context: tuple[str, ...] = ()) -> bytes:
    """Return the payload that a parser turns into an equal event.

    Parameters
    ----------
    event : StreamEvent
    context : tuple of str
        Names of the context columns, in the order of ``events.context``.
    """
    raise NotImplementedError
