"""How near to the machine's peak is contrastive training, and does memory grow with its batch?

On Amazon's reviews of users who are active in two shops (``PALATE_DATA``).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import compare, run_isolated, write_results
from encoder.clue.config import ClueTrainingConfig
from encoder.clue.flops import FlopMeter
from encoder.clue.grad_cache import GradCache
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.sequences import UserSequences
from encoder.clue.training import training_pairs
from encoder.placement import placement
from materialize.scaling.grid import GRIDS
from materialize.template import template_folder
from materialize.validate import validate
from transforms.clean import CleanTables
from transforms.dataset import load_dataset
from transforms.engine import bounded_connection
from transforms.service_sequences import ServiceTexts

SEED = 0
DATASET = "amazon_crossdomain"
GRID = GRIDS["cpu"]
LARGEST = GRID.sizes[-1]
_PEAK_SIZE = 2048


def prepare(folder: str) -> dict[str, Any]:
    """Write the users' sequences; return the number of token ids."""
    root = Path(folder)
    dataset = load_dataset(template_folder() / "datasets" / f"{DATASET}.yaml")
    validate(dataset, root, progress=False)
    with bounded_connection(2048, root) as connection:
        texts = ServiceTexts(connection, CleanTables(root), dataset.evaluation.cutoff)
        tokenizer = texts.fit_tokenizer(vocabulary=GRID.vocabulary, max_tokens=GRID.max_item_tokens)
        texts.sequences(tokenizer, 2 * max(GRID.max_events)).save(root / "sequences")
    return {"vocabulary": tokenizer.vocabulary}


def steps(
    folder: str, vocabulary: int, width: int, layers: int, batch_size: int, n: int
) -> dict[str, float]:
    """Take ``n`` steps; return tokens and operations a second, and the peak of matrix products."""
    sequences = UserSequences.open(Path(folder, "sequences"))
    model = ClueConfig(width=width, item_layers=layers, service_layers=layers)
    config = ClueTrainingConfig(model=model, batch_size=batch_size, device="cpu")
    pairs = training_pairs(sequences, config)
    peaks, tokens, flops, seconds = [_peak()], 0, [0, 0], 0.0
    with placement("cpu") as place:
        network = ClueNetwork(model, vocabulary)
        cache, meter = GradCache(network, place), FlopMeter(network)
        for number, batch in enumerate(pairs.batches(batch_size, (SEED, 0))):
            if number > n:
                break
            told = meter.of(batch, config.chunks)
            start = time.perf_counter()
            loss = cache.step(batch)
            taken = time.perf_counter() - start
            assert np.isfinite(loss)
            if number:  # the first step warms up
                seconds += taken
                tokens += batch.n_tokens
                flops = [a + b for a, b in zip(flops, told, strict=True)]
    peaks.append(_peak())
    return {
        "tokens_per_second": tokens / seconds,
        "model_gflops": flops[0] / seconds / 1e9,
        "executed_gflops": flops[1] / seconds / 1e9,
        "peak_gflops": float(np.median(peaks)),
    }


def _peak() -> float:
    """Return billions of operations a second of large float32 products, the best of five."""
    a = torch.rand(_PEAK_SIZE, _PEAK_SIZE)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * _PEAK_SIZE**3 / (time.perf_counter() - start) / 1e9)
    return best


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    if "PALATE_DATA" not in os.environ:
        parser.error("PALATE_DATA is not set: the folder that holds amazon_crossdomain/")
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = run_isolated("benchmarks.clue:prepare", folder).result["vocabulary"]
        shape = (folder, vocabulary, LARGEST.width, LARGEST.layers)
        runs = [
            run_isolated("benchmarks.clue:steps", *shape, 256, args.steps).result
            for _ in range(args.repeats)
        ]
        small = run_isolated("benchmarks.clue:steps", folder, vocabulary, 64, 1, 128, 1)
        large = run_isolated("benchmarks.clue:steps", folder, vocabulary, 64, 1, 1024, 1)
    told = f"largest model of the grid ({LARGEST.name}), batches of 256 users"
    write_results(
        "clue",
        [
            compare(
                f"operations of contrastive training, {told}",
                [run["executed_gflops"] for run in runs],
                unit="GFLOP/s",
                limit=(
                    f"float32 products of {_PEAK_SIZE} x {_PEAK_SIZE}",
                    float(np.median([run["peak_gflops"] for run in runs])),
                ),
                target="ratio_to_limit >= 0.4",
                seed=SEED,
            ),
            compare(
                f"the same without the second forward pass of gradient caching, {told}",
                [run["model_gflops"] for run in runs],
                unit="GFLOP/s",
                limit=(
                    f"float32 products of {_PEAK_SIZE} x {_PEAK_SIZE}",
                    float(np.median([run["peak_gflops"] for run in runs])),
                ),
                seed=SEED,
            ),
            compare(
                f"tokens of contrastive training, {told}",
                [run["tokens_per_second"] for run in runs],
                unit="tokens/s",
                seed=SEED,
            ),
            compare(
                "peak memory of a step of 1,024 users (w64l1)",
                [large.peak_rss_bytes / 2**20],
                unit="MiB",
                baseline=("the same of 128 users", [small.peak_rss_bytes / 2**20]),
                target="ratio_to_baseline <= 1.1",
                seed=SEED,
            ),
        ],
    )


if __name__ == "__main__":
    main()
