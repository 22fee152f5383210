from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from encoder.errors import DataFault, EvaluationFault
from encoder.store import ArtifactStore
from materialize.config import RepoSettings
from materialize.evaluate import cohort_files
from materialize.evaluate.cohort import Catalogue, Cohort, Histories
from materialize.evaluate.cohort_build import build_cohort
from materialize.evaluate.cohort_events import CohortEvents, daily_counts
from materialize.evaluate.item_kinds import item_kinds
from materialize.evaluate.moments import open_events
from materialize.features import current_modalities
from materialize.study.variant import Variant
from tests.cohorts import tiny_cohort
from tests.encoders import CLUE_SCHEMA
from tests.unit.materialize.cohort_tables import at, make_repository, write_clean_events
from transforms import runtime
from transforms.clean import CleanTables
from transforms.layout import RawLayout

TAGS = {"a": ["jazz"], "b": ["rock"], "c": ["jazz", "rock"], "d": [], "new": ["folk", "jazz"]}
PICKS = {"ehh3": ["a", "b"], "ehh1": ["c"]}

# Cut-off 03-10 00:00, horizon 3 days, windows of 3 and 7 days; the data end with 03-20.
EVENTS = [
    ("ehh1", "a", "03-01 08:00"),  # outside both windows, in the history nevertheless
    ("ehh1", "a", "03-08 08:00"),
    ("ehh1", "b", "03-09 23:59"),
    ("ehh1", "c", "03-10 00:00"),  # at the moment itself: known, and no label
    ("ehh1", "a", "03-10 00:01"),
    ("ehh1", "a", "03-11 09:00"),
    ("ehh1", "new", "03-12 09:00"),  # nobody had it before the cut-off
    ("ehh1", "b", "03-13 00:00"),  # the horizon's end is not part of it
    ("ehh2", "d", "03-05 10:00"),
    ("ehh2", "a", "03-14 10:00"),  # comes back when the horizon is over
    ("ehh3", "a", "03-11 08:00"),  # a newcomer with picks: asked about at 12:00
    ("ehh3", "b", "03-11 13:00"),
    ("ehh4", "b", "03-12 08:00"),  # a newcomer without picks, twice by 12:00
    ("ehh4", "c", "03-12 12:00"),
    ("ehh4", "a", "03-13 10:00"),
    ("ehh5", "a", "03-12 10:00"),  # new, and never seen again
    ("ehh6", "a", "03-19 10:00"),  # new when no whole horizon is left
    ("ehh6", "b", "03-20 10:00"),
    *[("ehh7", "d", f"03-0{d} 1{h}:00") for d in (7, 8) for h in range(10)],
    ("ehh7", "a", "03-12 10:00"),
    ("ehh8", "b", "03-02 10:00"),  # never seen again
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RepoSettings:
    return make_repository(tmp_path_factory.mktemp("cohort"), EVENTS, TAGS, PICKS)


@pytest.fixture(scope="module")
def cohort(settings: RepoSettings) -> Cohort:
    return build_cohort(settings, progress=False)


def us(text: str) -> np.datetime64:
    return np.datetime64(at(text).replace(tzinfo=None), "us")


def test_rows_are_returning_users_at_the_cut_off_and_newcomers_after_four_hours(
    cohort: Cohort,
) -> None:
    assert cohort.user_id.tolist() == ["ehh1", "ehh3", "ehh4", "ehh7"]
    moments = ["03-10 00:00", "03-11 12:00", "03-12 12:00", "03-10 00:00"]
    assert cohort.moment.tolist() == [us(m) for m in moments]
    # These are test users: they are asked about a horizon after the cut-off.
    assert (cohort.cutoff, cohort.horizon_days) == (us("03-07 00:00"), 3)
    assert cohort.judged_from == us("03-10 00:00")
    assert not cohort.training.any()
    assert cohort.data_end == us("03-21 00:00")


def test_groups_are_those_of_the_definition(cohort: Cohort) -> None:
    members = {name: cohort.user_id[rows].tolist() for name, rows in cohort.groups.items()}
    assert members == {
        "all": ["ehh1", "ehh3", "ehh4", "ehh7"],
        "established": ["ehh7"],  # 20 events in the longest window
        "cold": ["ehh1", "ehh3", "ehh4"],  # 3, 1 and 2 events
        "newcomer": ["ehh3", "ehh4"],
        "newcomer_onboarded": ["ehh3"],
        "newcomer_skipped": ["ehh4"],
    }
    assert cohort.n_events.tolist() == [3, 1, 2, 20]


def test_catalogue_holds_items_with_an_event_before_the_cut_off_and_counts_only_those(
    cohort: Cohort,
) -> None:
    assert cohort.catalogue.item_ids.to_pylist() == ["a", "b", "d"]
    # a: once by ehh1; b: once by ehh8; d: once by ehh2. c and new only came later.
    assert cohort.catalogue.popularity.tolist() == [1, 1, 1]
    # From 03-01 to 03-09: what was known when test users are asked about first.
    assert cohort.catalogue.daily.toarray().T.tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 10, 10, 0],
    ]
    assert cohort.catalogue.tags == (("jazz",), ("rock",), ())
    assert cohort.past_events == 3


