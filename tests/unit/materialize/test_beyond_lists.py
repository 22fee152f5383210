from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from materialize.evaluate.beyond_lists import (
    LISTED,
    Figure,
    ListSetting,
    chance_figures,
    exposure_figures,
    group_figures,
    list_figures,
    list_setting,
)
from tests.cohorts import TinyCohort, tiny_cohort

Lists = np.ndarray[tuple[int, int], np.dtype[np.int64]]


@pytest.fixture(scope="module")
def planted() -> TinyCohort:
    return tiny_cohort()


@pytest.fixture(scope="module")
def setting(planted: TinyCohort) -> ListSetting:
    return list_setting(planted.cohort, n_resamples=100)


def _own(planted: TinyCohort, setting: ListSetting) -> Lists:
    """Return ten items of each user's segment that the user has not seen, -1 where too few."""
    lists = np.full((len(setting.rows), LISTED), -1, np.int64)
    seen = setting.past.toarray() > 0
    for row, segment in enumerate(planted.segment[setting.rows]):
        items = np.flatnonzero((planted.item_segment == segment) & ~seen[row])[:LISTED]
        lists[row, : len(items)] = items
    return lists


def _same(setting: ListSetting) -> Lists:
    """Return the ten most popular items for everybody."""
    popular = np.argsort(-setting.popularity, kind="stable")[:LISTED]
    return np.tile(popular, (len(setting.rows), 1))


def _named(figures: list[Figure]) -> dict[tuple[str, str], Figure]:
    return {(f.metric, f.group): f for f in figures}


def test_one_test_row_a_user_with_something_new_gets_a_list(
    planted: TinyCohort, setting: ListSetting
) -> None:
    cohort = planted.cohort
    assert not cohort.training[setting.rows].any()
    assert len(np.unique(cohort.user_id[setting.rows])) == len(setting.rows)
    assert (setting.n_relevant > 0).all()
    assert (setting.relevant.multiply(setting.past != 0)).nnz == 0
    assert set(setting.columns) == {*cohort.profile, "activity"}
    assert set(setting.columns["activity"]) == {"cold", "established"}


def test_everybodys_same_list_covers_ten_items(setting: ListSetting) -> None:
    found = _named(list_figures(_same(setting), setting))
    n = len(setting.popularity)
    assert found["coverage@10", "all"].found.value == pytest.approx(10 / n)
    assert found["p90_coverage@10", "all"].found.value == pytest.approx(9 / n)
    # Ten of n items share all places alike: 1 - 10/n.
    assert found["gini@10", "all"].found.value == pytest.approx(1 - 10 / n)


def test_list_of_one_genre_is_not_diverse_and_that_of_a_pure_past_is_calibrated(
    planted: TinyCohort, setting: ListSetting
) -> None:
    own, same = (
        _named(list_figures(lists, setting)) for lists in (_own(planted, setting), _same(setting))
    )
    assert own["diversity@10", "all"].found.value == pytest.approx(0, abs=1e-9)
    assert same["diversity@10", "all"].found.value > 0.4
    difference = own["miscalibration@10", "all"].found.minus(same["miscalibration@10", "all"].found)
    assert difference.interval.high < 0
    assert own["novelty@10", "all"].found.value > same["novelty@10", "all"].found.value


def test_list_with_an_empty_place_is_left_out_of_what_needs_a_whole_one(
    setting: ListSetting,
) -> None:
    lists = _same(setting)
    lists[0, -1] = -1
    whole, missing = (_named(list_figures(each, setting)) for each in (_same(setting), lists))
    key = "novelty@10", "all"
    assert missing[key].found.value == pytest.approx(whole[key].found.value)
    assert exposure_figures(lists, setting)[0][0].draws.n_users == len(setting.rows) - 1


def test_exposure_of_what_is_consumed_has_no_gap_and_that_of_the_popular_few_a_large_one(
    planted: TinyCohort, setting: ListSetting
) -> None:
    popular, shares = exposure_figures(_same(setting), setting)
    found = _named(popular)
    # The ten most popular of sixty items: the last tenth are the first six places.
    exposure = 1 / np.log2(np.arange(10) + 2.0)
    top = exposure[:6].sum() / exposure.sum()
    assert found["top_exposure@10", "all"].found.value == pytest.approx(top)
    assert shares["exposed"][-2:] == [pytest.approx(1 - top), pytest.approx(top)]
    assert sum(shares["consumed"]) == pytest.approx(1)
    gap = found["exposure_gap_popularity@10", "all"].found.value
    expected = sum(abs(e - c) for e, c in zip(shares["exposed"], shares["consumed"], strict=True))
    assert gap == pytest.approx(expected / 2)
    own = _named(exposure_figures(_own(planted, setting), setting)[0])
    assert own["exposure_gap_tags@10", "all"].found.value < 0.15


def test_gap_between_groups_that_get_what_they_want_and_those_who_do_not(
    planted: TinyCohort, setting: ListSetting
) -> None:
    own = _own(planted, setting)
    unlucky = setting.columns["context_device"] == "phone"
    own[unlucky] = _same(setting)[unlucky]
    figures, of_groups = group_figures(own, setting)
    found, by_lot = _named(figures), _named(chance_figures(own, setting, seed=0))
    key = "ndcg_gap@10_context_device", "all"
    assert found[key].found.minus(by_lot[key].found).interval.low > 0
    worst = found["least_ndcg@10_context_device", "all"].found.value
    assert worst == pytest.approx(of_groups["context_device"]["phone"]["value"])
    assert found[key].found.value == pytest.approx(
        of_groups["context_device"]["desktop"]["value"] - worst
    )


def test_column_with_one_group_has_no_gap(setting: ListSetting) -> None:
    alike = replace(setting, columns={"city": np.full(len(setting.rows), "here", object)})
    assert group_figures(_same(alike), alike) == ([], {})
    assert chance_figures(_same(alike), alike, seed=0) == []
