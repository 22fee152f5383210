"""The hybrid encoder: the vector of texts is one more block, for whom there are texts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact
from encoder.clue.serving import COLD, KEPT_ITEMS
from encoder.columns import ArrayColumn, RawBatch
from encoder.decoding import decode_taste
from encoder.errors import ArtifactError, MalformedInput, SpaceMismatch
from encoder.hybrid.artifact import compose_hybrid, require_same_embeddings
from encoder.hybrid.inputs import VECTOR, HybridInputs, blocks_schema, texts_schema
from encoder.hybrid.serving import PREFIX
from encoder.kinds import kind_of
from encoder.manifest import AUTOENCODER, CLUE, HYBRID
from encoder.preprocessing import Preprocessor
from encoder.quantisation import embedding_difference, quantise
from tests.encoders import HYBRID_SCHEMA, SCHEMA, VectorState, tiny
from tests.strategies import VERSION, batches, random_batch, take

(TOKENS,) = HYBRID_SCHEMA.token_columns
TEXTS_COLUMN = HYBRID_SCHEMA.modality_columns[-1]
OTHER = "fedcba987654"
DIM = 8
"""Of a vector of texts."""


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny(HYBRID)


def _inputs(artifact: EncoderArtifact) -> HybridInputs:
    found = artifact.preprocessor
    assert isinstance(found, HybridInputs)
    return found


def _batch(n: int, seed: int = 0) -> RawBatch:
    return random_batch(HYBRID_SCHEMA, n, seed=seed, present=1.1)


def _warm(batch: RawBatch) -> npt.NDArray[np.bool_]:
    column = batch.columns[TOKENS]
    warm: npt.NDArray[np.bool_] = column.valid & column.values.any(axis=1)
    return warm


def _without_texts(batch: RawBatch) -> RawBatch:
    column = batch.columns[TOKENS]
    nothing = replace(column, valid=np.zeros(batch.n_rows, np.bool_))
    return replace(batch, columns={**batch.columns, TOKENS: nothing})


def _with_vectors(batch: RawBatch, vectors: ArrayColumn) -> RawBatch:
    return replace(batch, columns={**batch.columns, VECTOR: vectors})


def _by_hand(artifact: EncoderArtifact, batch: RawBatch) -> Any:
    """Encode with the two parts: the vectors as a column, and an autoencoder that reads it."""
    parts, inputs = tiny(CLUE), _inputs(artifact)
    vectors = parts.encode_inputs(inputs.texts.transform(batch))
    raw = _with_vectors(batch, ArrayColumn(vectors, _warm(batch)))
    known = inputs.blocks.transform(raw)
    session = artifact._session("encoder.onnx", 1)
    (embedding,) = session.run(["embedding"], {"inputs": known})
    return embedding


# --- numbers


@given(st.data())
def test_an_embedding_is_the_autoencoders_of_blocks_and_vector(
    artifact: EncoderArtifact, data: st.DataObject
) -> None:
    batch = data.draw(batches(HYBRID_SCHEMA))
    np.testing.assert_allclose(
        artifact.encode(batch), _by_hand(artifact, batch), rtol=1e-5, atol=1e-5
    )


def test_texts_change_the_embedding_and_only_of_those_who_have_any(
    artifact: EncoderArtifact,
) -> None:
    batch = _batch(60)
    differ = (artifact.encode(batch) != artifact.encode(_without_texts(batch))).any(axis=1)
    assert np.array_equal(differ, _warm(batch))
    assert 0 < differ.sum() < 60


def test_who_has_no_texts_lacks_the_block_and_is_not_the_mean_user(
    artifact: EncoderArtifact,
) -> None:
    batch, inputs = _batch(20), _inputs(artifact)
    nothing = ArrayColumn(np.zeros((20, DIM), np.float32), np.zeros(20, np.bool_))
    mean = np.tile(artifact.weights[PREFIX + COLD], (20, 1))
    absent, everybody = (
        inputs.blocks.transform(_with_vectors(batch, vectors))
        for vectors in (nothing, ArrayColumn(mean, np.ones(20, np.bool_)))
    )
    found = artifact.encode(_without_texts(batch))
    session = artifact._session("encoder.onnx", 1)
    (expected,) = session.run(["embedding"], {"inputs": absent})
    (other,) = session.run(["embedding"], {"inputs": everybody})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert not np.allclose(found, other, atol=1e-3)


@given(st.data())
def test_an_embedding_does_not_depend_on_company(
    artifact: EncoderArtifact, data: st.DataObject
) -> None:
    batch = data.draw(batches(HYBRID_SCHEMA, min_rows=2))
    whole = artifact.encode(batch)
    for row in range(batch.n_rows):
        alone = artifact.encode(take(batch, slice(row, row + 1)))
        np.testing.assert_allclose(alone[0], whole[row], rtol=1e-5, atol=1e-5)


def test_item_vectors_are_kept_as_the_contrastive_encoder_says(artifact: EncoderArtifact) -> None:
    said = tiny(CLUE).manifest.model[KEPT_ITEMS]
    assert artifact.manifest.model[KEPT_ITEMS] == said
    few = artifact.manifest.model | {KEPT_ITEMS: 2}
    fresh = replace(artifact, manifest=replace(artifact.manifest, model=few), _sessions={})
    fresh.encode(_batch(40))
    assert len(fresh._runner._texts._kept) == 2  # type: ignore[attr-defined]


def test_no_row_and_no_token_at_all_are_encoded(artifact: EncoderArtifact) -> None:
    batch = _batch(3)
    assert artifact.encode(take(batch, slice(0, 0))).shape == (0, DIM)
    columns = {
        **batch.columns,
        TOKENS: replace(
            batch.columns[TOKENS],
            values=np.zeros((3, 0), np.int32),
        ),
    }
    found = artifact.encode(replace(batch, columns=columns))
    np.testing.assert_allclose(found, artifact.encode(_without_texts(batch)), rtol=0, atol=1e-6)


def test_inputs_hold_both_parts_and_split_into_them(artifact: EncoderArtifact) -> None:
    batch, inputs = _batch(30), _inputs(artifact)
    found = inputs.transform(batch)
    known, tokens = inputs.split(found)
    assert np.array_equal(tokens, batch.columns[TOKENS].values)
    assert found.shape[1] <= inputs.n_inputs
    plain = inputs.place
    assert not known[:, plain.start : plain.stop].any()
    assert not known[:, plain.mask].any()
    before = found.copy()
    known[:] = 7.0
    assert np.array_equal(found, before), "a split is a copy"


def test_time_events_and_status_come_from_all_that_is_read(artifact: EncoderArtifact) -> None:
    batch = random_batch(HYBRID_SCHEMA, 40, present=0.5)
    newest = np.zeros(40, np.int64)
    for name in HYBRID_SCHEMA.as_of_columns:
        column = batch.columns[name]
        newest = np.maximum(newest, np.where(column.valid, column.values, 0))
    found = artifact.preprocessor.summary(batch)
    assert found.as_of.tolist() == newest.tolist()
    blocks = Preprocessor.fit(SCHEMA, [batch]).summary(batch)
    assert found.status.tolist() == blocks.status.tolist()
    assert found.n_events.tolist() == blocks.n_events.tolist()


def test_the_decoder_tells_tastes_as_the_autoencoders_does(artifact: EncoderArtifact) -> None:
    embedding, blocks = artifact.encode(_batch(5)), _blocks_alone(artifact)
    found = decode_taste(artifact, embedding, "collaborative_7d")
    assert np.array_equal(found, decode_taste(blocks, embedding, "collaborative_7d"))


# --- what is refused


def test_a_row_with_tokens_that_are_none_is_refused_by_name(artifact: EncoderArtifact) -> None:
    batch = _batch(3)
    batch.columns[TOKENS].values[1, 0] = 1_000_000
    with pytest.raises(MalformedInput, match=r"Row 1 \(user-1\).*a token id outside"):
        artifact.encode(batch)


def test_a_row_with_a_negative_count_is_refused_by_name(artifact: EncoderArtifact) -> None:
    batch = _batch(3)
    batch.columns[SCHEMA.event_count.column].values[2, 0] = -1.0
    with pytest.raises(MalformedInput, match=r"Row 2 \(user-2\).*a negative value"):
        artifact.encode(batch)


@pytest.mark.parametrize("column", HYBRID_SCHEMA.modality_columns)
def test_features_of_another_version_are_refused(artifact: EncoderArtifact, column: str) -> None:
    batch = _batch(2)
    batch.columns[column].values[1] = OTHER
    with pytest.raises(SpaceMismatch, match=f"Row 1 .*'{column}'.*'{OTHER}' given"):
        artifact.encode(batch)


def test_texts_have_a_version_of_their_own() -> None:
    """Rows of two versions are read where each column has its own, and no other way round."""
    texts = replace(texts_schema(HYBRID_SCHEMA), modality_version=OTHER)
    schema = SCHEMA.with_texts(texts)
    inputs = _inputs(tiny(HYBRID))
    own = blocks_schema(schema, DIM)
    made = HybridInputs(
        schema,
        Preprocessor.from_state(own, *inputs.blocks.state()),
        type(inputs.texts).from_state(texts_schema(schema), *inputs.texts.state()),
    )
    batch = random_batch(schema, 2, present=1.1)
    assert batch.columns[TEXTS_COLUMN].values.tolist() == [OTHER] * 2
    assert len(made.transform(batch)) == 2
    batch.columns[TEXTS_COLUMN].values[:] = VERSION
    with pytest.raises(SpaceMismatch, match=f"'{VERSION}' given, .* on '{OTHER}'"):
        made.transform(batch)


@pytest.mark.parametrize("texts", [OTHER, None])
def test_item_texts_of_another_version_make_no_artifact(
    artifact: EncoderArtifact, texts: str | None
) -> None:
    with pytest.raises(ArtifactError, match=f"version {texts!r} given, .* for '{VERSION}'"):
        _rebuilt(artifact, modality=VectorState(texts_version=texts))


def test_parts_that_do_not_fit_together_are_refused(artifact: EncoderArtifact) -> None:
    modality = VectorState(texts_version=VERSION)
    with pytest.raises(ArtifactError, match="do not fit together: The preprocessor's blocks"):
        compose_hybrid(tiny(AUTOENCODER), tiny(CLUE), HYBRID_SCHEMA, modality)
    with pytest.raises(ArtifactError, match="of kind 'denoising_autoencoder' and float32; 'clue'"):
        compose_hybrid(tiny(AUTOENCODER), tiny(AUTOENCODER), HYBRID_SCHEMA, modality)
    arrays, config = _inputs(artifact).state()
    for wrong in ({"vector_width": DIM + 1}, {"texts": {"vocabulary": 9}}):
        with pytest.raises(ArtifactError, match="does not fit the schema"):
            HybridInputs.from_state(HYBRID_SCHEMA, arrays, config | wrong)
    with pytest.raises(ArtifactError, match="does not fit the schema"):
        HybridInputs.from_state(SCHEMA, arrays, config)


def test_inputs_of_another_kind_are_refused(artifact: EncoderArtifact) -> None:
    kind, model = kind_of(artifact.manifest.model), artifact.manifest.model
    with pytest.raises(ArtifactError, match="those of a hybrid encoder expected"):
        kind.runner(artifact._session, model, artifact.weights, _inputs(artifact).blocks)


def test_training_rows_with_other_vectors_are_found_out(artifact: EncoderArtifact) -> None:
    blocks = _blocks_alone(artifact)
    batch = _batch(20)
    vectors = tiny(CLUE).encode_inputs(_inputs(artifact).texts.transform(batch))
    require_same_embeddings(
        artifact, _with_vectors(batch, ArrayColumn(vectors, _warm(batch))), blocks
    )
    wrong = ArrayColumn(vectors[::-1].copy(), _warm(batch))
    with pytest.raises(ArtifactError, match="vectors of another contrastive encoder"):
        require_same_embeddings(artifact, _with_vectors(batch, wrong), blocks)


# --- the version


@pytest.mark.parametrize(
    "name",
    ["encoder.0.weight", "clue.item.tokens.weight", "clue.service.project.bias", PREFIX + COLD],
)
def test_the_version_changes_with_each_part(artifact: EncoderArtifact, name: str) -> None:
    assert _touched(artifact, name).encoder_version != artifact.encoder_version


@pytest.mark.parametrize("name", ["decoder.0.weight", "clue.log_scale"])
def test_the_version_does_not_change_with_what_only_training_needs(
    artifact: EncoderArtifact, name: str
) -> None:
    assert _touched(artifact, name).encoder_version == artifact.encoder_version


def _touched(artifact: EncoderArtifact, name: str) -> EncoderArtifact:
    weights = {k: v.copy() for k, v in artifact.weights.items()}
    weights[name].flat[0] = np.nextafter(weights[name].flat[0], np.float32(9))
    return _rebuilt(artifact, weights=weights)


def _rebuilt(artifact: EncoderArtifact, **changes: Any) -> EncoderArtifact:
    manifest = artifact.manifest
    moment = datetime.fromisoformat(manifest.created_at)
    same: dict[str, Any] = {
        "preprocessor": artifact.preprocessor,
        "weights": artifact.weights,
        "graphs": artifact.graphs,
        "modality": artifact.modality,
        "model": manifest.model,
        "dataset": manifest.dataset,
        "data_cutoff": moment,
        "training": manifest.training,
        "created_at": moment,
    }
    return EncoderArtifact.build(**same | changes)


def _blocks_alone(artifact: EncoderArtifact) -> EncoderArtifact:
    """Return the autoencoder that a hybrid encoder was made of."""
    return _rebuilt(
        artifact,
        preprocessor=_inputs(artifact).blocks,
        weights={k: v for k, v in artifact.weights.items() if not k.startswith(PREFIX)},
        graphs={"encoder.onnx": artifact.graphs["encoder.onnx"]},
        model=artifact.manifest.model | {"kind": AUTOENCODER},
    )


# --- int8


def test_all_three_graphs_have_an_int8_form_that_answers_a_row_alike_in_any_company(
    artifact: EncoderArtifact,
) -> None:
    int8 = quantise(artifact, artifact.preprocessor.transform(_batch(300)))
    assert int8.encoder_version != artifact.encoder_version
    assert all(int8.graphs[name] != graph for name, graph in artifact.graphs.items())
    batch = _batch(200, seed=8)
    found = embedding_difference(artifact, int8, artifact.preprocessor.transform(batch))
    assert 0.0 < found.cosine_error_mean < 5e-3
    whole = int8.encode(batch)
    for row in range(20):
        alone = replace(int8).encode(take(batch, slice(row, row + 1)))
        np.testing.assert_allclose(alone[0], whole[row], rtol=0, atol=1e-6)
    with pytest.raises(ArtifactError, match="and int8; 'clue' and float32 expected"):
        compose_hybrid(
            _blocks_alone(artifact),
            replace(tiny(CLUE), manifest=replace(tiny(CLUE).manifest, model=_int8())),
            HYBRID_SCHEMA,
            VectorState(texts_version=VERSION),
        )


def _int8() -> dict[str, Any]:
    return tiny(CLUE).manifest.model | {"precision": "int8"}
