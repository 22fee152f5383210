"""The studies by name: what each asks, and which encoders it trains for the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from encoder.schema import FeatureSchema
from materialize.study.parts import KINDS, parts_of
from materialize.study.variant import DEFAULT, Variant

if TYPE_CHECKING:
    from encoder.training_config import TrainingConfig

__all__ = ["STUDIES", "Study", "find_study"]

_Make = Callable[[FeatureSchema, "TrainingConfig"], Iterable[Variant]]


@dataclass(frozen=True)
class Study:
    """A question that several trainings answer.

    Attributes
    ----------
    name, question : str
    axis : str or None
        What ``Variant.x`` is, for a line plot; None: the variants have no order.
    seeds : tuple of int
        Trained unless the caller names others.
    make : callable
        (schema of the raw features, settings of the default training) -> variants.
    """

    name: str
    question: str
    axis: str | None
    seeds: tuple[int, ...]
    make: _Make

    def variants(self, schema: FeatureSchema, config: TrainingConfig) -> tuple[Variant, ...]:
        """Return the default variant, then the others; those that would equal it are left out.

        Parameters
        ----------
        schema : FeatureSchema
            Of the raw features, all blocks.
        config : TrainingConfig
            Of the default training.
        """
        default = Variant(DEFAULT, "default")
        others = []
        for variant in self.make(schema, config):
            if _same(variant, schema, config):
                # Named for what it is, so that the axis has a point there.
                default = Variant(DEFAULT, f"{variant.title} (default)", x=variant.x)
            else:
                others.append(variant)
        return (default, *others)

    def choose(
        self, schema: FeatureSchema, config: TrainingConfig, names: Sequence[str] = ()
    ) -> tuple[Variant, ...]:
        """Return the named variants, always with the default; all of them without names.

        Raises
        ------
        ValueError
            An unknown name.
        """
        there = {variant.name: variant for variant in self.variants(schema, config)}
        unknown = [name for name in names if name not in there]
        if unknown:
            raise ValueError(
                f"Study {self.name!r} has no variant {', '.join(map(repr, unknown))} on this data "
                f"set. Variants: {', '.join(there)}."
            )
        wanted = {DEFAULT, *names} if names else set(there)
        return tuple(variant for name, variant in there.items() if name in wanted)


def find_study(name: str) -> Study:
    """Return a study.

    Raises
    ------
    ValueError
        An unknown name.
    """
    if name not in STUDIES:
        raise ValueError(f"Unknown study {name!r}. Studies: {', '.join(sorted(STUDIES))}.")
    return STUDIES[name]


def _same(variant: Variant, schema: FeatureSchema, config: TrainingConfig) -> bool:
    changed = variant.config(config, config.seed) != Variant(DEFAULT, "").config(
        config, config.seed
    )
    return not (changed or variant.drop or variant.drop_elements or variant.age_days)


def _ablations(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    for part in parts_of(schema):
        yield Variant(
            f"no_{part.name}",
            f"without {part.title}",
            drop=part.blocks,
            drop_elements=part.elements,
            modality=part.modality,
        )


def _dimensions(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    for dim in (30, 60, 120, 240):
        yield Variant(f"{dim}d", f"{dim} numbers", model={"embedding_dim": dim}, x=dim)


def _hidden(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    for widths in ((128,), (512,), (256, 128), (512, 256), (1024, 512), (512, 512, 256)):
        name = "-".join(map(str, widths))
        yield Variant(name, name.replace("-", ", "), model={"hidden": widths})


def _corruption(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    fields = {
        "block_dropout": ("block dropout", (0.0, 0.2, 0.4)),
        "view_dropout": ("view dropout", (0.0, 0.3, 0.5)),
        "noise_std": ("noise", (0.0, 0.1, 0.3)),
        "unknown_rate": ("unknown categories", (0.0, 0.05)),
    }
    yield Variant("none", "no corruption", model=dict.fromkeys(fields, 0.0))
    for field, (title, values) in fields.items():
        for value in values:
            if getattr(config.model, field) != value:
                yield Variant(f"{field}-{value:g}", f"{title} {value:g}", model={field: value})


def _decay(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    for decay in (0.0, 0.1, 0.3, 1.0, 3.0):
        change = {"weight_decay": decay}
        yield Variant(f"decay-{decay:g}", f"decay {decay:g}", training=change, x=decay)


def _weighting(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    for part in parts_of(schema):
        if part.name in KINDS:
            heavy = dict(config.block_weights) | {
                name: 3.0 * config.block_weights.get(name, 1.0) for name in part.blocks
            }
            yield Variant(f"3x_{part.name}", f"{part.title} x 3", training={"block_weights": heavy})


def _prediction(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    for weight in (0.0, 1.0, 3.0, 10.0):
        title = f"weight {weight:g}" if weight else "nothing predicted"
        change = {"prediction_weight": weight}
        yield Variant(f"weight-{weight:g}", title, training=change, x=weight)


def _cadence(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    yield Variant("age-0d", "0 days", x=0)
    for days in (1, 7, 30, 90):
        yield Variant(f"age-{days}d", f"{days} day{'s' * (days > 1)}", age_days=days, x=days)


def _seeds(schema: FeatureSchema, config: TrainingConfig) -> Iterable[Variant]:
    return ()


_ALL = (
    Study(
        "ablations",
        "What does each part of the raw features bring? One part is left out at a time.",
        None,
        (0, 1),
        _ablations,
    ),
    Study(
        "dimensions",
        "How long must the embedding be?",
        "numbers in the embedding",
        (0, 1, 2),
        _dimensions,
    ),
    Study("hidden", "How large must the network be?", None, (0, 1), _hidden),
    Study(
        "corruption",
        "How much should be hidden from the encoder while it learns?",
        None,
        (0, 1),
        _corruption,
    ),
    Study(
        "decay",
        "How much should weights shrink, so that the encoder does not learn users by heart?",
        "weight decay",
        (0, 1),
        _decay,
    ),
    Study(
        "weighting",
        "Does it help to weigh one part of the raw features three times in the loss?",
        None,
        (0, 1),
        _weighting,
    ),
    Study(
        "prediction",
        "How much should the encoder learn to predict what comes next, beside the reconstruction?",
        "weight of the prediction",
        (0, 1),
        _prediction,
    ),
    Study(
        "cadence",
        "How often must the encoder be trained again? Each is judged at the cut-off and trained on "
        "rows that end earlier.",
        "days from the newest training row to the cut-off",
        (0, 1, 2),
        _cadence,
    ),
    Study(
        "seeds",
        "How far do figures move by the training's seed alone?",
        None,
        (0, 1, 2, 3, 4),
        _seeds,
    ),
)

STUDIES: dict[str, Study] = {study.name: study for study in _ALL}
"""In the order of the documentation."""
