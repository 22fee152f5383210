"""Compares what the stream left behind, online and offline, with what the batch makes of facts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from materialize.source import parquet_files
from tests.e2e.stream_events import Facts
from tests.e2e.stream_reader import OnlineReads, Served
from tests.e2e.stream_truth import truth_at
from tests.e2e.stream_world import World
from transforms.layout import ACTIVITY, COUNTS_PER_WINDOW, ONBOARDING, PROFILE
from transforms.layout import field as raw_field
from transforms.names import EMBEDDING_FEATURES, USER_KEY
from transforms.tables import CREATED

__all__ = ["Offline", "Online", "apart", "judge_offline", "judge_online"]

Row = Mapping[str, Any]


def apart(one: Row, other: Row) -> float:
    """Return the largest difference of two rows' numbers, infinite where anything else differs.

    Numbers of lists may differ a little; scalars and texts may not, nor may NaNs.
    """
    most = 0.0
    for name, value in one.items():
        given, expected = np.asarray(value), np.asarray(other[name])
        if given.dtype.kind != "f" or not given.ndim:
            if not np.array_equal(given, expected):
                return float("inf")
            continue
        nothing = np.isnan(given)
        if given.shape != expected.shape or not np.array_equal(nothing, np.isnan(expected)):
            return float("inf")
        most = max(most, float(np.abs(given - expected)[~nothing].max(initial=0.0)))
    return most


@dataclass
class Online:
    """What is online against what the batch makes of all that happened.

    Attributes
    ----------
    events : int
        Events and picks that the users' newest rows are to hold.
    lost, twice : int
        Of these, missing from a row; more in a row than happened.
    max_abs_diff : dict of str to float
        By view; infinite where a row is missing or dated otherwise.
    differences : list of str
        The first few beyond 1e-4.
    """

    events: int = 0
    lost: int = 0
    twice: int = 0
    max_abs_diff: dict[str, float] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def add(self, user: int, view: str, served: Row | None, made: Row | None) -> None:
        """Compare one row."""
        if view in (ACTIVITY, ONBOARDING):
            expected, held = _things(view, made), _things(view, served)
            self.events += expected
            self.lost += max(0, expected - held)
            self.twice += max(0, held - expected)
        most = float("inf")
        if served is not None and made is not None:
            most = apart({name: value for name, value in served.items() if name in made}, made)
        elif served is made or (view == PROFILE and _says_nothing(made)):
            # The batch gives everybody a profile, of whom nothing is known an empty one.
            most = 0.0
        self.max_abs_diff[view] = max(self.max_abs_diff.get(view, 0.0), most)
        if most > 1e-4 and len(self.differences) < 5:
            self.differences.append(f"user {user}, {view}: {served} served, {made} expected")


def judge_online(world: World, port: int, facts: Facts) -> tuple[Online, list[Served]]:
    """Compare everybody's newest rows and embeddings with the batch's; return also the former."""
    users = facts.users()
    truth = truth_at(world, facts, [(user, None) for user in users])
    online = OnlineReads(world, port)
    served = online.read(users)
    online.close()
    judged = Online()
    for row, user in enumerate(users):
        for view, made in {**truth.raw, **truth.embeddings}.items():
            judged.add(user, view, served[row][view], made[row])
    return judged, served


@dataclass
class Offline:
    """What is offline.

    Attributes
    ----------
    rows : int
        Streamed and batch rows of all views.
    repeated : int
        Rows that say what an earlier row of the user and event time says.
    contradictions : Counter
        By kind: a later row of a user and event time knows less than an earlier one, or as much and
        says something else; a row knows more than had happened by its time; an embedding of all
        that had happened is followed by another one.
    checked : int
        Rows that were compared with the batch as of their event time.
    max_abs_diff : float
        Of these.
    stale : dict of str to int
        By view, users whose newest row, read point-in-time, is not the online one.
    """

    rows: int = 0
    repeated: int = 0
    contradictions: Counter[str] = field(default_factory=Counter)
    checked: int = 0
    max_abs_diff: float = 0.0
    stale: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def contradicts(self, kind: str, *example: Any) -> None:
        self.contradictions[kind] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{kind}: {example}")


def judge_offline(
    world: World, facts: Facts, served: Sequence[Served], seed: int, sample: int = 300
) -> Offline:
    """Compare the offline rows with each other, with the batch and with what is online.

    Parameters
    ----------
    world : World
    facts : Facts
    served : sequence of Served
        Of ``facts.users()``, after the last event.
    seed : int
        Of the draw of rows that are compared with the batch as of their event time.
    sample : int
    """
    judged, users = Offline(), facts.users()
    settings = world.settings
    streamed: list[dict[str, Any]] = []
    embeddings: dict[str, list[list[dict[str, Any]]]] = {}
    for view in (*world.layout.views, *world.embedding_views()):
        raw = view in world.layout.views
        rows = _rows((settings.features_dir if raw else settings.offline_dir) / view, users)
        judged.rows += len(rows)
        if view in (ACTIVITY, ONBOARDING):
            _agree(judged, view, rows)
        elif not raw:
            embeddings[view] = _different(rows)
        newest = _newest(world, view, users)
        judged.stale[view] = sum(
            row is not one[view] if row is None or one[view] is None else apart(one[view], row) > 0
            for row, one in zip(newest, served, strict=True)
        )
        if view == ACTIVITY:
            streamed = rows
    draw = random.Random(seed)  # noqa: S311 - no secret
    chosen = draw.sample(streamed, min(sample, len(streamed)))
    moment = raw_field(ACTIVITY, "as_of")
    truth = truth_at(world, facts, [(row[USER_KEY], row[moment]) for row in chosen])
    for row, made in zip(chosen, truth.raw[ACTIVITY], strict=True):
        assert made is not None, f"nothing happened to user {row[USER_KEY]} until {row[moment]}"
        if _things(ACTIVITY, row) > _things(ACTIVITY, made):
            judged.contradicts("more than happened", row, made)
        elif _things(ACTIVITY, row) == _things(ACTIVITY, made):
            judged.checked += 1
            difference = apart(
                {name: row[name] for name in world.types[ACTIVITY].names[1:-2]}, made
            )
            judged.max_abs_diff = max(judged.max_abs_diff, difference)
            if difference > 1e-4:
                judged.contradicts("not what the batch makes", row, made)
    _stay(judged, world, facts, embeddings)
    return judged


def _rows(folder: Path, users: Sequence[int]) -> list[dict[str, Any]]:
    """Return the rows of some users, ordered as a point-in-time read ranks them, best last."""
    table = pq.ParquetDataset(parquet_files(folder)).read()
    chosen = table.filter(pa.compute.is_in(table[USER_KEY], pa.array(users)))
    order = [(USER_KEY, "ascending"), ("event_timestamp", "ascending")]
    rows: list[dict[str, Any]] = chosen.sort_by(
        [*order, ("created_timestamp", "ascending")]
    ).to_pylist()
    return rows


def _agree(judged: Offline, view: str, rows: Sequence[dict[str, Any]]) -> None:
    """Count rows of one user and event time that contradict each other."""
    before: dict[str, Any] | None = None
    for row in rows:
        same = before is not None and all(
            row[name] == before[name] for name in (USER_KEY, "event_timestamp")
        )
        if before is not None and same:
            known, knew = _things(view, row), _things(view, before)
            if known < knew:
                judged.contradicts("a later row knows less", view, before, row)
            elif known == knew:
                judged.repeated += 1
                if apart(_content(row, row), before) > 1e-4:
                    judged.contradicts("as much is known, else is said", view, before, row)
        before = row


def _different(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows of each user and event time that are not all the same, oldest first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row[USER_KEY], row["as_of"]), []).append(row)
    names = ("embedding", "status", "n_events")
    return [
        group
        for group in groups.values()
        if any(apart(_content(row, names), group[0]) > 1e-4 for row in group)
    ]


def _stay(
    judged: Offline,
    world: World,
    facts: Facts,
    embeddings: Mapping[str, Sequence[Sequence[dict[str, Any]]]],
) -> None:
    """Count embeddings of everything that had happened until then, after which others come."""
    cuts = sorted(
        {
            (group[0][USER_KEY], group[0]["as_of"])
            for groups in embeddings.values()
            for group in groups
        }
    )
    if not cuts:
        return
    truth, place = truth_at(world, facts, cuts), {cut: k for k, cut in enumerate(cuts)}
    for view, groups in embeddings.items():
        for group in groups:
            made = truth.embeddings[view][place[group[0][USER_KEY], group[0]["as_of"]]]
            whole = False
            for row in group:
                right = apart(_content(row, made), made) <= 1e-4
                if whole and not right:
                    judged.contradicts("another embedding follows the right one", view, row, made)
                whole |= right


def _content(row: Row, names: Iterable[str]) -> Row:
    """Return the raw features and times of a row, but for when it was written."""
    return {name: row[name] for name in names if name not in (USER_KEY, CREATED)}


def _newest(world: World, view: str, users: Sequence[int]) -> list[Row | None]:
    """Return each user's row as a training set of this moment reads it."""
    names = EMBEDDING_FEATURES
    if view in world.layout.views:
        names = tuple(n for n in world.types[view].names if n.startswith(raw_field(view, "")))
    moment = datetime.now(timezone.utc) + timedelta(minutes=1)
    entities = pd.DataFrame({USER_KEY: users, "event_timestamp": [moment] * len(users)})
    store = world.context.store
    found = store.get_historical_features(
        entities, features=[f"{view}:{name}" for name in names]
    ).to_arrow()
    as_of = "as_of" if view in world.embedding_views() else raw_field(view, "as_of")
    rows = {row[USER_KEY]: row for row in found.to_pylist()}
    return [rows[user] if rows[user][as_of] is not None else None for user in users]


def _things(view: str, row: Row | None) -> int:
    """Return how many events or picks a row holds."""
    if row is None:
        return 0
    if view == ONBOARDING:
        return int(row[raw_field(view, "pooled")][-1])
    return int(row[raw_field(view, "counts")][-2 - len(COUNTS_PER_WINDOW)])


def _says_nothing(profile: Row | None) -> bool:
    if profile is None:
        return True
    texts, numbers = (profile[raw_field(PROFILE, name)] for name in ("categories", "numbers"))
    return not any(texts) and bool(np.isnan(numbers).all())
