"""Training that stays close to an earlier encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import encoder.training
from encoder.alignment import cosines
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.columns import RawBatch
from encoder.compatibility import Compatibility, CompatibilityLoss, variance_of
from encoder.errors import TrainingFault
from encoder.losses import ReconstructionLoss
from encoder.preprocessing import Preprocessor
from encoder.rows import InputMatrix, RowSource
from encoder.training import TrainingConfig, train
from tests.strategies import VERSION, random_batch, to_table
from transforms.future import future_schema
from transforms.layout import Modality, RawLayout

LAYOUT = RawLayout((Modality("collaborative", 4, 3),), (7,), categories=("gender",))
SCHEMA, FUTURE = LAYOUT.schema(VERSION), future_schema(LAYOUT, (3,), VERSION)
CONFIG = TrainingConfig(
    model=AutoencoderConfig(8, (32,)), batch_size=32, max_epochs=25, patience=25, warmup_steps=5,
    learning_rate=3e-3, buffer_rows=1024, device="cpu",
)  # fmt: skip
OTHER = replace(CONFIG, seed=1, model=replace(CONFIG.model, seed=1))


@dataclass(frozen=True)
class Earlier:
    """A trained encoder with its preprocessing, as an artifact has them."""

    preprocessor: Preprocessor
    model: DenoisingAutoencoder
    encoder_version: str = "c0ffee123456"

    def encode(self, batch: RawBatch) -> npt.NDArray[np.float32]:
        inputs = torch.from_numpy(self.preprocessor.transform(batch))
        return self.model.encode(inputs).numpy()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> RowSource:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(to_table(random_batch(SCHEMA, 600)), path)
    return RowSource(path, SCHEMA)


@pytest.fixture(scope="module")
def earlier(rows: RowSource, tmp_path_factory: pytest.TempPathFactory) -> Earlier:
    # Fitted on other rows: an earlier encoder has a preprocessing of its own.
    preprocessor = Preprocessor.fit(SCHEMA, [random_batch(SCHEMA, 300, seed=1)])
    folder = tmp_path_factory.mktemp("earlier")
    return Earlier(preprocessor, train(rows, preprocessor, CONFIG, folder, progress=False).model)


def _fit(rows: RowSource) -> Preprocessor:
    return Preprocessor.fit(SCHEMA, rows.batches("training"))


def _same(a: Any, b: Any) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


# --- the term


def test_the_loss_of_a_hand_computed_case() -> None:
    # Distances 3^2 + 4^2 = 25 and 0, over a variance of 10.
    embedding = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    reference = torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    assert CompatibilityLoss(10.0)(embedding, reference).tolist() == [2.5, 0.0]


@given(n=st.integers(2, 50), dim=st.integers(1, 4), seed=st.integers(0, 1000))
def test_a_constant_guess_at_the_mean_loses_all_variance(n: int, dim: int, seed: int) -> None:
    """The mean of the loss is 1 there, whatever the reference's scale."""
    columns = np.random.default_rng(seed).normal(3.0, 10.0, (n, 2 + dim)).astype("<f4")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.f32"
        columns.tofile(path)
        variance = variance_of(InputMatrix(path, n, 2 + dim), 2)
    reference = torch.from_numpy(columns[:, 2:])
    guess = reference.mean(dim=0).expand_as(reference)
    assert CompatibilityLoss(variance)(guess, reference).mean().item() == pytest.approx(1, rel=1e-3)


