from __future__ import annotations

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from encoder.clusters import assign_clusters, fit_centroids
from encoder.collaborative import cooccurrence, fit_collaborative, shifted_ppmi
from encoder.content import fit_content
from encoder.errors import ArtifactError, DataFault
from encoder.modality import Items, ModalityEncoders, ModalitySpec, fit_modalities

GROUPS, PER_GROUP = 4, 10
N_SEEN = GROUPS * PER_GROUP
IDS = [f"film é {i}" for i in range(N_SEEN + 2)]  # the last two are never consumed
TAGS = [[f"genre {i // PER_GROUP}"] for i in range(N_SEEN)] + [["genre 0"], ["genre never seen"]]
SPECS = [
    ModalitySpec("collaborative", 8, 4),
    ModalitySpec("content", 6, 4),
    ModalitySpec("audio", 0, 3),
]


def planted_sessions(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """300 sessions, each with five items of one group."""
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(300), 5)
    items = [rng.choice(PER_GROUP, 5, False) + PER_GROUP * (s % GROUPS) for s in range(300)]
    return session, np.sort(items, axis=1).reshape(-1)


def make_items(n: int = N_SEEN + 2) -> Items:
    audio = np.random.default_rng(1).normal(size=(len(IDS), 5)).astype(np.float32)
    audio[3] = 0
    text = [f"story of {t[0]}" for t in TAGS]
    return Items(pa.array(IDS[:n]), text[:n], TAGS[:n], {"audio": audio[:n]})


def fit(items: Items | None = None, **changes: object) -> ModalityEncoders:
    items = items or make_items()
    session, item = planted_sessions()
    arguments: dict = {
        "cutoff": "2020-01-01T00:00:00+00:00",
        "popularity": np.bincount(item, minlength=len(items.ids)),
        "sessions": lambda: [(session, item)],
        "seed": 0,
    }
    return fit_modalities(items, SPECS, **(arguments | changes))


def test_items_of_one_session_group_are_neighbours():
    vectors = fit().modalities[0].vectors[:N_SEEN]
    near = vectors @ vectors.T
    same = np.arange(N_SEEN)[:, None] // PER_GROUP == np.arange(N_SEEN) // PER_GROUP
    assert near[same].min() > near[~same].max() + 0.25
    shuffled = np.random.default_rng(0).permutation(N_SEEN)
    assert near[same[shuffled]].min() < near[~same[shuffled]].max()  # the check can fail


def test_interest_clusters_find_the_planted_groups():
    clusters = fit().modalities[0].cluster_of[:N_SEEN].reshape(GROUPS, PER_GROUP)
    assert (clusters == clusters[:, :1]).all()
    assert len(set(clusters[:, 0])) == GROUPS


def test_an_item_without_a_past_has_no_collaborative_vector_and_no_cluster():
    collaborative = fit().modalities[0]
    assert not collaborative.vectors[N_SEEN:].any()
    assert (collaborative.cluster_of[N_SEEN:] == -1).all()


def test_a_session_counts_each_item_once_however_long_it_is():
    # One session of 2 and one of 5 items: each row sums to the number of sessions the item was in.
    session, item = np.array([0, 0, 1, 1, 1, 1, 1]), np.array([0, 1, 0, 1, 2, 3, 4])
    pairs = cooccurrence([(session, item)], 5, max_session_items=10, seed=0).toarray()
    np.testing.assert_allclose(pairs.sum(axis=1), [2, 2, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(pairs, pairs.T)
    assert (np.diag(pairs) == 0).all()


def test_a_long_session_is_sampled_down_to_the_limit():
    session, item = np.zeros(50, np.int64), np.arange(50)
    pairs = cooccurrence([(session, item)], 50, max_session_items=8, seed=3)
    assert pairs.nnz == 8 * 7
    again = cooccurrence([(session, item)], 50, max_session_items=8, seed=3)
    assert (pairs != again).nnz == 0


def test_chunks_of_whole_sessions_add_up():
    session, item = planted_sessions()
    half = session < 150
    whole = cooccurrence([(session, item)], N_SEEN, max_session_items=9, seed=0)
    parts = [(session[half], item[half]), (session[~half], item[~half])]
    split = cooccurrence(parts, N_SEEN, max_session_items=9, seed=0)
    np.testing.assert_allclose(whole.toarray(), split.toarray(), rtol=1e-5)


def test_shifted_ppmi_of_three_items():
    # C = [[0,2,1],[2,0,0],[1,0,0]]; row sums 3, 2, 1; D = 6; without smoothing
    # PMI(0,1) = log(2 * 6 / (3 * 2)) = log 2; PMI(0,2) = log(1 * 6 / (3 * 1)) = log 2.
    from scipy import sparse

    pairs = sparse.csr_array(np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]], np.float32))
    ppmi = shifted_ppmi(pairs, smoothing=1.0, negatives=1.0).toarray()
    expected = np.log(2) * np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_allclose(ppmi, expected, rtol=1e-6)
    assert shifted_ppmi(pairs, smoothing=1.0, negatives=2.5).nnz == 0
    # Smoothed: context weights 3^a, 2^a, 1 with a = 0.5, sum 4.146264: rare contexts gain.
    smooth = shifted_ppmi(pairs, smoothing=0.5, negatives=1.0).toarray()
    np.testing.assert_allclose(smooth[0, 2], np.log(1 / (3 * (1 / 4.146264))), rtol=1e-5)


def test_a_rank_below_the_dimension_is_padded_with_zeros():
    session, item = np.array([0, 0]), np.array([0, 1])
    vectors = fit_collaborative([(session, item)], 4, 6, seed=0)
    assert vectors.shape == (4, 6)
    assert np.isfinite(vectors).all()
    assert not vectors[:, 2:].any()


