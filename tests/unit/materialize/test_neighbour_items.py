"""Items near users: the decoder in numpy is torch's, and it leads to what users really consume."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.decoding import decode_taste
from encoder.errors import ArtifactError
from materialize.neighbours.items import ItemNeighbours
from tests.encoders import tiny_artifact
from tests.tastes import DIM, ITEMS, SEGMENTS, USERS, World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_decoder_is_that_of_torch() -> None:
    artifact = tiny_artifact(3)
    network = DenoisingAutoencoder(
        artifact.preprocessor.input_slices, AutoencoderConfig(8, (16,), seed=3)
    )
    embedding = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    with torch.inference_mode():
        values = network.decoder(torch.from_numpy(embedding)).numpy()
    block = artifact.preprocessor.input_slices[0]
    assert (block.name, block.kind) == ("collaborative_7d", "pooled")
    state, _ = artifact.preprocessor.state()
    where = slice(block.start, block.stop)
    expected = values[:, where] * state["scale"][where]
    np.testing.assert_allclose(
        decode_taste(artifact, embedding, block.name), expected, rtol=1e-5, atol=1e-6
    )


def test_what_cannot_be_decoded_is_refused() -> None:
    artifact = tiny_artifact()
    embedding = np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match="'counts' given, a pooled one expected: collaborative_7d"):
        decode_taste(artifact, embedding, "counts")
    with pytest.raises(ValueError, match=r"\(n, 8\) expected"):
        decode_taste(artifact, embedding[:, :3], "collaborative_7d")
    weights = {n: w for n, w in artifact.weights.items() if not n.startswith("decoder.")}
    with pytest.raises(ArtifactError, match="no decoder"):
        decode_taste(replace(artifact, weights=weights), embedding, "collaborative_7d")


@pytest.mark.parametrize(("lost", "refused"), [(0.99, False), (1.0, True), (1.25, True)])
def test_a_decoder_that_has_learned_nothing_is_refused(lost: float, refused: bool) -> None:
    artifact = tiny_artifact()
    record = {"block_errors": {"collaborative_7d": lost}}
    training = artifact.manifest.training | {"history": [record], "best_epoch": 1}
    unlearned = replace(artifact, manifest=replace(artifact.manifest, training=training))
    with pytest.raises(ArtifactError, match="has learned nothing") if refused else nullcontext():
        decode_taste(unlearned, np.zeros((1, 8), np.float32), "collaborative_7d")


def test_items_near_users_are_of_their_taste(world: World) -> None:
    items = ItemNeighbours(world.artifact)
    ids, cosine = items.search(items.tastes(world.embedding), 20)
    assert ids.shape == (USERS, 20)
    assert (np.diff(cosine, axis=1) <= 0).all()
    position = np.char.replace(ids.astype(str), "item ", "").astype(int)  # (n, 20)

    def own(found: npt.NDArray[np.int64]) -> float:
        return float((world.item_segment[found] == world.user_segment[:, None]).mean())

    popular = np.argsort(-world.consumed.sum(axis=0))[:20]
    shuffled = position[np.random.default_rng(1).permutation(USERS)]
    assert own(position) > 0.75
    assert own(np.tile(popular, (USERS, 1))) < 0.35
    assert own(shuffled) < 0.35  # chance is 0.25


def test_the_mean_taste_of_an_audience_is_of_its_segment(world: World) -> None:
    items = ItemNeighbours(world.artifact, "collaborative")
    for segment in range(SEGMENTS):
        tastes = items.tastes(world.embedding[world.user_segment == segment])
        ids, _ = items.search(tastes.mean(axis=0, keepdims=True), 10)
        own = [world.item_segment[int(i.removeprefix("item "))] for i in ids[0]]
        assert np.mean(np.array(own) == segment) >= 0.8


def test_items_without_a_vector_are_near_nobody(world: World) -> None:
    items = ItemNeighbours(world.artifact)
    assert items.count == ITEMS - 3
    ids, _ = items.search(items.tastes(world.embedding[:1]), 10_000)
    assert ids.shape == (1, ITEMS - 3)
    assert not set(ids[0]) & {f"item {n}" for n in range(ITEMS - 3, ITEMS)}


def test_an_unknown_modality_names_the_known(world: World) -> None:
    with pytest.raises(ValueError, match="'content' given, one of collaborative expected"):
        ItemNeighbours(world.artifact, "content")
    with pytest.raises(ValueError, match="k 0 given"):
        ItemNeighbours(world.artifact).search(np.ones((1, DIM), np.float32), 0)
