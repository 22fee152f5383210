"""Task ``clusters``: who stands near whom, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.columns import batch_from_arrow
from encoder.resampling import Draws, Replicates, column_means, user_draws
from materialize.evaluate.kind_cohort import item_kind_matrix
from materialize.evaluate.likeness import (
    Likeness,
    SharedGroup,
    SharedTaste,
    ndcg,
    nearest_groups,
    taste_profiles,
)
from materialize.evaluate.lists import counted_replicates, p90_coverage
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.evaluate.models.registry import choose, user_model
from materialize.evaluate.nearest import nearest_others, unit_rows
from transforms.layout import ONBOARDING, column

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact
    from materialize.evaluate.cohort import Cohort
    from materialize.evaluate.task import Progress

__all__ = ["NEIGHBOURS", "RANDOM", "ClustersTask", "likenesses", "retrieved_items"]

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

RANDOM = "random"
"""Baseline: vectors that know nothing, so that neighbours are drawn by lot."""

NEIGHBOURS = 50
"""Neighbours of a user that are looked at, as in the paper."""

_RETRIEVED = 10
_QUERIES = 2_500
"""Users of each group who are judged; all test users of the cohort are candidates."""
_LEAST_CONSUMED = 3
"""Tags consumed after the moment below which nothing is said of a user's taste."""
_RANDOM_DIM = 16
_ALL = "all"


@dataclass(frozen=True, eq=False)
class _Setting:
    """What is the same for all models.

    Attributes
    ----------
    rows : int64 (n_users,)
        Rows of the cohort, one a user, in random order.
    queries : int64 (n_queries,)
        Positions in ``rows`` of the users who are judged.
    in_group : dict of str to bool (n_queries,)
    likenesses : dict of str to Likeness
        Of the users in ``rows``.
    best : dict of str to float64 (n_queries, k)
        Gains of the best list there is, by likeness.
    draws : Draws
        Of the queries.
    """

    rows: Int64
    queries: Int64
    in_group: dict[str, npt.NDArray[np.bool_]]
    likenesses: dict[str, Likeness]
    best: dict[str, npt.NDArray[np.float64]]
    draws: Draws


