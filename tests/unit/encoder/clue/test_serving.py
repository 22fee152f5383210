"""The contrastive encoder in serving: what it refuses, what it keeps, and whom it answers how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder.artifact import EncoderArtifact
from encoder.clue import serving
from encoder.clue.artifact import kept_items
from encoder.clue.from_rows import OTHER_SERVICES, read_sequences
from encoder.clue.inputs import ClueInputs
from encoder.clue.network import ClueConfig, ClueNetwork, user_vector
from encoder.clue.sequences import ServiceEvents, UserSequences
from encoder.clue.serving import COLD, KEPT_ITEMS
from encoder.columns import RawBatch, raw_batch
from encoder.errors import ArtifactError, MalformedInput, SpaceMismatch
from encoder.manifest import CLUE
from encoder.rows import RowSource, held_out, in_share
from tests.encoders import CLUE_SCHEMA, tiny
from tests.strategies import TOKENS, batches, random_batch, to_table, token_column

(COLUMN,) = CLUE_SCHEMA.token_columns
COUNT = CLUE_SCHEMA.event_count.column
INPUTS = ClueInputs(CLUE_SCHEMA, TOKENS.vocabulary, TOKENS.guides, TOKENS.item, TOKENS.events)
WORD, LAST = TOKENS.guides + 1, TOKENS.vocabulary - 1


@pytest.fixture(scope="module")
def artifact() -> EncoderArtifact:
    return tiny(CLUE)


def _batch(lists: Sequence[Sequence[int]]) -> RawBatch:
    batch = random_batch(CLUE_SCHEMA, len(lists), present=1.1)
    columns = dict(batch.columns) | {COLUMN: token_column(lists, np.ones(len(lists), bool))}
    return replace(batch, columns=columns)


def _network(artifact: EncoderArtifact) -> ClueNetwork:
    model = artifact.manifest.model
    names = ("width", "item_layers", "service_layers", "head_width", "max_item_tokens")
    config = ClueConfig(
        model["embedding_dim"], **{n: model[n] for n in names}, max_events=model["max_events"]
    )
    network = ClueNetwork(config, model["vocabulary"])
    weights = {k: torch.from_numpy(v) for k, v in artifact.weights.items() if k != COLD}
    network.load_state_dict(weights)
    return network.eval()


@torch.inference_mode()
def _by_hand(network: ClueNetwork, tokens: Sequence[int]) -> Any:
    """Return a user's vector from the definition: item by item, service by service."""
    services: dict[int, list[list[int]]] = {}
    for token in tokens:
        if token <= TOKENS.guides:
            services.setdefault(token, []).append([])
            guide = token
        services[guide][-1].append(token)
    found = []
    for items in services.values():
        vectors = [network.item(torch.tensor([item], dtype=torch.int32))[0] for item in items]
        there = torch.ones(1, len(items), dtype=torch.bool)
        found.append(network.service(torch.stack(vectors)[None], there)[0])
    return user_vector(torch.stack(found)[None])[0].numpy()


@given(st.data())
def test_an_embedding_is_the_mean_of_the_services_vectors(
    artifact: EncoderArtifact, data: st.DataObject
) -> None:
    network = _network(artifact)
    batch = data.draw(batches(CLUE_SCHEMA))
    embedding = artifact.encode(batch)
    column = batch.columns[COLUMN]
    for row in range(batch.n_rows):
        tokens = [int(t) for t in column.values[row] if t]
        expected = _by_hand(network, tokens) if tokens else artifact.weights[COLD]
        np.testing.assert_allclose(embedding[row], expected, rtol=0, atol=1e-5)


def test_a_user_without_events_is_the_mean_user(artifact: EncoderArtifact) -> None:
    """The mean over the users of the training, of whom 200 random rows were made."""
    batch = random_batch(CLUE_SCHEMA, 200)
    kept = ~held_out(batch.users, 0.1)
    warm = np.array([row.any() for row in batch.columns[COLUMN].values])
    vectors = np.where(warm[:, None], artifact.encode(batch), 0.0)
    expected = vectors[kept].sum(axis=0) / (warm & kept).sum()
    np.testing.assert_allclose(artifact.weights[COLD], expected, rtol=0, atol=1e-6)


