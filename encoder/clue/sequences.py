"""What users did in each service, as sequences of items; and batches of users with two views."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.clue.tokenizer import PAD, UNKNOWN_SERVICE
from encoder.errors import DataFault
from encoder.rows import held_out, in_share

__all__ = ["ClueBatch", "Noise", "Pairs", "ServiceEvents", "UserSequences", "Views"]

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_ITEMS, _FACTS, _USERS = "items.npy", "sequences.json", "users.json"


@dataclass(frozen=True)
class ServiceEvents:
    """The events of all users in one service.

    Attributes
    ----------
    starts : int64 (n_users + 1,)
        User u's events are ``items[starts[u]:starts[u + 1]]``.
    items : int32 (n_events,)
        Rows of the token table; a user's newest event first.
    """

    starts: Longs
    items: Ints

    @property
    def lengths(self) -> Longs:
        """Number of events of each user, int64 (n_users,)."""
        return np.diff(self.starts)

    def windows(self, users: Longs, first: Longs, length: Longs, width: int) -> tuple[Ints, Bools]:
        """Return a stretch of each user's events.

        Parameters
        ----------
        users : int64 (n,)
        first : int64 (n,)
            Where the stretch begins, 0 is the newest event.
        length : int64 (n,)
            At most ``width``, and not beyond the user's events.
        width : int

        Returns
        -------
        events : int32 (n, width)
            Row 0 of the token table behind the stretch's end.
        there : bool (n, width)
        """
        place = np.arange(width)
        there = place < length[:, None]  # (n, width)
        at = (self.starts[users] + first)[:, None] + place  # (n, width)
        events = np.zeros(there.shape, np.int32)
        events[there] = self.items[at[there]]
        return events, there


@dataclass(frozen=True)
class UserSequences:
    """Token table and events of all services; the arrays may be maps of files.

    Attributes
    ----------
    tokens : int32 (n_items, max_item_tokens)
        Of `ItemTokenizer.tokenize`. An item that two services offer has a row in each.
    services : mapping of str to ServiceEvents
    users : tuple of str
        Ids, in the order of the events.
    """

    tokens: Ints
    services: dict[str, ServiceEvents]
    users: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return 12 hex digits that change with any content."""
        digest = hashlib.sha256(json.dumps([self.users, list(self.services)]).encode())
        for array in (self.tokens, *(x for s in self.services.values() for x in vars(s).values())):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Write the arrays to ``folder``, for `open`; an unfinished folder is refused there."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FACTS).unlink(missing_ok=True)
        np.save(folder / _ITEMS, self.tokens)
        for k, events in enumerate(self.services.values()):
            np.save(folder / f"starts-{k}.npy", events.starts)
            np.save(folder / f"events-{k}.npy", events.items)
        (folder / _USERS).write_text(json.dumps(self.users), encoding="utf-8")
        (folder / _FACTS).write_text(json.dumps({"services": list(self.services)}))

    @classmethod
    def open(cls, folder: Path) -> UserSequences:
        """Map what `save` wrote.

        Raises
        ------
        DataFault
            The folder is missing or unfinished.
        """
        if not (folder / _FACTS).exists():
            raise DataFault(f"{folder} holds no finished sequences. Build them again.")
        names = json.loads((folder / _FACTS).read_text())["services"]

        def array(name: str) -> Any:
            return np.load(folder / name, mmap_mode="r")

        services = {
            name: ServiceEvents(array(f"starts-{k}.npy"), array(f"events-{k}.npy"))
            for k, name in enumerate(names)
        }
        users = json.loads((folder / _USERS).read_text(encoding="utf-8"))
        return cls(array(_ITEMS), services, tuple(users))


@dataclass(frozen=True)
class Views:
    """One view a user: ``events`` int32 (n, width), newest first; ``there`` bool (n, width)."""

    events: Ints
    there: Bools


@dataclass(frozen=True)
class ClueBatch:
    """Users with two views each.

    Attributes
    ----------
    tokens : int32 (n_items, max_item_tokens)
        Each item of the batch once, longest text first.
    a, b : Views
        Their ``events`` are rows of ``tokens``.
    """

    tokens: Ints
    a: Views
    b: Views

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.a.events)

    def slice(self, rank: int, world_size: int) -> ClueBatch:
        """Return one process's users, as many as every other's, and their items."""
        if world_size == 1:
            return self
        mine = slice(rank, None, world_size)
        views = [Views(v.events[mine], v.there[mine]) for v in (self.a, self.b)]
        met = np.concatenate([v.events[v.there] for v in views])
        items = np.unique(met)  # ascending: still the longest first
        place = np.zeros(len(self.tokens), np.int32)
        place[items] = np.arange(len(items))
        a, b = (Views(np.where(v.there, place[v.events], 0), v.there) for v in views)
        return ClueBatch(self.tokens[items], a, b)

    @property
    def n_tokens(self) -> int:
        """Tokens that the item transformer reads, padding left out."""
        return int((self.tokens != PAD).sum())


