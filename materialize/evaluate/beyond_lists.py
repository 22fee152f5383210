"""Figures of one model's lists for task ``beyond``, with who gets lists and what items are like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.preprocessing import normalize

from encoder.resampling import Draws, Replicates, column_means, user_draws
from materialize.evaluate.fairness import gap_by_lot, group_gaps, large_groups
from materialize.evaluate.kind_cohort import item_kind_matrix
from materialize.evaluate.lists import (
    counted_replicates,
    coverage,
    exposure_shares,
    gini,
    intra_list_diversity,
    novelty,
    p90_coverage,
    popularity_tenths,
    recentred,
    tag_miscalibration,
    total_variation,
)
from materialize.evaluate.ranking import judged_rows
from materialize.evaluate.top_lists import hits, ndcg_at

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = [
    "ALL",
    "LISTED",
    "Figure",
    "ListSetting",
    "chance_figures",
    "exposure_figures",
    "group_figures",
    "list_figures",
    "list_setting",
]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

ALL = "all"

LISTED = 10
"""Items of a list."""

_USERS, _CELLS = 2_000, 20_000_000
"""So many test users get lists, by the hash of the id, and fewer where users times items are more
than this: every item is scored for every one of them, by every model."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure of one model on one group of users.

    Attributes
    ----------
    metric, group : str
    found : Replicates
    draws : Draws
        Of the rows that it was computed on.
    higher_is_better : bool
    """

    metric: str
    group: str
    found: Replicates
    draws: Draws
    higher_is_better: bool


@dataclass(frozen=True, eq=False)
class ListSetting:
    """What is the same for all models.

    Attributes
    ----------
    rows : int64 (n_users,)
        Test rows in the cohort's order, one a user, each with an item in its future that the user
        has not seen.
    relevant : csr_array bool (n_users, n_items)
        These items.
    n_relevant : int64 (n_users,)
    past : csr_array float32 (n_users, n_items)
        Weights of the items seen.
    draws : Draws
        Of the rows.
    members : mapping of str to bool (n_users,)
        The cohort's groups that have a row.
    columns : mapping of str to object (n_users,) of str
        What users are grouped by for gaps: profile and context ("" for unknown), and ``activity``,
        which of the cohort's groups ``cold`` and ``established`` they are in.
    popularity : float64 (n_items,)
    tenths, tags : csr_array float64 (n_items, n_groups)
        How much of an item belongs to each tenth of the items by popularity, and to each tag.
    """

    rows: Int64
    relevant: sparse.csr_array
    n_relevant: Int64
    past: sparse.csr_array
    draws: Draws
    members: Mapping[str, npt.NDArray[np.bool_]]
    columns: Mapping[str, npt.NDArray[Any]]
    popularity: Float64
    tenths: sparse.csr_array
    tags: sparse.csr_array


def list_setting(cohort: Cohort, n_resamples: int) -> ListSetting:
    """Return who gets lists, and what the items are like.

    Raises
    ------
    EvaluationFault
        No test user consumes anything new.
    """
    judged = judged_rows(cohort)
    _, first = np.unique(cohort.user_id[judged.rows].astype(str), return_index=True)
    everybody = user_draws(cohort.user_id[judged.rows[first]], n_resamples)
    most = max(1, min(_USERS, _CELLS // len(cohort.catalogue)))
    chosen = np.sort(first[np.argsort(everybody.keys[everybody.owner])[:most]])
    rows = judged.rows[chosen]
    members = {name: mask[rows] for name, mask in cohort.groups.items() if mask[rows].any()}
    activity = np.full(len(rows), "between", object)
    for name in ("established", "cold"):
        if name in members:
            activity[members[name]] = name
    kinds = item_kind_matrix(cohort).astype(np.float64)
    tenth = popularity_tenths(cohort.catalogue.popularity)
    return ListSetting(
        rows=rows,
        relevant=judged.relevant[chosen],
        n_relevant=judged.n_relevant[chosen],
        past=cohort.history[rows],
        draws=user_draws(cohort.user_id[rows], n_resamples),
        members=members,
        columns={name: values[rows] for name, values in cohort.profile.items()}
        | {"activity": activity},
        popularity=cohort.catalogue.popularity,
        tenths=sparse.csr_array(np.eye(10)[tenth]),
        tags=sparse.csr_array(normalize(kinds, "l1")),
    )


def list_figures(lists: Int64, setting: ListSetting) -> list[Figure]:
    """Return diversity, novelty, miscalibration by group, and coverage over all users.

    Parameters
    ----------
    lists : int64 (n_users, k)
        Of the setting's rows; -1: the user has seen all others.
    setting : ListSetting
    """
    directions = sparse.csr_array(normalize(setting.tags, "l2"))
    tags = sparse.csr_array(setting.past @ setting.tags)
    full = np.asarray((lists >= 0).all(axis=1))
    whole = lists[full]
    each = np.full((len(lists), 3), np.nan)
    each[full, 0] = intra_list_diversity(whole, directions)
    each[full, 1] = novelty(whole, setting.popularity)
    each[full, 2] = tag_miscalibration(tags[full], exposure_shares(whole, setting.tags))
    names = ("diversity", True), ("novelty", True), ("miscalibration", False)
    found: list[Figure] = []
    for group, member in setting.members.items():
        draws = setting.draws.take(member)
        for (name, better), figure in zip(names, column_means(each[member], draws), strict=True):
            found.append(Figure(f"{name}@{LISTED}", group, figure, draws, better))
    for name, of_counts, better in (
        ("coverage", coverage, True),
        ("p90_coverage", p90_coverage, True),
        ("gini", gini, False),
    ):
        figure = counted_replicates(of_counts, lists, len(setting.popularity), setting.draws)
        found.append(Figure(f"{name}@{LISTED}", ALL, figure, setting.draws, better))
    return found


def exposure_figures(
    lists: Int64, setting: ListSetting
) -> tuple[list[Figure], dict[str, list[float]]]:
    """Return how far exposure is from consumption, and both by tenth of popularity.

    Parameters as of ``list_figures``. The second holds ``exposed`` and ``consumed``, shares of the
    ten tenths from the least to the most popular.
    """
    full = np.asarray((lists >= 0).all(axis=1))
    draws = setting.draws.take(full)
    consumed = normalize(setting.relevant[full].astype(np.float64), "l1")
    found: list[Figure] = []
    shares: dict[str, list[float]] = {}
    for name, groups in (("popularity", setting.tenths), ("tags", setting.tags)):
        exposed = _on_resamples(exposure_shares(lists[full], groups), draws)
        merited = _on_resamples((consumed @ groups).toarray(), draws)
        gap = recentred(Replicates.of(total_variation(exposed, merited)))
        found.append(Figure(f"exposure_gap_{name}@{LISTED}", ALL, gap, draws, False))
        if name == "popularity":
            shares = {"exposed": exposed[:, 0].tolist(), "consumed": merited[:, 0].tolist()}
            top = Replicates.of(exposed[-1])
            found.append(Figure(f"top_exposure@{LISTED}", ALL, top, draws, False))
    return found, shares


def group_figures(lists: Int64, setting: ListSetting) -> tuple[list[Figure], dict[str, Any]]:
    """Return gaps of nDCG between groups of users, and each group's nDCG by column.

    Parameters as of ``list_figures``.
    """
    found: list[Figure] = []
    of_groups: dict[str, Any] = {}
    for column, values, groups, draws in _columns(lists, setting):
        gaps = group_gaps(values, groups, draws)
        found.append(Figure(_gap(column), ALL, gaps.gap, draws, False))
        found.append(Figure(f"least_ndcg@{LISTED}_{column}", ALL, gaps.least, draws, True))
        of_groups[column] = {
            name: figure.interval.to_dict() for name, figure in gaps.by_group.items()
        }
    return found, of_groups


def chance_figures(lists: Int64, setting: ListSetting, seed: int) -> list[Figure]:
    """Return the gaps of ``group_figures`` between groups that are drawn by lot."""
    return [
        Figure(_gap(column), ALL, gap_by_lot(values, groups, draws, seed), draws, False)
        for column, values, groups, draws in _columns(lists, setting)
    ]


def _gap(column: str) -> str:
    return f"ndcg_gap@{LISTED}_{column}"


def _columns(
    lists: Int64, setting: ListSetting
) -> Iterator[tuple[str, Float64, npt.NDArray[Any], Draws]]:
    """Yield each column with two large groups: its name, nDCG and group of each user, draws."""
    each = ndcg_at(LISTED, hits(lists, setting.relevant), setting.n_relevant)
    for column, groups in setting.columns.items():
        rows = large_groups(groups)
        if len(np.unique(groups[rows].astype(str))) > 1:
            yield column, each[rows], groups[rows], setting.draws.take(rows)


def _on_resamples(shares: Float64, draws: Draws) -> Float64:
    """Return mean shares, float64 (n_groups, 1 + n_resamples): all users first."""
    means = column_means(shares, draws)
    return np.array([np.concatenate([[m.value], m.replicates]) for m in means])
