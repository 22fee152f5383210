"""An old head on other vectors: on a planted rotation nothing is lost through the right map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import ortho_group

from encoder.alignment import orthogonal_map
from encoder.errors import DataFault
from encoder.metrics import auc_macro
from materialize.evaluate.labels import Labels
from materialize.evaluate.old_head import OldHeadReport, judge_old_head
from materialize.evaluate.split import training_users

Float32 = npt.NDArray[np.float32]
DIM = 8


def _planted(n: int = 600, seed: int = 0) -> tuple[Labels, Float32, Float32]:
    """Return labels that the first two numbers of the old vectors decide, old and new vectors."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((n, DIM)).astype(np.float32)
    y = old[:, :2] + 0.5 * rng.standard_normal((n, 2)) > 0
    rotation = ortho_group.rvs(DIM, random_state=seed)
    new = (old @ rotation + 1.0).astype(np.float32)
    labels = Labels(
        user_id=np.arange(n),
        event_timestamp=np.full(n, np.datetime64("2026-01-02", "us")),
        y=y,
        targets=("a", "b"),
        popularity=np.array([0.5, 0.5]),
        cutoff=np.datetime64("2026-01-01", "us"),
        horizon_days=7,
    )
    return labels, old, new


def _judge(labels: Labels, old: Float32, new: Float32, bridged: Float32) -> OldHeadReport:
    return judge_old_head(labels, old, new, bridged, seed=0, n_bootstrap=100)


def test_the_right_map_loses_nothing_and_no_map_loses_much() -> None:
    labels, old, new = _planted()
    fit = training_users(labels.user_id)
    bridged = orthogonal_map(new[fit], old[fit]).apply(new)
    report = _judge(labels, old, new, bridged)
    assert report.auc_macro["old"].value > 0.9
    assert report.loss["bridged"].value == pytest.approx(0.0, abs=1e-4)
    assert report.loss["unbridged"].low > 0.1
    assert report.loss["new_head"].value == pytest.approx(0.0, abs=0.01)


def test_the_figures_are_of_test_users_only_and_losses_are_differences() -> None:
    labels, old, new = _planted()
    report = _judge(labels, old, new, new)
    test = ~training_users(labels.user_id)
    assert (report.n_rows, report.n_users) == (test.sum(), test.sum())
    assert report.n_training_rows == (~test).sum()
    for name, loss in report.loss.items():
        assert loss.value == report.auc_macro["old"].value - report.auc_macro[name].value
        assert loss.low <= loss.value <= loss.high
    # The first coordinate alone ranks test users nearly as well as the head that learned it.
    assert auc_macro(labels.y[test], old[test][:, :2]) == pytest.approx(
        report.auc_macro["old"].value, abs=0.02
    )


def test_the_other_loss_of_a_useless_bridge_is_all_that_the_head_knew() -> None:
    labels, old, new = _planted()
    noise = np.random.default_rng(1).standard_normal(old.shape).astype(np.float32)
    report = _judge(labels, old, new, noise)
    assert report.auc_macro["bridged"].low < 0.5 < report.auc_macro["bridged"].high


def test_rows_without_both_vectors_are_left_out_of_all() -> None:
    labels, old, new = _planted()
    holes = np.arange(0, 600, 3)
    some_old, some_new = old.copy(), new.copy()
    some_old[holes], some_new[holes + 1] = np.nan, np.nan
    report = _judge(labels, some_old, some_new, some_new)
    kept = np.setdiff1d(np.arange(600), np.concatenate([holes, holes + 1]))
    few = Labels(**{**vars(labels), "user_id": labels.user_id[kept], "y": labels.y[kept]})
    assert report.to_dict() == _judge(few, old[kept], new[kept], new[kept]).to_dict()


def test_a_space_of_another_width_cannot_be_read_unbridged() -> None:
    labels, old, new = _planted()
    report = _judge(labels, old, new[:, :4], old)
    assert set(report.auc_macro) == {"old", "bridged", "new_head"}
    assert report.loss["bridged"].value == 0.0


@pytest.mark.parametrize("left", [0, 1, 2])
def test_too_few_rows_with_both_are_refused_with_a_remedy(left: int) -> None:
    labels, old, new = _planted()
    new = new.copy()
    new[left:] = np.nan
    with pytest.raises(
        DataFault, match=r"Of 600 labelled moments, .* Materialise both with --from"
    ):
        _judge(labels, old, new, new)
