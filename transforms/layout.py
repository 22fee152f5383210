"""What stands where in the raw feature columns: the one place that both builder and schema read."""

from __future__ import annotations

from dataclasses import dataclass

from encoder.schema import Block, ColumnElement, FeatureSchema

__all__ = ["COUNTS_PER_WINDOW", "RECENCY", "Modality", "RawLayout"]

COUNTS_PER_WINDOW = ("events", "weight", "active_days", "distinct_items")
"""Counts of each window, in array order (window by window, ascending)."""

RECENCY = ("gap_days", "tenure_days")
"""After the windows: days from the previous active day to ``as_of`` (0: there is none in the longest
window), and days from the first event inside the longest window to ``as_of``."""

PROFILE, ACTIVITY, ONBOARDING = "user_profile", "user_activity", "user_onboarding"


@dataclass(frozen=True)
class Modality:
    """Name, vector length and number of item clusters of one modality encoder."""

    name: str
    dim: int
    clusters: int


@dataclass(frozen=True)
class RawLayout:
    """Shape of the raw feature views of one data set and one set of modality encoders.

    ``user_activity``: pooled float32 [window][modality][dim], histogram float32
    [window][modality][cluster], counts float32 [window][4] + 2 recencies, context string [column], as_of,
    modality_version. ``user_profile``: categories string [column], numbers float32 [column], as_of.
    ``user_onboarding``: pooled float32 [modality][dim] + 1 (number of picks), as_of, modality_version.
    Columns with no element are left out.
    """

    modalities: tuple[Modality, ...]
    windows: tuple[int, ...]
    context: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    onboarding: bool = False

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

    def schema(self, modality_version: str) -> FeatureSchema:
        """Return the encoder's schema for this layout."""
        blocks: list[Block] = []
        pooled = histogram = 0
        for days in self.windows:
            for m in self.modalities:
                column = f"{ACTIVITY}__pooled"
                blocks.append(Block(f"{m.name}_{days}d", "pooled", column, pooled, m.dim))
                pooled += m.dim
            for m in self.modalities:
                name, column = f"{m.name}_interests_{days}d", f"{ACTIVITY}__histogram"
                blocks.append(Block(name, "histogram", column, histogram, m.clusters))
                histogram += m.clusters
        blocks.append(Block("counts", "counts", f"{ACTIVITY}__counts", 0, self.counts_width))
        as_of = [f"{ACTIVITY}__as_of", f"{PROFILE}__as_of"]
        modality_columns = [f"{ACTIVITY}__modality_version"]
        for prefix, column, names in (
            ("context", f"{ACTIVITY}__context", self.context),
            ("profile", f"{PROFILE}__categories", self.categories),
        ):
            blocks += [
                Block(f"{prefix}_{name}", "category", column, k, 1) for k, name in enumerate(names)
            ]
        if self.numbers:
            blocks.append(
                Block("numbers", "numbers", f"{PROFILE}__numbers", 0, len(self.numbers))
            )
        picks = None
        if self.onboarding:
            column, offset = f"{ONBOARDING}__pooled", 0
            for m in self.modalities:
                blocks.append(Block(f"{m.name}_onboarding", "pooled", column, offset, m.dim))
                offset += m.dim
            blocks.append(Block("onboarding_count", "counts", column, offset, 1))
            picks = ColumnElement(column, offset)
            as_of.append(f"{ONBOARDING}__as_of")
            modality_columns.append(f"{ONBOARDING}__modality_version")
        return FeatureSchema(
            blocks=tuple(blocks),
            as_of_columns=tuple(as_of),
            event_count=ColumnElement(
                f"{ACTIVITY}__counts", (len(self.windows) - 1) * len(COUNTS_PER_WINDOW)
            ),
            onboarding_count=picks,
            modality_columns=tuple(modality_columns),
            modality_version=modality_version,
        )
