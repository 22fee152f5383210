"""Do streamed rows equal a batch recomputation? Raw rows and embeddings of a sample of users."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import CorruptState
from materialize.config import RepoSettings
from materialize.ledger import Ledger
from materialize.stores.compact import compact_form, rounding_bound
from materialize.stream.atomic import STATE_FIELD, UserHashes
from materialize.stream.given import Given, Streamed, first_by_hash, gather, read_stream
from materialize.stream.marker import read_marker
from materialize.stream.recompute import embeddings_of, raw_rows_of
from materialize.stream.targets import TargetWatch
from transforms.clean import CleanTables
from transforms.engine import DAY_US
from transforms.names import FLOAT32, USER_KEY
from transforms.stream.events import EventParser, StreamEvent
from transforms.stream.state import UserStates

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["StreamCheck", "UserDifference", "check_stream"]

_CHUNK = 200
_LIMIT = 1e-4


@dataclass(frozen=True)
class UserDifference:
    """One user and view whose online row is not what the batch would make.

    Attributes
    ----------
    user_id : int or str
    view : str
    why : str
        ``behind`` (something that happened is not in the user's state yet), ``missing`` (no row
        online), ``ahead`` (the online row is newer than everything that is given) or ``different``.
    max_abs_diff : float
        NaN when the rows are of other moments.
    """

    user_id: Any
    view: str
    why: str
    max_abs_diff: float


@dataclass(frozen=True)
class StreamCheck:
    """Result of `check_stream`.

    Attributes
    ----------
    users : int
        Users that were compared.
    rows : dict of str to int
        Rows compared, by view: online and recomputed ones of the same ``as_of``.
    max_abs_diff : dict of str to float
        Largest absolute difference of a number in these, by view; infinite where a text differs.
    min_cosine : float
        Of online embeddings and recomputed ones; 1.0 without any.
    differences : tuple of UserDifference
        Rows that differ by more than the limit, or are not of the same moment.
    limit : float
    """

    users: int
    rows: dict[str, int]
    max_abs_diff: dict[str, float]
    min_cosine: float
    differences: tuple[UserDifference, ...]
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether no row differs."""
        return not self.differences

    def counts(self) -> dict[str, int]:
        """Return the number of users by why a row of theirs differs."""
        why: dict[str, set[Any]] = {}
        for one in self.differences:
            why.setdefault(one.why, set()).add(one.user_id)
        return {name: len(users) for name, users in sorted(why.items())}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"agrees": self.agrees, "why": self.counts()}


def check_stream(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    users: Sequence[int | str] | int,
    *,
    stream: Iterable[bytes] = (),
    events: Iterable[StreamEvent] = (),
    limit: float = _LIMIT,
) -> StreamCheck:
    """Compare online rows with what the batch makes of the same events.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    users : sequence of ids, or int
        Whom to compare; a number draws so many by a hash of their ids.
    stream : iterable of bytes
        What the event stream holds (`Broker.payloads`): it counts beside the clean tables.
    events : iterable of StreamEvent
        More that happened, whichever way it came.
    limit : float
        Largest absolute difference of a number that is not reported.

    Returns
    -------
    StreamCheck

    Raises
    ------
    DataFault
        No clean tables or raw features, or another online store than Palate's for Redis.

    Notes
    -----
    Streams are read before the online store: what is appended and applied in between shows as
    ``ahead``, what is not yet applied as ``behind``. All entries of the streams are looked at.
    """
    clean = CleanTables(settings.data_dir)
    clean.require()
    targets = TargetWatch(store, settings, ledger).targets
    parser = EventParser(
        settings.dataset,
        targets.user_type,
        targets.item_type,
        future_seconds=settings.file.stream.future_seconds,
        known_items=targets.encoders,
    )
    found = (*events, *read_stream(stream, parser))
    chosen, streamed = _choose(clean, users, found)
    given = gather(clean, settings.dataset, chosen, streamed)
    made = raw_rows_of(
        given.events, given.profiles, given.onboarding, targets.encoders, targets.layout
    )
    comparison = _Comparison(store, chosen, limit, given.picked_last)
    for raw in targets.raw:
        comparison.add(raw.view, made[raw.name])
    for target in targets.embeddings:
        rows = embeddings_of(
            chosen,
            made,
            targets.layout,
            target.space,
            target.bridge,
            settings.artifacts_url,
            given.events.schema.field(USER_KEY).type,
        )
        comparison.add(target.stored.view, rows)
    behind = _behind(store, settings, comparison.unequal, streamed, given)
    return comparison.result(behind)


