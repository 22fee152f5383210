"""Raw features of users over calendar windows that end with the day of their newest event.

A row is a pure function of its user's events up to and including ``as_of``: it never depends on the
absence of later ones, so deleting the future changes no row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from encoder.modality import ModalityEncoders
from transforms.buckets import UserDays
from transforms.layout import ACTIVITY, COUNTS_PER_WINDOW, RECENCY, RawLayout, field

__all__ = [
    "Emission",
    "activity_tables",
    "bytes_per_day",
    "list_array",
    "onboarding_pooled",
    "picks_pooled",
]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Emission:
    """Which of a user's active days become rows.

    Attributes
    ----------
    snapshots : int64 (n_snapshots,), ascending
        Days (since 1970-01-01) whose 00:00 UTC cuts history. The last active day of a user between
        two snapshots becomes a row: it is what the later one sees, and no earlier one has it.
    first : int
        Position of the first snapshot that is to be written; earlier ones are only boundaries.
    changed : tuple of int
        Days whose events changed since they were last used: users with events on them also get rows
        of earlier snapshots anew, as far as a window reaches.
    """

    snapshots: Ints
    first: int = 0
    changed: tuple[int, ...] = ()

    def first_day(self, longest: int) -> int:
        """Return the earliest day that any row needs, for a longest window of ``longest`` days."""
        days = list(self.changed)
        if self.first < len(self.snapshots):
            # The first snapshot of all sees every day before it, whatever its distance.
            days.append(int(self.snapshots[self.first - 1]) if self.first else -(2**31))
        return min(days, default=2**31) - longest

    def rows(self, data: UserDays, longest: int) -> tuple[Ints, Ints]:
        """Return positions of the active days that become rows, ascending, and their snapshots'."""
        snapshot = np.searchsorted(self.snapshots, data.day, side="right")
        last = np.ones(len(data.day), np.bool_)
        last[:-1] = (np.diff(data.user) != 0) | (np.diff(snapshot) != 0)
        wanted = snapshot >= self.first
        if self.changed:
            touched = np.zeros(int(data.user[-1]) + 1, np.bool_)
            touched[data.user[np.isin(data.day, self.changed)]] = True
            reach = (data.day >= min(self.changed)) & (data.day < max(self.changed) + longest)
            wanted |= touched[data.user] & reach
        row = np.flatnonzero(last & wanted & (snapshot < len(self.snapshots)))
        return row, snapshot[row]


