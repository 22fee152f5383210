"""How embeddings are read, step by step; who waits, and how, is the driver's matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from encoder.errors import SpaceMismatch, TimedOut, TransientError
from materialize.ledger import Pin
from materialize.pins import PinReader
from materialize.reader.batch import CORRUPT, NOT_FOUND, EmbeddingBatch
from materialize.reader.cache import RowCache, merge_rows
from materialize.reader.fields import Found, Users, Wanted
from materialize.reader.metrics import ReaderMetrics
from materialize.reader.rows import FIELDS, Rows, parse_rows, require_pinned
from materialize.reader.steps import Fetch, Steps, Wait
from materialize.reader.views import ViewDefinitions
from materialize.stores.compact import compact_form

if TYPE_CHECKING:
    from feast import FeatureView

__all__ = ["Core", "raise_first", "status_of"]

T = TypeVar("T")
_LEDGER = "The ledger"
_LEDGER_SHARE = 0.5
"""Of the time that is left: a ledger that is silent leaves time to read by the last known pin."""


class Core:
    """Reads the embeddings of one consumer.

    Parameters
    ----------
    pins : PinReader
    views : ViewDefinitions
    metrics : ReaderMetrics
    space : int, optional
        The only space that may be read.
    cache : RowCache, optional

    Notes
    -----
    State: the width of each encoder version's vectors.
    """

    def __init__(
        self,
        pins: PinReader,
        views: ViewDefinitions,
        metrics: ReaderMetrics,
        *,
        space: int | None = None,
        cache: RowCache | None = None,
    ) -> None:
        self._pins, self._views, self.metrics = pins, views, metrics
        self._space, self._cache = space, cache
        self._widths: dict[str, int] = {}

    def read(self, users: Users, per_row_errors: bool) -> Steps[EmbeddingBatch]:
        """Read stored rows; see `EmbeddingClient.read`."""

        def attempt(pin: Pin) -> Steps[tuple[Rows, int]]:
            rows, cached = yield from self._rows(pin, users)
            if not per_row_errors:
                raise_first(rows)
            return rows, cached

        pin, (rows, cached) = yield from self.under_pin(
            attempt, lambda answer: bool(answer[0].found.all())
        )
        return self._answer(pin, rows, cached)

    def under_pin(
        self, attempt: Callable[[Pin], Steps[T]], whole: Callable[[T], bool]
    ) -> Steps[tuple[Pin, T]]:
        """Read by the present pin, and once more when the pin moved meanwhile.

        Parameters
        ----------
        attempt : callable
            Reads by one pin.
        whole : callable
            Whether an answer lacks nobody. Else, and after an error, the ledger is asked again.
        """
        pin = yield from self.pin()
        while True:
            self.require_own_space(pin)
            try:
                answer = yield from attempt(pin)
            except TransientError:
                raise
            except Exception:
                # Every store has an error of its own for a view that is gone.
                again = yield from self.pin(ask=True)
                if again == pin:
                    raise
            else:
                if whole(answer):
                    return pin, answer
                again = yield from self.pin(ask=True)
                if again == pin:
                    return pin, answer
            pin = again

    def pin(self, *, ask: bool = False) -> Steps[Pin]:
        """Ask the ledger for the pin; ``ask``: even if a known one may still be used."""
        held = self._pins.held(ask=ask)
        if held is not None:
            return held
        try:
            pin: Pin = yield Wait(
                self._pins.ask, _LEDGER, _LEDGER_SHARE, at_once=self._pins.ask_at_once
            )
        except TimedOut as exc:
            return self._pins.silent(exc)
        return pin

    def require_own_space(self, pin: Pin) -> None:
        """Refuse a pin of another space than the caller's model."""
        if self._space is not None and pin.space != self._space:
            raise SpaceMismatch(
                f"Consumer {pin.consumer!r} reads space {pin.space} ({pin.encoder_version}), and "
                f"this process serves a model of space {self._space}. Deploy the model of space "
                f"{pin.space}, or run `palate consumers rollback {pin.consumer}`."
            )

    def view(self, name: str, encoder_version: str) -> Steps[FeatureView]:
        """Look a view's definition up."""
        known = self._views.known(name, encoder_version)
        if known is not None:
            return known
        look_up = partial(self._views.look_up, name, encoder_version)
        view: FeatureView = yield Wait(look_up, "Feast's registry")
        return view

    def parse(self, pin: Pin, view: FeatureView, found: Found, users: Users) -> Steps[Rows]:
        """Return rows of the pinned space, or refuse them."""
        version = pin.encoder_version
        width = self._widths.get(version)
        if width is None:
            try:
                width = yield Wait(partial(self._pins.embedding_dim, pin), _LEDGER, _LEDGER_SHARE)
            except TimedOut:
                width = None  # then most rows say it
        rows = parse_rows(found, pin.view, users, form=compact_form(view), width=width)
        require_pinned(rows, pin)
        if width is not None or rows.found.any():
            self._widths[version] = rows.embedding.shape[1]
        return rows

    def _rows(self, pin: Pin, users: Users) -> Steps[tuple[Rows, int]]:
        """Return the rows of users, and how many of them were kept from earlier reads."""
        if self._cache is None:
            rows = yield from self._stored(pin, users)
            return rows, 0
        ids = users.tolist() if isinstance(users, np.ndarray) else list(users)
        kept = self._cache.take(pin, ids)
        missing = [k for k, row in enumerate(kept) if row is None]
        if len(missing) == len(ids):
            rows = yield from self._stored(pin, ids)
            self._cache.keep(pin, ids, rows)
            return rows, 0
        fresh = None
        if missing:
            asked = [ids[k] for k in missing]
            fresh = yield from self._stored(pin, asked)
            self._cache.keep(pin, asked, fresh)
        return merge_rows(pin, kept, missing, fresh), len(ids) - len(missing)

    def _stored(self, pin: Pin, users: Users) -> Steps[Rows]:
        view = yield from self.view(pin.view, pin.encoder_version)
        found = yield Fetch((Wanted(view, FIELDS),), users)
        return (yield from self.parse(pin, view, found, users))

    def _answer(self, pin: Pin, rows: Rows, cached: int) -> EmbeddingBatch:
        found = int(rows.found.sum())
        self.metrics.answered(
            stored=found - cached,
            cached=cached,
            corrupt=len(rows.faults),
            not_found=len(rows.found) - found - len(rows.faults),
        )
        return EmbeddingBatch(
            rows.embedding,
            rows.as_of,
            status_of(rows),
            rows.n_events,
            pin.space,
            pin.encoder_version,
            pin,
            dict(rows.faults),
        )


def raise_first(rows: Rows) -> None:
    """Raise the error of the first row that has one."""
    if rows.faults:
        raise rows.faults[min(rows.faults)]


def status_of(rows: Rows) -> npt.NDArray[np.str_]:
    """Return each row's status, str (n,)."""
    status = rows.status
    if not rows.found.all():
        status = status.copy()
        status[~rows.found] = NOT_FOUND
        # A user whose raw features are damaged may well have a stored row.
        status[[row for row in rows.faults if not rows.found[row]]] = CORRUPT
    return status.astype(np.str_)
