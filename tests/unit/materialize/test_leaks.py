from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy import sparse

from encoder.errors import EvaluationFault
from materialize.evaluate import probe
from materialize.evaluate.cohort import Cohort
from materialize.evaluate.leaks import check_leaks
from tests.cohorts import CUTOFF, TinyCohort, tiny_cohort

HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")


@pytest.fixture(scope="module")
def world() -> TinyCohort:
    return tiny_cohort()


def refused(world: TinyCohort, match: str, **changes: Any) -> None:
    with pytest.raises(EvaluationFault, match=match):
        check_leaks(replace(world.cohort, **changes), world.encoder)


def test_cohort_without_a_leak_passes_with_a_control_at_chance(world: TinyCohort) -> None:
    sequences = world.cohort.history_sequences
    before = sequences.offsets.copy(), sequences.item.copy()
    report = check_leaks(world.cohort, world.encoder)
    assert (report.rows, report.users) == (330, 300)
    assert report.control is not None
    assert report.control.low < 0.5 < report.control.high
    assert set(report.to_dict()) == {"rows", "users", "control"}
    # Looking changes nothing.
    assert np.array_equal(sequences.offsets, before[0])
    assert np.array_equal(sequences.item, before[1])


def test_moment_before_the_cut_off_is_refused(world: TinyCohort) -> None:
    moment = world.cohort.moment.copy()
    moment[5] = CUTOFF - HOUR
    refused(world, r"1 label time\(s\) lie before the cut-off", moment=moment)


@pytest.mark.parametrize("training", [True, False])
def test_label_on_the_wrong_side_of_the_judged_time_is_refused(
    world: TinyCohort, training: bool
) -> None:
    cohort = world.cohort
    wrong = cohort.judged_from - (7 * DAY - HOUR if training else HOUR)
    row = np.flatnonzero((cohort.training == training) & (cohort.as_of <= wrong))[0]
    moment = cohort.moment.copy()
    moment[row] = wrong
    refused(world, r"1 row\(s\) are on the wrong side of", moment=moment)


def test_horizon_beyond_the_end_of_the_data_is_refused(world: TinyCohort) -> None:
    latest = world.cohort.moment.max()
    refused(world, "beyond the data's end", data_end=latest + 6 * DAY)


@pytest.mark.parametrize("view", ["user_activity__activity", "user_profile__profile"])
def test_raw_features_newer_than_their_moment_are_refused(world: TinyCohort, view: str) -> None:
    # ``as_of`` of the cohort still looks harmless: the raw rows themselves are asked.
    raw = world.cohort.raw
    times = raw[f"{view}_as_of"].to_numpy().copy()
    times[3] = (world.cohort.moment[3] + HOUR).astype(np.int64)
    place = raw.column_names.index(f"{view}_as_of")
    changed = raw.set_column(place, f"{view}_as_of", pa.array(times))
    refused(world, r"1 row\(s\) have features newer than their label time", raw=changed)


def test_user_on_both_sides_is_refused(world: TinyCohort) -> None:
    training = world.cohort.training.copy()
    names = world.cohort.user_id.astype(str)
    _, first, count = np.unique(names, return_index=True, return_counts=True)
    training[first[(count == 2) & ~training[first]][0]] = True
    refused(world, r"1 user\(s\) are in training and test", training=training)


def test_cohort_without_test_users_is_refused(world: TinyCohort) -> None:
    refused(world, "both sides need some", training=np.ones(330, np.bool_))


def test_event_after_the_moment_in_a_sequence_is_refused(world: TinyCohort) -> None:
    sequences = world.cohort.history_sequences
    ts = sequences.ts.copy()
    ts[sequences.offsets[1] - 1] = world.cohort.moment[0] + np.timedelta64(1, "us")
    refused(
        world, r"1 event\(s\) of histories are newer", history_sequences=replace(sequences, ts=ts)
    )


def test_history_that_holds_the_answer_is_refused(world: TinyCohort) -> None:
    cohort = world.cohort
    leaking = sparse.csr_array(cohort.history + cohort.future.astype(np.float32))
    refused(world, "other items in their history than events up to the moment", history=leaking)


def test_sequences_to_fit_on_that_reach_the_cut_off_are_refused(world: TinyCohort) -> None:
    table = world.cohort.sequences
    ts = table["ts"].cast(pa.timestamp("us")).to_numpy().copy()
    ts[7] = CUTOFF
    changed = table.set_column(2, "ts", pa.array(ts).cast(table.schema.field("ts").type))
    refused(world, r"1 event\(s\) of the sequences to fit on", sequences=changed)


def test_popularity_that_counts_later_events_is_refused(world: TinyCohort) -> None:
    cohort = world.cohort
    popularity = cohort.catalogue.popularity + np.asarray(cohort.future.sum(axis=0))
    refused(world, "popularity counts", catalogue=replace(cohort.catalogue, popularity=popularity))


def test_interactions_to_fit_on_that_hold_later_ones_are_refused(world: TinyCohort) -> None:
    cohort = world.cohort
    # Among the past of an established user, one item that the user met after the moment only.
    unseen = cohort.future.toarray() & (cohort.history.toarray() == 0)
    row = int(np.flatnonzero(unseen.any(axis=1) & cohort.groups["established"])[0])
    user = int(np.flatnonzero(cohort.past_users == cohort.user_id[row])[0])
    past = cohort.past.toarray()
    past[user, np.flatnonzero(unseen[row])[0]] = 1
    match = f"1 user.* other items among the interactions to fit on .*{cohort.user_id[row]!r}"
    refused(world, match, past=sparse.csr_array(past))


def test_item_vectors_fitted_after_the_cut_off_are_refused(world: TinyCohort) -> None:
    refused(world, "Item vectors were fitted on events before", vectors_cutoff=CUTOFF + DAY)


def test_encoder_trained_after_the_cut_off_is_refused(world: TinyCohort) -> None:
    manifest = replace(world.encoder.manifest, data_cutoff="2026-03-02T00:00:00+00:00")
    with pytest.raises(EvaluationFault, match="was trained on events before 2026-03-02"):
        check_leaks(world.cohort, replace(world.encoder, manifest=manifest))


def test_encoder_of_other_users_may_be_of_any_time(world: TinyCohort) -> None:
    manifest = replace(world.encoder.manifest, data_cutoff="2026-03-02T00:00:00+00:00")
    check_leaks(world.cohort, replace(world.encoder, manifest=manifest), other_users=True)


def test_encoder_trained_up_to_the_cut_off_in_another_zone_passes(world: TinyCohort) -> None:
    # 01:00 in Madrid is the cut-off, 00:00 UTC.
    manifest = replace(world.encoder.manifest, data_cutoff="2026-03-01T01:00:00+01:00")
    check_leaks(world.cohort, replace(world.encoder, manifest=manifest))


def test_vectors_that_know_the_shuffled_labels_are_refused(
    world: TinyCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever the way: a control that can be predicted means that the evaluation leaks.
    def leaking(self: Cohort, encoder: Any) -> npt.NDArray[np.float32]:
        y = self.future_tags.toarray().astype(np.bool_)
        return probe._shuffled_within(y, self.training, 0).astype(np.float32)

    monkeypatch.setattr(Cohort, "encode", leaking)
    refused(world, "With shuffled labels the probe has macro AUC (0.9|1.0)")
