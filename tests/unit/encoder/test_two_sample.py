"""Samples that are alike are not told apart, planted shifts are, and a user is on one side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from encoder.two_sample import two_sample_auc

Floats = npt.NDArray[np.float64]


def _people(n: int = 400, dim: int = 6, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dim)) * np.linspace(1.0, 50.0, dim)


def test_equal_samples_cannot_be_told_apart() -> None:
    found = two_sample_auc(_people(), _people())
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_users_who_moved_each_their_own_way_are_not_a_shift() -> None:
    noise = np.random.default_rng(1).standard_normal((400, 6))
    found = two_sample_auc(_people(), _people() + noise)
    assert found.low <= 0.5 <= found.high
    assert found.high - found.low < 0.1


def test_a_planted_shift_is_told_and_its_labels_exchanged_by_user_are_not() -> None:
    first, second = _people(), _people() + np.array([4.0, 0, 0, 0, 0, 0])
    found = two_sample_auc(first, second)
    assert found.value > 0.98
    assert found.low > 0.97
    exchanged = np.random.default_rng(2).random(400) < 0.5
    control = two_sample_auc(
        np.where(exchanged[:, None], second, first), np.where(exchanged[:, None], first, second)
    )
    assert control.low <= 0.5 <= control.high


def test_a_larger_shift_is_told_better() -> None:
    values = [
        two_sample_auc(_people(), _people() + np.array([size, 0, 0, 0, 0, 0])).value
        for size in (0.0, 0.5, 1.0, 2.0)
    ]
    assert values == sorted(values)


def test_it_is_the_auc_of_scores_by_models_that_saw_neither_vector_of_a_user() -> None:
    """Users 0, 5, 10 ... are one fold: a plain loop over the folds gives the same figure."""
    first = _people(60)
    second = first + np.random.default_rng(3).standard_normal((60, 6)) + 0.3
    fold = np.arange(60) % 5
    scores = np.empty((2, 60))
    for k in range(5):
        train, test = fold != k, fold == k
        scaler = StandardScaler().fit(np.concatenate([first[train], second[train]]))
        model = LogisticRegression().fit(
            scaler.transform(np.concatenate([first[train], second[train]])),
            np.repeat([0, 1], train.sum()),
        )
        scores[:, test] = [
            model.decision_function(scaler.transform(x[test])) for x in (first, second)
        ]
    expected = roc_auc_score(np.repeat([0, 1], 60), scores.ravel())
    assert two_sample_auc(first, second).value == pytest.approx(expected, abs=1e-6)


def test_users_split_between_folds_would_give_less_than_half() -> None:
    """Why folds are of users: with rows dealt out alone, equal samples look like opposites."""
    from sklearn.model_selection import KFold, cross_val_predict

    vectors = np.concatenate([_people(20, 30), _people(20, 30)])
    labels = np.repeat([0, 1], 20)
    scores = cross_val_predict(
        LogisticRegression(max_iter=5000),
        StandardScaler().fit_transform(vectors),
        labels,
        cv=KFold(5, shuffle=True, random_state=0),
        method="decision_function",
    )
    assert roc_auc_score(labels, scores) < 0.3


def test_the_same_seed_gives_the_same_interval() -> None:
    pair = _people(), _people() + np.random.default_rng(1).standard_normal((400, 6))
    assert two_sample_auc(*pair, seed=3) == two_sample_auc(*pair, seed=3)
    assert two_sample_auc(*pair, seed=3) != two_sample_auc(*pair, seed=4)


def test_other_shapes_too_few_users_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(9, 6\) and \(9, 6\) given.* at least 10"):
        two_sample_auc(_people(9), _people(9))
    with pytest.raises(ValueError, match=r"shapes \(20, 6\) and \(20, 5\)"):
        two_sample_auc(_people(20), _people(20, 5))
    broken = _people(20)
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        two_sample_auc(broken, _people(20))
