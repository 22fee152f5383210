"""What stands where in the raw feature columns: the one place that both builder and schema read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from encoder.schema import Block, ColumnElement, FeatureSchema

if TYPE_CHECKING:
    from transforms.dataset import Dataset

__all__ = [
    "ACTIVITY",
    "COUNTS_PER_WINDOW",
    "ONBOARDING",
    "PROFILE",
    "RAW_FIELDS",
    "RECENCY",
    "TEXTS",
    "Modality",
    "RawLayout",
    "TextLayout",
    "column",
    "context_block",
    "field",
]

COUNTS_PER_WINDOW = ("events", "weight", "active_days", "distinct_items")
"""Counts of each window, in array order (window by window, ascending)."""

RECENCY = ("gap_days", "tenure_days")
"""After the windows, in calendar days: from the previous active day to ``as_of`` (0: there is none
in the longest window), and from the first active day in the longest window to ``as_of``."""

PROFILE, ACTIVITY, ONBOARDING = "user_profile", "user_activity", "user_onboarding"
TEXTS = "user_texts"

PREFIX = {PROFILE: "profile", ACTIVITY: "activity", ONBOARDING: "onboarding", TEXTS: "texts"}


def field(view: str, name: str) -> str:
    """Return the Parquet and Feast field of a raw view, for example ``activity_pooled``.

    Fields carry their view's prefix because Feast hands an on-demand view its inputs under short
    names too: two views with an ``as_of`` would overwrite each other (measured on Feast 0.67).
    """
    return f"{PREFIX[view]}_{name}"


def column(view: str, name: str) -> str:
    """Return a raw feature column's full name, for example ``user_activity__activity_pooled``."""
    return f"{view}__{field(view, name)}"


RAW_FIELDS = tuple(
    field(view, name)
    for view, names in {
        ACTIVITY: ("pooled", "histogram", "counts", "context", "as_of", "modality"),
        PROFILE: ("categories", "numbers", "as_of"),
        ONBOARDING: ("pooled", "as_of", "modality"),
        TEXTS: ("tokens", "count", "as_of", "modality"),
    }.items()
    for name in names
)
"""Every field that a raw view may have."""


def context_block(name: str) -> str:
    """Return the name of the block that holds a context column of the events.

    Examples
    --------
    >>> context_block("country")
    'context_country'
    """
    return f"context_{name}"


@dataclass(frozen=True)
class Modality:
    """Name, vector length and number of item clusters of one modality encoder."""

    name: str
    dim: int
    clusters: int


@dataclass(frozen=True)
class TextLayout:
    """How much text a user's row carries: newest events of each service, tokens of an item."""

    max_events: int
    max_item_tokens: int


