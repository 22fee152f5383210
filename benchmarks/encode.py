"""How many users a second are encoded, against a bare torch loop and one row at a time?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import _raw_rows
from benchmarks.harness import compare, repeat, write_results
from encoder.artifact import EncoderArtifact
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.export import export_artifact
from encoder.preprocessing import Preprocessor
from encoder.training import TrainingConfig, TrainingResult
from tests.encoders import VectorState

SEED = 0
Float32 = npt.NDArray[np.float32]


def artifact(preprocessor: Preprocessor, model: DenoisingAutoencoder) -> EncoderArtifact:
    """Return the artifact of a network with initial weights: speed does not depend on them."""
    sample = preprocessor.transform(_raw_rows.batch(64, 1, preprocessor.schema))
    return export_artifact(
        TrainingResult(model, (), 1, False, 0, 0, sample),
        TrainingConfig(),
        preprocessor,
        VectorState(),
        dataset={"name": "benchmark"},
        data_cutoff=datetime.now(timezone.utc),
    )


def rate(n: int, call: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that measures rows per second of one call."""

    def measure() -> float:
        start = time.perf_counter()
        call()
        return n / (time.perf_counter() - start)

    return measure


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    batch = _raw_rows.batch(args.rows, seed=SEED)
    preprocessor = Preprocessor.fit(_raw_rows.schema(), [batch])
    model = DenoisingAutoencoder(preprocessor.input_slices, AutoencoderConfig())
    encoder = artifact(preprocessor, model)
    inputs = preprocessor.transform(batch)
    tensor = torch.from_numpy(inputs)

    def in_torch() -> Float32:
        return torch.cat([model.encode(part) for part in torch.split(tensor, 4096)]).numpy()

    few = inputs[:1000]

    def one_by_one() -> Float32:
        return np.concatenate([encoder.encode_inputs(few[k : k + 1]) for k in range(len(few))])

    def with_runtime() -> Float32:
        return encoder.encode_inputs(inputs, threads)

    assert np.abs(with_runtime() - in_torch()).max() <= 1e-5
    assert np.abs(one_by_one() - with_runtime()[: len(few)]).max() <= 1e-5
    assert np.array_equal(encoder.encode(batch, threads), with_runtime())

    ours = repeat(rate(args.rows, with_runtime), args.repeats)
    write_results(
        "encode",
        [
            compare(
                f"encoder inputs to embeddings, {threads} threads",
                ours,
                unit="rows/s",
                baseline=("bare torch loop", repeat(rate(args.rows, in_torch), args.repeats)),
                target="ratio_to_baseline >= 0.9",
                seed=SEED,
            ),
            compare(
                "encoder inputs to embeddings in batches of 4,096",
                ours,
                unit="rows/s",
                baseline=("one row at a time", repeat(rate(len(few), one_by_one), args.repeats)),
                target="ratio_to_baseline >= 2",
                seed=SEED,
            ),
            compare(
                "raw feature columns to embeddings, preprocessing included",
                repeat(rate(args.rows, lambda: encoder.encode(batch, threads)), args.repeats),
                unit="rows/s",
                limit=("the same without preprocessing", float(np.median(ours))),
                target="ours >= 20000",
                seed=SEED,
            ),
        ],
    )


if __name__ == "__main__":
    main()
