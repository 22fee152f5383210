"""What a space came from, and what differs between two of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError
from encoder.kinds import GRAPH
from encoder.store import ArtifactStore
from materialize.config import RepoSettings, load_settings
from materialize.ledger import Space
from materialize.lineage import CHAIN_FACT, Chain, SpaceDiff, chain, compare_chains, diff_spaces
from materialize.template import init_repository
from tests.chains import SPECS, build_artifact, fit_encoders
from tests.repositories import space_of

DATA = {"dataset": "tiny", "windows": [7], "data_fingerprint": "0" * 12}


@pytest.fixture
def settings(tmp_path: Path) -> RepoSettings:
    init_repository(tmp_path / "repo", "simulated")
    return load_settings(tmp_path / "repo")


def store(settings: RepoSettings, number: int, artifact: EncoderArtifact) -> Space:
    ArtifactStore(settings.artifacts_url).save(artifact)
    return space_of(number, artifact.encoder_version)


def diff(settings: RepoSettings, one: EncoderArtifact, other: EncoderArtifact) -> SpaceDiff:
    return diff_spaces(settings, store(settings, 1, one), store(settings, 2, other))


def test_a_chain_is_derived_from_the_stored_artifact(settings: RepoSettings) -> None:
    artifact = build_artifact(fit_encoders(), dataset=DATA)
    found = chain(settings, store(settings, 3, artifact))
    assert (found.space, found.encoder_version) == (3, artifact.encoder_version)
    assert [part.kind for part in found.parts] == [
        *("data", "modality encoder", "modality encoder", "input schema", "preprocessing"),
        "autoencoder",
    ]
    assert found.figures["validation_loss"] == 0.4
    assert found.figures["block_errors.gender"] == 0.25
    assert found.figures["seconds"] == 1.5
    assert "numpy" in found.libraries
    assert found.trained_at == "2026-01-02T00:00:00+00:00"


def test_a_chain_survives_json_and_its_artifact(settings: RepoSettings) -> None:
    space = store(settings, 1, build_artifact(fit_encoders()))
    told = chain(settings, space)
    kept = json.loads(json.dumps(told.to_dict()))
    assert Chain.from_dict(kept) == told
    ArtifactStore(settings.artifacts_url).delete(space.encoder_version)
    with pytest.raises(ArtifactError, match="Unknown encoder version"):
        chain(settings, space)
    assert chain(settings, replace(space, facts={CHAIN_FACT: kept})) == told


def test_a_space_is_equal_to_itself(settings: RepoSettings) -> None:
    space = store(settings, 1, build_artifact(fit_encoders(), dataset=DATA))
    found = diff_spaces(settings, space, space)
    assert found.changes == ()
    assert found.anew == ()
    assert len(found.same) == 6
    assert found.untold == ()
    assert found.libraries == {}
    assert found.figures["epochs"] == (1, 1)


def test_a_new_autoencoder_is_named_alone_with_its_settings(settings: RepoSettings) -> None:
    encoders = fit_encoders()
    again: dict[str, Any] = build_artifact(encoders).manifest.training
    again = again | {"config": again["config"] | {"seed": 7}}
    found = diff(
        settings,
        build_artifact(encoders, dataset=DATA),
        build_artifact(encoders, 2.0, dataset=DATA, training=again),
    )
    (change,) = found.changes
    assert found.anew == ("autoencoder",)
    assert change.follows == ()
    assert change.settings == {"training.seed": (0, 7)}
    assert change.before != change.after
    assert "data tiny" in found.same


def test_what_follows_from_a_new_modality_encoder_is_told_apart_from_it(
    settings: RepoSettings,
) -> None:
    other = fit_encoders([replace(SPECS[0], clusters=2), SPECS[1]])
    found = diff(
        settings,
        build_artifact(fit_encoders(), dataset=DATA),
        build_artifact(other, 2.0, dataset=DATA),
    )
    assert found.anew == ("modality encoder collaborative",)
    assert [(c.part, c.follows) for c in found.changes[1:]] == [
        ("autoencoder", ("modality encoder collaborative",))
    ]
    assert found.changes[0].settings == {"clusters": (3, 2)}
    assert "modality encoder content" in found.same


def test_a_modality_that_only_one_space_has_is_a_change(settings: RepoSettings) -> None:
    alone = fit_encoders(SPECS[:1])
    found = diff(settings, build_artifact(fit_encoders()), build_artifact(alone))
    (gone,) = (c for c in found.changes if c.part == "modality encoder content")
    assert gone.after is None
    assert gone.before is not None


def test_data_without_a_fingerprint_are_neither_equal_nor_changed(settings: RepoSettings) -> None:
    encoders = fit_encoders()
    told = build_artifact(encoders, dataset=DATA)
    untold = build_artifact(encoders, 2.0)
    assert diff(settings, told, untold).untold == ("data tiny",)
    assert diff(settings, untold, untold).untold == ("data tiny",)
    later = build_artifact(
        encoders, 3.0, training={**untold.manifest.training, "n_training_rows": 9}
    )
    found = diff(settings, untold, later)
    assert found.anew == ("data tiny",)
    assert found.changes[0].settings == {"n_training_rows": (90, 9)}
    assert found.changes[-1].follows == ("data tiny",)


def test_other_data_is_one_change_and_not_two(settings: RepoSettings) -> None:
    encoders = fit_encoders()
    one = build_artifact(encoders, dataset=DATA)
    other = build_artifact(encoders, 2.0, dataset=DATA | {"dataset": "large"})
    found = compare_chains(
        chain(settings, store(settings, 1, one)), chain(settings, store(settings, 2, other))
    )
    assert [change.part for change in found.changes] == ["autoencoder"]
    assert "data tiny -> data large" in found.same


def test_a_diff_is_json(settings: RepoSettings) -> None:
    encoders = fit_encoders()
    found = diff(settings, build_artifact(encoders), build_artifact(encoders, 2.0))
    told = json.loads(json.dumps(found.to_dict()))
    assert told["anew"] == ["autoencoder"]
    assert told["changes"][0]["settings"] == {}


def test_an_int8_space_differs_from_its_float32_one_in_the_quantisation_alone(
    settings: RepoSettings,
) -> None:
    encoders = fit_encoders()
    exact = build_artifact(encoders, dataset=DATA)
    int8 = build_artifact(
        encoders,
        dataset=DATA,
        graphs={GRAPH: b"another graph"},
        model={**exact.manifest.model, "precision": "int8"},
        training={**exact.manifest.training, "quantisation": {"calibration_rows": 9}},
    )
    found = diff(settings, exact, int8)
    (change,) = found.changes
    assert (change.part, change.before, change.follows) == ("quantisation", None, ())
    assert change.settings == {"precision": (None, "int8"), "calibration_rows": (None, 9)}
    assert found.anew == ("quantisation",)
    assert len(found.same) == 6
    trained = build_artifact(fit_encoders(), weight=2.0, dataset=DATA)
    back = diff(settings, int8, trained)
    assert [(c.part, c.follows) for c in back.changes] == [
        ("autoencoder", ()), ("quantisation", ("autoencoder",)),
    ]  # fmt: skip