class _Comparison:
    """Reads views online and compares each row with the recomputed one."""

    def __init__(
        self,
        store: FeatureStore,
        users: Sequence[int | str],
        limit: float,
        picked_last: Mapping[int | str, int],
    ) -> None:
        self._store, self._users, self._limit = store, users, limit
        self._picked_last = picked_last
        self._rows: dict[str, int] = {}
        self._largest: dict[str, float] = {}
        self._cosine = 1.0
        self._found: list[UserDifference] = []

    @property
    def unequal(self) -> list[int | str]:
        """Users of whom a row differs, in the order of all users."""
        found = {one.user_id for one in self._found}
        return [user for user in self._users if user in found]

    def add(self, view: FeatureView, made: pa.Table) -> None:
        """Compare a view's rows; ``made`` has its features."""
        features = [f.name for f in view.features]
        as_of = next(name for name in features if name.endswith("as_of"))
        expected = {row[USER_KEY]: row for row in made.to_pylist()}
        online = self._read(view.name, features)
        form = compact_form(view) if "embedding" in features else FLOAT32
        self._rows[view.name], self._largest[view.name] = 0, 0.0
        for user in self._users:
            row, wanted = online[user], expected.get(user)
            at = row[as_of]
            if at is None and wanted is None:
                continue
            if at is None or wanted is None or not self._same_moment(user, at, wanted[as_of]):
                late = wanted is None or (at is not None and at > wanted[as_of])
                why = "missing" if at is None else "ahead" if late else "different"
                self._found.append(UserDifference(user, view.name, why, math.nan))
                continue
            self._rows[view.name] += 1
            names = [name for name in features if name != as_of]
            difference = max(_difference(row[name], wanted[name]) for name in names)
            if "embedding" in features:
                kept, exact = (np.array(r["embedding"], np.float64) for r in (row, wanted))
                self._cosine = min(self._cosine, _cosine(kept, exact))
            self._largest[view.name] = max(self._largest[view.name], difference)
            if difference > self._limit + _rounding(wanted, form):
                self._found.append(UserDifference(user, view.name, "different", difference))

    def result(self, behind: set[int | str]) -> StreamCheck:
        """Return what was found; whoever is behind differs because of that."""
        return StreamCheck(
            users=len(self._users),
            rows=self._rows,
            max_abs_diff=self._largest,
            min_cosine=self._cosine,
            differences=tuple(
                replace(one, why="behind") if one.user_id in behind else one for one in self._found
            ),
            limit=self._limit,
        )

    def _same_moment(self, user: int | str, online: int, made: int) -> bool:
        return online == made or made < online <= self._picked_last.get(user, made)

    def _read(self, view: str, features: Sequence[str]) -> dict[int | str, dict[str, Any]]:
        rows: dict[int | str, dict[str, Any]] = {}
        for start in range(0, len(self._users), _CHUNK):
            part = self._users[start : start + _CHUNK]
            answer = self._store.get_online_features(
                features=[f"{view}:{name}" for name in features],
                entity_rows=[{USER_KEY: user} for user in part],
            ).to_dict()
            for row, user in enumerate(part):
                rows[user] = {name: answer[name][row] for name in features}
        return rows


def _difference(online: Any, made: Any) -> float:
    """Return the largest difference of numbers; infinity where anything else differs."""
    if isinstance(made, list) and made and isinstance(made[0], float):
        a, b = np.array(online or [], np.float64), np.array(made, np.float64)
        if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            return math.inf
        return float(np.nan_to_num(np.abs(a - b)).max())
    same = list(online or []) == list(made or []) if isinstance(made, list) else online == made
    return 0.0 if same else math.inf


def _rounding(made: Mapping[str, Any], form: str) -> float:
    """Return how far two vectors may lie apart because each was rounded to the view's form."""
    if form == FLOAT32:
        return 0.0
    vector = np.array([made["embedding"]], np.float32)
    return 2 * float(rounding_bound(vector, form).max())


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _choose(
    clean: CleanTables, users: Sequence[int | str] | int, events: Iterable[StreamEvent]
) -> tuple[list[int | str], Streamed]:
    """Return whom to compare, and their events among those given."""
    streamed: dict[int | str, list[StreamEvent]] = {}
    if not isinstance(users, int):
        chosen = list(dict.fromkeys(users))
        wanted = set(chosen)
        for event in events:
            if event.user_id in wanted:
                streamed.setdefault(event.user_id, []).append(event)
        return chosen, streamed
    drawn = first_by_hash(clean, users)
    # Who is in the streams alone is drawn, too, by the same hash; others are let go at once.
    last = max(map(_hash, drawn)) if len(drawn) == users else "~"
    for event in events:
        if event.user_id in streamed or _hash(event.user_id) <= last:
            streamed.setdefault(event.user_id, []).append(event)
    chosen = sorted({*drawn, *streamed}, key=_hash)[:users]
    return chosen, {user: streamed[user] for user in chosen if user in streamed}


def _hash(user: int | str) -> str:
    return hashlib.md5(str(user).encode(), usedforsecurity=False).hexdigest()


def _behind(
    store: FeatureStore,
    settings: RepoSettings,
    users: Sequence[int | str],
    streamed: Streamed,
    given: Given,
) -> set[int | str]:
    """Return those of some users whose state lacks something that happened."""
    if not users:
        return set()
    hashes = UserHashes(store)
    marker = read_marker(hashes.client, store.project)
    floor = None if marker is None else marker.floor_day
    faults: dict[int, CorruptState] = {}
    blobs = [row[0] for row in hashes.read(hashes.keys(users), [STATE_FIELD])]
    states = UserStates.decode(users, blobs, faults)
    rules: dict[str, Any] = {
        "longest_window": max(settings.dataset.windows),
        "floor": floor,
        "max_events": settings.file.stream.max_events_per_user,
    }
    ids = pa.array(users, given.events.schema.field(USER_KEY).type)
    events = given.events.filter(pc.is_in(given.events[USER_KEY], ids))
    if floor is not None:
        first = pa.scalar(floor * DAY_US, pa.int64()).cast(events.schema.field("ts").type)
        events = events.filter(pc.greater_equal(events["ts"], first))
    # Profiles and picks, too, came as events where the state knows them.
    services = settings.dataset.texts is not None
    lacking = states.union(UserStates.of(users, events, services=services), **rules).changed
    own = [streamed.get(user, ()) for user in users]
    lacking |= states.apply(own, services=services, **rules).changed
    return {user for row, user in enumerate(users) if lacking[row] and row not in faults}
