"""How long does encoding few users take, what does preprocessing add, and what does int8 change?

Shapes: about 200 inputs, and MovieLens 1M's 519; hidden layers of 512 and 256, 120 numbers out, one
thread. All ways take turns, a burst of calls each, so that a busy machine slows all of them down
alike, and each has its weights in the cache, as a process that does little else has. What int8
costs in quality is told of the embeddings of ``palate demo``: MovieLens 1M where ``PALATE_DATA``
has it, else simulated listeners.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from benchmarks._demo import run_demo
from benchmarks.harness import Record, compare, run_isolated, write_results
from encoder.artifact import EncoderArtifact
from encoder.autoencoder import AutoencoderConfig, DenoisingAutoencoder
from encoder.columns import RawBatch
from encoder.export import export_artifact
from encoder.preprocessing import Preprocessor
from encoder.quantisation import quantise
from encoder.store import ArtifactStore
from encoder.training import TrainingConfig, TrainingResult
from tests.encoders import VectorState
from tests.strategies import VERSION, random_batch, take
from transforms.layout import Modality, RawLayout
from transforms.runtime import encode

SEED = 0
USERS = (1, 10, 100, 500)
Float32 = npt.NDArray[np.float32]

_OURS, _BARE, _TORCH, _INT8 = "encode_inputs", "bare ONNX Runtime", "torch eager", "int8"
_RAW, _RAW_INT8 = "raw columns to embedding", "raw columns to embedding, int8"
_TRANSFORM, _SUMMARY = "preprocessing alone", "as_of, events and status alone"
_PRODUCTS = "the matrix products alone, numpy"
_FIT_ROWS = 4096
_BURST = 10


@dataclass(frozen=True)
class Shape:
    """A layout of raw features, and how many strings each category has."""

    layout: RawLayout
    strings: tuple[int, ...]


SHAPES = {
    "about 200 inputs": Shape(
        RawLayout(
            (Modality("collaborative", 24, 8), Modality("content", 16, 8)),
            (7, 30, 180),
            context=("country",),
            categories=("gender",),
            numbers=("income",),
        ),
        (5, 2),
    ),
    "MovieLens 1M": Shape(
        RawLayout(
            (Modality("collaborative", 64, 32), Modality("content", 32, 24)),
            (7, 30, 180),
            categories=("gender", "age", "occupation"),
        ),
        (2, 7, 21),
    ),
}


def rows(shape: Shape, n: int) -> RawBatch:
    """Return ``n`` users' raw features with as many strings as the shape says."""
    schema = shape.layout.schema(VERSION)
    batch = random_batch(schema, n, seed=SEED)
    rng = np.random.default_rng(SEED)
    blocks = [block for block in schema.blocks if block.kind == "category"]
    for block, strings in zip(blocks, shape.strings, strict=True):
        words = np.array([f"{k}" for k in range(strings)], object)
        batch.columns[block.column].values[:, block.offset] = words[rng.integers(0, strings, n)]
    return batch


def encoders(batch: RawBatch, shape: Shape) -> tuple[DenoisingAutoencoder, EncoderArtifact]:
    """Return a network with initial weights, and its artifact: speed does not depend on them."""
    preprocessor = Preprocessor.fit(shape.layout.schema(VERSION), [batch])
    model = DenoisingAutoencoder(preprocessor.input_slices, AutoencoderConfig())
    sample = preprocessor.transform(take(batch, slice(0, 64)))
    artifact = export_artifact(
        TrainingResult(model, (), 1, False, 0, 0, sample),
        TrainingConfig(),
        preprocessor,
        VectorState(),
        dataset={"name": "benchmark"},
        data_cutoff=datetime.now(timezone.utc),
    )
    return model, artifact


def _products(artifact: EncoderArtifact, inputs: Float32) -> Callable[[], Float32]:
    """Return a function that multiplies as the network does, without activation functions."""
    names = sorted(name for name in artifact.weights if name.startswith("encoder."))
    layers = [artifact.weights[name] for name in names]  # bias, weight, bias, weight, ...

    def multiply() -> Float32:
        values = inputs
        for bias, weight in zip(layers[::2], layers[1::2], strict=True):
            values = values @ weight.T + bias
        return values

    return multiply


