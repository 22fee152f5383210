"""Raw features as texts: what a user's newest events in each service say, as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.clue.tokenizer import PAD, UNKNOWN_SERVICE
from encoder.errors import DataFault
from encoder.item_texts import ItemTexts
from encoder.modality import ModalityEncoders
from encoder.schema import FeatureSchema
from transforms.buckets import changes
from transforms.engine import DAY_US
from transforms.layout import ACTIVITY, COUNTS_PER_WINDOW, TEXTS, RawLayout, TextLayout, field
from transforms.names import USER_KEY
from transforms.stream.facts import first_after, first_at_or_after, ranges
from transforms.tables import EVENT_TIME
from transforms.windows import list_array

__all__ = ["ONLY_SERVICE", "TextEvents", "text_rows", "text_tables", "texts_schema"]

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]

ONLY_SERVICE = "events"
"""Service of events that name none."""

_TOKENS_AT_ONCE = 8_388_608
"""Bounds the memory of the rows that are put together at once: 32 MiB of token ids."""


@dataclass(frozen=True)
class TextEvents:
    """Events of some users, those of a user ascending by time and, at one time, by item id.

    At one time unknown items come last: a stream's state knows no more of them than that.

    Attributes
    ----------
    start : int64 (n_users + 1,)
        Where each user's events begin.
    ts : int64 (n_events,)
        Microseconds since the epoch.
    item : int64 (n_events,)
        Position in the encoders' items, -1 for an unknown one.
    service : int64 (n_events,)
        Position in ``services``.
    services : tuple of str
    """

    start: Ints
    ts: Ints
    item: Ints
    service: Ints
    services: tuple[str, ...]


def texts_schema(layout: RawLayout, encoders: ModalityEncoders) -> FeatureSchema:
    """Return what the contrastive encoder reads of raw features that these encoders made.

    Raises
    ------
    DataFault
        The layout, or the encoders, have no texts, or texts of another length.
    """
    _, texts, version = _checked(layout, encoders)
    return layout.texts_schema(version, len(texts.tokenizer.services))


def text_tables(
    activity: Iterable[pa.Table],
    found: pa.Table,
    encoders: ModalityEncoders,
    layout: RawLayout,
) -> Iterator[pa.Table]:
    """Yield the rows of ``user_texts`` beside those of ``user_activity``.

    Parameters
    ----------
    activity : iterable of pyarrow.Table
    found : pyarrow.Table
        Events of their users as `transforms.buckets.DayBuckets.load_events` returns them.
    encoders, layout
        As in `text_rows`.
    """
    users = found[USER_KEY].combine_chunks()
    first = np.flatnonzero(np.append(True, changes(users)))
    service = pc.fill_null(found["service"], ONLY_SERVICE).combine_chunks().dictionary_encode()
    items = found["item_id"].combine_chunks().dictionary_encode()
    item = encoders.index_of(items.dictionary)[items.indices.to_numpy()]
    ts = found["ts"].to_numpy()
    instant = np.cumsum(np.append(True, changes(users) | (np.diff(ts) != 0)))
    order = np.argsort(2 * instant + (item < 0), kind="stable")
    events = TextEvents(
        start=np.append(first, len(users)),
        ts=ts,
        item=item[order],
        service=service.indices.to_numpy().astype(np.int64)[order],
        services=tuple(service.dictionary.to_pylist()),
    )
    known = users.take(pa.array(first))
    for rows in activity:
        of = pc.index_in(rows[USER_KEY].combine_chunks(), value_set=known)
        yield text_rows(rows, of.to_numpy().astype(np.int64), events, encoders, layout)


def text_rows(
    activity: pa.Table,
    user: Ints,
    events: TextEvents,
    encoders: ModalityEncoders,
    layout: RawLayout,
) -> pa.Table:
    """Return rows of ``user_texts``, one for each row of ``user_activity``, in their order.

    Parameters
    ----------
    activity : pyarrow.Table
        Rows as `transforms.windows.activity_tables` makes them: a row of texts has the same time,
        and knows the same events.
    user : int64 (n_rows,)
        Which of the events' users each row is of.
    events : TextEvents
        All that lie in a row's longest window.
    encoders : ModalityEncoders
        With texts.
    layout : RawLayout
        With texts.

    Returns
    -------
    pyarrow.Table
        In ``view_schema``, without the created timestamp. Services stand in the order of their
        guide tokens, those without one of their own last; events newest first.

    Raises
    ------
    DataFault
        The encoders know no texts, or of another length.
    """
    limits, texts, version = _checked(layout, encoders)
    as_of = activity[field(ACTIVITY, "as_of")].to_numpy()
    grouped = _Grouped.of(events, texts)
    first_day = as_of // DAY_US - max(layout.windows) + 1
    a_row = grouped.n_groups * limits.max_events * limits.max_item_tokens
    at_once = max(1, _TOKENS_AT_ONCE // a_row)
    parts = []
    for begin in range(0, len(as_of), at_once):
        rows = slice(begin, begin + at_once)
        parts.append(grouped.tokens(user[rows], as_of[rows], first_day[rows], texts, limits))
    return pa.table(
        {
            USER_KEY: activity[USER_KEY],
            field(TEXTS, "tokens"): pa.chunked_array(parts, pa.list_(pa.int32())),
            field(TEXTS, "count"): _counts(activity, layout),
            field(TEXTS, "as_of"): activity[field(ACTIVITY, "as_of")],
            field(TEXTS, "modality"): pa.repeat(version, len(as_of)),
            EVENT_TIME: activity[EVENT_TIME],
        }
    )


@dataclass(frozen=True)
class _Grouped:
    """Events ordered by user, guide token and time.

    Group ``user * n_groups + guide - 1`` is ``[start[group], start[group + 1])``.
    """

    n_groups: int
    guides: Ints
    start: Ints
    ts: Ints
    item: Ints

    @classmethod
    def of(cls, events: TextEvents, texts: ItemTexts) -> _Grouped:
        guide_of = np.array([texts.tokenizer.guide(name) for name in events.services], np.int64)
        guide = guide_of[events.service] if len(guide_of) else np.zeros(0, np.int64)
        n_groups = len(texts.tokenizer.services) + 1
        n_users = len(events.start) - 1
        owner = np.repeat(np.arange(n_users), np.diff(events.start))
        # A service without a guide token of its own comes last.
        place = np.where(guide == UNKNOWN_SERVICE, n_groups - 1, guide - UNKNOWN_SERVICE - 1)
        group = owner * n_groups + place
        order = np.argsort(group, kind="stable")
        start = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=n_users * n_groups))])
        guides = np.roll(np.arange(n_groups), -1) + UNKNOWN_SERVICE
        return cls(n_groups, guides, start, events.ts[order], events.item[order])

    def tokens(
        self, user: Ints, as_of: Ints, first_day: Ints, texts: ItemTexts, limits: TextLayout
    ) -> pa.Array:
        """Return the token lists of some rows."""
        group = (user[:, None] * self.n_groups + np.arange(self.n_groups)).ravel()
        begin, end = self.start[group], self.start[group + 1]
        end = first_after(self.ts, begin, end, np.repeat(as_of, self.n_groups))
        begin = first_at_or_after(self.ts, begin, end, np.repeat(first_day, self.n_groups) * DAY_US)
        begin = np.maximum(begin, end - limits.max_events)
        newest_first = ranges(-end, -begin) * -1 - 1
        length = end - begin
        tokens = _said(texts, self.item[newest_first])
        tokens[:, 0] = np.repeat(np.tile(self.guides, len(user)), length)
        there = tokens != PAD  # (n_events, max_item_tokens)
        passed = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
        ends = np.concatenate([[0], np.cumsum(length)])[:: self.n_groups]
        offsets = pa.array(passed[ends].astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(tokens[there]))


def _said(texts: ItemTexts, item: Ints) -> Tokens:
    """Return the items' tokens; of an unknown item nothing is known but its service."""
    rows = texts.tokens[item]
    rows[item < 0, 1:] = PAD
    return rows


def _counts(activity: pa.Table, layout: RawLayout) -> pa.Array:
    """Return the number of events in the longest window, as ``user_activity`` tells it."""
    counts = activity[field(ACTIVITY, "counts")].combine_chunks()
    wide = counts.flatten().to_numpy(zero_copy_only=False).reshape(-1, layout.counts_width)
    at = (len(layout.windows) - 1) * len(COUNTS_PER_WINDOW)
    return list_array(wide[:, at : at + 1])


def _checked(layout: RawLayout, encoders: ModalityEncoders) -> tuple[TextLayout, ItemTexts, str]:
    limits, texts, version = layout.texts, encoders.texts, encoders.texts_version
    if (
        limits is not None
        and texts is not None
        and version is not None
        and texts.tokenizer.max_tokens == limits.max_item_tokens
    ):
        return limits, texts, version
    given = "none" if texts is None else f"items of {texts.tokenizer.max_tokens} tokens"
    raise DataFault(
        f"Texts ({given}) of item vectors {encoders.version} do not fit the layout "
        f"({limits or 'none'}). Name `texts` in dataset.yaml, then run `palate features build` and "
        "`feast apply`."
    )