def test_items_met_before_are_not_encoded_again(
    artifact: EncoderArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = replace(artifact.manifest, model=artifact.manifest.model | {KEPT_ITEMS: 3})
    fresh = replace(artifact, manifest=manifest, _sessions={})
    asked: list[int] = []
    new_items = serving.ClueRunner._new_items

    def counted(self: serving.ClueRunner, tokens: Any, threads: int) -> Any:
        asked.append(len(tokens))
        return new_items(self, tokens, threads)

    monkeypatch.setattr(serving.ClueRunner, "_new_items", counted)
    first, other = [1, WORD, 2, WORD], [1, WORD + 1, 1, WORD + 2, 1, WORD + 3]
    one = fresh.encode(_batch([first, first, [1, WORD]]))
    assert asked == [2]
    assert np.array_equal(fresh.encode(_batch([first])), one[:1])
    assert asked == [2]
    fresh.encode(_batch([other]))  # these three take the place of the two
    fresh.encode(_batch([first]))
    assert asked == [2, 3, 2]
    kept = fresh._runner._kept.values()  # type: ignore[attr-defined]
    assert [vector.base for vector in kept] == [None] * 3, "what is kept holds no batch alive"


def test_as_many_items_are_kept_as_nearly_all_events_are_of() -> None:
    # 2,000 items are met 99 times each, 6,000 once.
    often, seldom = np.repeat(np.arange(2_000), 99), np.arange(2_000, 8_000)
    items = np.concatenate([often, seldom]).astype(np.int32)
    halves = np.array_split(items, 2)
    services = {
        name: ServiceEvents(np.array([0, len(part)]), part)
        for name, part in zip("ab", halves, strict=True)
    }
    sequences = UserSequences(np.ones((8_000, 4), np.int32), services, ("u",))
    n = kept_items(sequences, 64)
    assert 2_000 * 99 + (n - 2_000) >= 0.99 * len(items) > 2_000 * 99 + (n - 2_001)
    assert kept_items(sequences, 64 * 1024) == 1024  # 256 MiB of such vectors
    few = UserSequences(np.ones((2, 4), np.int32), {}, ("u",))
    assert kept_items(few, 64) == 1024


def test_more_rows_than_a_run_takes_are_encoded_in_order(artifact: EncoderArtifact) -> None:
    batch = random_batch(CLUE_SCHEMA, 2500, seed=5)
    whole = artifact.encode(batch)
    for row in (0, 1023, 1024, 2499):
        tokens = [int(t) for t in batch.columns[COLUMN].values[row] if t]
        one = artifact.encode(_batch([tokens]))
        np.testing.assert_allclose(one[0], whole[row], rtol=0, atol=1e-6)


# --- what is refused


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        ([1, -5], "a token id outside 0 to 39"),
        ([1, LAST + 1], "a token id outside 0 to 39"),
        ([WORD, 1], "a list that does not begin with a service's guide token, or a gap"),
        ([1, WORD, 0, WORD], "does not begin .*, or a gap"),
        ([1, *[WORD] * TOKENS.item], "an item of more than 5 tokens"),
        ([2, WORD] * (TOKENS.events + 1), "more than 4 events of a service"),
        ([2, WORD, 1, 2], "a service's events in several places"),
    ],
)
def test_a_row_that_the_builder_would_not_make_is_refused_by_name(
    tokens: list[int], what: str
) -> None:
    batch = _batch([[1, WORD], tokens, [3]])
    with pytest.raises(MalformedInput, match=rf"Row 1 \(user-1\).*{what} given") as caught:
        INPUTS.transform(batch)
    assert (caught.value.row, caught.value.column) == (1, COLUMN)


def test_what_is_at_the_limits_is_taken() -> None:
    longest = [2, *[LAST] * (TOKENS.item - 1)] * TOKENS.events
    batch = _batch([longest, [1] * TOKENS.events, []])
    tokens = INPUTS.transform(batch)
    assert tokens[0].tolist() == longest
    assert not tokens[2].any()


def test_a_null_row_does_not_count_whatever_it_holds() -> None:
    batch = _batch([[1, WORD], [1]])
    column = batch.columns[COLUMN]
    column.values[1, 0] = -7
    column.valid[1] = False
    assert not INPUTS.transform(batch)[1].any()


def test_tokens_of_another_tokenizer_are_refused() -> None:
    batch = _batch([[1]])
    (name,) = CLUE_SCHEMA.modality_columns
    batch.columns[name].values[0] = "ffffffffffff"
    with pytest.raises(SpaceMismatch, match="'ffffffffffff' given"):
        INPUTS.transform(batch)


def test_longer_lists_than_the_layout_has_are_refused() -> None:
    most = CLUE_SCHEMA.token_columns[COLUMN]
    with pytest.raises(MalformedInput, match=f"lists of {most + 1} tokens given, at most {most}"):
        INPUTS.transform(_batch([[1] * (most + 1)]))
    table = to_table(_batch([[1] * (most + 1)]))
    with pytest.raises(MalformedInput, match=f"{most + 1} values was given, at most {most}"):
        raw_batch(table, CLUE_SCHEMA)


