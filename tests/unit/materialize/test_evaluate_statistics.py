from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from encoder.resampling import Replicates, user_draws
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.statistics import compare_all, holm, over_seeds, two_sided_p
from materialize.evaluate.summary import read_summary, summarise, write_summary
from materialize.evaluate.table import markdown
from materialize.evaluate.units import Unit

N = 99


def measured(model: str, seed: int, value: float, replicates: Any, **other: Any) -> Measurement:
    facts: dict[str, Any] = {"task": "future", "metric": "auc", "group": "cold"}
    facts |= {"n_users": 10, "n_rows": 12} | other
    return Measurement(
        model=model, seed=seed, value=value, replicates=np.asarray(replicates), **facts
    )


def test_seeds_are_averaged_resample_by_resample() -> None:
    # Values .6 and .8: .7. Resamples: (.5 + .9) / 2 = .7, (.7 + .7) / 2 = .7.
    found = over_seeds([measured("a", 0, 0.6, [0.5, 0.7]), measured("a", 1, 0.8, [0.9, 0.7])])
    assert found.value == pytest.approx(0.7)
    assert found.replicates == pytest.approx([0.7, 0.7])


@pytest.mark.parametrize(
    "given",
    [
        [],
        [measured("a", 0, 0.5, [1.0]), measured("a", 0, 0.5, [1.0])],
        [measured("a", 0, 0.5, [1.0]), measured("a", 1, 0.5, [1.0, 2.0])],
    ],
)
def test_seeds_that_do_not_fit_together_are_refused(given: list[Measurement]) -> None:
    with pytest.raises(ValueError, match="one for each seed"):
        over_seeds(given)


def test_p_of_a_hand_computed_case() -> None:
    # 3 of 99 resamples at or below zero: 2 * (1 + 3) / (1 + 99) = .08. The other side is the rarer
    # one for a negative difference.
    draws = np.concatenate([np.full(96, 0.2), [-0.1, -0.2, 0.0]])
    assert two_sided_p(Replicates(0.19, draws)) == pytest.approx(0.08)
    assert two_sided_p(Replicates(-0.19, -draws)) == pytest.approx(0.08)
    assert two_sided_p(Replicates(0.0, np.zeros(99))) == 1.0
    assert np.isnan(two_sided_p(Replicates(0.1, np.empty(0))))


def test_p_is_below_five_per_cent_as_often_as_it_says_when_there_is_no_difference() -> None:
    # 400 experiments of 80 users whose true difference is 0: about 20 are below .05, with a
    # standard deviation of 4.4; a percentile test on 80 users is a little too ready.
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(400):
        draws = user_draws(rng.integers(0, 2**40, 80), 199)
        weights = np.concatenate(list(draws.weights()), axis=1)[draws.owner]
        x = rng.standard_normal(80)
        below += two_sided_p(Replicates(x.mean(), x @ weights / weights.sum(axis=0))) < 0.05
    assert 7 <= below <= 38


def test_holm_of_a_hand_computed_case() -> None:
    # Sorted .01 .02 .03 .6 times 4 3 2 1: .04 .06 .06 .6; none is smaller than the one before.
    assert holm([0.6, 0.02, 0.01, 0.03]) == pytest.approx([0.6, 0.06, 0.04, 0.06])
    # Not defined: no test. .3 * 2 = .6; .9 * 1 = .9.
    assert holm([0.9, np.nan, 0.3]) == pytest.approx([0.9, np.nan, 0.6], nan_ok=True)
    assert holm([]).shape == (0,)


def test_comparison_is_paired_and_corrected_for_all_baselines() -> None:
    rng = np.random.default_rng(1)
    users = rng.standard_normal(N)
    mine = Replicates(0.8, 0.8 + users)
    others = {
        "close": Replicates(0.79, 0.79 + users + 0.001 * rng.standard_normal(N)),
        "far": Replicates(0.4, 0.4 + users + 0.001 * rng.standard_normal(N)),
    }
    found = compare_all(mine, others)
    assert found["far"].difference.value == pytest.approx(0.4)
    assert found["far"].gain.value == pytest.approx(1.0)  # .8 / .4 - 1
    for one in found.values():
        # Both swing with the users by 1; their difference does not.
        assert one.difference.high - one.difference.low < 0.01
        assert one.p == pytest.approx(0.02)  # 2 / 100
        assert one.p_holm == pytest.approx(0.04)