class ClustersTask:
    """Judges a representation by who stands near whom in it; nothing is fitted.

    One row a test user is taken, its first. For up to 2,500 users of each group (by the hash of the
    id) the 50 nearest other users by cosine are found among all test users, exactly.

    ``ndcg@50_<what>`` (the paper's intrinsic clustering task): nDCG@50 of these neighbours, each of
    which gains what it shares with the user, against the best 50 that there are. What is shared:

    - ``taste``: of what the user consumes *after* the moment, which no model has seen. Share of
      each tag in the user's consumption minus the average share over users; gain is the cosine of
      two users' departures where it is positive. Users with fewer than three tagged consumptions
      are left out.
    - each category of the profile and context column at the moment (country, age, device): gain 1
      for the same value. The encoder reads these columns, the mean item vectors do not, and that is
      the question: whether the vector has kept them beside the taste.
    - ``onboarding``: the item cluster that the mean vector of the picks lies nearest to.

    A user of whom it is not known neither asks nor is a candidate (Sakai, 2007, Alternatives to
    bpref: condensed lists), so that users of whom much is known have no advantage.

    ``p90_coverage@10_items`` (PinnerFormer): each user gets the 10 unseen items that most of the
    50 neighbours have consumed; share of the catalogue that makes up 90% of these places.
    Random neighbours recommend what is popular, so a representation that has collapsed to
    popularity is as low as ``random``. ``p90_coverage@10_users``: the same of the 10 nearest users
    themselves; low where few users are everybody's neighbours (hubs).

    Baselines are every model that has user vectors, mean item vectors and raw inputs among them,
    and ``random``. Rows are shuffled by the seed: among equal vectors (users of whom nothing is
    known) chance decides, and ids, which often follow the sign-up, do not.
    """

    name = "clusters"

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why there is nothing that users could share, or None."""
        if likenesses(cohort, _first_rows(cohort)):
            return None
        return (
            "No user has three tagged consumptions after the moment, a profile, a context column "
            "with two values or onboarding picks: there is nothing that neighbours could share."
        )

    def measure(
        self,
        cohort: Cohort,
        encoder: EncoderArtifact,
        seed: int,
        *,
        models: Sequence[str] | None,
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        """Return the figures of the embedding and of the baselines; see ``Task.measure``."""
        setting = _setting(cohort, seed, n_resamples)
        progress.detail(
            "users",
            {name: int(likeness.known.sum()) for name, likeness in setting.likenesses.items()},
        )
        found: list[Measurement] = []
        for name in _names(cohort, models, progress):
            vectors = _vectors(name, cohort, encoder, seed)
            found += _judge(name, vectors[setting.rows], cohort, setting, seed)
            progress.step(f"clusters: {name}")
        return found


def likenesses(cohort: Cohort, rows: Int64) -> dict[str, Likeness]:
    """Return what users of some rows may share, by name; what nobody can share is left out.

    Parameters
    ----------
    cohort : Cohort
    rows : int64 (n_users,)
        One a user.
    """
    found: dict[str, Likeness] = {}
    taste = SharedTaste(taste_profiles(_consumed(cohort, rows), _LEAST_CONSUMED))
    if taste.known.sum() > 1:
        found["taste"] = taste
    columns = {name: values[rows] for name, values in cohort.profile.items()}
    picks = _picks(cohort, rows)
    groups = nearest_groups(picks, cohort.catalogue) if picks else None
    if groups is not None:
        columns["onboarding"] = groups
    for name, values in columns.items():
        shared = SharedGroup.of(values)
        if 1 < shared.n_groups < shared.known.sum():
            found[name] = shared
    return found


def retrieved_items(
    neighbours: Int64, own: Int64, seen: sparse.csr_array, k: int = _RETRIEVED
) -> Int64:
    """Return the items that most of each user's neighbours have consumed, without those seen.

    Parameters
    ----------
    neighbours : int64 (n_queries, n_neighbours)
        Rows of ``seen``; -1: none.
    own : int64 (n_queries,)
        The users' own rows.
    seen : csr_array bool (n_users, n_items)
    k : int

    Returns
    -------
    int64 (n_queries, k)
        Most often consumed first, equally often in an order that is the same for all users. -1
        where the neighbours have consumed fewer items that the user has not.
    """
    place = neighbours.ravel()
    asked = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])[place >= 0]
    chosen = sparse.csr_array(
        (np.ones(len(asked), np.float32), (asked, place[place >= 0])),
        shape=(len(neighbours), seen.shape[0]),
    )
    votes = sparse.csr_array(chosen @ seen.astype(np.float32))
    votes = votes - votes.multiply(seen[own].astype(np.float32))  # the user's own become zero
    items = np.full((len(neighbours), k), -1, np.int64)
    for q in range(len(neighbours)):
        of_query = slice(votes.indptr[q], votes.indptr[q + 1])
        value, item = votes.data[of_query], votes.indices[of_query]
        # Votes are whole numbers, so that the fraction only decides between equal ones.
        key = np.where(value > 0, value - item / votes.shape[1], -np.inf)
        first = np.argpartition(-key, k)[:k] if len(key) > k else np.arange(len(key))
        first = first[np.argsort(-key[first])]
        first = first[key[first] > -np.inf]
        items[q, : len(first)] = item[first]
    return items


def _first_rows(cohort: Cohort) -> Int64:
    """Return each test user's first row: what training users do next, an encoder may have seen."""
    judged = np.flatnonzero(~cohort.training)
    _, first = np.unique(cohort.user_id[judged].astype(str), return_index=True)
    return judged[first]


def _setting(cohort: Cohort, seed: int, n_resamples: int) -> _Setting:
    rows = np.random.default_rng(seed).permutation(_first_rows(cohort))
    everybody = user_draws(cohort.user_id[rows], n_resamples)
    by_hash = np.argsort(everybody.keys[everybody.owner])
    members = {name: mask[rows] for name, mask in cohort.groups.items()}
    sampled = {name: by_hash[member[by_hash]][:_QUERIES] for name, member in members.items()}
    queries = np.unique(np.concatenate(list(sampled.values())))
    shared = likenesses(cohort, rows)
    best = {}
    for name, likeness in shared.items():
        best[name] = np.zeros((len(queries), NEIGHBOURS))
        asks = likeness.known[queries]
        gains = likeness.best(queries[asks], NEIGHBOURS)
        best[name][asks, : gains.shape[1]] = gains
    return _Setting(
        rows=rows,
        queries=queries,
        in_group={name: np.isin(queries, chosen) for name, chosen in sampled.items()},
        likenesses=shared,
        best=best,
        draws=everybody.take(queries),
    )