def test_history_sums_all_weights_up_to_and_including_the_moment(cohort: Cohort) -> None:
    # Weights: a 1, b 2, d 4. ehh1's c at the moment is no item of the catalogue.
    assert cohort.history.toarray().tolist() == [[2, 2, 0], [1, 0, 0], [0, 2, 0], [0, 0, 80]]


def test_future_is_open_at_both_ends(cohort: Cohort) -> None:
    assert cohort.future.dtype == np.bool_
    assert cohort.future.toarray().tolist() == [
        [True, False, False],
        [False, True, False],
        [True, False, False],
        [True, False, False],
    ]
    # u1: a twice and new; the b at the horizon's end does not count.
    assert cohort.future_events.tolist() == [3, 1, 1, 1]
    assert cohort.future_outside.tolist() == [1, 0, 0, 0]


def test_tags_know_items_that_are_new_since_the_cut_off(cohort: Cohort) -> None:
    # Before the cut-off: jazz 1 event (a), rock 1 (b); nobody had folk.
    assert cohort.tag_names == ("jazz", "rock")
    assert cohort.future_tags.toarray().tolist() == [
        [True, False],
        [False, True],
        [True, False],
        [True, False],
    ]
    # u1: a, a, and c (3) at the moment, which is jazz and rock; u4: b 2 and c 3.
    assert cohort.history_tags.toarray().tolist() == [[5, 5], [1, 0], [3, 5], [0, 0]]


def test_sequences_hold_the_newest_events_in_order(cohort: Cohort) -> None:
    sequences = cohort.history_sequences
    assert sequences.of(0).tolist() == [0, 0, 1]
    assert sequences.ts[: sequences.offsets[1]].tolist() == [
        us("03-01 08:00"), us("03-08 08:00"), us("03-09 23:59")
    ]  # fmt: skip
    assert sequences.of(2).tolist() == [1]


def test_past_is_everybodys_events_before_the_cut_off(cohort: Cohort) -> None:
    assert cohort.past_users.tolist() == ["ehh1", "ehh2", "ehh8"]
    assert cohort.past.toarray().tolist() == [[1, 0, 0], [0, 0, 4], [0, 2, 0]]
    assert cohort.sequences["item"].to_pylist() == [0, 2, 1]
    assert max(cohort.sequences["ts"].to_pylist()) < at("03-07 00:00")


def test_raw_rows_know_profile_and_picks_and_the_newest_circumstances(cohort: Cohort) -> None:
    picks = cohort.raw["user_onboarding__onboarding_pooled"].to_pylist()
    assert [None if p is None else p[-1] for p in picks] == [1, 2, None, None]
    assert cohort.profile["profile_country"].tolist() == ["br", "br", "br", "de"]
    # "web" is the context of events whose minute does not end with 0.
    assert cohort.profile["context_os"].tolist() == ["ios", "ios", "ios", "ios"]
    assert cohort.as_of.tolist() == [us(t) for t in
        ("03-10 00:00", "03-11 08:00", "03-12 12:00", "03-08 19:00")]  # fmt: skip
    counts = cohort.raw["user_activity__activity_counts"].to_pylist()
    # Window of 3 days of u1: 03-08 to 03-10; a, b, c with weights 1, 2, 3 on three days.
    assert counts[0][:4] == [3, 6, 3, 3]


def test_known_users_are_asked_about_whether_they_come_back_or_not(cohort: Cohort) -> None:
    known = cohort.known_users(horizon_days=2)
    assert set(known.moment.tolist()) == {us("03-09 00:00")}
    # Their newest events lie within 7 days before it.
    assert known.user_id.tolist() == ["ehh1", "ehh2", "ehh7", "ehh8"]
    assert known.horizon_days == 2
    # b, c and a in two days; the others stay away.
    assert known.future_events.tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize(
    ("days", "why"), [(15, "reaches beyond the end of the data"), (8, "Two horizons, one to fit")]
)
def test_horizon_that_does_not_fit_into_the_data_is_refused(
    cohort: Cohort, days: int, why: str
) -> None:
    with pytest.raises(DataFault, match=why):
        cohort.known_users(horizon_days=days)


