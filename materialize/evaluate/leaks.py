"""Checks that run before any task: what could let a model know its answer stops the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from encoder.errors import EvaluationFault
from encoder.resampling import Interval
from materialize.evaluate.checks import check_no_leak
from materialize.evaluate.cohort import MOST_EVENTS, Cohort, Histories, LoadedEncoder
from materialize.evaluate.probe import shuffled_control
from materialize.evaluate.probe_task import cohort_labels

__all__ = ["LeakReport", "check_leaks"]


@dataclass(frozen=True)
class LeakReport:
    """What was checked, and found in order.

    Attributes
    ----------
    rows, users : int
        Of the cohort.
    control : Interval or None
        Macro AUC of a linear probe on the embedding with shuffled labels, around 0.5; None where
        the cohort has no kinds of item to predict.
    """

    rows: int
    users: int
    control: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        control = None if self.control is None else self.control.to_dict()
        return {"rows": self.rows, "users": self.users, "control": control}


def check_leaks(
    cohort: Cohort, encoder: LoadedEncoder, *, other_users: bool = False, seed: int = 0
) -> LeakReport:
    """Refuse a cohort and an encoder through which a model could know its answer.

    Parameters
    ----------
    cohort : Cohort
    encoder : LoadedEncoder
    other_users : bool
        The encoder was trained on none of the cohort's users, so its cut-off does not matter.
    seed : int
        Of the control's shuffle and fit.

    Raises
    ------
    EvaluationFault
        The first of these that is found: a moment before the cut-off or a horizon beyond the data's
        end; a training user's horizon that ends after ``judged_from``, or a test user's moment
        before it; raw features, histories or sequences newer than their moment; a user in training
        and test; item counts, interactions, item vectors or an encoder that saw events from the
        cut-off on; a probe on shuffled labels that is not at chance.

    Notes
    -----
    Nothing is taken on trust that the cohort holds twice: times of raw features are read from the
    raw rows, histories are compared with the events in them, and past interactions with sequences
    that carry times. Users are split by a hash, so training and test never share one; whether they
    do is looked at nevertheless.
    """
    labels = cohort_labels(cohort)
    check_no_leak(labels, _newest_raw(cohort), cohort.training)
    _check_moments(cohort)
    _check_histories(cohort)
    _check_past(cohort)
    _check_encoder(cohort, encoder, other_users)
    control = None
    if cohort.tag_names:
        control = shuffled_control(
            cohort.encode(encoder), labels.y, cohort.user_id, cohort.training, seed
        )
    return LeakReport(len(cohort), len(set(cohort.user_id.tolist())), control)


def _check_moments(cohort: Cohort) -> None:
    horizon = np.timedelta64(cohort.horizon_days, "D")
    late = np.flatnonzero(cohort.moment + horizon > cohort.data_end)
    if late.size:
        raise EvaluationFault(
            f"{late.size} row(s) ask about a time beyond the data's end {cohort.data_end}, first "
            f"{_row(cohort, late[0])} and {cohort.horizon_days} days. What is missing there would "
            "count as not consumed: build the cohort with build_cohort."
        )
    wrong = np.flatnonzero(
        np.where(
            cohort.training,
            cohort.moment + horizon > cohort.judged_from,
            cohort.moment < cohort.judged_from,
        )
    )
    if wrong.size:
        raise EvaluationFault(
            f"{wrong.size} row(s) are on the wrong side of {cohort.judged_from}, first "
            f"{_row(cohort, wrong[0])}: {cohort.horizon_days} days after a training user's moment "
            "must have passed by then, and no test user is asked about earlier. Build the cohort "
            "with build_cohort."
        )


def _newest_raw(cohort: Cohort) -> npt.NDArray[np.datetime64]:
    """Return the newest time in each row's raw features, NaT for none: datetime64[us] (n_rows,)."""
    newest = np.full(len(cohort), np.iinfo(np.int64).min)  # NaT
    for name in cohort.schema.as_of_columns:
        times = pc.fill_null(cohort.raw[name].cast(pa.int64()), np.iinfo(np.int64).min)
        np.maximum(newest, times.to_numpy(), out=newest)
    return newest.astype("datetime64[us]")


