"""Which encoders are compared, and what is made of their figures, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from benchmarks._transfer_judge import Judged, together
from benchmarks._transfer_mlp import begins_a_service
from benchmarks._transfer_plan import DATASETS, VARIANTS, Network, Variant, chosen, config
from benchmarks._transfer_repo import Trained
from benchmarks._transfer_results import markdown, mean_over_encoders, summarise
from encoder.resampling import Replicates
from materialize.evaluate.measurement import Measurement

_SERVICES = VARIANTS[0]
_CROPS = next(v for v in VARIANTS if v.name == "crops")


def _measured(model: str, seed: int, value: float) -> Measurement:
    replicates = value + np.array([-0.1, 0.0, 0.1])
    return Measurement("probe", "auc_micro", "all", model, seed, value, replicates, 4, 8)


def _trained(variant: str, seed: int, space: int) -> Trained:
    return Trained("repo", variant, seed, space, f"v{space}", 100, 3, 1.5, 60.0)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_settings_differ_by_variant_and_seed_only(variant: Variant) -> None:
    found = config("datasets/x.yaml", DATASETS[1], Network(width=32), 2, variant, 7)
    assert found["seed"] == 2
    assert found["encoder"] == variant.encoder
    if variant.positives:
        assert found["clue"]["width"] == 32
        assert found["clue_training"]["positives"] == variant.positives
        assert found["clue_training"]["batch_size"] == 64
        assert found["clue_training"]["warmup_steps"] == 20
    else:
        assert found["training"]["max_rows"] == Network().max_rows
    assert "{space}" not in str(found)


def test_a_variant_is_told_the_space_that_it_needs() -> None:
    hybrid = next(v for v in VARIANTS if v.name == "hybrid")
    found = config("datasets/x.yaml", DATASETS[0], Network(), 0, hybrid, 7)
    assert found["hybrid"] == {"space": 7}
    untrained = next(v for v in VARIANTS if v.name == "untrained")
    section = config("datasets/x.yaml", DATASETS[0], Network(), 0, untrained)["clue_training"]
    assert (section["max_steps"], section["batch_size"]) == (1, 64)


def test_raw_features_are_of_no_variant() -> None:
    found = config("datasets/x.yaml", DATASETS[0], Network())
    assert found == {"dataset": "datasets/x.yaml", "data_dir": "data", "seed": 0}


def test_every_variant_stands_behind_the_one_that_it_needs() -> None:
    names = [v.name for v in VARIANTS]
    assert all(names.index(v.needs) < k for k, v in enumerate(VARIANTS) if v.needs is not None)


def test_chosen_keeps_the_order_and_asks_for_what_is_needed() -> None:
    assert [v.name for v in chosen(["crops", "services"], VARIANTS)] == ["services", "crops"]
    assert chosen(None, VARIANTS) == list(VARIANTS)
    with pytest.raises(ValueError, match="Unknown variant 'x'"):
        chosen(["x"], VARIANTS)
    with pytest.raises(ValueError, match="'hybrid' given without 'services'"):
        chosen(["hybrid"], VARIANTS)


def test_mean_over_encoders_is_one_of_each_resample() -> None:
    one, other = Replicates(0.6, np.array([0.5, 0.7])), Replicates(0.8, np.array([0.9, 0.7]))
    mean = mean_over_encoders([one, other])
    assert mean.value == pytest.approx(0.7)
    assert mean.replicates.tolist() == pytest.approx([0.7, 0.7])
    with pytest.raises(ValueError, match="0 encoders"):
        mean_over_encoders([])
    with pytest.raises(ValueError, match=r"\[1, 2\] resamples"):
        mean_over_encoders([one, Replicates(0.8, np.array([0.9]))])


def test_figures_are_means_over_both_kinds_of_seeds_and_differences_are_paired() -> None:
    trained = [
        _trained("services", 0, 1),
        _trained("services", 1, 2),
        _trained("crops", 0, 3),
        _trained("crops", 1, 4),
    ]
    values = {f"repo space_{k}": v for k, v in enumerate((0.6, 0.7, 0.5, 0.5), 1)}
    values["popularity"] = 0.4
    measured = [
        _measured(model, seed, value + 0.02 * seed)  # .01 more over the seeds of the head
        for model, value in values.items()
        for seed in (0, 1)
    ]
    cohort = {"horizon_days": 30, "test_rows": 8}
    network = [
        _measured(model, 0, value + 0.1) for model, value in values.items() if model != "popularity"
    ]
    found = summarise(
        "made_up",
        [_SERVICES, _CROPS],
        trained,
        Judged(measured, network, cohort, 1.0, {"coles": "none"}),
    )
    services, crops, popularity = found["models"]
    assert [m["name"] for m in found["models"]] == ["services", "crops", "popularity"]
    assert services["by_encoder_seed"] == pytest.approx([0.61, 0.71])
    assert services["value"] == pytest.approx(0.66)
    # Percentiles 2.5 and 97.5 of .56, .66, .76, linear between: .56 + .05 * .1 and so on.
    assert (services["low"], services["high"]) == pytest.approx((0.565, 0.755))
    assert services["encoder_spread"] == pytest.approx(0.1 / 2**0.5)
    assert services["against_reference"] is None
    # The resamples move both alike: nothing is left of their spread.
    difference = crops["against_reference"]["difference"]
    assert list(difference.values()) == pytest.approx([-0.15] * 3)
    assert crops["against_reference"]["p"] == pytest.approx(2 / 4)
    assert crops["against_reference"]["p_holm"] == pytest.approx(1.0)
    assert popularity["kind"] == "baseline"
    assert popularity["by_encoder_seed"] == []
    assert popularity["encoder_spread"] is None
    assert set(found["network"]) == {"all"}
    under = found["network"]["all"]
    assert under["services"]["value"] == pytest.approx(0.75)
    assert under["crops"]["against_reference"]["difference"]["value"] == pytest.approx(-0.15)
    lines = markdown(found).splitlines()
    assert lines[4].startswith("| contrast between services | 0.660 [0.565, 0.755] | 0.610, 0.710")
    told = "| -0.150 [-0.150, -0.150] | 1.000 | 0.600 | -0.150 [-0.150, -0.150] |  |  |"
    assert lines[5].endswith(told)


def test_a_hybrid_is_compared_with_what_it_adds_to() -> None:
    variants = [v for v in VARIANTS if v.name in ("services", "autoencoder", "hybrid")]
    trained = [_trained(v.name, 0, k) for k, v in enumerate(variants, 1)]
    values = {"repo space_1": 0.5, "repo space_2": 0.7, "repo space_3": 0.72}
    measured = [_measured(model, 0, value) for model, value in values.items()]
    network = [_measured(model, 0, value + 0.1) for model, value in values.items()]
    cohort = {"horizon_days": 30, "test_rows": 8}
    found = summarise("x", variants, trained, Judged(measured, network, cohort, 1.0, {}))
    told = found["beside"]
    assert [(t["name"], t["than"], t["group"]) for t in told] == [
        ("hybrid", "autoencoder", None),
        ("hybrid", "autoencoder", "all"),
    ]
    assert told[0]["difference"]["value"] == pytest.approx(0.02)
    assert "linear head: +0.020 [+0.020, +0.020]" in markdown(found)
    # Without the one there is nothing to compare with.
    alone = [v for v in variants if v.name != "autoencoder"]
    spaces = [one for one in trained if one.variant != "autoencoder"]
    kept = [m for m in measured if m.model != "repo space_2"]
    assert summarise("x", alone, spaces, Judged(kept, network, cohort, 1.0, {}))["beside"] == []


def test_hard_negatives_are_compared_with_and_without_them_on_the_other_side() -> None:
    names = ("services", "crops", "hard_services", "hard_crops")
    variants = [v for v in VARIANTS if v.name in names]
    trained = [_trained(v.name, 0, k) for k, v in enumerate(variants, 1)]
    values = {"services": 0.5, "crops": 0.6, "hard_services": 0.72, "hard_crops": 0.69}
    measured = [_measured(one.model, 0, values[one.variant]) for one in trained]
    cohort = {"horizon_days": 30, "test_rows": 8}
    told = summarise("x", variants, trained, Judged(measured, [], cohort, 1.0, {}))["beside"]
    found = {(t["name"], t["than"]): t["difference"]["value"] for t in told}
    assert found == {
        ("hard_services", "crops"): pytest.approx(0.12),
        ("hard_services", "hard_crops"): pytest.approx(0.03),
        ("hard_crops", "crops"): pytest.approx(0.09),
    }


def test_figures_of_two_repositories_are_of_the_same_users() -> None:
    mlp = _measured("repo space_1", 0, 0.7)
    first = [_measured("popularity", 0, 0.4), _measured("repo space_1", 0, 0.6)]
    own = Judged(first, [mlp], {}, 1.0, {})
    there = [_measured("popularity", 0, 0.4), _measured("repo-of-x space_1", 0, 0.5)]
    found = together(own, Judged(there, [], {}, 2.0, {}))
    models = [m.model for m in found.measurements]
    assert models == ["popularity", "repo space_1", "repo-of-x space_1"]
    assert found.seconds == 3.0
    assert found.network == [mlp]
    others = Judged([_measured("popularity", 0, 0.41), there[1]], [], {}, 2.0, {})
    with pytest.raises(ValueError, match="judge on other users"):
        together(own, others)


def test_who_begins_a_service_has_a_past_without_it() -> None:
    services = sparse.csr_array(np.array([[1, 0], [1, 0], [0, 1], [1, 1]]))
    history = sparse.csr_array(np.array([[2.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]))
    future = sparse.csr_array(np.array([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]))
    # From the first service to the second; stays; no past; the item is in both services.
    assert begins_a_service(history, future, services).tolist() == [True, False, False, False]