def test_items_without_tags_are_told_apart_by_their_clusters(tmp_path: Path) -> None:
    made = build_cohort(
        make_repository(tmp_path, EVENTS, TAGS, PICKS, tagged=False), progress=False
    )
    assert set(made.tag_names) <= {"collaborative 0", "collaborative 1"}
    assert set(made.catalogue.tags) == {()}


def test_events_after_the_moment_change_no_raw_row_and_no_history(
    settings: RepoSettings, cohort: Cohort, tmp_path: Path
) -> None:
    whole = _read(settings, cohort)
    moments = dict(zip(cohort.user_id.tolist(), cohort.moment.tolist(), strict=True))
    kept = [e for e in EVENTS if e[0] not in moments or us(e[2]) <= moments[e[0]]]
    assert len(kept) < len(EVENTS)
    # The same item vectors; only the clean events lose what came after the moments.
    shorter = make_repository(tmp_path, EVENTS, TAGS, PICKS)
    write_clean_events(shorter, kept, TAGS, PICKS)
    cut = _read(shorter, cohort)
    assert cut[0].equals(whole[0])
    for a, b in zip(cut[1:3], whole[1:3], strict=True):
        assert (a != b).nnz == 0
    assert whole[3].sum() > 0
    assert cut[3].sum() == 0


def _read(settings: RepoSettings, cohort: Cohort) -> tuple[Any, ...]:
    """Return raw columns, histories and the number of future events of the cohort's rows."""
    encoders, clean = current_modalities(settings.features_dir), CleanTables(settings.data_dir)
    layout = RawLayout.of(settings.dataset, {m.name: m.dim for m in encoders.modalities})
    rows = pa.table({"user_id": pa.array(cohort.user_id), "us": cohort.moment.astype(np.int64)})
    with open_events(settings.dataset, clean, memory_limit_mb=256, seed=0) as db:
        popularity = np.asarray(daily_counts(db, encoders).sum(axis=0))
        kinds = item_kinds(db, settings.dataset, clean, encoders, popularity)
        events = CohortEvents(db, rows, encoders, layout, progress=False)
        found = events.read(kinds.matrix, np.flatnonzero(popularity > 0))
        views = events.user_views(clean)
    columns = {n: found.folded[n] for n in found.folded.column_names} | views
    return pa.table(columns), found.history, found.history_tags, found.future_events