def _bare(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def take_turns(
    ways: Mapping[str, Callable[[], object]], bursts: int, repeats: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Return microseconds by way, (repeats, calls); the first call of each burst is not counted."""
    taken = {name: np.empty((repeats, bursts, _BURST)) for name in ways}
    for repeat in range(repeats):
        for burst in range(bursts):
            for name, way in ways.items():
                way()
                for call in range(_BURST):
                    start = time.perf_counter()
                    way()
                    taken[name][repeat, burst, call] = (time.perf_counter() - start) * 1e6
    return {name: times.reshape(repeats, -1) for name, times in taken.items()}


def _ways(
    model: DenoisingAutoencoder,
    exact: EncoderArtifact,
    int8: EncoderArtifact,
    batch: RawBatch,
    store: str,
) -> dict[str, Callable[[], Any]]:
    """Return every way to encode ``batch``, after comparing what they answer."""
    preprocessor = exact.preprocessor
    inputs = preprocessor.transform(batch)
    tensor = torch.from_numpy(inputs)
    bare = _bare(exact.onnx)
    ways: dict[str, Callable[[], Any]] = {
        _OURS: lambda: exact.encode_inputs(inputs),
        _PRODUCTS: _products(exact, inputs),
        _BARE: lambda: bare.run(["embedding"], {"inputs": inputs}),
        _TORCH: lambda: model.encode(tensor).numpy(),
        _INT8: lambda: int8.encode_inputs(inputs),
        _RAW: lambda: encode(batch, exact.encoder_version, store),
        _RAW_INT8: lambda: encode(batch, int8.encoder_version, store),
        _TRANSFORM: lambda: preprocessor.transform(batch),
        _SUMMARY: lambda: preprocessor.summary(batch),
    }
    expected = ways[_OURS]()
    assert ways[_BARE]()[0].tobytes() == expected.tobytes()
    assert np.abs(ways[_TORCH]() - expected).max() <= 1e-5
    assert ways[_RAW]().embedding.tobytes() == expected.tobytes()
    alone = [int8.encode_inputs(inputs[k : k + 1]) for k in range(len(inputs))]
    assert np.concatenate(alone).tobytes() == ways[_INT8]().tobytes()
    assert ways[_RAW_INT8]().embedding.tobytes() == ways[_INT8]().tobytes()
    return ways


_PAIRS: tuple[tuple[str, str, str | None], ...] = (
    (_OURS, _BARE, "ratio_to_baseline <= 1.5"),
    (_OURS, _TORCH, "ratio_to_baseline <= 0.25"),
    (_INT8, _OURS, "ratio_to_baseline <= 1"),
    (_RAW, _OURS, None),
    (_RAW_INT8, _RAW, "ratio_to_baseline <= 1"),
    (_TRANSFORM, _RAW, None),
    (_SUMMARY, _RAW, None),
)
"""(way, baseline, target of its p50); those of the first two pairs are for one user alone."""


def _speed(name: str, shape: Shape, store: str, calls: int, repeats: int) -> list[Record]:
    batch = rows(shape, _FIT_ROWS)
    model, exact = encoders(batch, shape)
    int8 = quantise(exact, exact.preprocessor.transform(batch))
    for artifact in (exact, int8):
        ArtifactStore(store).save(artifact)
    where = f"{name} ({exact.preprocessor.n_inputs})"
    records = []
    for users in USERS:
        ways = _ways(model, exact, int8, take(batch, slice(0, users)), store)
        times = take_turns(ways, max(4, calls // max(10, users)), repeats)
        for percent in (50, 99):
            figures = {k: np.percentile(t, percent, axis=1).tolist() for k, t in times.items()}
            for way, baseline, target in _PAIRS:
                one_only = baseline in (_BARE, _TORCH)
                least = float(np.median(figures[_PRODUCTS]))
                records.append(
                    compare(
                        f"{where}, {users} user(s), p{percent}: {way}",
                        figures[way],
                        unit="us",
                        baseline=(baseline, figures[baseline]),
                        limit=(_PRODUCTS, least) if way == _OURS else None,
                        target=target if percent == 50 and (users == 1 or not one_only) else None,
                        seed=SEED,
                    )
                )
    records.append(
        compare(
            f"{where}: graph in int8",
            [float(len(int8.onnx))],
            unit="bytes",
            baseline=("float32", [float(len(exact.onnx))]),
            target="ratio_to_baseline <= 0.35",
            seed=SEED,
        )
    )
    return records


def judge(repository: str, raw: str, users: int) -> dict[str, Any]:
    """Quantise space 1 of a demo and return error, probe's losses and sizes.

    Both spaces are materialised over history, so that the embeddings are those a consumer trains
    on; losses are paired, over resampled test users.
    """
    os.environ["PALATE_DATA"] = raw  # the data set's paths are read under it
    from materialize.context import Context
    from materialize.evaluate.job import repository_labels, training_set
    from materialize.evaluate.old_head import judge_old_head
    from materialize.quantise import quantise_space

    context = Context(Path(repository))
    settings, ledger = context.settings, context.ledger
    report = quantise_space(context.store, settings, ledger, 1, rows=users, progress=False)
    assert report.space is not None
    folder = Path(sys.executable).parent
    number = str(report.space)
    for command in (
        [folder / "feast", "apply"],
        [folder / "palate", "materialize", "--space", number, "--from-history", "--quiet"],
        [folder / "palate", "materialize", "--space", number, "--quiet"],
    ):
        subprocess.run(command, cwd=repository, check=True, stdout=subprocess.DEVNULL)
    compared = subprocess.run(
        [folder / "palate", "spaces", "compare", "--space", number, "--limit", "0"],
        cwd=repository,
        check=True,
        stdout=subprocess.PIPE,
    )
    store = Context(Path(repository)).store
    labels = repository_labels(settings)
    exact, int8 = (
        training_set(store, ledger.space(n), labels).embeddings for n in (1, report.space)
    )
    head = judge_old_head(labels, exact, int8, int8, seed=settings.file.seed)
    return {
        "dataset": settings.dataset.name,
        "figures": dict(report.figures),
        "head": head.to_dict(),
        "stored_against_on_demand": json.loads(compared.stdout)["max_abs_diff"],
    }


def _quality(folder: Path, users: int) -> list[Record]:
    demo = run_demo(folder)
    place = str(demo.repository), str(demo.raw)
    answer = run_isolated("benchmarks.encode_latency:judge", *place, users).result
    figures, head, dataset = answer["figures"], answer["head"], answer["dataset"]
    error, auc = figures["error"], head["auc_macro"]["old"]["value"]
    records = [
        compare(
            f"int8, {dataset}: {what}, of {error['rows']} users; ranges from "
            f"{figures['calibration_rows']} others",
            [error[name]],
            unit=unit,
            target=target,
            seed=SEED,
        )
        for what, name, unit, target in (
            ("largest 1 - cosine", "cosine_error_max", "1 - cosine", "ours <= 0.01"),
            ("mean 1 - cosine", "cosine_error_mean", "1 - cosine", "ours <= 0.001"),
            ("largest difference of a number", "max_abs", "embedding", None),
            ("root mean square of differences", "relative_rms", "standard deviations", None),
        )
    ]
    for what, name in (
        ("a head fitted on int8 vectors loses", "new_head"),
        ("a head fitted on float32 vectors loses when it reads int8 ones", "unbridged"),
    ):
        loss = head["loss"][name]
        records.append(
            compare(
                f"int8, {dataset}: macro AUC that {what}, of {auc:.4f}; paired 95% interval over "
                f"{head['n_users']} users {loss['low']:.5f} to {loss['high']:.5f}",
                [loss["value"]],
                unit="AUC",
                target="ours <= 0.002",
                seed=SEED,
            )
        )
    records.append(
        compare(
            f"int8, {dataset}: largest difference of stored and on-demand vectors, 200 users",
            [answer["stored_against_on_demand"]],
            unit="embedding",
            target="ours <= 0",
            seed=SEED,
        )
    )
    return records


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=500, help="of one user, in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--users", type=int, default=8192, help="that ranges are taken from")
    parser.add_argument("--demo", type=Path, help="finished output folder of `palate demo`")
    parser.add_argument("--no-quality", action="store_true", help="speed and size only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape_name, shape in SHAPES.items():
            store = str(folder / "artifacts")
            records += _speed(shape_name, shape, store, args.calls, args.repeats)
        if not args.no_quality:
            records += _quality(args.demo or folder / "demo", args.users)
    write_results("encode_latency", records)


if __name__ == "__main__":
    main()