def _judge(
    model: str, vectors: Float32, cohort: Cohort, setting: _Setting, seed: int
) -> list[Measurement]:
    everybody = np.ones(len(setting.rows), bool)
    among = {name: likeness.known for name, likeness in setting.likenesses.items()}
    among[_ALL] = everybody
    near = nearest_others(unit_rows(vectors), setting.queries, NEIGHBOURS, among)
    each: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for name, likeness in setting.likenesses.items():
        gains = likeness.gains(setting.queries, near[name])
        of_query = ndcg(gains, setting.best[name])
        for group, member in setting.in_group.items():
            judged = np.where(member & likeness.known[setting.queries], of_query, np.nan)
            if not np.isnan(judged).all():
                each[f"ndcg@{NEIGHBOURS}_{name}", group] = judged
    # All at once: the weights of the resamples are the dear part, and the same for all.
    figures: list[tuple[str, str, Replicates, npt.NDArray[np.bool_]]] = [
        (metric, group, figure, ~np.isnan(judged))
        for ((metric, group), judged), figure in zip(
            each.items(),
            column_means(np.column_stack(list(each.values())), setting.draws),
            strict=True,
        )
    ]
    rows = setting.in_group[_ALL]
    seen = cohort.history[setting.rows].astype(bool)
    items = retrieved_items(near[_ALL][rows], setting.queries[rows], seen)
    draws = setting.draws.take(rows)
    for metric, lists, n in (
        (f"p90_coverage@{_RETRIEVED}_items", items, len(cohort.catalogue)),
        (f"p90_coverage@{_RETRIEVED}_users", near[_ALL][rows][:, :_RETRIEVED], len(setting.rows)),
    ):
        figures.append((metric, _ALL, counted_replicates(p90_coverage, lists, n, draws), rows))
    return [
        Measurement.of(
            figure,
            setting.draws.take(judged),
            task=ClustersTask.name,
            metric=metric,
            group=group,
            model=model,
            seed=seed,
        )
        for metric, group, figure, judged in figures
    ]


def _names(cohort: Cohort, models: Sequence[str] | None, progress: Progress) -> Iterator[str]:
    wanted = None if models is None else [EMBEDDING, *(name for name in models if name != RANDOM)]
    names, left_out = choose("vectors", wanted, cohort.others)
    for name, reason in left_out.items():
        progress.skip(name, reason)
    yield from names
    if models is None or len(models) > 0:
        yield RANDOM


def _vectors(name: str, cohort: Cohort, encoder: EncoderArtifact, seed: int) -> Float32:
    if name != RANDOM:
        return user_model(name).vectors(cohort, encoder, seed)
    rng = np.random.default_rng(seed)
    return rng.standard_normal((len(cohort), _RANDOM_DIM), np.float32)


def _consumed(cohort: Cohort, rows: Int64) -> sparse.csr_array:
    """Return how much of each tag each user consumes after the moment.

    Known items count once for each of their tags; a tag of an item outside the catalogue counts
    once, because the cohort says of these only which tags were consumed.
    """
    counts = cohort.future[rows].astype(np.float32) @ item_kind_matrix(cohort)
    return sparse.csr_array(counts.maximum(cohort.future_tags[rows].astype(np.float32)))


def _picks(cohort: Cohort, rows: Int64) -> Mapping[str, Float32]:
    """Return the mean vector of each user's onboarding picks, by modality; {} without any."""
    source = column(ONBOARDING, "pooled")
    blocks = [b for b in cohort.schema.blocks if b.column == source and b.kind == "pooled"]
    if not blocks:
        return {}
    batch = batch_from_arrow(cohort.raw, {source: cohort.schema.array_columns[source]}, {}, ())
    values = np.asarray(batch.columns[source].values, np.float32)[rows]
    # Blocks stand in the modalities' order, as the catalogue's vectors do.
    return {
        name: values[:, block.offset : block.offset + block.width]
        for name, block in zip(cohort.catalogue.vectors, blocks, strict=True)
    }
