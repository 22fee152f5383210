"""Variants of studies: what each leaves out, and what it keeps of the default training."""

from __future__ import annotations

import pytest

from encoder.autoencoder import AutoencoderConfig
from encoder.schema import FeatureSchema
from encoder.training_config import TrainingConfig
from materialize.study.parts import parts_of
from materialize.study.studies import STUDIES, find_study
from materialize.study.variant import DEFAULT, Variant
from transforms.future import future_schema
from transforms.layout import Modality, RawLayout

LAYOUT = RawLayout(
    (Modality("collaborative", 4, 3), Modality("content", 2, 2)),
    windows=(7, 30),
    context=("device",),
    categories=("gender",),
    numbers=("age",),
    onboarding=True,
)
SCHEMA = LAYOUT.schema("m1")
CONFIG = TrainingConfig()


def _names(schema: FeatureSchema) -> set[str]:
    return {block.name for block in schema.blocks}


def _ablation(name: str) -> FeatureSchema:
    (_, variant) = find_study("ablations").choose(SCHEMA, CONFIG, [name])
    return variant.schema(SCHEMA)


def test_ablations_leave_out_each_modality_window_kind_and_view_once() -> None:
    variants = [v.name for v in find_study("ablations").variants(SCHEMA, CONFIG)]
    assert variants == [
        "default", "no_collaborative", "no_content", "no_7d", "no_30d", "no_pooled",
        "no_interests", "no_counts", "no_context", "no_profile", "no_onboarding",
    ]  # fmt: skip


def test_without_a_modality_none_of_its_vectors_is_left() -> None:
    left = _names(_ablation("no_content"))
    assert not any(name.startswith("content") for name in left)
    assert _names(SCHEMA) - left == {
        "content_7d", "content_interests_7d", "content_30d", "content_interests_30d",
        "content_onboarding",
    }  # fmt: skip


def test_without_a_modality_nothing_of_it_is_predicted_either() -> None:
    (_, variant) = find_study("ablations").choose(SCHEMA, CONFIG, ["no_content"])
    left = variant.predicted(future_schema(LAYOUT, (7,), "m1"))
    assert left is not None
    assert _names(left) == {
        "collaborative_next_7d", "collaborative_interests_next_7d", "counts_next_7d",
    }  # fmt: skip
    assert variant.predicted(None) is None


def test_without_a_window_its_counts_are_gone_too() -> None:
    left = _ablation("no_7d")
    assert not any(name.endswith("_7d") for name in _names(left))
    (counts,) = [b for b in left.blocks if b.kind == "counts" and b.name.startswith("counts")]
    # Four counts of 7 days stand first; the next four are of 30 days, then two recencies.
    assert (counts.offset, counts.width) == (4, 6)


def test_what_is_left_of_a_block_is_one_block_for_each_run() -> None:
    left = _ablation("no_30d")
    counts = [(b.offset, b.width) for b in left.blocks if b.name.startswith("counts_from")]
    assert counts == [(0, 4), (8, 2)]


def test_without_demographics_or_onboarding_no_block_of_the_view_is_left() -> None:
    assert _names(SCHEMA) - _names(_ablation("no_profile")) == {"profile_gender", "numbers"}
    assert _names(SCHEMA) - _names(_ablation("no_onboarding")) == {
        "collaborative_onboarding", "content_onboarding", "onboarding_count",
    }  # fmt: skip


def test_parts_that_would_be_everything_or_the_same_are_left_out() -> None:
    single = RawLayout((Modality("collaborative", 4, 3),), windows=(7,)).schema("m1")
    assert [part.name for part in parts_of(single)] == ["pooled", "interests", "counts"]


def test_the_variant_that_is_the_default_is_named_so_and_trained_once() -> None:
    default, *others = find_study("dimensions").variants(SCHEMA, CONFIG)
    assert (default.name, default.title, default.x) == (DEFAULT, "120 numbers (default)", 120)
    assert [v.name for v in others] == ["30d", "60d", "240d"]
    smaller = TrainingConfig(model=AutoencoderConfig(embedding_dim=60))
    assert [v.x for v in find_study("dimensions").variants(SCHEMA, smaller)] == [60, 30, 120, 240]


@pytest.mark.parametrize("name", STUDIES)
def test_names_of_a_study_are_unique_and_fit_for_files(name: str) -> None:
    variants = find_study(name).variants(SCHEMA, CONFIG)
    assert variants[0].name == DEFAULT
    assert len({v.name for v in variants}) == len(variants)
    assert all(
        v.name.replace("-", "").replace("_", "").replace(".", "").isalnum() for v in variants
    )


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_trains_something_else_than_the_default(name: str) -> None:
    default, *others = find_study(name).variants(SCHEMA, CONFIG)
    base = (default.schema(SCHEMA), default.config(CONFIG, 0), 0)
    for variant in others:
        assert (variant.schema(SCHEMA), variant.config(CONFIG, 0), variant.age_days) != base


def test_a_seed_goes_to_the_weights_and_the_order() -> None:
    config = Variant("x", "x", model={"noise_std": 0.5}).config(CONFIG, 7)
    assert (config.seed, config.model.seed, config.model.noise_std) == (7, 7, 0.5)
    assert config.batch_size == CONFIG.batch_size


def test_weighting_multiplies_the_weights_that_are_set() -> None:
    config = TrainingConfig(block_weights={"counts": 0.5})
    (_, variant) = find_study("weighting").choose(SCHEMA, config, ["3x_counts"])
    assert variant.config(config, 0).block_weights == {"counts": 1.5}


def test_unknown_study_and_variant_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"Unknown study 'nope'\. Studies: ablations, cadence"):
        find_study("nope")
    with pytest.raises(ValueError, match=r"has no variant 'no_podcasts'.*no_profile"):
        find_study("ablations").choose(SCHEMA, CONFIG, ["no_podcasts"])


@pytest.mark.parametrize(
    ("variant", "match"),
    [
        (Variant("x", "x", drop=("films",)), "drops films; blocks of the raw features"),
        (Variant("x", "x", drop_elements={"counts": (99,)}), r"elements \[99\]"),
        (Variant("x", "x", drop_elements={"content_7d": (0,)}), "a pooled block of width 2"),
        (Variant("x", "x", drop=tuple(b.name for b in SCHEMA.blocks)), "without blocks"),
    ],
)
def test_what_the_raw_features_do_not_have_cannot_be_dropped(variant: Variant, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        variant.schema(SCHEMA)