def summary() -> dict[str, Any]:
    rng = np.random.default_rng(2)
    noise = 0.01 * rng.standard_normal(N)
    units = [
        Unit(
            "future",
            seed,
            [
                measured("popularity", seed, 0.5, 0.5 + noise),
                measured("embedding", seed, 0.63 + 0.01 * seed, 0.63 + 0.01 * seed + noise),
                measured("bytes", seed, 480.0, [], metric="size", higher_is_better=False),
                measured("embedding", seed, np.nan, np.full(N, np.nan), group="newcomer"),
            ],
            {"coles": "ptls is not installed"},
            {"pairs": 7} if seed == 0 else {"pairs": 8},
            1.25,
        )
        for seed in (0, 1)
    ]
    cohort = {"cutoff": "2026-03-01T00:00:00", "horizon_days": 7, "test_rows": 12}
    facts = {
        "dataset": "planted",
        "encoder_version": "abc",
        "embedding_dim": 8,
        "command": "palate evaluate --space 1",
        "seeds": [0, 1],
        "cohort": cohort,
    }
    return summarise(units, facts, left_out={"cost": "no store"})


def test_summary_tells_means_over_seeds_and_what_the_embedding_gains() -> None:
    found = summary()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    popularity, embedding, size, newcomer = found["results"]
    assert embedding["value"] == pytest.approx(0.635)
    assert embedding["by_seed"] == pytest.approx([0.63, 0.64])
    # Standard deviation of .63 and .64: .01 / sqrt(2).
    assert embedding["seed_spread"] == pytest.approx(0.00707, abs=1e-5)
    assert embedding["low"] < 0.635 < embedding["high"]
    assert embedding["embedding_against"] is None
    against = popularity["embedding_against"]
    assert against["difference"]["value"] == pytest.approx(0.135)
    assert against["gain"]["value"] == pytest.approx(0.27)  # .635 / .5 - 1
    assert against["p"] == against["p_holm"] == pytest.approx(0.02)
    assert (size["value"], size["low"], size["embedding_against"]) == (480.0, None, None)
    assert newcomer["value"] is None
    assert newcomer["by_seed"] == [None, None]
    assert found["tasks"]["future"] == {
        "seeds": [0, 1],
        "seconds": 2.5,
        "skipped": {"coles": "ptls is not installed"},
        "details": {"pairs": 7},
    }
    assert found["tasks"]["cost"] == {"left_out": "no store"}


def test_newest_summary_is_read(tmp_path: Any) -> None:
    assert read_summary(tmp_path) is None
    write_summary(tmp_path / "one", {"n": 1})
    second = write_summary(tmp_path / "two", {"n": 2})
    second.touch()
    assert read_summary(tmp_path) == {"n": 2}
    with pytest.raises(ValueError, match="JSON"):
        write_summary(tmp_path / "one", {"n": np.nan})
    assert read_summary(tmp_path) == {"n": 2}


def test_tables_show_the_embedding_first_and_its_gain_beside_the_papers() -> None:
    text = markdown(summary())
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| model | auc |"))
    assert "gain (the paper: up to +26.2%)" in lines[head]
    assert lines[head + 2].startswith("| embedding | 0.635 [")
    assert lines[head + 3].startswith("| popularity | 0.500 [")
    assert "| +0.135 [+0.135, +0.135] |" in lines[head + 3]
    assert lines[head + 3].endswith("| 0.020 |")
    assert "**future: size, cold** (10 users, lower is better)" in lines
    assert "| embedding | not defined |  |  |  |  |" in lines
    assert "- task cost: no store" in lines
    assert "- future, coles: ptls is not installed" in lines


def test_tables_can_be_chosen_and_unknown_ones_are_refused() -> None:
    assert "size" not in markdown(summary(), metrics=["auc"])
    assert "newcomer" not in markdown(summary(), groups=["cold"])
    with pytest.raises(ValueError, match=r"no group 'warm'\. It has: cold, newcomer"):
        markdown(summary(), groups=["warm"])
