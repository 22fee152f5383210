"""A small cohort in memory whose right answer is known, and an encoder for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse

from encoder.artifact import EncoderArtifact
from encoder.kinds import GRAPH
from encoder.manifest import AUTOENCODER
from encoder.modality import ItemVectors, ModalityEncoders
from encoder.preprocessing import Preprocessor
from encoder.schema import FeatureSchema
from materialize.evaluate.cohort import Catalogue, Cohort, Histories
from materialize.evaluate.split import training_users
from transforms.layout import (
    ACTIVITY,
    ONBOARDING,
    PROFILE,
    Modality,
    RawLayout,
    column,
)
from transforms.stream.rows import activity_rows
from transforms.stream.state import UserStates
from transforms.windows import list_array, onboarding_pooled

__all__ = ["CUTOFF", "HORIZON_DAYS", "TinyCohort", "tiny_cohort"]

CUTOFF = np.datetime64("2026-03-01T00:00:00", "us")
HORIZON_DAYS = 7
DIM = 8
GENRES = ("jazz", "rock", "folk", "soul", "punk", "opera")
COUNTRIES = ("BR", "DE", "FR", "SE", "US", "IT")

_DAY, _HOUR = 86_400_000_000, 3_600_000_000
_CUT = int(CUTOFF.astype(np.int64))
_ESTABLISHED, _FEW, _NEW = 30, 4, 2  # events before the moment
_FUTURE = 6
_LATER = HORIZON_DAYS + 5  # days after the cut-off: training users' horizons have ended

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TinyCohort:
    """Users of ``n_segments`` tastes who consume items of their own taste.

    Attributes
    ----------
    cohort : Cohort
        Item k is of segment ``k % n_segments`` and carries that genre as its tag; user k is of
        segment ``k % n_segments``. Moments are at the cut-off, of test users twelve days
        later. Of ten users, five have 30 events before the moment, three have 4, two are
        newcomers with 2, up to four days later (every other newcomer with onboarding picks). Every
        fifth established user has two rows, a day apart. Country follows the segment for seven
        users of ten; the device is chance.
    segment : int64 (n_rows,)
        Of each row's user.
    item_segment : int64 (n_items,)
    modalities : ModalityEncoders
        Item vectors: a corner of the segment, and a little noise.
    """

    cohort: Cohort
    segment: Ints
    item_segment: Ints
    modalities: ModalityEncoders

    @cached_property
    def encoder(self) -> EncoderArtifact:
        """A linear encoder: the first 8 principal components of the preprocessed raw rows.

        Not trained by torch, whose exporter takes longer than most tests.
        """
        return self.encoder_of(self.cohort.schema)

    def encoder_of(self, schema: FeatureSchema) -> EncoderArtifact:
        """Return such an encoder that reads some of the cohort's blocks."""
        cohort = self.cohort
        preprocessor = Preprocessor.fit(schema, cohort.batches(schema))
        inputs = np.concatenate([preprocessor.transform(b) for b in cohort.batches(schema)])
        components = np.linalg.svd(inputs - inputs.mean(axis=0), full_matrices=False)[2]
        weight = np.ascontiguousarray(components[:DIM].T, np.float32)  # (n_inputs, DIM)
        return EncoderArtifact.build(
            preprocessor=preprocessor,
            weights={"encoder.weight": weight},
            graphs={GRAPH: _linear_graph(weight)},
            modality=self.modalities,
            model={
                "kind": AUTOENCODER,
                "n_inputs": len(weight),
                "embedding_dim": DIM,
                "hidden": [],
            },
            dataset={"name": cohort.name},
            data_cutoff=datetime.fromisoformat(self.modalities.cutoff),
            training={"history": []},
            created_at=datetime(2026, 3, 1, tzinfo=timezone.utc),
        )