@dataclass(frozen=True)
class RawLayout:
    """Shape of the raw feature views of one data set and one set of modality encoders.

    ``user_activity``: pooled float32 [window][modality][dim], histogram float32
    [window][modality][cluster], counts float32 [window][4] + 2 recencies, context string [column],
    as_of, modality. ``user_profile``: categories string [column], numbers float32 [column], as_of.
    ``user_onboarding``: pooled float32 [modality][dim] + 1 (number of picks), as_of, modality.
    ``user_texts``, where there are texts: tokens int32 [service][event, newest first][token] one
    after the other, each event beginning with its service's guide token; count float32 [1], the
    events of the longest window; as_of, modality.
    ``as_of`` is int64, microseconds since the epoch (UTC); ``modality`` is the version of the
    modality encoders. Columns with no element are left out, and so is a view without any. Field
    names carry the view's prefix (``field``).
    """

    modalities: tuple[Modality, ...]
    windows: tuple[int, ...]
    context: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    onboarding: bool = False
    texts: TextLayout | None = None

    @classmethod
    def of(cls, dataset: Dataset, dims: Mapping[str, int] | None = None) -> RawLayout:
        """Return the layout of a data set.

        Parameters
        ----------
        dataset : Dataset
        dims : mapping, optional
            Vector length by modality, where the data decide it (brought vectors); default: what
            ``dataset.yaml`` says, which is enough to declare views.
        """
        users = dataset.users
        known, limits = dims or {}, dataset.texts
        texts = None
        if limits is not None:
            texts = TextLayout(limits.max_events, limits.max_item_tokens)
        return cls(
            modalities=tuple(
                Modality(name, known.get(name, config.dim), config.clusters)
                for name, config in dataset.modalities.items()
            ),
            windows=dataset.windows,
            context=dataset.events.context,
            categories=users.categories if users else (),
            numbers=users.numbers if users else (),
            onboarding=bool(users and users.onboarding),
            texts=texts,
        )

    @property
    def pooled_width(self) -> int:
        """Elements of ``user_activity.pooled``."""
        return len(self.windows) * sum(m.dim for m in self.modalities)

    @property
    def histogram_width(self) -> int:
        """Elements of ``user_activity.histogram``."""
        return len(self.windows) * sum(m.clusters for m in self.modalities)

    @property
    def counts_width(self) -> int:
        """Elements of ``user_activity.counts``."""
        return len(self.windows) * len(COUNTS_PER_WINDOW) + len(RECENCY)

    @property
    def onboarding_width(self) -> int:
        """Elements of ``user_onboarding.pooled``: the vectors, then the number of picks."""
        return sum(m.dim for m in self.modalities) + 1

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the raw views that this layout fills."""
        profile = (PROFILE,) if self.categories or self.numbers else ()
        onboarding = (ONBOARDING,) if self.onboarding else ()
        return (ACTIVITY, *profile, *onboarding, *((TEXTS,) if self.texts else ()))

    def texts_schema(self, texts_version: str, n_services: int) -> FeatureSchema:
        """Return what the contrastive encoder reads of this layout.

        Parameters
        ----------
        texts_version : str
        n_services : int
            Services that have a guide token of their own; all others share one.

        Raises
        ------
        ValueError
            There are no texts.
        """
        if self.texts is None:
            raise ValueError("A layout without texts given, one with texts expected.")
        most = (n_services + 1) * self.texts.max_events * self.texts.max_item_tokens
        count = column(TEXTS, "count")
        return FeatureSchema(
            blocks=(
                Block("texts", "tokens", column(TEXTS, "tokens"), 0, most),
                Block("texts_count", "counts", count, 0, 1),
            ),
            as_of_columns=(column(TEXTS, "as_of"),),
            event_count=ColumnElement(count, 0),
            onboarding_count=None,
            modality_columns=(column(TEXTS, "modality"),),
            modality_version=texts_version,
        )

    def schema(self, modality_version: str) -> FeatureSchema:
        """Return what the autoencoder reads of this layout."""
        blocks: list[Block] = []
        pooled = histogram = 0
        for days in self.windows:
            for m in self.modalities:
                source = column(ACTIVITY, "pooled")
                blocks.append(Block(f"{m.name}_{days}d", "pooled", source, pooled, m.dim))
                pooled += m.dim
            for m in self.modalities:
                name, source = f"{m.name}_interests_{days}d", column(ACTIVITY, "histogram")
                blocks.append(Block(name, "histogram", source, histogram, m.clusters))
                histogram += m.clusters
        counts = column(ACTIVITY, "counts")
        blocks.append(Block("counts", "counts", counts, 0, self.counts_width))
        blocks += [
            Block(context_block(name), "category", column(ACTIVITY, "context"), k, 1)
            for k, name in enumerate(self.context)
        ]
        blocks += [
            Block(f"profile_{name}", "category", column(PROFILE, "categories"), k, 1)
            for k, name in enumerate(self.categories)
        ]
        if self.numbers:
            blocks.append(
                Block("numbers", "numbers", column(PROFILE, "numbers"), 0, len(self.numbers))
            )
        picks = None
        if self.onboarding:
            source, offset = column(ONBOARDING, "pooled"), 0
            for m in self.modalities:
                blocks.append(Block(f"{m.name}_onboarding", "pooled", source, offset, m.dim))
                offset += m.dim
            blocks.append(Block("onboarding_count", "counts", source, offset, 1))
            picks = ColumnElement(source, offset)
        pooled_views = [view for view in self.views if view != TEXTS]
        return FeatureSchema(
            blocks=tuple(blocks),
            as_of_columns=tuple(column(view, "as_of") for view in pooled_views),
            event_count=ColumnElement(counts, (len(self.windows) - 1) * len(COUNTS_PER_WINDOW)),
            onboarding_count=picks,
            modality_columns=tuple(
                column(view, "modality") for view in pooled_views if view != PROFILE
            ),
            modality_version=modality_version,
        )