def test_a_reference_without_variance_is_refused(tmp_path: Path) -> None:
    np.ones((5, 3), "<f4").tofile(tmp_path / "m.f32")
    with pytest.raises(TrainingFault, match="gives all training rows the same embedding"):
        variance_of(InputMatrix(tmp_path / "m.f32", 5, 3), 1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_refused(earlier: Earlier, weight: float) -> None:
    with pytest.raises(ValueError, match=r"compatibility weight .* more than 0 expected"):
        Compatibility(earlier, weight)


# --- training with it


def test_another_seed_gives_the_earlier_space_with_the_term_and_another_without(
    rows: RowSource, earlier: Earlier, tmp_path: Path
) -> None:
    """On rows that neither saw, and the record says how far they are apart."""
    p = _fit(rows)
    unseen = random_batch(SCHEMA, 300, seed=2)
    free = train(rows, p, OTHER, tmp_path / "free", progress=False)
    held = train(
        rows, p, OTHER, tmp_path / "held", compatibility=Compatibility(earlier, 1.0), progress=False
    )
    expected = earlier.encode(unseen)

    def similar(result: Any) -> float:
        return float(cosines(Earlier(p, result.model).encode(unseen), expected).mean())

    assert similar(free) < 0.5
    assert similar(held) > 0.9
    assert [record.compatibility_error for record in free.history] == [None] * len(free.history)
    errors = [record.compatibility_error for record in held.history]
    assert errors[-1] < 0.3 < errors[0]
    assert free.sample.shape == held.sample.shape == (min(256, held.n_validation_rows), p.n_inputs)


def test_a_heavier_term_comes_closer(rows: RowSource, earlier: Earlier, tmp_path: Path) -> None:
    p = _fit(rows)
    light, heavy = (
        train(
            rows, p, replace(OTHER, max_epochs=8), tmp_path / str(weight),
            compatibility=Compatibility(earlier, weight), progress=False,
        ).history[-1].compatibility_error
        for weight in (0.1, 3.0)
    )  # fmt: skip
    assert heavy < light


def test_beside_a_prediction_the_term_counts_as_much_more_by_hand(
    earlier: Earlier, tmp_path: Path
) -> None:
    """Loss: reconstruction + 3 * prediction + 0.5 * (1 + 3) * distance, without corruption."""
    table = to_table(random_batch(SCHEMA, 300))
    further = to_table(random_batch(FUTURE, 300, seed=2))
    for name in FUTURE.columns:
        table = table.append_column(name, further.column(name))
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = RowSource(tmp_path / "rows.parquet", SCHEMA, future=FUTURE)
    p, future = _fit(rows), Preprocessor.fit(FUTURE, rows.batches("training"))
    still = replace(
        OTHER.model, block_dropout=0.0, view_dropout=0.0, noise_std=0.0, unknown_rate=0.0
    )
    result = train(
        rows, p, replace(OTHER, model=still, max_epochs=1, prediction_weight=3.0), tmp_path / "c",
        future=future, compatibility=Compatibility(earlier, 0.5), progress=False,
    )  # fmt: skip
    held = list(rows.batches("validation"))
    clean, after, reference = (
        torch.from_numpy(np.concatenate([read(batch) for batch in held]))
        for read in (p.transform, future.transform, earlier.encode)
    )
    trained_on = np.concatenate([earlier.encode(b) for b in rows.batches("training")])
    variance = float(trained_on.var(axis=0, dtype=np.float64).sum())
    with torch.inference_mode():
        output = result.model(clean)
        rebuilt = ReconstructionLoss(p.input_slices)(output.values, clean).rows
        predicted = ReconstructionLoss(future.input_slices)(output.future, after).rows
        distance = (output.embedding - reference).square().sum(dim=1) / variance
    expected = (rebuilt + 3.0 * predicted + 0.5 * 4.0 * distance).mean().item()
    record = result.history[0]
    assert record.validation_loss == pytest.approx(expected, rel=1e-4)
    assert record.compatibility_error == pytest.approx(distance.mean().item(), rel=1e-4)


def test_a_run_with_the_term_that_is_cut_off_ends_with_the_same_bits(
    rows: RowSource, earlier: Earlier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, term = _fit(rows), Compatibility(earlier, 1.0)
    config = replace(OTHER, max_epochs=3, checkpoint_every_steps=4)
    whole = train(rows, p, config, tmp_path / "whole", compatibility=term, progress=False)
    saved = 0

    def cut(*args: Any) -> None:
        nonlocal saved
        save(*args)
        saved += 1
        if saved == 6:  # in the middle of the second epoch
            raise KeyboardInterrupt

    save = encoder.training.save_run
    with monkeypatch.context() as patch:
        patch.setattr(encoder.training, "save_run", cut)
        with pytest.raises(KeyboardInterrupt):
            train(rows, p, config, tmp_path / "cut", compatibility=term, progress=False)
    resumed = train(rows, p, config, tmp_path / "cut", compatibility=term, progress=False)
    assert _same(whole, resumed)
    names = [file.name for file in (tmp_path / "cut").iterdir()]
    assert names == ["checkpoint.safetensors"]  # the earlier encoder's embeddings are gone, too


def test_a_checkpoint_of_another_reference_or_weight_is_refused(
    rows: RowSource, earlier: Earlier, tmp_path: Path
) -> None:
    p, config = _fit(rows), replace(OTHER, max_epochs=1)
    train(rows, p, config, tmp_path, compatibility=Compatibility(earlier, 1.0), progress=False)
    others = (
        None,
        Compatibility(earlier, 2.0),
        Compatibility(replace(earlier, encoder_version="d00d34aa5678"), 1.0),
    )
    for other in others:
        with pytest.raises(TrainingFault, match="belongs to run"):
            train(rows, p, config, tmp_path, compatibility=other, progress=False)


def test_another_length_of_embedding_is_refused(
    rows: RowSource, earlier: Earlier, tmp_path: Path
) -> None:
    config = replace(OTHER, model=replace(OTHER.model, embedding_dim=6))
    with pytest.raises(ValueError, match=r"embedding_dim 6 given, .* \(c0ffee123456\) has 8"):
        train(
            rows, _fit(rows), config, tmp_path,
            compatibility=Compatibility(earlier), progress=False,
        )  # fmt: skip