@dataclass(frozen=True)
class Noise:
    """What a training's views hide.

    CLUE has no augmentation, and millions of users: some thousands are learned by heart without
    (docs/adr/0042-contrastive-encoder-core.md has figures).

    Attributes
    ----------
    event_dropout : float
        Chance that an event is left out of a view, [0, 1); one is always left.
    token_dropout : float
        Chance that a token of an item's text is left out, in all views of a batch, [0, 1).
    guide_dropout : float
        Chance that an item's guide token is that of an unknown service, [0, 1).
    """

    event_dropout: float = 0.0
    token_dropout: float = 0.0
    guide_dropout: float = 0.0


NO_NOISE = Noise()


class Pairs:
    """Users of some part with their pairs of views, in batches that follow from a seed.

    With ``services`` the two views are two services; a user who has more than two gets a random
    pair each epoch, and a batch holds users of one pair: that somebody came from another service
    must not tell who somebody is. With ``crops`` both views come from one service: two stretches
    that do not overlap, a random point apart (contrast within one service, the baseline). With
    ``both`` a user who has either gets one of the two at random each epoch; held-out users of two
    services are asked between them, so that they fill whole batches.

    State: nothing changes; an epoch's batches follow from (seed, epoch).

    Parameters
    ----------
    sequences : UserSequences
    part : {"training", "validation"}
    held_out_share : float
        As in `encoder.rows.held_out`: the same users are held out in every training.
    positives : {"services", "crops", "both"}
    max_events : int
    noise : Noise
        What is hidden of the views; nothing by default.
    share : float
        Share of the users to take, by a hash; for studies of the data's size.

    Raises
    ------
    DataFault
        No user has two views.
    """

    def __init__(
        self,
        sequences: UserSequences,
        part: str,
        held_out_share: float,
        *,
        positives: str,
        max_events: int,
        noise: Noise = NO_NOISE,
        share: float = 1.0,
    ) -> None:
        self.sequences, self.max_events, self.noise = sequences, max_events, noise
        self.part, self.positives, self.names = part, positives, tuple(sequences.services)
        lengths = np.stack([e.lengths for e in sequences.services.values()], axis=1)
        self.has, self.divisible = lengths >= 1, lengths >= 2  # (n_users, n_services)
        two_services, two_stretches = self.has.sum(1) >= 2, self.divisible.any(1)
        enough: Bools = {
            "services": two_services,
            "crops": two_stretches,
            "both": two_services | two_stretches,
        }[positives]
        kept = held_out(sequences.users, held_out_share) == (part == "validation")
        if share < 1:
            kept &= in_share(sequences.users, share)
        self.users: Longs = np.flatnonzero(kept & enough)
        if not len(self.users):
            found = f"{int(kept.sum()):,} {part} users, services {', '.join(self.names)}"
            raise DataFault(
                f"No user with events in two services among {found}. Contrast within one service "
                "(positives: crops), or give more data."
                if positives == "services"
                else f"No user with two events in one service among {found}. Give more data."
            )

    def batches(
        self, size: int, seed: Sequence[int], *, first: int = 0, whole_only: bool = True
    ) -> Iterator[ClueBatch]:
        """Yield an epoch's batches; what follows ``first`` is the same as without it.

        Parameters
        ----------
        size : int
            Users of a batch. With ``whole_only`` smaller ones are left out: their loss cannot be
            compared. They are met in another epoch.
        seed : sequence of int
        first : int
            Number of batches to leave out.
        """
        for number, (pair, users) in enumerate(self._plan(size, seed, whole_only)):
            if number >= first:
                yield self._batch(pair, users, np.random.default_rng([*seed, number]))

    def n_batches(self, size: int, seed: Sequence[int]) -> int:
        """Return how many whole batches this epoch has."""
        return len(self._plan(size, seed, whole_only=True))

    def _plan(
        self, size: int, seed: Sequence[int], whole_only: bool
    ) -> list[tuple[tuple[int, int], Longs]]:
        rng = np.random.default_rng(seed)
        users = rng.permutation(self.users)
        luck = rng.random((len(users), len(self.names)))
        two = self._views_of(users, luck, rng)  # (n, 2)
        plan = []
        for pair in np.unique(two, axis=0):
            mine = users[(two == pair).all(1)]
            last = len(mine) - len(mine) % size if whole_only else len(mine)
            pieces = (mine[k : k + size] for k in range(0, last, size))
            plan += [((int(pair[0]), int(pair[1])), piece) for piece in pieces]
        order = rng.permutation(len(plan))
        return [plan[k] for k in order]

    def _views_of(self, users: Longs, luck: Floats, rng: np.random.Generator) -> Longs:
        """Return the service of each of a user's views, int64 (n, 2); once more: two stretches."""
        here, divisible = self.has[users], self.divisible[users]
        across = np.sort(np.argsort(-np.where(here, luck, -1.0), axis=1)[:, :2], axis=1)
        one = np.argmax(np.where(divisible, luck, -1.0), axis=1)
        within: Longs = np.stack([one, one], axis=1)
        if self.positives == "services":
            return across
        if self.positives == "crops":
            return within
        inside = here.sum(1) < 2
        if self.part == "training":
            inside |= divisible.any(1) & (rng.random(len(users)) < 0.5)
        return np.where(inside[:, None], within, across)

    def _batch(self, pair: tuple[int, int], users: Longs, rng: np.random.Generator) -> ClueBatch:
        views = (
            self._two_stretches(pair[0], users, rng)
            if pair[0] == pair[1]
            else [self._view(service, users) for service in pair]
        )
        views = [self._some_events(view, rng) for view in views]
        there = np.stack([v.there for v in views])
        events = np.stack([v.events for v in views])  # (2, n, max_events)
        items, place = np.unique(events[there], return_inverse=True)
        tokens = self._some_tokens(self.sequences.tokens[items], rng)  # (n_items, max_item_tokens)
        order = np.argsort(-(tokens != PAD).sum(1), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        tokens = tokens[order]
        tokens[rng.random(len(tokens)) < self.noise.guide_dropout, 0] = UNKNOWN_SERVICE
        local = np.zeros(events.shape, np.int32)
        local[there] = rank[place]
        a, b = (Views(local[k], there[k]) for k in (0, 1))
        return ClueBatch(tokens, a, b)

    def _view(self, service: int, users: Longs) -> Views:
        events = self.sequences.services[self.names[service]]
        newest = np.minimum(events.lengths[users], self.max_events)
        return Views(*events.windows(users, np.zeros_like(newest), newest, self.max_events))

    def _some_events(self, view: Views, rng: np.random.Generator) -> Views:
        """Return a view without a random part of its events; one of a user's is always left."""
        if not self.noise.event_dropout:
            return view
        luck = np.where(view.there, rng.random(view.there.shape), 2.0)
        kept = view.there & (luck >= self.noise.event_dropout)
        kept[np.arange(len(luck)), np.argmax(np.where(view.there, luck, -1.0), axis=1)] = True
        return Views(*_moved_up(view.events, kept))

    def _some_tokens(self, tokens: Ints, rng: np.random.Generator) -> Ints:
        """Return items without a random part of their tokens; the guide token stays."""
        if not self.noise.token_dropout:
            return tokens
        kept = (tokens != PAD) & (rng.random(tokens.shape) >= self.noise.token_dropout)
        kept[:, 0] = True
        return _moved_up(tokens, kept)[0]

    def _two_stretches(self, service: int, users: Longs, rng: np.random.Generator) -> list[Views]:
        events = self.sequences.services[self.names[service]]
        total = np.minimum(events.lengths[users], 2 * self.max_events)
        # Each side keeps an event at least.
        split = 1 + np.floor(rng.random(len(users)) * (total - 1)).astype(np.int64)
        newer = np.minimum(split, self.max_events)
        older = np.minimum(total - split, self.max_events)
        return [
            Views(*events.windows(users, np.zeros_like(split), newer, self.max_events)),
            Views(*events.windows(users, split, older, self.max_events)),
        ]


def _moved_up(values: Ints, kept: Bools) -> tuple[Ints, Bools]:
    """Return what is kept of each row, moved to its beginning, 0 behind it; and where it stands."""
    order = np.argsort(~kept, axis=1, kind="stable")
    left = np.where(kept, values, np.int32(0))
    return np.take_along_axis(left, order, axis=1), np.take_along_axis(kept, order, axis=1)