def _linear_graph(weight: npt.NDArray[np.float32]) -> bytes:
    n_inputs, dim = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["inputs", "weight"], ["embedding"])],
        "linear",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", n_inputs])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def tiny_cohort(
    n_users: int = 300,
    n_items: int = 60,
    n_segments: int = 3,
    *,
    purity: float = 0.9,
    seed: int = 0,
) -> TinyCohort:
    """Return a planted cohort; equal arguments return the same object, which must not be changed.

    Parameters
    ----------
    n_users, n_items, n_segments : int
    purity : float
        Share of a user's events, before and after the moment, with items of the user's segment;
        ``1 / n_segments`` plants nothing: there is nothing to find.
    seed : int
    """
    return _made(n_users, n_items, n_segments, purity, seed)


@cache
def _made(n_users: int, n_items: int, n_segments: int, purity: float, seed: int) -> TinyCohort:
    rng = np.random.default_rng(seed)
    item_segment = np.arange(n_items) % n_segments
    encoders = _encoders(rng, item_segment, n_segments)
    popularity_rank = 1.0 / (1 + rng.permutation(n_items)) ** 0.5

    def draw(segment: int, n: int) -> Ints:
        own = item_segment == segment
        chance = np.where(own, popularity_rank, 0) * purity / popularity_rank[own].sum()
        if n_segments > 1:
            others = popularity_rank[~own].sum()
            chance += np.where(own, 0, popularity_rank) * (1 - purity) / others
        return rng.choice(n_items, n, p=chance / chance.sum())

    events: list[tuple[int, int, int, float]] = []  # user, us, item, weight
    rows: list[tuple[int, int, bool]] = []  # user, moment, newcomer
    picks: list[list[int]] = []
    training = training_users(_names(n_users))
    for user in range(n_users):
        kind, segment = user % 10, user % n_segments
        newcomer = kind >= 8
        n_before = _ESTABLISHED if kind < 5 else _FEW if not newcomer else _NEW
        moment = _CUT if training[user] else _CUT + _LATER * _DAY
        moment += int(rng.integers(5, 100)) * _HOUR if newcomer else 0
        first = moment - 4 * _HOUR if newcomer else moment - 25 * _DAY
        before = np.sort(rng.integers(first, moment, n_before))
        before[0] = first  # a newcomer's moment is four hours after the first event
        after = np.sort(rng.integers(moment + 1, moment + HORIZON_DAYS * _DAY, _FUTURE))
        items = draw(segment, n_before + _FUTURE)
        weights = rng.integers(1, 4, len(items)).astype(float)
        events += zip([user] * len(items), [*before, *after], items, weights, strict=True)
        rows.append((user, moment, newcomer))
        if kind == 0:
            rows.append((user, moment + _DAY, False))
        picks.append(draw(segment, 3).tolist() if newcomer and (user // 10) % 2 else [])
    return _put_together(rng, encoders, item_segment, events, rows, picks, n_segments, seed)


def _names(n_users: int) -> npt.NDArray[np.object_]:
    return np.array([f"user {k:05d}" for k in range(n_users)], object)


def _encoders(rng: np.random.Generator, item_segment: Ints, n_segments: int) -> ModalityEncoders:
    n_items = len(item_segment)
    vectors = 0.3 * rng.standard_normal((n_items, DIM))
    vectors[np.arange(n_items), item_segment % DIM] += 1
    centroids = np.eye(DIM, dtype=np.float32)[np.arange(n_segments) % DIM]
    item_vectors = ItemVectors(
        "collaborative",
        vectors.astype(np.float32),
        item_segment.astype(np.int32),
        n_segments,
        centroids,
    )
    fit = {"cutoff": f"{CUTOFF}+00:00", "seed": 0}
    ids = pa.array([f"item {k:04d}" for k in range(n_items)])
    return ModalityEncoders(ids, (item_vectors,), np.ones(n_items, np.bool_), fit)


def _put_together(
    rng: np.random.Generator,
    encoders: ModalityEncoders,
    item_segment: Ints,
    events: list[tuple[int, int, int, float]],
    rows: list[tuple[int, int, bool]],
    picks: list[list[int]],
    n_segments: int,
    seed: int,
) -> TinyCohort:
    user, us, item = (np.array([e[k] for e in events], np.int64) for k in range(3))
    weight = np.array([e[3] for e in events], np.float32)
    owner, moment = (np.array([r[k] for r in rows], np.int64) for k in range(2))
    newcomer = np.array([r[2] for r in rows])
    n_rows, n_items, n_users = len(rows), len(item_segment), len(picks)
    names = _names(n_users)
    own = np.arange(n_users) % n_segments
    country = np.where(rng.random(n_users) < 0.7, own, rng.integers(0, n_segments, n_users))
    device = rng.choice(np.array(["phone", "desktop"], object), n_users)

    history, future = np.zeros((n_rows, n_items), np.float32), np.zeros((n_rows, n_items), bool)
    future_events = np.zeros(n_rows, np.int64)
    sequence_item, sequence_ts, offsets = [], [], [0]
    for row in range(n_rows):
        mine = user == owner[row]
        known = mine & (us <= moment[row])
        coming = mine & (us > moment[row]) & (us < moment[row] + HORIZON_DAYS * _DAY)
        np.add.at(history[row], item[known], weight[known])
        future[row, item[coming]] = True
        future_events[row] = coming.sum()
        order = np.flatnonzero(known)[np.argsort(us[known], kind="stable")]
        sequence_item.append(item[order])
        sequence_ts.append(us[order])
        offsets.append(offsets[-1] + len(order))

    past = us < _CUT
    past_users, past_row = np.unique(user[past], return_inverse=True)
    past_matrix = sparse.csr_array(
        (weight[past], (past_row, item[past])), shape=(len(past_users), n_items)
    )
    order = np.lexsort((us[past], user[past]))
    sequences = pa.table(
        {
            "user_id": names[user[past][order]],
            "item": item[past][order].astype(np.int32),
            "ts": pa.array(us[past][order]).cast(pa.timestamp("us", "UTC")),
        }
    )
    genres = tuple(GENRES[k % len(GENRES)] + ("" if k < len(GENRES) else f" {k}")
                   for k in range(n_segments))  # fmt: skip
    kinds = np.eye(n_segments, dtype=np.float32)[item_segment]
    counted = np.bincount(item[past], minlength=n_items).astype(np.float64)
    told = us < _CUT + _LATER * _DAY
    day = us[told] // _DAY - us.min() // _DAY
    n_days = int(_CUT // _DAY - us.min() // _DAY) + _LATER
    ones = np.ones(int(told.sum()))
    daily = sparse.csr_array((ones, (day, item[told])), shape=(n_days, n_items))
    if not counted.all():
        raise ValueError("Some item has no event before the cut-off. Ask for more users.")
    by_events = np.argsort(-(counted @ kinds), kind="stable")
    raw, n_events, layout = _raw(
        encoders, names, user, us, item, weight, owner, moment, country, device, picks
    )
    as_of = np.array(
        [us[(user == u) & (us <= m)].max() for u, m in zip(owner, moment, strict=True)]
    )
    has_picks = np.array([bool(p) for p in picks])[owner]
    groups = {
        "all": np.ones(n_rows, bool),
        "established": (n_events >= 20) & ~newcomer,
        "cold": (n_events <= 10) | newcomer,
        "newcomer": newcomer,
        "newcomer_onboarded": newcomer & has_picks,
        "newcomer_skipped": newcomer & ~has_picks,
    }
    cohort = Cohort(
        name="planted",
        cutoff=CUTOFF,
        judged_from=CUTOFF + np.timedelta64(_LATER, "D"),
        vectors_cutoff=CUTOFF,
        data_end=CUTOFF + np.timedelta64(_LATER + 20, "D"),
        horizon_days=HORIZON_DAYS,
        # Fits are shared by fingerprint, which tells planted cohorts apart.
        fingerprint=blake2b(history.tobytes() + future.tobytes(), digest_size=6).hexdigest(),
        user_id=names[owner],
        moment=moment.astype("datetime64[us]"),
        training=training_users(names[owner]),
        raw=raw,
        schema=layout.schema(encoders.version),
        as_of=as_of.astype("datetime64[us]"),
        n_events=n_events,
        status=np.full(n_rows, "warm", object),
        groups=groups,
        profile={
            "context_device": device[owner],
            "profile_country": np.array(COUNTRIES, object)[country[owner] % len(COUNTRIES)],
        },
        history=sparse.csr_array(history),
        future=sparse.csr_array(future),
        history_tags=sparse.csr_array((history @ kinds)[:, by_events]),
        future_tags=sparse.csr_array((future @ kinds > 0)[:, by_events]),
        tag_names=tuple(genres[k] for k in by_events),
        future_events=future_events,
        future_outside=np.zeros(n_rows, np.int64),
        catalogue=Catalogue(
            item_ids=encoders.item_ids,
            popularity=counted,
            daily=daily,
            tags=tuple((genres[k],) for k in item_segment),
            vectors={m.name: m.vectors for m in encoders.modalities},
            clusters={m.name: m.cluster_of for m in encoders.modalities},
        ),
        past_events=int(past.sum()),
        past=past_matrix,
        past_users=names[past_users],
        sequences=sequences,
        history_sequences=Histories(
            np.array(offsets, np.int64),
            np.concatenate(sequence_item).astype(np.int32),
            np.concatenate(sequence_ts).astype("datetime64[us]"),
        ),
    )
    return TinyCohort(cohort, own[owner], item_segment, encoders)


def _raw(
    encoders: ModalityEncoders,
    names: npt.NDArray[np.object_],
    user: Ints,
    us: Ints,
    item: Ints,
    weight: npt.NDArray[np.float32],
    owner: Ints,
    moment: Ints,
    country: Ints,
    device: npt.NDArray[np.object_],
    picks: list[list[int]],
) -> tuple[pa.Table, Ints, RawLayout]:
    """Return raw rows folded in by the stream's functions, and their events in a month."""
    (m,) = encoders.modalities
    layout = RawLayout(
        (Modality(m.name, m.dim, m.n_clusters),),
        (7, 30),
        context=("device",),
        categories=("country",),
        onboarding=True,
    )
    events = pa.table(
        {
            "user_id": names[user],
            "item_id": encoders.item_ids.take(pa.array(item)),
            "ts": pa.array(us).cast(pa.timestamp("us", "UTC")),
            "weight": weight,
            "context": [[d] for d in device[user]],
        }
    )
    states = UserStates.of(names.tolist(), events)
    activity = activity_rows(states, owner, encoders, layout, cuts=moment)
    pick_ids = pa.array(
        [[encoders.item_ids[k].as_py() for k in p] for p in picks], pa.list_(pa.string())
    )
    pooled = onboarding_pooled(pick_ids, encoders)
    has = pa.array([bool(picks[u]) for u in owner])
    # Who picked did so on signing up, an hour before the first event.
    joined = pa.array(np.array([us[user == u].min() - _HOUR for u in range(len(names))])[owner])
    version = pa.repeat(encoders.version, len(owner))

    def where_picked(values: pa.Array) -> pa.Array:
        rows = pa.array(np.arange(len(owner)), mask=~np.asarray(has))
        return values.take(rows)

    texts = [[COUNTRIES[k % len(COUNTRIES)]] for k in country[owner]]
    columns = {
        f"{ACTIVITY}__{name}": activity[name]
        for name in activity.column_names
        if name not in ("user_id", "event_timestamp")
    } | {
        column(PROFILE, "categories"): pa.array(texts, pa.list_(pa.string())),
        column(PROFILE, "as_of"): joined,
        column(ONBOARDING, "pooled"): where_picked(list_array(pooled[owner])),
        column(ONBOARDING, "as_of"): where_picked(joined),
        column(ONBOARDING, "modality"): where_picked(version),
    }
    schema = layout.schema(encoders.version)
    raw = pa.table(columns).select(list(schema.columns))
    reach = [
        (
            (user == u) & (us <= m) & (us // _DAY > us[(user == u) & (us <= m)].max() // _DAY - 30)
        ).sum()
        for u, m in zip(owner, moment, strict=True)
    ]
    return raw, np.array(reach, np.int64), layout