def test_rows_are_the_same_whatever_number_of_users_is_read_at_a_time(
    settings: RepoSettings, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _read(settings, cohort)
    monkeypatch.setattr("materialize.evaluate.cohort_events._EVENTS_AT_ONCE", 2)
    pieces = _read(settings, cohort)
    assert pieces[0].equals(whole[0])
    assert (pieces[1] != whole[1]).nnz == 0
    assert pieces[3].tolist() == whole[3].tolist()


def test_second_build_reads_what_the_first_one_wrote(
    settings: RepoSettings, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("materialize.evaluate.cohort_build.open_events", None)  # would fail
    again = build_cohort(settings, progress=False)
    for field in dataclasses.fields(Cohort):
        if field.name != "_known":
            assert _plain(getattr(again, field.name)) == _plain(getattr(cohort, field.name))


def _plain(value: Any) -> Any:
    """Return what can be compared by ==, with the types of arrays."""
    if isinstance(value, sparse.csr_array):
        return value.shape, _plain(value.data), _plain(value.indices), _plain(value.indptr)
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, Catalogue | Histories):
        return _plain(vars(value))
    return value


@pytest.mark.usefixtures("cohort")  # so that there is a folder, whatever test comes first
def test_cohort_that_was_not_written_whole_is_not_there(
    settings: RepoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    folder = settings.data_dir / "evaluations"
    before = sorted(folder.iterdir())
    monkeypatch.setattr(cohort_files.np, "savez", broken)
    with pytest.raises(OSError, match="disk full"):
        build_cohort(settings, max_rows=3, progress=False)
    assert sorted(folder.iterdir()) == before


def test_writing_a_cohort_that_is_there_keeps_the_first(
    settings: RepoSettings, cohort: Cohort, tmp_path: Path
) -> None:
    folder = tmp_path / "cohort-1"
    cohort_files.save_cohort(cohort, folder)
    first = (folder / "arrays.npz").stat().st_ino
    cohort_files.save_cohort(cohort, folder)
    assert (folder / "arrays.npz").stat().st_ino == first
    assert [p.name for p in tmp_path.iterdir()] == ["cohort-1"]


def test_features_of_other_data_are_refused(tmp_path: Path) -> None:
    settings = make_repository(tmp_path, EVENTS, TAGS, PICKS)
    write_clean_events(settings, EVENTS[:-1], TAGS, PICKS)
    with pytest.raises(DataFault, match="Run `palate features build` first"):
        build_cohort(settings, progress=False)


def test_numbers_below_one_are_refused(settings: RepoSettings) -> None:
    with pytest.raises(ValueError, match="max_rows 0"):
        build_cohort(settings, max_rows=0)
    with pytest.raises(ValueError, match="horizon_days 0"):
        build_cohort(settings, horizon_days=0)


def test_cohort_encodes_as_serving_does(tmp_path: Path) -> None:
    world = tiny_cohort()
    ArtifactStore(str(tmp_path)).save(world.encoder)
    (batch,) = world.cohort.batches(world.cohort.schema)
    served = runtime.encode(batch, world.encoder.encoder_version, str(tmp_path))
    assert np.array_equal(world.cohort.encode(world.encoder), served.embedding)
    inputs = world.cohort.inputs(world.encoder)
    assert np.array_equal(world.encoder.encode_inputs(inputs), served.embedding)
    assert served.n_events.tolist() == world.cohort.n_events.tolist()


def test_encoder_of_blocks_that_the_cohort_lacks_is_refused() -> None:
    world = tiny_cohort()
    other = tiny_cohort(n_segments=4)
    with pytest.raises(EvaluationFault, match=r"reads collaborative_interests_7d, .* do not have"):
        world.cohort.encode(other.encoder)


def test_encoder_of_fewer_blocks_reads_its_part_of_the_rows() -> None:
    world = tiny_cohort()
    whole = world.cohort.schema
    variant = Variant(
        "less",
        "Less",
        # The last block of its column, a whole view, and the first window's counts.
        drop=("collaborative_30d", "collaborative_onboarding", "onboarding_count"),
        drop_elements={"counts": (0, 1, 2, 3)},
    )
    encoder = world.encoder_of(variant.schema(whole))
    places = {b.name: b for b in world.encoder.preprocessor.input_slices}
    read = {b.name: b for b in encoder.preprocessor.input_slices}
    inputs, fewer = world.cohort.inputs(world.encoder), world.cohort.inputs(encoder)
    for name, block in read.items():
        mine = fewer[:, block.start : block.stop]
        place = places["counts" if name.startswith("counts") else name]
        theirs = inputs[:, place.stop - block.width : place.stop]
        assert np.array_equal(mine, theirs), name
    assert world.cohort.encode(encoder).shape == (len(world.cohort), 8)


def test_encoder_of_other_item_vectors_is_refused() -> None:
    world, other = tiny_cohort(), tiny_cohort(seed=1)
    with pytest.raises(EvaluationFault, match="modality version"):
        world.cohort.encode(other.encoder)


def test_encoder_of_blocks_and_other_item_texts_is_refused() -> None:
    cohort = dataclasses.replace(tiny_cohort().cohort, texts=CLUE_SCHEMA)
    other = cohort.schema.with_texts(dataclasses.replace(CLUE_SCHEMA, modality_version="f" * 12))
    given = CLUE_SCHEMA.modality_version
    with pytest.raises(EvaluationFault, match=f"and 'ffffffffffff', the .* and '{given}'"):
        next(cohort.batches(other))


def test_mean_vectors_are_those_of_the_longest_window() -> None:
    cohort = tiny_cohort().cohort
    # All of a cold user's events lie in the longest window of 30 days: the mean over the history.
    row = int(np.flatnonzero(cohort.groups["newcomer"])[0])
    weights = cohort.history[[row]].toarray()[0]
    expected = weights @ cohort.catalogue.vectors["collaborative"] / weights.sum()
    assert np.allclose(cohort.mean_vectors()[row], expected, atol=1e-6)


def test_cohort_in_memory_knows_no_other_rows() -> None:
    with pytest.raises(EvaluationFault, match="build_cohort"):
        tiny_cohort().cohort.known_users()
