"""What a state keeps of an event's circumstances: context, and the service where texts need it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from encoder.errors import DataFault
from transforms.layout import RawLayout
from transforms.stream.events import StreamEvent
from transforms.stream.facts import Bools, Context, Facts, Ints
from transforms.texts import ONLY_SERVICE

__all__ = ["circumstances_of", "context_lists", "fitting", "kept_circumstances", "services_at"]

_SERVICE = "service"


def kept_circumstances(layout: RawLayout) -> tuple[str, ...]:
    """Return the names of what states keep of an event's circumstances.

    The service comes last, so that of several events the one with the largest context stays the
    one with the largest circumstances.

    Examples
    --------
    >>> from transforms.layout import TextLayout
    >>> kept_circumstances(RawLayout((), (7,), ("country",), texts=TextLayout(32, 24)))
    ('country', 'service')
    """
    return (*layout.context, *((_SERVICE,) if layout.texts else ()))


def circumstances_of(event: StreamEvent, *, services: bool) -> Context:
    """Return what a state keeps of an event's circumstances."""
    context = event.context or ()
    if not services:
        return context
    return (*context, ONLY_SERVICE if event.service is None else event.service)


def fitting(facts: Facts, names: Sequence[str]) -> Bools:
    """Return which events have as many circumstances as there are names: bool (n_facts,)."""
    fits = np.array([len(context) == len(names) for context in facts.contexts], np.bool_)
    return fits[facts.context]


def context_lists(facts: Facts, codes: Ints, layout: RawLayout) -> pa.Array:
    """Return the context columns of some circumstances, without a service.

    Parameters
    ----------
    facts : Facts
    codes : int64 (n,)
        Positions in ``facts.contexts``.
    layout : RawLayout
        With texts, circumstances with and without a service will do.

    Returns
    -------
    pyarrow list<string> array (n,)

    Raises
    ------
    DataFault
        Circumstances of other columns.
    """
    _require(facts, codes, layout.context, kept_circumstances(layout))
    n = len(layout.context)
    columns = pa.array([list(c[:n]) for c in facts.contexts], pa.list_(pa.string()))
    return columns.take(pa.array(codes))


def services_at(facts: Facts, codes: Ints, layout: RawLayout) -> tuple[Ints, tuple[str, ...]]:
    """Return the service in each of some circumstances, as a position among names, and the names.

    Parameters
    ----------
    facts, codes
        As in `context_lists`.
    layout : RawLayout
        With texts.

    Returns
    -------
    (int64 (n,), tuple of str)

    Raises
    ------
    DataFault
        Circumstances of other columns, or without a service.
    """
    names = kept_circumstances(layout)
    _require(facts, codes, names)
    number: dict[str, int] = {}
    # One that is not asked for may be of other columns, and may be empty.
    service = [number.setdefault(c[-1] if c else "", len(number)) for c in facts.contexts]
    return np.array(service, np.int64)[codes], tuple(number)


def _require(facts: Facts, codes: Ints, *expected: Sequence[str]) -> None:
    wanted = {len(names) for names in expected}
    fits = np.array([len(context) in wanted for context in facts.contexts], np.bool_)
    if fits.all() or fits[codes].all():
        return
    wrong = facts.contexts[int(codes[np.argmin(fits[codes])])]
    raise DataFault(
        f"States hold {len(wrong)} value(s) of an event's circumstances, {list(wrong)}; "
        f"{len(expected[-1])} expected ({', '.join(expected[-1]) or 'none'}). "
        "Run `palate stream seed` after a change of dataset.yaml."
    )