def _check_histories(cohort: Cohort) -> None:
    sequences = cohort.history_sequences
    row = np.repeat(np.arange(len(cohort)), np.diff(sequences.offsets))
    late = np.flatnonzero(sequences.ts > cohort.moment[row])
    if late.size:
        raise EvaluationFault(
            f"{late.size} event(s) of histories are newer than their moment, first at "
            f"{sequences.ts[late[0]]} of {_row(cohort, row[late[0]])}. They are the answer: build "
            "the cohort with build_cohort."
        )
    other = _differing(cohort.history, sequences)
    if other.size:
        raise EvaluationFault(
            f"{other.size} row(s) have other items in their history than events up to the moment, "
            f"first {_row(cohort, other[0])}. Build the cohort with build_cohort."
        )


def _check_past(cohort: Cohort) -> None:
    times = cohort.sequences["ts"].cast(pa.timestamp("us")).to_numpy()
    late = np.flatnonzero(times >= cohort.cutoff)
    if late.size:
        raise EvaluationFault(
            f"{late.size} event(s) of the sequences to fit on lie at or after the cut-off "
            f"{cohort.cutoff}, first at {times[late[0]]}. Fit on events before it."
        )
    counted = float(cohort.catalogue.popularity.sum())
    if counted != cohort.past_events:
        raise EvaluationFault(
            f"The items' popularity counts {counted:.0f} events, {cohort.past_events} lie before "
            f"the cut-off {cohort.cutoff}. Count those only."
        )
    owner = pc.index_in(cohort.sequences["user_id"], value_set=pa.array(cohort.past_users))
    length = np.bincount(owner.to_numpy(), minlength=len(cohort.past_users))
    offsets = np.concatenate([[0], np.cumsum(length)])
    sequences = Histories(offsets, cohort.sequences["item"].to_numpy(), times)
    other = _differing(cohort.past, sequences)
    if other.size:
        raise EvaluationFault(
            f"{other.size} user(s) have other items among the interactions to fit on than events "
            f"before the cut-off {cohort.cutoff}, first {cohort.past_users[other[0]]!r}. Fit on "
            "events before it."
        )


def _check_encoder(cohort: Cohort, encoder: LoadedEncoder, other_users: bool) -> None:
    saw = _utc(encoder.manifest.data_cutoff)
    if saw > cohort.cutoff and not other_users:
        raise EvaluationFault(
            f"Encoder {encoder.encoder_version} was trained on events before {saw}, the cohort's "
            f"cut-off is {cohort.cutoff}. Move evaluation.cutoff, or train on less."
        )
    if cohort.vectors_cutoff > cohort.cutoff:
        raise EvaluationFault(
            f"Item vectors were fitted on events before {cohort.vectors_cutoff}, the cohort's "
            f"cut-off is {cohort.cutoff}. Build the features with this cut-off."
        )


def _differing(matrix: sparse.csr_array, events: Histories) -> npt.NDArray[np.int64]:
    """Return the rows whose items are not those of their events; the longest are not known whole.

    A row with as many events as are kept may have older ones: its items must hold those of the
    events.
    """
    length = np.diff(events.offsets)
    ones = np.ones(len(events.item), np.int32)
    # A copy: summing duplicates up works in place, and these arrays are the cohort's.
    known = sparse.csr_array((ones, events.item, events.offsets), shape=matrix.shape, copy=True)
    known.sum_duplicates()
    both = np.asarray((known.astype(np.bool_).multiply(matrix.astype(np.bool_))).sum(axis=1))
    held, given = np.diff(known.indptr), np.diff(matrix.indptr)
    whole = length < MOST_EVENTS
    wrong = (both != held) | (whole & (given != held))
    return np.flatnonzero(wrong)


def _utc(moment: str) -> np.datetime64:
    seconds = datetime.fromisoformat(moment).timestamp()
    return np.datetime64(round(seconds * 1_000_000), "us")


def _row(cohort: Cohort, row: int) -> str:
    return f"user {cohort.user_id[row]!r} at {cohort.moment[row]}"
