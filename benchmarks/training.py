"""How many rows a second does training take in, and does its memory grow with the table?"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks import _raw_rows
from benchmarks.harness import compare, run_isolated, write_results
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.preprocessing import Preprocessor
from encoder.rows import RowSource
from encoder.training import TrainingConfig, train

EPOCHS = 2
CONFIG = TrainingConfig(max_epochs=EPOCHS, buffer_rows=16_384, device="cpu")


def ours(folder: str, checkpoint: str) -> dict[str, Any]:
    """Train on the rows in ``folder``; return rows, rows/s of the last epoch, losses."""
    rows = RowSource(Path(folder), _raw_rows.schema())
    preprocessor = Preprocessor.fit(rows.schema, rows.batches("training"))
    result = train(rows, preprocessor, CONFIG, Path(checkpoint), resume=False, progress=False)
    first, last = result.history[0], result.history[-1]
    assert last.validation_loss < first.validation_loss, "training learned nothing"
    return {"rows": result.n_training_rows, "rows_per_second": last.rows_per_second}


def bare(folder: str) -> dict[str, Any]:
    """Train the same network with a plain loop over a tensor in memory, without corruption."""
    rows = RowSource(Path(folder), _raw_rows.schema())
    preprocessor = Preprocessor.fit(rows.schema, rows.batches("training"))
    inputs = torch.cat(
        [torch.from_numpy(preprocessor.transform(b)) for b in rows.batches("training")]
    )
    model = DenoisingAutoencoder(preprocessor.input_slices, AutoencoderConfig())
    optimizer = torch.optim.AdamW(model.parameters(), CONFIG.learning_rate, fused=True)
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for picked in torch.split(torch.randperm(len(inputs)), CONFIG.batch_size):
            batch = inputs[picked]
            loss = functional.mse_loss(model(batch).values, batch[:, : preprocessor.n_values])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds = time.perf_counter() - start
    return {"rows": len(inputs), "rows_per_second": len(inputs) / seconds}


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary, "small"), Path(temporary, "large")
        _raw_rows.write(small, args.rows, seed=0)
        _raw_rows.write(large, 10 * args.rows, seed=0)
        checkpoint = str(Path(temporary, "checkpoint"))
        speeds, bases, peaks = [], [], []
        for _ in range(args.repeats):
            measured = run_isolated("benchmarks.training:ours", str(small), checkpoint)
            base = run_isolated("benchmarks.training:bare", str(small))
            assert measured.result["rows"] == base.result["rows"]
            speeds.append(measured.result["rows_per_second"])
            bases.append(base.result["rows_per_second"])
            peaks.append(measured.peak_rss_bytes / 2**20)
        grown = run_isolated("benchmarks.training:ours", str(large), checkpoint)
        assert grown.result["rows"] > 8 * measured.result["rows"]
    write_results(
        "training",
        [
            compare(
                "training rows per second, streamed from disk, with corruption and block losses",
                speeds,
                unit="rows/s",
                baseline=("plain torch loop in memory, one squared error", bases),
                target="ratio_to_baseline >= 0.6",
                seed=CONFIG.seed,
            ),
            compare(
                f"peak memory of training on {10 * args.rows} rows",
                [grown.peak_rss_bytes / 2**20],
                unit="MiB",
                baseline=(f"peak memory of training on {args.rows} rows", peaks),
                target="ratio_to_baseline <= 1.25",
                seed=CONFIG.seed,
            ),
        ],
    )


if __name__ == "__main__":
    main()
