"""What does serving an encoder of texts cost, in how many users a second and how many milliseconds?

On the newest rows of Amazon's users who are active in two shops (``PALATE_DATA``); the network has
its default shape and initial weights, on which speed does not depend. One thread. "Cold" has seen
no item before, "warm" all of them: a server lies between, for it keeps the items used last.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.harness import Record, compare, write_results
from encoder.artifact import EncoderArtifact
from encoder.clue.artifact import export_clue
from encoder.clue.config import ClueTrainingConfig
from encoder.clue.from_rows import read_sequences
from encoder.clue.inputs import ClueInputs
from encoder.clue.network import ClueConfig, ClueNetwork
from encoder.clue.training import ClueResult
from encoder.columns import RawBatch, raw_batch
from encoder.modality import ModalityEncoders
from encoder.quantisation import quantise
from encoder.rows import RowSource
from encoder.schema import FeatureSchema
from materialize.context import Context
from materialize.features import build_features, current_modalities
from materialize.template import init_repository
from materialize.training_rows import layout_of
from materialize.validate import validate
from tests.strategies import take
from transforms.clean import CleanTables
from transforms.layout import TEXTS
from transforms.names import USER_KEY
from transforms.texts import texts_schema

SEED = 0
_SINGLES = 300


def prepare(folder: Path) -> tuple[Path, FeatureSchema, ModalityEncoders]:
    """Build raw features; return a file of each user's newest row, its schema and the encoders."""
    init_repository(folder / "repo", "amazon_crossdomain")
    settings = Context(folder / "repo").settings
    validate(settings.dataset, settings.data_dir, progress=False)
    clean = CleanTables(settings.data_dir)
    build_features(settings.dataset, clean, settings.features_dir, progress=False)
    encoders = current_modalities(settings.features_dir)
    schema = texts_schema(layout_of(settings, encoders), encoders)
    table = pq.read_table(settings.features_dir / TEXTS)
    table = table.sort_by([(USER_KEY, "ascending"), ("event_timestamp", "ascending")])
    user = table[USER_KEY].to_numpy()
    newest = table.filter(pa.array(np.append(user[1:] != user[:-1], True)))
    fields = [name.removeprefix(f"{TEXTS}__") for name in schema.columns]
    rows = folder / "rows.parquet"
    named = newest.select([USER_KEY, *fields]).rename_columns([USER_KEY, *schema.columns])
    pq.write_table(named, rows)
    return rows, schema, encoders


def artifact(rows: Path, schema: FeatureSchema, encoders: ModalityEncoders) -> EncoderArtifact:
    """Return the artifact of a network with initial weights."""
    assert encoders.texts is not None
    tokenizer, shape = encoders.texts.tokenizer, ClueConfig()
    n_guides = len(tokenizer.services) + 1
    inputs = ClueInputs(
        schema, tokenizer.vocabulary, n_guides, shape.max_item_tokens, shape.max_events
    )
    found = read_sequences(RowSource(rows, schema), inputs, tokenizer.services, progress=False)
    return export_clue(
        ClueResult(ClueNetwork(shape, tokenizer.vocabulary), (), 1, False, 0, 0),
        ClueTrainingConfig(model=shape),
        inputs,
        found,
        encoders,
        dataset={"name": "benchmark"},
        data_cutoff=datetime.now(timezone.utc),
    )


def per_second(encoder: EncoderArtifact, batch: RawBatch, repeats: int) -> tuple[Any, Any]:
    """Return users a second of encoders that know no item, and of one that knows all."""
    cold, warm = [], []
    for _ in range(repeats):
        fresh = replace(encoder)
        cold.append(_rate(lambda: fresh.encode(batch), batch.n_rows))  # noqa: B023
        warm.append(_rate(lambda: fresh.encode(batch), batch.n_rows))  # noqa: B023
    return cold, warm


def singles(encoder: EncoderArtifact, batch: RawBatch) -> tuple[list[float], list[float]]:
    """Return milliseconds of single users, at first sight and again."""
    fresh = replace(encoder)
    alone = [take(batch, slice(k, k + 1)) for k in range(_SINGLES)]
    first, again = ([_milliseconds(fresh, one) for one in alone] for _ in range(2))
    return list(first), list(again)


def _rate(call: Callable[[], Any], n: int) -> float:
    start = time.perf_counter()
    call()
    return n / (time.perf_counter() - start)


def _milliseconds(encoder: EncoderArtifact, one: RawBatch) -> float:
    start = time.perf_counter()
    encoder.encode(one)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if "PALATE_DATA" not in os.environ:
        parser.error("PALATE_DATA is not set: the folder that holds amazon_crossdomain/")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows, schema, encoders = prepare(Path(folder))
        exact = artifact(rows, schema, encoders)
        table = pq.read_table(rows).slice(0, args.users)
    batch = raw_batch(table, schema, USER_KEY)
    inputs = exact.preprocessor.transform(batch)
    int8 = quantise(exact, inputs[:1024])
    for encoder in (exact, int8):
        encoder.warm()
    records: list[Record] = []
    for name, encoder in (("float32", exact), ("int8", int8)):
        cold, warm = per_second(encoder, batch, args.repeats)
        first, again = singles(encoder, batch)
        told = f"{name}: {batch.n_rows:,} users of amazon_crossdomain"
        records += [
            compare(f"{told}, items never met before", cold, unit="users/s", seed=SEED),
            compare(f"{told}, items met before", warm, unit="users/s", seed=SEED),
            compare(f"{name}: one user, items rarely met before", first, unit="ms", seed=SEED),
            compare(f"{name}: one user, items met before", again, unit="ms", seed=SEED),
        ]
    records.append(
        compare(
            "reading and checking token ids, of those users",
            [_rate(lambda: exact.preprocessor.transform(batch), batch.n_rows)],
            unit="users/s",
            seed=SEED,
        )
    )
    write_results("clue_encode", records)


if __name__ == "__main__":
    main()
