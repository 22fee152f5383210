"""A cohort: sampled users at moments, what was known of them then, and what they did next.

Everything an evaluation needs of the data stands here, in memory and bounded: a task sees no table
and no store, and an encoder is only what ``Cohort.encode`` makes of the raw rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse

from encoder.artifact import EncoderArtifact
from encoder.columns import RawBatch, batch_from_arrow, raw_batch
from encoder.errors import EvaluationFault
from encoder.preprocessing import Preprocessor
from encoder.schema import Block, FeatureSchema
from materialize.reader.raw import take_rows
from transforms.layout import ACTIVITY, column

__all__ = ["MOST_EVENTS", "Catalogue", "Cohort", "Histories", "LoadedEncoder"]

LoadedEncoder: TypeAlias = EncoderArtifact
"""An encoder in memory: a space's from the store, or a variant that never gets a space."""

MOST_EVENTS = 500
"""So many newest events of a user are kept as a sequence."""

Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Instants = npt.NDArray[np.datetime64]

_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items with at least one event before the cut-off, in the modality encoders' order.

    Attributes
    ----------
    item_ids : pyarrow int64 or string array (n_items,)
    popularity : float64 (n_items,)
        Events of all users before the cut-off, and only those; at least 1.
    daily : csr_array float64 (n_days, n_items)
        Events of all users by UTC day; the last line is the day before ``Cohort.judged_from``. What
        of it lies before a row's moment was known then.
    tags : tuple of tuples of str (n_items,)
        () for an item without any.
    vectors : mapping of str to float32 (n_items, dim)
        By modality; zeros: the item has none.
    clusters : mapping of str to int32 (n_items,)
        By modality; -1: none.
    """

    item_ids: pa.Array
    popularity: npt.NDArray[np.float64]
    daily: sparse.csr_array
    tags: tuple[tuple[str, ...], ...]
    vectors: Mapping[str, Float32]
    clusters: Mapping[str, npt.NDArray[np.int32]]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.item_ids)


@dataclass(frozen=True, eq=False)
class Histories:
    """Newest events of each row, oldest first: inputs of sequence models.

    Attributes
    ----------
    offsets : int64 (n_rows + 1,)
        Row r has the entries ``offsets[r]`` to ``offsets[r + 1]``; none, one or up to 500.
    item : int32 (n_entries,)
        Position in the catalogue; events of items outside it are left out.
    ts : datetime64[us] (n_entries,)
        Ascending within a row; none after the row's moment.
    """

    offsets: Ints
    item: npt.NDArray[np.int32]
    ts: Instants

    def of(self, row: int) -> npt.NDArray[np.int32]:
        """Return the items of one row, oldest first."""
        return self.item[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Users at moments: raw features known then, histories, futures, catalogue and groups.

    A row is a user at a moment, ordered by user id, then moment. A user may have several rows
    (label times may be active days), so users, not rows, are the unit of every resample and split.
    Rows are label rows (the user has a past and comes back within the horizon, see
    ``moments.choose_rows``) and newcomers: rows four hours after a user's first event.

    Attributes
    ----------
    name : str
        Of the data set.
    cutoff : datetime64[us]
        No moment lies before it: encoder, item vectors and everything else that is learned without
        labels knows only events before it.
    judged_from : datetime64[us]
        No moment of a test user lies before it and no horizon of a training user ends after it:
        what is fitted on labels knows only events before it.
    vectors_cutoff : datetime64[us]
        Item vectors and clusters were fitted on events before it.
    data_end : datetime64[us]
        No moment plus horizon lies after it.
    horizon_days : int
    fingerprint : str
        12 hex digits: data, features, settings and sample.
    user_id : (n_rows,)
        int64, or object of str.
    moment : datetime64[us] (n_rows,)
        UTC. Everything up to and including it is known.
    training : bool (n_rows,)
        Rows of training users (60 % of users, ``split.training_users``); the others are judged.
    raw : pyarrow.Table (n_rows)
        Every column of ``schema`` and ``texts``, named ``view__field``: what was known at the
        moment, null where the user was not in that view.
    schema : FeatureSchema
        Of ``raw``, with all blocks but tokens.
    as_of : datetime64[us] (n_rows,)
        Newest raw feature; NaT where there is none.
    n_events : int64 (n_rows,)
        In the longest window.
    status : object (n_rows,) of str
        ``warm``, ``onboarded`` or ``cold``; these three by the encoder's summary rule.
    groups : mapping of str to bool (n_rows,)
        ``all``; ``established`` (20 events or more); ``cold`` (10 or fewer, or a newcomer);
        ``newcomer`` (moment = first event + 4 hours, first event inside the side's time, see
        ``moments.open_events``); where the data have onboarding picks also ``newcomer_onboarded``
        and ``newcomer_skipped``. No newcomer is established. A group without rows is left out.
    profile : mapping of str to object (n_rows,) of str
        By name of the schema's category blocks (``profile_country``, ``context_device``): as known
        at the moment, "" for unknown; for clustering, fairness and maps.
    history : csr_array float32 (n_rows, n_items)
        Sum of the weights of all the user's events up to the moment, by item of the catalogue.
    future : csr_array bool (n_rows, n_items)
        Items of the catalogue consumed after the moment and before the moment plus the horizon,
        open at both ends.
    history_tags : csr_array float32 (n_rows, n_tags)
    future_tags : csr_array bool (n_rows, n_tags)
        As ``history`` and ``future``, by tag, and of *all* items, also those that nobody consumed
        before the cut-off.
    tag_names : tuple of str (n_tags,)
        Most frequent first among events before the cut-off; item clusters ("content 7") where the
        items have no tags. At most 1,000.
    future_events : int64 (n_rows,)
        Events within the horizon, of whatever item.
    future_outside : int64 (n_rows,)
        Distinct items among them that are not in the catalogue: what no item-level task can see.
    catalogue : Catalogue
    past_events : int
        Events of all users before the cut-off.
    past : csr_array float32 (n_past_users, n_items)
        Weights of events before the cut-off: what matrix factorisation is fitted on. All users, or
        a sample in the order of the same stable hash: at most 50,000 users with 5 million events.
    past_users : (n_past_users,)
    sequences : pyarrow.Table
        user_id, item (int32, position in the catalogue), ts (timestamp[us, UTC]): the newest 500
        events before the cut-off of each of ``past_users``, ordered by user, then time.
    history_sequences : Histories
    texts : FeatureSchema or None
        Of ``raw``, what an encoder of texts reads, where the data set has any.
    others : mapping of str to LoadedEncoder
        Encoders of other spaces that are judged beside, by the names of their models.
    """

    name: str
    cutoff: np.datetime64
    judged_from: np.datetime64
    vectors_cutoff: np.datetime64
    data_end: np.datetime64
    horizon_days: int
    fingerprint: str
    user_id: npt.NDArray[Any]
    moment: Instants
    training: Bools
    raw: pa.Table
    schema: FeatureSchema
    as_of: Instants
    n_events: Ints
    status: npt.NDArray[np.object_]
    groups: Mapping[str, Bools]
    profile: Mapping[str, npt.NDArray[np.object_]]
    history: sparse.csr_array
    future: sparse.csr_array
    history_tags: sparse.csr_array
    future_tags: sparse.csr_array
    tag_names: tuple[str, ...]
    future_events: Ints
    future_outside: Ints
    catalogue: Catalogue
    past_events: int
    past: sparse.csr_array
    past_users: npt.NDArray[Any]
    sequences: pa.Table
    history_sequences: Histories
    texts: FeatureSchema | None = None
    others: Mapping[str, LoadedEncoder] = field(default_factory=dict)
    _known: Callable[[int], Cohort] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.user_id)

    def encode(self, encoder: LoadedEncoder) -> Float32:
        """Return the embedding of each row, float32 (n_rows, embedding_dim).

        The same two steps as ``transforms.runtime.encode``: preprocessing, then the graph.

        Parameters
        ----------
        encoder : LoadedEncoder
            Its schema may hold some of the cohort's blocks only.

        Raises
        ------
        EvaluationFault
            It reads blocks that the cohort does not have, or other modality encoders.
        """
        parts = [encoder.encode(batch) for batch in self.batches(encoder.preprocessor.schema)]
        return np.concatenate(parts)

    def inputs(self, encoder: LoadedEncoder) -> Float32:
        """Return the preprocessed raw features, float32 (n_rows, n_inputs): no embedding.

        What a network that is trained for one task alone reads. Raises as ``encode``.
        """
        blocks = self.blocks(encoder)
        return np.concatenate([blocks.transform(batch) for batch in self.batches(blocks.schema)])

    def blocks(self, encoder: LoadedEncoder) -> Preprocessor:
        """Return what turns raw features into ``inputs``.

        It is the encoder's own. For one that reads texts, alone or beside blocks, it is fitted on
        the rows of training users, over all blocks.
        """
        own = encoder.preprocessor
        return own if isinstance(own, Preprocessor) else self._fitted_blocks

    @cached_property
    def _fitted_blocks(self) -> Preprocessor:
        def known() -> Iterator[RawBatch]:
            for k, batch in enumerate(self.batches(self.schema)):
                kept = np.flatnonzero(self.training[k * _ROWS : (k + 1) * _ROWS])
                yield take_rows(batch, kept)

        return Preprocessor.fit(self.schema, known())

    def mean_vectors(self) -> Float32:
        """Return the weighted mean item vectors over the longest window, all modalities.

        float32 (n_rows, sum of dims); zeros where nothing is known: the baseline "average item
        vector". It ends with the day of the newest event, as every window does.
        """
        name = column(ACTIVITY, "pooled")
        widths = {name: self.schema.array_columns[name]}
        blocks = [b for b in self.schema.blocks if b.kind == "pooled" and b.column == name]
        # Windows ascend: the last block of each modality is the longest one's.
        longest = [(b.offset, b.width) for b in blocks[-len(self.catalogue.vectors) :]]
        parts = []
        for start in range(0, len(self), _ROWS):
            rows = self.raw.slice(start, _ROWS)
            pooled = batch_from_arrow(rows, widths, {}, ()).columns[name].values
            parts.append(np.concatenate([pooled[:, a : a + w] for a, w in longest], axis=1))
        return np.concatenate(parts)

    def known_users(self, horizon_days: int | None = None) -> Cohort:
        """Return every known user at one moment, whether the user comes back or not.

        For questions such as churn: this cohort's label rows are all of users who come back. One
        row a user who has an event in the longest window before the moment, which is the cut-off
        for training users and ``judged_from`` for test users; sampled by the same hash; made when
        asked for first, then kept on disk as the cohort is.

        Parameters
        ----------
        horizon_days : int, optional
            Another horizon; the default is the cohort's.

        Raises
        ------
        DataFault
            Two of the horizon do not fit between the cut-off and the data's end.
        EvaluationFault
            The cohort was not made by ``build_cohort``.
        """
        if self._known is None:
            raise EvaluationFault(
                f"Cohort {self.name!r} knows its own rows only. Make it with build_cohort."
            )
        return replace(self._known(horizon_days or self.horizon_days), others=self.others)

    def batches(self, schema: FeatureSchema) -> Iterator[RawBatch]:
        """Yield the raw rows as a schema reads them, 4,096 at a time.

        Parameters
        ----------
        schema : FeatureSchema
            Some of the cohort's blocks, or parts of its counts and numbers.

        Raises
        ------
        EvaluationFault
            As ``encode``.
        """
        whole = self.schema
        if schema.token_columns and self.texts is not None:
            whole = whole.with_texts(self.texts) if schema.texts_modality else self.texts
        _check_readable(whole, schema)
        for start in range(0, len(self), _ROWS):
            batch = raw_batch(self.raw.slice(start, _ROWS), whole)
            yield _narrowed(batch, schema)