def activity_tables(
    data: UserDays,
    encoders: ModalityEncoders,
    layout: RawLayout,
    emission: Emission,
    rows_per_table: int = 16_384,
    known: Ints | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of ``user_activity`` of one partition, ordered by snapshot, then user.

    Parameters
    ----------
    data : UserDays
        Days from ``emission.first_day`` on.
    encoders : ModalityEncoders
        Of the layout's modalities, in its order.
    layout : RawLayout
    emission : Emission
    rows_per_table : int
        Bounds the memory of the wide arrays.
    known : int64 (n_distinct_items,), optional
        Position of each of ``data.items.dictionary`` in the encoders, -1 for an unknown one, where
        the caller knows; default: the ids are looked up, which reads the whole catalogue.

    Notes
    -----
    Each active day is summed up once (sparse days x items, times item vectors). A window is then a
    contiguous run of a user's active days: a second sparse product adds those sums. Sums run over
    one user's days in their order only, so neither the partitioning nor other users change a bit.
    """
    row, snapshot = emission.rows(data, max(layout.windows))
    if not len(row):
        return
    counts = _counts(data, row, layout.windows)
    known = encoders.index_of(data.items.dictionary) if known is None else known
    daily = daily_sums(data, known, encoders)
    order = np.argsort(snapshot, kind="stable")
    for start in range(0, len(row), rows_per_table):
        chunk = order[start : start + rows_per_table]
        days = row[chunk]
        pooled, histogram = _pool(data, days, daily, encoders, layout)
        columns = {
            "user_id": data.users.take(pa.array(days)),
            field(ACTIVITY, "pooled"): list_array(pooled),
            field(ACTIVITY, "histogram"): list_array(histogram),
            field(ACTIVITY, "counts"): list_array(counts[chunk]),
        }
        if layout.context:
            columns[field(ACTIVITY, "context")] = data.context.take(pa.array(days))
        as_of = pa.array(data.as_of[days])
        columns[field(ACTIVITY, "as_of")] = as_of
        columns[field(ACTIVITY, "modality")] = pa.repeat(encoders.version, len(days))
        columns["event_timestamp"] = as_of.cast(pa.timestamp("us", "UTC"))
        yield pa.table(columns)


def onboarding_pooled(picks: pa.Array, encoders: ModalityEncoders) -> Floats:
    """Return the mean vector of each user's picks, and their number.

    Parameters
    ----------
    picks : pyarrow list array (n_users,)
        Item ids. Unknown items count as picks and enter no mean.
    encoders : ModalityEncoders

    Returns
    -------
    float32 (n_users, sum of dims + 1)
        Zeros where no pick of a user has a vector in a modality.
    """
    length = picks.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return picks_pooled(length, encoders.index_of(picks.flatten()), encoders)


def picks_pooled(length: Ints, position: Ints, encoders: ModalityEncoders) -> Floats:
    """Return the mean vector of each user's picks, and their number; see ``onboarding_pooled``.

    Parameters
    ----------
    length : int64 (n_users,)
        Picks of each user.
    position : int64 (n_picks,)
        Of the items in the encoders, user by user; -1 for an unknown one.
    encoders : ModalityEncoders
    """
    user = np.repeat(np.arange(len(length)), length)
    known = position >= 0
    user, position = user[known], position[known]
    parts: list[Floats] = []
    for m in encoders.modalities:
        covered = m.cluster_of[position] >= 0
        pick = sparse.csr_array(
            (np.ones(int(covered.sum()), np.float32), (user[covered], position[covered])),
            shape=(len(length), len(m.vectors)),
        )
        parts.append(mean_of(pick @ m.vectors, np.bincount(user[covered], minlength=len(length))))
    return np.concatenate([*parts, length[:, None]], axis=1, dtype=np.float32)


def bytes_per_day(layout: RawLayout) -> int:
    """Return about how much memory an active day takes while its partition is computed."""
    daily = sum(m.dim + m.clusters + 2 for m in layout.modalities) + 1
    # The sums themselves, the copy in which they are put together, and ids, counts and positions.
    return 4 * (2 * daily + layout.counts_width) + 200


def list_array(values: Floats) -> pa.Array:
    """Return a float32 matrix as an Arrow array of lists, one a row."""
    n, width = values.shape
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int32)
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)  # (n * width,)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _window_start(data: UserDays, row: Ints, days: int) -> Ints:
    """Return each row's first active day (position) inside its window of ``days`` calendar days."""
    # One ascending number for user and day; users lie further apart than any window reaches.
    low = int(data.day.min())
    span = int(data.day.max()) - low + days + 1
    key = data.user * span + (data.day - low)
    return np.searchsorted(key, key[row] - days + 1, side="left").astype(np.int64)


def _counts(data: UserDays, row: Ints, windows: tuple[int, ...]) -> Floats:
    """Return float32 (n_rows, n_windows * 4 + 2): counts of each window, then recencies."""
    counts = np.zeros((len(row), len(windows) * len(COUNTS_PER_WINDOW) + len(RECENCY)), np.float32)
    day_of = np.repeat(np.arange(len(data.day)), np.diff(data.start))
    weight = np.bincount(day_of, data.weight, minlength=len(data.day))
    events = np.concatenate([[0], np.cumsum(np.add.reduceat(data.events, data.start[:-1]))])
    previous = _previous_use(data, day_of)
    first = row
    for k, days in enumerate(windows):
        first = _window_start(data, row, days)
        c = k * len(COUNTS_PER_WINDOW)
        counts[:, c] = events[row + 1] - events[first]
        counts[:, c + 1] = runs_of_days(first, row, len(data.day), np.float64) @ weight
        counts[:, c + 2] = row + 1 - first
        counts[:, c + 3] = _distinct(previous, data.start[first], data.start[row + 1])
    c = len(windows) * len(COUNTS_PER_WINDOW)
    before = np.maximum(row - 1, first)  # the row itself when the window holds no earlier day
    counts[:, c] = data.day[row] - data.day[before]
    counts[:, c + 1] = data.day[row] - data.day[first]
    return counts


def _previous_use(data: UserDays, day_of: Ints) -> Ints:
    """Return the position of the same user's previous entry of the same item, -1 for none."""
    item = data.items.indices.to_numpy().astype(np.int64)
    key = data.user[day_of] * len(data.items.dictionary) + item
    order = np.argsort(key, kind="stable")
    previous = np.full(len(key), -1, np.int64)
    again = np.diff(key[order]) == 0
    previous[order[1:][again]] = order[:-1][again]
    return previous


def _distinct(previous: Ints, start: Ints, end: Ints) -> Ints:
    """Return how many distinct items each row's entries ``[start, end)`` hold.

    An entry counts for the rows that contain it and not its previous use. Rows ascend in ``start``
    and ``end``, so these rows are neighbours: each entry adds 1 to one run of rows, and a running
    sum over run starts and ends gives all rows at once, in time linear in the entries.
    """
    entry = np.arange(len(previous))
    first = np.maximum(
        np.searchsorted(end, entry, side="right"), np.searchsorted(start, previous, side="right")
    )
    after = np.searchsorted(start, entry, side="right")
    used = first < after
    steps = np.bincount(first[used], minlength=len(start) + 1)
    steps -= np.bincount(after[used], minlength=len(start) + 1)
    return np.cumsum(steps)[:-1]


def daily_sums(data: UserDays, known: Ints, encoders: ModalityEncoders) -> Floats:
    """Return float32 (n_days, sum of (dim + clusters + 1)): one block of columns a modality.

    A block holds the weighted sum of the day's item vectors, the weight in each item cluster, and
    the weight of all items that have a vector.
    """
    position = known[data.items.indices.to_numpy()]
    n_days = len(data.day)
    blocks: list[Floats] = []
    for m in encoders.modalities:
        cluster = np.where(position >= 0, m.cluster_of[position], -1)
        covered = cluster >= 0
        # Entries stay in their order (day, then item): the order of a sum decides its last bit.
        start = np.concatenate([[0], np.cumsum(covered)])[data.start]
        weight = data.weight[covered].astype(np.float32)
        by_item = sparse.csr_array(
            (weight, position[covered], start), shape=(n_days, len(m.vectors))
        )
        by_cluster = sparse.csr_array(
            (weight, cluster[covered], start), shape=(n_days, m.n_clusters)
        )
        shares = by_cluster.toarray()  # (n_days, n_clusters)
        blocks += [by_item @ m.vectors, shares, shares.sum(axis=1, keepdims=True)]
    return np.concatenate(blocks, axis=1, dtype=np.float32)


def _pool(
    data: UserDays, row: Ints, daily: Floats, encoders: ModalityEncoders, layout: RawLayout
) -> tuple[Floats, Floats]:
    """Return pooled vectors and histograms of some rows, [window][modality][...] along each row."""
    pooled: list[Floats] = []
    histogram: list[Floats] = []
    for days in layout.windows:
        runs = runs_of_days(_window_start(data, row, days), row, len(data.day), np.float32)
        sums = runs @ daily  # (n_rows, daily width)
        column = 0
        for m in encoders.modalities:
            clusters = column + m.dim
            end = clusters + m.n_clusters
            covered = sums[:, end]
            pooled.append(mean_of(sums[:, column:clusters], covered))
            histogram.append(mean_of(sums[:, clusters:end], covered))
            column = end + 1
    return np.concatenate(pooled, axis=1), np.concatenate(histogram, axis=1)


def runs_of_days(
    first: Ints, last: Ints, n_days: int, dtype: type[np.floating]
) -> sparse.csr_array:
    """Return the matrix (n_rows, n_days) with ones from ``first`` to ``last``, both included."""
    length = last - first + 1
    end = np.concatenate([[0], np.cumsum(length)])
    index = np.arange(end[-1]) - np.repeat(end[:-1] - first, length)
    return sparse.csr_array((np.ones(len(index), dtype), index, end), shape=(len(first), n_days))


def mean_of(sums: Floats, weight: npt.NDArray[np.floating | np.integer]) -> Floats:
    """Return ``sums`` (n, width) over ``weight`` (n,); zeros where the weight is 0."""
    scale = np.divide(1.0, weight, out=np.zeros(len(weight)), where=weight > 0)
    return np.asarray(sums * scale[:, None], np.float32)
