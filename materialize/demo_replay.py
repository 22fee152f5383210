"""Which real events `palate demo stream` replays, and whose taste it looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import duckdb

from encoder.errors import DataFault
from transforms.clean import CleanTables
from transforms.dataset import Dataset, as_utc_day
from transforms.engine import DAY_US, bounded_connection, quoted
from transforms.layout import RawLayout
from transforms.stream.events import StreamEvent

__all__ = ["Replay", "open_replay"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_PLAYS = 20
"""An established user has at least so many in the longest window."""


@dataclass(frozen=True)
class Taste:
    """A tag of items, and the items that are consumed most among those that carry it."""

    tag: str
    items: list[int | str]


class Replay:
    """The last days of a data set, cut off to be streamed.

    Attributes
    ----------
    cut : datetime
        00:00 UTC of a snapshot; what happened before it is the batch's.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        clean: CleanTables,
        dataset: Dataset,
        layout: RawLayout,
        events: int,
    ) -> None:
        self._connection, self._dataset, self._layout = connection, dataset, layout
        self._events = f"read_parquet({quoted(clean.events)})"
        self._users = f"read_parquet({quoted(clean.users)})"
        self._items = f"read_parquet({quoted(clean.items)})"
        self.cut = _EPOCH + timedelta(days=self._cut_day(events))

    @property
    def cut_us(self) -> int:
        """The cut in microseconds since 1970."""
        return (self.cut - _EPOCH) // timedelta(microseconds=1)

    def events(self) -> list[StreamEvent]:
        """Return what happened from the cut on, in the order of time: sign-ups and picks, too."""
        found: list[StreamEvent] = []
        context = bool(self._dataset.events.context)
        since = f"make_timestamptz({self.cut_us})"
        if self._dataset.users is not None:
            for user, at, categories, numbers, picks in self._all(
                "SELECT user_id, epoch_us(signed_up_at), categories, numbers, onboarding "
                f"FROM {self._users} WHERE signed_up_at >= {since}"
            ):
                found.append(
                    StreamEvent(
                        "sign_up",
                        user,
                        at,
                        categories=self._named(self._layout.categories, categories, ""),
                        numbers=self._named(self._layout.numbers, numbers, None),
                    )
                )
                found += [StreamEvent("onboarding_pick", user, at, item) for item in picks]
        for user, item, at, weight, service, values in self._all(
            "SELECT user_id, item_id, epoch_us(ts), weight, service, context "
            f"FROM {self._events} WHERE ts >= {since}"
        ):
            own = tuple(values) if context else None
            found.append(StreamEvent("consume", user, at, item, weight, own, service))
        return sorted(found, key=lambda event: event.timestamp_us)  # stable: sign-ups come first

    def new_user(self) -> int | str:
        """Return an id that nobody has."""
        ((largest,),) = self._all(f"SELECT max(user_id) FROM {self._users}")
        return largest + 1 if isinstance(largest, int) else f"{largest}-new"

    def profile(self) -> tuple[dict[str, str], dict[str, float]]:
        """Return the profile of one established user, for a new one to have."""
        ((categories, numbers),) = self._all(
            f"SELECT categories, numbers FROM {self._users} "
            f"WHERE signed_up_at < make_timestamptz({self.cut_us}) "
            "ORDER BY list_contains(categories, ''), md5(user_id::VARCHAR) LIMIT 1"
        )
        return (
            self._named(self._layout.categories, categories, ""),
            self._named(self._layout.numbers, numbers, None),
        )

    def taste(self) -> Taste | None:
        """Return a tag of middling popularity; None: items have no tags."""
        carried = f"(SELECT item_id, unnest(tags) AS tag FROM {self._items})"
        tags = self._all(
            f"SELECT tag, count(*) AS n FROM {self._events} JOIN {carried} USING (item_id) "
            f"WHERE ts < make_timestamptz({self.cut_us}) GROUP BY tag ORDER BY n DESC, tag"
        )
        if not tags:
            return None
        tag = str(tags[len(tags) // 2][0])
        items = self._all(
            f"SELECT item_id FROM {self._events} JOIN {carried} USING (item_id) "
            f"WHERE tag = {quoted(tag)} AND ts < make_timestamptz({self.cut_us}) "
            "GROUP BY item_id ORDER BY count(*) DESC, item_id LIMIT 6"
        )
        return Taste(tag, [item for (item,) in items])

    def shares(self, tag: str) -> dict[int | str, float]:
        """Return each established user's share of events with items that carry a tag."""
        return dict(
            self._all(
                f"SELECT user_id, avg(list_contains(tags, {quoted(tag)})::DOUBLE) "
                f"FROM {self._events} JOIN {self._items} USING (item_id) "
                f"WHERE ts < make_timestamptz({self.cut_us}) GROUP BY user_id"
            )
        )

    def established(self, shares: dict[int | str, float]) -> int | str:
        """Return who was active before the cut and cares least for what ``shares`` measure.

        Raises
        ------
        DataFault
            Nobody was active.
        """
        first = self.cut_us - max(self._dataset.windows) * DAY_US
        users = self._all(
            f"SELECT user_id FROM {self._events} WHERE ts >= make_timestamptz({first}) "
            f"AND ts < make_timestamptz({self.cut_us}) GROUP BY user_id "
            f"HAVING count(*) >= {_PLAYS} ORDER BY md5(user_id::VARCHAR)"
        )
        if not users:
            raise DataFault(f"No user has {_PLAYS} events in the windows before {self.cut}.")
        found: int | str = min((u for (u,) in users), key=lambda user: shares.get(user, 0.0))
        return found

    def _cut_day(self, events: int) -> int:
        """Return the last snapshot day with so many events from it on, or with a third of all."""
        days = self._all(
            f"SELECT epoch_us(ts) // {DAY_US} AS day, count(*) FROM {self._events} "
            "GROUP BY day ORDER BY day DESC"
        )
        wanted = min(events, sum(n for _, n in days) // 3)
        every = self._dataset.snapshots.every_days
        anchor = as_utc_day(self._dataset.evaluation.cutoff)
        held = 0
        for day, n in days:
            held += n
            if held >= wanted and (day - anchor) % every == 0:
                return int(day)
        raise DataFault("The events end before a snapshot that could cut them in two.")

    def _all(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def _named(self, names: tuple[str, ...], values: list[Any], missing: Any) -> dict[str, Any]:
        return {
            name: value
            for name, value in zip(names, values, strict=True)
            if value != missing and not (isinstance(value, float) and math.isnan(value))
        }


@contextmanager
def open_replay(
    clean: CleanTables,
    dataset: Dataset,
    layout: RawLayout,
    *,
    events: int,
    memory_limit_mb: int,
) -> Iterator[Replay]:
    """Yield what is to be replayed: about ``events`` events, and at most a third of all."""
    with bounded_connection(memory_limit_mb) as connection:
        yield Replay(connection, clean, dataset, layout, events)