@pytest.mark.parametrize("count", [np.nan, -1.0])
def test_a_count_that_is_none_is_refused(count: float) -> None:
    batch = _batch([[1]])
    batch.columns[COUNT].values[0] = count
    with pytest.raises(MalformedInput, match="texts_count"):
        INPUTS.transform(batch)


def test_a_state_that_does_not_fit_is_refused() -> None:
    arrays, config = INPUTS.state()
    again = ClueInputs.from_state(CLUE_SCHEMA, arrays, config)
    assert again.state() == ({}, config)
    for wrong in ({**config, "surprise": 1}, {"vocabulary": 9}):
        with pytest.raises(ArtifactError, match="does not fit the schema"):
            ClueInputs.from_state(CLUE_SCHEMA, arrays, wrong)
    with pytest.raises(ArtifactError, match="tensors mean given"):
        ClueInputs.from_state(CLUE_SCHEMA, {"mean": np.zeros(1)}, config)


@pytest.mark.parametrize("name", ["item.tokens.weight", "service.project.bias", COLD])
def test_the_version_changes_with_each_part(artifact: EncoderArtifact, name: str) -> None:
    assert _version(artifact, name) != artifact.encoder_version


def test_the_version_does_not_change_with_the_temperature(artifact: EncoderArtifact) -> None:
    assert _version(artifact, "log_scale") == artifact.encoder_version


def _version(artifact: EncoderArtifact, name: str) -> str:
    weights = {k: v.copy() for k, v in artifact.weights.items()}
    weights[name].flat[0] = np.nextafter(weights[name].flat[0], np.float32(9))
    manifest = artifact.manifest
    moment = datetime.fromisoformat(manifest.created_at)
    return EncoderArtifact.build(
        preprocessor=artifact.preprocessor,
        weights=weights,
        graphs=artifact.graphs,
        modality=artifact.modality,
        model=manifest.model,
        dataset=manifest.dataset,
        data_cutoff=moment,
        training=manifest.training,
        created_at=moment,
    ).encoder_version


# --- from rows to sequences


def test_rows_become_sequences_with_each_item_once(tmp_path: Path) -> None:
    lists = [[2, WORD, 2, WORD + 1, 3, WORD], [], [2, WORD], [1, WORD + 2, 1, WORD]]
    pq.write_table(to_table(_batch(lists)), tmp_path / "rows.parquet")
    source = RowSource(tmp_path / "rows.parquet", CLUE_SCHEMA, batch_rows=2)
    found = read_sequences(source, INPUTS, ("books", "films"), progress=False)
    sequences = found.sequences
    assert sequences.users == ("user-0", "user-1", "user-2", "user-3")
    assert set(sequences.services) == {"books", "films", OTHER_SERVICES}
    assert len(np.unique(sequences.tokens, axis=0)) == len(sequences.tokens) == 5
    told = {
        name: [
            sequences.tokens[events.items[a:b], :2].tolist()
            for a, b in zip(events.starts, events.starts[1:], strict=False)
        ]
        for name, events in sequences.services.items()
    }
    assert told == {
        "books": [[[2, WORD], [2, WORD + 1]], [], [[2, WORD]], []],
        "films": [[[3, WORD]], [], [], []],
        OTHER_SERVICES: [[], [], [], [[1, WORD + 2], [1, WORD]]],
    }
    assert found.sample[:, :2].tolist() == [[2, WORD], [0, 0]]


def test_a_share_of_the_users_is_read_and_no_item_of_the_others(tmp_path: Path) -> None:
    lists = [[2, WORD + k % 3, 3, WORD] for k in range(40)]
    pq.write_table(to_table(_batch(lists)), tmp_path / "rows.parquet")
    source = RowSource(tmp_path / "rows.parquet", CLUE_SCHEMA, batch_rows=7)
    whole, half = (
        read_sequences(source, INPUTS, ("books", "films"), share=share, progress=False).sequences
        for share in (1.0, 0.5)
    )
    assert half.users == tuple(compress(whole.users, in_share(whole.users, 0.5)))
    assert 10 < len(half.users) < 30
    for name, events in half.services.items():
        assert len(events.starts) == len(half.users) + 1
        assert (events.lengths == 1).all()
        mine = [whole.users.index(user) for user in half.users]
        assert (
            half.tokens[events.items].tolist()
            == whole.tokens[whole.services[name].items[mine]].tolist()
        )
    one = read_sequences(source, INPUTS, ("books", "films"), share=0.03, progress=False).sequences
    assert len(one.tokens) <= 2 * len(one.users) < len(whole.tokens)