def test_no_session_of_two_items_gives_no_vectors():
    vectors = fit_collaborative([(np.arange(3), np.arange(3))], 3, 4, seed=0)
    assert not vectors.any()
    centroids = fit_centroids(vectors, np.ones(3), 2, 0)
    assert (assign_clusters(vectors, centroids) == -1).all()


def test_a_new_item_is_encoded_like_a_known_one_without_refitting():
    encoders = fit()
    items = make_items()
    new = encoders.encode_items([items.text[7]], [items.tags[7]])
    np.testing.assert_array_equal(new[0], encoders.modalities[1].vectors[7])


def test_a_tag_is_one_token_and_no_word_of_the_text():
    encoder = fit_content(["", "", ""], [["a b"], ["a b"], ["b c"]], np.ones(3), 4, seed=0)
    vectors = encoder.encode_items(["", "a b"], [["a b"], []])
    assert vectors[0].any()
    assert not vectors[1].any()


def test_an_item_of_which_nothing_is_known_has_no_content_vector():
    known_word, nothing = fit().encode_items(["story", "zzz"], [["unheard of"]] * 2)
    assert known_word.any()
    assert not nothing.any()


def test_brought_vectors_stay_as_they_are():
    encoders = fit()
    np.testing.assert_array_equal(encoders.modalities[2].vectors, make_items().brought["audio"])
    assert encoders.modalities[2].cluster_of[3] == -1


def test_a_brought_vector_that_is_missing_is_named():
    with pytest.raises(DataFault, match=r"'audio'.*only none"):
        fit(Items(pa.array(IDS), [""] * len(IDS), TAGS))


def test_same_seed_same_version_and_other_inputs_another():
    assert fit().version == fit().version
    assert fit(seed=1).version != fit().version
    assert fit(cutoff="2021-01-01T00:00:00+00:00").version != fit().version


def test_new_items_do_not_move_the_version_or_the_known_vectors():
    whole, part = fit(), fit(make_items(N_SEEN))
    grown = part.with_new_items(make_items())
    assert grown.version == part.version == whole.version
    assert grown.item_ids.equals(whole.item_ids)
    for a, b in zip(grown.modalities, whole.modalities, strict=True):
        np.testing.assert_array_equal(a.vectors, b.vectors)
        np.testing.assert_array_equal(a.cluster_of, b.cluster_of)
    assert whole.with_new_items(make_items()) is whole


def test_a_changed_vector_of_a_known_item_moves_the_version():
    items = make_items()
    items.brought["audio"][0, 0] += 1e-3
    assert fit(items).version != fit().version


def test_saved_and_loaded_encoders_are_bit_equal(tmp_path):
    encoders = fit()
    encoders.save(tmp_path / "m")
    loaded = ModalityEncoders.load(tmp_path / "m")
    assert loaded.version == encoders.version
    assert loaded.item_ids.to_pylist() == IDS
    assert loaded.cutoff == "2020-01-01T00:00:00+00:00"
    for a, b in zip(encoders.modalities, loaded.modalities, strict=True):
        assert (a.name, a.n_clusters, a.dim) == (b.name, b.n_clusters, b.dim)
        np.testing.assert_array_equal(a.vectors, b.vectors)
        np.testing.assert_array_equal(a.cluster_of, b.cluster_of)
    text = ["story of genre 2"]
    np.testing.assert_array_equal(
        loaded.encode_items(text, [["genre 2"]]), encoders.encode_items(text, [["genre 2"]])
    )
    assert not list(tmp_path.rglob("*.tmp"))


def test_index_of_gives_positions_and_minus_one_for_strangers():
    encoders = fit()
    assert encoders.index_of([IDS[5], "stranger", IDS[0]]).tolist() == [5, -1, 0]


def test_integer_ids_survive_saving(tmp_path):
    items = make_items()
    ids = pa.array(np.arange(len(IDS), dtype=np.int64) * 10**12)
    fit(Items(ids, items.text, items.tags, items.brought)).save(tmp_path)
    assert ModalityEncoders.load(tmp_path).index_of(np.array([10**12, 1])).tolist() == [1, -1]


def test_changed_files_are_refused(tmp_path):
    fit().save(tmp_path)
    arrays = load_file(tmp_path / "encoders.safetensors")
    arrays["0.vectors"][0, 0] += 1
    save_file(arrays, tmp_path / "encoders.safetensors")
    with pytest.raises(ArtifactError, match="files were changed"):
        ModalityEncoders.load(tmp_path)


def test_an_unknown_format_a_missing_file_and_a_torn_file_are_refused(tmp_path):
    fit().save(tmp_path)
    config = json.loads((tmp_path / "encoders.json").read_text())
    (tmp_path / "encoders.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        ModalityEncoders.load(tmp_path)
    (tmp_path / "encoders.json").write_text(json.dumps(config))
    (tmp_path / "encoders.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="No whole modality encoders"):
        ModalityEncoders.load(tmp_path)
    (tmp_path / "encoders.json").unlink()
    with pytest.raises(ArtifactError, match="No whole modality encoders"):
        ModalityEncoders.load(tmp_path)


def test_a_text_model_that_is_not_on_this_disk_is_named(tmp_path):
    with pytest.raises(DataFault, match="holds no files"):
        fit_content(["a"], [[]], np.ones(1), 2, seed=0, text_model=str(tmp_path / "none"))


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None,
    reason="sentence-transformers is installed: its absence cannot be tested",
)
def test_a_text_model_without_its_library_says_what_to_install(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataFault, match="needs the package sentence-transformers"):
        fit_content(["a"], [[]], np.ones(1), 2, seed=0, text_model=str(tmp_path))