def _narrowed(batch: RawBatch, schema: FeatureSchema) -> RawBatch:
    """Return the columns that ``schema`` reads, as wide as it reads them (it may lack blocks)."""
    columns: dict[str, Any] = {}
    widths = schema.array_columns | schema.text_columns | schema.token_columns
    for name, width in widths.items():
        whole: Any = batch.columns[name]
        columns[name] = replace(whole, values=whole.values[:, :width])
    for name in (*schema.as_of_columns, *schema.modality_columns):
        columns[name] = batch.columns[name]
    return RawBatch(columns, batch.n_rows)


def _check_readable(whole: FeatureSchema, schema: FeatureSchema) -> None:
    lacking = [
        b.name for b in schema.blocks if not any(_part_of(b, other) for other in whole.blocks)
    ]
    if lacking:
        raise EvaluationFault(
            f"The encoder reads {', '.join(lacking)}, which the cohort's raw rows do not have at "
            "that place. Build the cohort with the dataset.yaml that the encoder was trained on."
        )
    wanted, given = (
        (one.modality_version, *((one.texts_modality.version,) if one.texts_modality else ()))
        for one in (schema, whole)
    )
    if wanted != given:
        raise EvaluationFault(
            f"The encoder reads features of modality version {' and '.join(map(repr, wanted))}, "
            f"the cohort's raw rows have {' and '.join(map(repr, given))}. Judge it on the "
            "features that it was trained on."
        )


def _part_of(block: Block, whole: Block) -> bool:
    """Return whether a block is another one, or a run of elements where each stands for itself."""
    if (block.kind, block.column) != (whole.kind, whole.column):
        return False
    if block.kind in ("counts", "numbers"):
        end = whole.offset + whole.width
        return whole.offset <= block.offset and block.offset + block.width <= end
    return (block.offset, block.width) == (whole.offset, whole.width)
