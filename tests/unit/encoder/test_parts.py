"""Every artifact tells what it was made of, and which part two artifacts share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError
from encoder.modality import Items, ItemVectors, ModalityEncoders
from encoder.parts import Part, artifact_parts, modality_parts
from encoder.store import ArtifactStore
from tests.chains import N_ITEMS, SPECS, TAGS, build_artifact, fit_encoders
from tests.encoders import tiny_artifact as fake_modalities


def versions(parts: list[Part]) -> dict[str, str]:
    return {part.label: part.version for part in parts}


def changed(one: EncoderArtifact, other: EncoderArtifact) -> set[str]:
    first, second = versions(artifact_parts(one)), versions(artifact_parts(other))
    assert set(first) == set(second)
    return {label for label in first if first[label] != second[label]}


def test_the_parts_go_from_data_to_autoencoder() -> None:
    parts = artifact_parts(build_artifact(fit_encoders()))
    assert [part.label for part in parts] == [
        "data tiny",
        "modality encoder collaborative",
        "modality encoder content",
        "input schema",
        "preprocessing",
        "autoencoder",
    ]
    assert all(len(part.version) == 12 for part in parts[1:])
    assert parts[0].version == "", "no fingerprint of the data was recorded"
    assert parts[0].settings["cutoff"] == "2026-01-01T00:00:00+00:00"
    assert parts[0].settings["n_training_rows"] == 90
    assert parts[1].settings == {
        **{"dim": 4, "clusters": 3, "cutoff": "2026-01-01T00:00:00+00:00", "seed": 0},
        **{"max_session_items": 300},
    }
    assert parts[2].settings["encoder"] == "tfidf_svd"
    assert parts[5].settings["training.block_weights.gender"] == 2.0
    assert parts[5].settings["model.noise_std"] == 0.1


def test_a_recorded_fingerprint_is_the_version_of_the_data() -> None:
    facts = {"dataset": "tiny", "data_fingerprint": "0123456789ab"}
    assert (
        artifact_parts(build_artifact(fit_encoders(), dataset=facts))[0].version == "0123456789ab"
    )


def test_the_space_that_a_training_stays_compatible_with_is_a_setting_of_it() -> None:
    facts = {"dataset": "tiny", "compatibility": {"space": 1, "weight": 0.5}}
    settings = artifact_parts(build_artifact(fit_encoders(), dataset=facts))[-1].settings
    assert settings["compatibility.space"] == 1
    assert settings["compatibility.weight"] == 0.5


def test_what_a_training_predicts_is_a_setting_of_it() -> None:
    facts = {"dataset": "tiny", "predicted": ["counts_next_7d"]}
    settings = artifact_parts(build_artifact(fit_encoders(), dataset=facts))[-1].settings
    assert settings["training.predicted"] == ["counts_next_7d"]
    without = artifact_parts(build_artifact(fit_encoders(), dataset={"dataset": "tiny"}))[-1]
    assert "training.predicted" not in without.settings


def test_other_weights_change_the_autoencoder_alone() -> None:
    modalities = fit_encoders()
    assert changed(build_artifact(modalities), build_artifact(modalities, weight=2.0)) == {
        "autoencoder"
    }


def test_the_decoder_is_part_of_the_autoencoder_though_not_of_the_version() -> None:
    modalities = fit_encoders()
    weights = {"encoder.w": np.ones(3, np.float32), "decoder.w": np.ones(2, np.float32)}
    one = build_artifact(modalities, weights=weights)
    other = build_artifact(modalities, weights=weights | {"decoder.w": np.zeros(2, np.float32)})
    assert one.encoder_version == other.encoder_version
    assert changed(one, other) == {"autoencoder"}


def test_another_modality_encoder_leaves_the_others_and_the_layout() -> None:
    other = fit_encoders([replace(SPECS[0], clusters=2), SPECS[1]])
    first, second = (versions(modality_parts(m)) for m in (fit_encoders(), other))
    assert first["modality encoder collaborative"] != second["modality encoder collaborative"]
    assert first["modality encoder content"] == second["modality encoder content"]
    assert changed(build_artifact(fit_encoders()), build_artifact(other)) == {
        "modality encoder collaborative"
    }


def test_a_larger_catalogue_changes_no_part() -> None:
    small = fit_encoders(n_items=11)
    grown = small.with_new_items(Items(pa.array(range(N_ITEMS)), ["about"] * N_ITEMS, TAGS))
    assert len(grown.item_ids) == 12
    assert modality_parts(grown) == modality_parts(small)


def test_other_items_with_the_same_vectors_are_another_encoder() -> None:
    one = fit_encoders()
    other = ModalityEncoders(
        pa.array(range(100, 100 + N_ITEMS)), one.modalities, one.fitted, one.config, one.content
    )
    first, second = (versions(modality_parts(m)) for m in (one, other))
    assert all(first[label] != second[label] for label in first)


def test_a_text_model_is_known_by_its_files_not_by_its_folder() -> None:
    from encoder.content import SentenceEncoder

    def told(folder: str, digest: str) -> Part:
        vectors = ItemVectors(
            "content", np.eye(2, dtype=np.float32), np.zeros(2, np.int32), 1,
            np.eye(1, 2, dtype=np.float32),
        )  # fmt: skip
        content = SentenceEncoder(folder, digest, 2, np.eye(2, dtype=np.float32))
        fit = {"cutoff": "2026-01-01", "seed": 0, "max_session_items": 300}
        made = ModalityEncoders(pa.array([1, 2]), (vectors,), np.ones(2, bool), fit, content)
        return modality_parts(made)[0]

    assert told("/here", "aa") == told("/there", "aa")
    assert told("/here", "aa").version != told("/here", "bb").version
    assert told("/here", "aa").settings["digest"] == "aa"


def test_the_parts_of_a_stored_artifact_are_those_it_was_built_with(tmp_path: Path) -> None:
    built = build_artifact(fit_encoders())
    store = ArtifactStore(str(tmp_path))
    store.save(built)
    assert artifact_parts(store.load(built.encoder_version)) == artifact_parts(built)


def test_what_are_no_modality_encoders_is_refused() -> None:
    with pytest.raises(ArtifactError, match="Modality encoders of format None"):
        artifact_parts(fake_modalities())
