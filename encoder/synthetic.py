"""Simulated listeners of a streaming service, with a planted structure whose right answer is known.

Every user belongs to a taste segment, and some move to another one at a known day. A segment
prefers some genres; a session has a mood (one genre, mostly); an item is drawn from its genre by
popularity. Country, age and onboarding picks correlate with the segment. An embedding that has
learned anything can tell the segments apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["GENRES", "SimulatedTruth", "simulate_listeners"]

GENRES = (
    "ambient", "blues", "classical", "country", "dance", "folk", "hip hop", "indie",
    "jazz", "latin", "metal", "pop", "comedy podcast", "history podcast", "news podcast",
    "true crime",
)  # fmt: skip
"""Item genres; those from ``comedy podcast`` on are talk, the others music."""

_FIRST_TALK = GENRES.index("comedy podcast")
_COUNTRIES = ("BR", "DE", "FR", "GB", "IT", "SE", "US")
_AGE_GROUPS = ("13-17", "18-24", "25-34", "35-44", "45-54", "55+")
_AGE_FROM = np.array([13, 18, 25, 35, 45, 55])
_AGE_YEARS = np.array([5, 7, 10, 10, 10, 25])
_DEVICES = ("phone", "desktop", "speaker", "car")
_HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 7, 8, 6, 5, 5, 6, 5, 5, 5, 6, 8, 9, 10, 10, 9, 7, 4])
_SYLLABLES = ("ba", "ce", "do", "fi", "ga", "hu", "ja", "ki", "lo", "mu", "na", "pe", "ri", "so")
_DAY_US = 86_400_000_000

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedTruth:
    """The planted structure.

    Attributes
    ----------
    users : object (n_users,) of str
        Ids, in the order of ``users.parquet``.
    segment, later_segment : int64 (n_users,)
        Before and from ``drift_day`` on; equal for users who do not drift.
    drift_day : float64 (n_users,)
        Days since ``start``; infinity for users who do not drift.
    segment_genres : float64 (n_segments, n_genres)
        Share of each genre in a segment's listening; rows sum to 1, genres in ``GENRES`` order.
    item_genre : int64 (n_items,)
        Main genre of items 1, 2, ... (an id is the position plus one).
    start : datetime
        First day of the events, UTC.
    n_events : int
        Rows of ``events.parquet``.
    """

    users: npt.NDArray[np.object_]
    segment: _Ints
    later_segment: _Ints
    drift_day: _Floats
    segment_genres: _Floats
    item_genre: _Ints
    start: datetime
    n_events: int

    def segment_at(self, moment: datetime) -> _Ints:
        """Return each user's segment at an instant, int64 (n_users,)."""
        day = (moment - self.start).total_seconds() / 86_400
        return np.where(self.drift_day <= day, self.later_segment, self.segment)


@dataclass(frozen=True)
class _World:
    """What all users share."""

    segment_genres: _Floats  # (n_segments, n_genres)
    segment_countries: _Floats  # (n_segments, n_countries)
    segment_ages: _Floats  # (n_segments, n_age_groups)
    item_genre: _Ints  # (n_items,)
    item_second: _Ints  # (n_items,)
    shelf: _Ints  # (2 * n_items,) items, genre after genre
    shelf_weight: _Floats  # (2 * n_items + 1,) running popularity along the shelf, from 0
    shelf_start: _Ints  # (n_genres + 1,)


