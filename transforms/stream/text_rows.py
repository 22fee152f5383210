"""Rows of texts made of states, by the function that makes the batch's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoder.modality import ModalityEncoders
from transforms.layout import TEXTS, RawLayout
from transforms.names import USER_KEY
from transforms.stream.circumstances import services_at
from transforms.stream.facts import Ints, ranges, run_starts
from transforms.stream.item_keys import item_keys
from transforms.stream.rows import row_schema
from transforms.stream.state import UserStates
from transforms.texts import TextEvents, text_rows

__all__ = ["texts_beside"]


def texts_beside(
    activity: pa.Table, states: UserStates, encoders: ModalityEncoders, layout: RawLayout
) -> pa.Table:
    """Return rows of ``user_texts``, without the created timestamp, one for each of activity.

    Parameters
    ----------
    activity : pyarrow.Table
        Rows that `transforms.stream.rows.activity_rows` made of these states, with cuts or without.
    states : UserStates
        Of data with services (`UserStates.apply`).
    encoders : ModalityEncoders
        With texts.
    layout : RawLayout
        With texts.

    Raises
    ------
    DataFault
        The states hold no services, or the encoders no texts of the layout's length.
    """
    schema = row_schema(TEXTS, layout, states)
    if not len(activity):
        return schema.empty_table()
    ids = activity[USER_KEY].combine_chunks()
    owner = pc.index_in(ids, value_set=pa.array(states.users, ids.type))
    users, user = np.unique(owner.to_numpy(), return_inverse=True)
    events = _events(states, users.astype(np.int64), encoders, layout)
    made = text_rows(activity, user.astype(np.int64), events, encoders, layout)
    return made.combine_chunks().cast(schema)


def _events(
    states: UserStates, users: Ints, encoders: ModalityEncoders, layout: RawLayout
) -> TextEvents:
    """Return all events of some users, those of one instant in the order of their items' ids."""
    facts = states.facts
    start, end = facts.start[users], facts.start[users + 1]
    at = ranges(start, end)
    ts = facts.ts[at]
    keys, items = item_keys(encoders), pa.array(facts.item[at]).dictionary_encode()
    position, rank = keys.locate(items.dictionary.to_numpy())
    local = items.indices.to_numpy().astype(np.int64)
    instant = np.cumsum(run_starts(np.repeat(np.arange(len(users)), end - start), ts))
    order = np.argsort(instant * (len(keys.keys) + len(rank)) + rank[local], kind="stable")
    service, services = services_at(facts, facts.context[at][order], layout)
    return TextEvents(
        start=np.concatenate([[0], np.cumsum(end - start)]),
        ts=ts,
        item=position[local[order]],
        service=service,
        services=services,
    )
