"""Freshest wins: the stored embedding, unless raw features have come in since it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from encoder.errors import EmbeddingError
from materialize.ledger import Pin
from materialize.reader.batch import ON_DEMAND, STORED, FreshBatch
from materialize.reader.core import Core, raise_first, status_of
from materialize.reader.fields import Users, Wanted
from materialize.reader.raw import RawFields, newest, of_other_modality, parse_raw, take_rows
from materialize.reader.rows import FIELDS, Rows
from materialize.reader.steps import Fetch, Steps, Wait, Work
from materialize.stores.compact import compact_form, round_trip
from materialize.stores.wire import Faults
from transforms.names import is_bridged_view
from transforms.runtime import Encoded, encode, load_encoder

if TYPE_CHECKING:
    from encoder.columns import RawBatch
    from encoder.schema import FeatureSchema

__all__ = ["FreshReading"]

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, eq=False)
class _Fresh:
    """Rows of a freshest-wins read."""

    rows: Rows
    """The newest of each user; its faults are stored rows and raw features that are damaged."""
    on_demand: npt.NDArray[np.bool_]
    """(n,)."""
    whole: bool
    """Whether everybody has a stored row."""
    other_modality: int = 0
    not_encodable: int = 0


class FreshReading:
    """Reads embeddings, and encodes those that are out of date.

    Parameters
    ----------
    core : Core
    artifacts : str
        Artifact store.

    Notes
    -----
    State: the schema of each encoder version. Encoders are kept by `transforms.runtime`.
    """

    def __init__(self, core: Core, artifacts: str) -> None:
        self._core, self._artifacts = core, artifacts
        self._schemas: dict[str, FeatureSchema] = {}

    def read(self, users: Users, max_lag_seconds: float, per_row_errors: bool) -> Steps[FreshBatch]:
        """Read; see `EmbeddingClient.read_fresh`."""
        lag = round(max_lag_seconds * _MICROSECONDS)
        pin, fresh = yield from self._core.under_pin(
            lambda pin: self._attempt(pin, users, lag, per_row_errors),
            lambda fresh: fresh.whole,
        )
        rows, found = fresh.rows, int(fresh.rows.found.sum())
        encoded = int(fresh.on_demand.sum())
        damaged = sum(not rows.found[row] for row in rows.faults)
        self._core.metrics.answered(
            stored=found - encoded,
            on_demand=encoded,
            corrupt=damaged,
            not_found=len(rows.found) - found - damaged,
            other_modality=fresh.other_modality,
            not_encodable=fresh.not_encodable,
        )
        source = np.where(rows.found, np.where(fresh.on_demand, ON_DEMAND, STORED), "")
        return FreshBatch(
            rows.embedding,
            rows.as_of,
            status_of(rows),
            rows.n_events,
            pin.space,
            pin.encoder_version,
            pin,
            dict(rows.faults),
            source,
        )

    def _attempt(self, pin: Pin, users: Users, lag: int, per_row: bool) -> Steps[_Fresh]:
        view = yield from self._core.view(pin.view, pin.encoder_version)
        wanted = [Wanted(view, FIELDS)]
        times = None
        if not is_bridged_view(pin.view):  # nobody can encode into the space of a bridge
            schema = yield from self._schema(pin.encoder_version)
            times = RawFields.of_times(schema)
            wanted += yield from self._wanted(pin, times)
        found = yield Fetch(tuple(wanted), users)
        rows = yield from self._core.parse(pin, view, found, users)
        if not per_row:
            raise_first(rows)
        whole = bool(rows.found.all())
        if times is None:
            return _Fresh(rows, np.zeros(len(rows.found), np.bool_), whole)
        faults: Faults = {}
        raw_as_of = newest(found, len(FIELDS), times, users, faults)
        if not per_row and faults:
            raise faults[min(faults)]
        wrong = np.zeros(len(rows.found), np.bool_)
        wrong[[*rows.faults, *faults]] = True
        out_of_date = ~wrong & (~rows.found | (raw_as_of > rows.as_of + lag))
        rows = replace(rows, faults=faults | dict(rows.faults))
        at = np.flatnonzero(out_of_date)
        if not len(at):
            return _Fresh(rows, out_of_date, whole, not_encodable=len(faults))
        fresh = yield from self._encoded(pin, rows, at, users, compact_form(view), per_row)
        return replace(fresh, whole=whole, not_encodable=fresh.not_encodable + len(faults))

    def _encoded(
        self,
        pin: Pin,
        rows: Rows,
        at: npt.NDArray[np.int64],
        users: Users,
        form: str,
        per_row: bool,
    ) -> Steps[_Fresh]:
        """Return rows with those at ``at`` encoded, where that gives a newer answer."""
        schema = self._schemas[pin.encoder_version]
        raw = RawFields.of(schema)
        wanted = yield from self._wanted(pin, raw)
        asked = [users[row] for row in at.tolist()]
        found = yield Fetch(tuple(wanted), asked)
        damaged: Faults = {}
        batch = parse_raw(found, raw, asked, damaged)
        if not per_row and damaged:
            raise damaged[min(damaged)]
        other = of_other_modality(batch, schema)
        fit = ~other
        fit[list(damaged)] = False
        encoded, embedding, errors = yield from self._encode(
            pin, take_rows(batch, np.flatnonzero(fit)), form, per_row
        )
        faults: dict[int, EmbeddingError] = {int(at[k]): fault for k, fault in damaged.items()}
        where = at[fit]
        faults |= {int(where[k]): fault for k, fault in errors.items()}
        good = np.ones(len(where), np.bool_)
        good[list(errors)] = False
        # Raw features that were removed between the two questions would make an older answer.
        good &= ~rows.found[where] | (encoded.as_of > rows.as_of[where])
        merged = _merged(rows, where[good], encoded, good, embedding, faults)
        on_demand = np.zeros(len(rows.found), np.bool_)
        on_demand[where[good]] = True
        return _Fresh(merged, on_demand, False, int(other.sum()), len(faults))

    def _encode(
        self, pin: Pin, batch: RawBatch, form: str, per_row: bool
    ) -> Steps[tuple[Encoded, npt.NDArray[np.float32], Mapping[int, EmbeddingError]]]:
        """Encode as every other path does, rounded as the view's vectors are stored."""
        call = partial(
            encode,
            batch,
            pin.encoder_version,
            self._artifacts,
            on_error="row" if per_row else "raise",
        )
        encoded: Encoded = yield Work(call, "The encoder")
        embedding = encoded.embedding
        good = np.ones(len(embedding), np.bool_)
        good[list(encoded.errors)] = False
        embedding[good] = round_trip(embedding[good], form)
        return encoded, embedding, encoded.errors

    def _schema(self, encoder_version: str) -> Steps[FeatureSchema]:
        if encoder_version not in self._schemas:
            load = partial(load_encoder, self._artifacts, encoder_version)
            artifact = yield Wait(load, "The artifact store")
            self._schemas[encoder_version] = artifact.preprocessor.schema
        return self._schemas[encoder_version]

    def _wanted(self, pin: Pin, raw: RawFields) -> Steps[list[Wanted]]:
        wanted = []
        for name, fields in raw.names:
            view = yield from self._core.view(name, pin.encoder_version)
            wanted.append(Wanted(view, fields))
        return wanted


def _merged(
    rows: Rows,
    at: npt.NDArray[np.int64],
    encoded: Encoded,
    good: npt.NDArray[np.bool_],
    embedding: npt.NDArray[np.float32],
    faults: Mapping[int, EmbeddingError],
) -> Rows:
    """Return rows with those at ``at`` replaced by the good ones of what was encoded."""
    vectors = rows.embedding
    if not vectors.shape[1]:  # nobody had a row that told the width
        vectors = np.full((len(rows.found), embedding.shape[1]), np.nan, np.float32)
    merged = replace(
        rows,
        found=rows.found.copy(),
        embedding=vectors,
        status=rows.status.copy(),
        faults=dict(rows.faults) | dict(faults),
    )
    merged.found[at] = True
    vectors[at] = embedding[good]
    merged.as_of[at] = encoded.as_of[good]
    merged.n_events[at] = encoded.n_events[good]
    merged.status[at] = encoded.status[good]
    return merged