def simulate_listeners(
    out_dir: str | Path,
    *,
    n_users: int = 4000,
    n_items: int = 2000,
    days: int = 200,
    seed: int = 0,
    n_segments: int = 8,
    sessions_per_week: float = 1.2,
    drift_share: float = 0.25,
    start: datetime = datetime(2024, 1, 1, tzinfo=timezone.utc),
    n_partitions: int = 1,
) -> SimulatedTruth:
    """Write ``events``, ``users``, ``items`` and ``truth.parquet`` of invented listeners.

    Parameters
    ----------
    out_dir : str or Path
        Made when missing; files of an earlier simulation are replaced.
    n_users, n_items : int
        ``n_items`` at least twice the number of genres.
    days : int
        Length of the history. Four users in ten join during it, the others before.
    seed : int
        Equal arguments give equal files.
    n_segments : int
        Taste segments.
    sessions_per_week : float
        Mean over users while they are members.
    drift_share : float
        Share of users who move to another segment, in [0, 1].
    start : datetime
        00:00 UTC of the first day.
    n_partitions : int
        Users are drawn and written in so many portions: memory shrinks with it. Another number
        draws other users from the same world.

    Returns
    -------
    SimulatedTruth
        Also in ``truth.parquet``: one row a user and segment, with the day it holds from.
    """
    if n_items < 2 * len(GENRES):
        raise ValueError(f"n_items={n_items} given, at least {2 * len(GENRES)} expected.")
    if not 1 <= n_partitions <= n_users:
        raise ValueError(f"n_partitions={n_partitions} given, 1 to n_users={n_users} expected.")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    # The world has its own stream, so that the number of users does not change the catalogue.
    world_seed, *user_seeds = np.random.SeedSequence(seed).spawn(n_partitions + 1)
    rng = np.random.default_rng(world_seed)
    world = _make_world(rng, n_items, n_segments)
    _write(out / "items.parquet", [_items(rng, world)])

    start_us = int(start.timestamp()) * 1_000_000
    bounds = np.linspace(0, n_users, n_partitions + 1).astype(int)
    people: list[dict[str, Any]] = []
    n_events = 0
    with _Output(out / "events.parquet") as events, _Output(out / "users.parquet") as users:
        for part, part_seed in enumerate(user_seeds):
            rng = np.random.default_rng(part_seed)
            ids = np.arange(bounds[part], bounds[part + 1])
            person = _draw_people(rng, world, ids, days, drift_share)
            users.write(_users(rng, world, person, start_us))
            table = _events(rng, world, person, days, sessions_per_week, start_us)
            events.write(table)
            n_events += table.num_rows
            keep = ("names", "segment", "later_segment", "drift_day")
            people.append({name: person[name] for name in keep})
    columns = {name: np.concatenate([p[name] for p in people]) for name in people[0]}
    truth = SimulatedTruth(
        users=columns["names"],
        segment=columns["segment"],
        later_segment=columns["later_segment"],
        drift_day=columns["drift_day"],
        segment_genres=world.segment_genres,
        item_genre=world.item_genre,
        start=start,
        n_events=n_events,
    )
    _write(out / "truth.parquet", [_truth_table(truth, start_us)])
    return truth


def _make_world(rng: np.random.Generator, n_items: int, n_segments: int) -> _World:
    n_genres = len(GENRES)
    segment_genres = np.full((n_segments, n_genres), 0.15 / n_genres)
    order = rng.permutation(n_genres)
    for k in range(n_segments):
        # Neighbouring segments share a genre, as tastes do; no two have the same main one while
        # there are as many genres.
        liked = order[[(2 * k) % n_genres, (2 * k + 1) % n_genres, (2 * k + 2) % n_genres]]
        segment_genres[k, liked] += 0.85 * np.array([0.55, 0.3, 0.15])
    countries = rng.dirichlet(np.full(len(_COUNTRIES), 0.6), n_segments)
    ages = rng.dirichlet(np.full(len(_AGE_GROUPS), 0.6), n_segments)
    item_genre = rng.permutation(np.arange(n_items) % n_genres)
    item_second = (item_genre + rng.integers(1, n_genres, n_items)) % n_genres
    popularity = 1.0 / np.arange(1, n_items + 1) ** 0.9  # Zipf
    popularity = rng.permutation(popularity)
    shelf = np.concatenate([np.arange(n_items), np.arange(n_items)])
    genre = np.concatenate([item_genre, item_second])
    weight = np.concatenate([0.85 * popularity, 0.15 * popularity])
    by_genre = np.argsort(genre, kind="stable")
    return _World(
        segment_genres=segment_genres,
        segment_countries=0.6 * countries + 0.4 / len(_COUNTRIES),
        segment_ages=0.6 * ages + 0.4 / len(_AGE_GROUPS),
        item_genre=item_genre,
        item_second=item_second,
        shelf=shelf[by_genre],
        shelf_weight=np.concatenate([[0.0], np.cumsum(weight[by_genre])]),
        shelf_start=np.searchsorted(genre[by_genre], np.arange(n_genres + 1)),
    )


def _draw_people(
    rng: np.random.Generator, world: _World, ids: _Ints, days: int, drift_share: float
) -> dict[str, Any]:
    """Return the arrays that describe some users; all have length ``len(ids)``."""
    n, n_segments = len(ids), len(world.segment_genres)
    segment = rng.integers(0, n_segments, n)
    drifts = rng.random(n) < drift_share if n_segments > 1 else np.zeros(n, bool)
    moved = (segment + rng.integers(1, max(n_segments, 2), n)) % n_segments
    joined_late = rng.random(n) < 0.4
    joined = np.where(joined_late, rng.random(n) * days, -rng.exponential(200.0, n))
    return {
        "names": np.array([f"L{k:08d}" for k in ids], object),
        "segment": segment,
        "later_segment": np.where(drifts, moved, segment),
        "drift_day": np.where(drifts, days * rng.uniform(0.2, 0.9, n), np.inf),
        "other_segment": rng.integers(0, n_segments, n),  # each user's own side interest
        "joined": joined,
        "country": _choose(rng, world.segment_countries, segment),
        "device": rng.choice(len(_DEVICES), n, p=[0.55, 0.2, 0.15, 0.1]),
        "rate": rng.lognormal(-0.5, 1.0, n),  # mean exp(-0.5 + 1 / 2) = 1
    }


def _events(
    rng: np.random.Generator,
    world: _World,
    person: dict[str, Any],
    days: int,
    sessions_per_week: float,
    start_us: int,
) -> pa.Table:
    member_from = np.maximum(person["joined"], 0.0)
    weeks = (days - member_from) / 7
    n_sessions = rng.poisson(person["rate"] * sessions_per_week * weeks)
    user = np.repeat(np.arange(len(n_sessions)), n_sessions)  # (n_sessions_of_all,)
    when = _session_days(rng, member_from[user], days)
    drifted = when >= person["drift_day"][user]
    segment = np.where(drifted, person["later_segment"][user], person["segment"][user])
    aside = rng.random(len(user)) < 0.2
    segment = np.where(aside, person["other_segment"][user], segment)
    mood = _choose(rng, world.segment_genres, segment)
    habit = rng.random(len(user)) < 0.8
    device = np.where(habit, person["device"][user], rng.integers(0, len(_DEVICES), len(user)))
    travels = rng.random(len(user)) < 0.03
    abroad = rng.integers(0, len(_COUNTRIES), len(user))
    country = np.where(travels, abroad, person["country"][user])

    length = np.minimum(rng.geometric(0.25, len(user)), 30)
    session = np.repeat(np.arange(len(user)), length)  # (n_events,)
    genre = np.where(
        rng.random(len(session)) < 0.8,
        mood[session],
        _choose(rng, world.segment_genres, segment[session]),
    )
    item = _draw_items(rng, world, genre)
    minutes = np.round(rng.gamma(4.0, np.where(genre >= _FIRST_TALK, 6.0, 0.9)) + 0.05, 2)
    # An event begins when the one before it has ended: times of a session never tie.
    before = np.cumsum(minutes) - minutes
    first = np.concatenate([[0], np.cumsum(length)[:-1]]) if len(length) else length
    offset_us = ((before - before[first][session]) * 60_000_000).astype(np.int64)
    played_at = start_us + (when[session] * _DAY_US).astype(np.int64) + offset_us
    # Ids of sessions hold the user's number: unique over the partitions, and stable.
    number = np.arange(len(user)) - np.repeat(np.cumsum(n_sessions) - n_sessions, n_sessions)
    names = person["names"]
    session_names = np.array([f"{names[u]}/{k}" for u, k in zip(user, number, strict=True)], object)
    order = np.argsort(played_at, kind="stable")
    session, genre = session[order], genre[order]
    return pa.table(
        {
            "listener": pa.array(names[user[session]], pa.string()),
            "track id": pa.array(item[order] + 1, pa.int64()),
            "played at": pa.array(played_at[order], pa.timestamp("us", "UTC")),
            "minutes played": pa.array(minutes[order], pa.float32()),
            "session-id": pa.array(session_names[session], pa.string()),
            "product": _labels(("music", "talk"), (genre >= _FIRST_TALK).astype(np.int64)),
            "device.type": _labels(_DEVICES, device[session]),
            "country": _labels(_COUNTRIES, country[session]),
        }
    )


def _session_days(rng: np.random.Generator, member_from: _Floats, days: int) -> _Floats:
    """Return start times in days: a day of membership, at an hour when people listen."""
    day = np.floor(member_from + rng.random(len(member_from)) * (days - member_from))
    hour = rng.choice(24, len(day), p=_HOURS / _HOURS.sum()) + rng.random(len(day))
    when = day + hour / 24
    # On the day of joining only what is left of it counts.
    left = np.floor(member_from) + 1 - member_from
    return np.where(when < member_from, member_from + rng.random(len(day)) * left, when)


def _users(
    rng: np.random.Generator, world: _World, person: dict[str, Any], start_us: int
) -> pa.Table:
    n = len(person["names"])
    group = _choose(rng, world.segment_ages, person["segment"])
    age = _AGE_FROM[group] + np.floor(rng.random(n) * _AGE_YEARS[group])
    n_picks = np.where(rng.random(n) < 0.8, rng.integers(3, 9, n), 0)
    owner = np.repeat(np.arange(n), n_picks)
    picks = _draw_items(rng, world, _choose(rng, world.segment_genres, person["segment"][owner]))
    offsets = np.concatenate([[0], np.cumsum(n_picks)]).astype(np.int32)
    joined_us = start_us + (person["joined"] * _DAY_US).astype(np.int64)
    return pa.table(
        {
            "listener": pa.array(person["names"], pa.string()),
            "Signed up": pa.array(joined_us, pa.timestamp("us", "UTC")),
            "Country": _labels(_COUNTRIES, person["country"], missing=rng.random(n) < 0.05),
            "age group": _labels(_AGE_GROUPS, group, missing=rng.random(n) < 0.15),
            "age (years)": pa.array(age, pa.float32(), mask=rng.random(n) < 0.15),
            "first picks": pa.ListArray.from_arrays(offsets, pa.array(picks + 1, pa.int64())),
        }
    )


def _items(rng: np.random.Generator, world: _World) -> pa.Table:
    n = len(world.item_genre)
    syllables = np.array(_SYLLABLES)
    words = ["".join(w) for w in syllables[rng.integers(0, len(syllables), (24 * len(GENRES), 3))]]
    common = ["".join(w) for w in syllables[rng.integers(0, len(syllables), (60, 2))]]
    own = world.item_genre[:, None] * 24 + rng.integers(0, 24, (n, 2))
    shared = rng.integers(0, len(common), n)
    title = [
        f"{words[a]} {words[b]} {common[c]}".title()
        for a, b, c in zip(own[:, 0], own[:, 1], shared, strict=True)
    ]
    # Artists stay with one genre, so that their names carry it.
    artist = [
        f"The {words[g * 24 + k].title()}s"
        for g, k in zip(world.item_genre, rng.integers(0, 24, n), strict=True)
    ]
    genres = [
        f"{GENRES[a]};{GENRES[b]}" for a, b in zip(world.item_genre, world.item_second, strict=True)
    ]
    return pa.table(
        {
            "track id": pa.array(np.arange(1, n + 1), pa.int64()),
            "Title": pa.array(title, pa.string()),
            'Artist "credited"': pa.array(artist, pa.string()),
            "genres": pa.array(genres, pa.string()),
        }
    )


def _truth_table(truth: SimulatedTruth, start_us: int) -> pa.Table:
    drifts = np.isfinite(truth.drift_day)
    since = (truth.drift_day[drifts] * _DAY_US).astype(np.int64) + start_us
    begin = np.full(len(truth.users), start_us)
    return pa.table(
        {
            "listener": pa.array(np.concatenate([truth.users, truth.users[drifts]]), pa.string()),
            "segment": np.concatenate([truth.segment, truth.later_segment[drifts]]),
            "valid_from": pa.array(np.concatenate([begin, since]), pa.timestamp("us", "UTC")),
        }
    )


def _choose(rng: np.random.Generator, shares: _Floats, row: _Ints) -> _Ints:
    """Return a column for each entry of ``row``, drawn with that row's shares."""
    bounds = np.cumsum(shares, axis=1)
    bounds[:, -1] = np.inf  # rounding must not leave a draw beyond the last bound
    drawn = np.empty(len(row), np.int64)
    for k in range(len(shares)):  # a row at a time: no (n, n_columns) array is ever held
        mine = np.flatnonzero(row == k)
        drawn[mine] = np.searchsorted(bounds[k], rng.random(len(mine)), side="right")
    return drawn


def _draw_items(rng: np.random.Generator, world: _World, genre: _Ints) -> _Ints:
    """Return an item of each genre, drawn by popularity: one search along the whole shelf."""
    low = world.shelf_weight[world.shelf_start[genre]]
    high = world.shelf_weight[world.shelf_start[genre + 1]]
    place = low + rng.random(len(genre)) * (high - low)
    index = np.searchsorted(world.shelf_weight, place, side="right") - 1
    return world.shelf[np.minimum(index, world.shelf_start[genre + 1] - 1)]


def _labels(
    names: Sequence[str], index: _Ints, missing: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    codes = pa.array(index, pa.int64(), mask=missing)
    return pa.DictionaryArray.from_arrays(codes, pa.array(names)).cast(pa.string())


def _write(path: Path, tables: Sequence[pa.Table]) -> None:
    with _Output(path) as output:
        for table in tables:
            output.write(table)


class _Output:
    """A Parquet file that appears under its name when all its portions are written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Output:
        return self

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._temporary, table.schema, compression="zstd")
        self._writer.write_table(table)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)
