"""What do vectors stored as float16 or int8 save in Redis, and what do they cost?

Rows of a space's stored view, as the batch job writes them (120-d, all six features), go to a Redis
of their own for each form. Bytes are Redis' own figures. The probe's loss is on the embeddings of
``palate demo``: MovieLens 1M where ``PALATE_DATA`` has it, else simulated listeners.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis
import yaml
from feast import Entity, FeatureStore, FeatureView, ValueType

from benchmarks import _online
from benchmarks._demo import run_demo
from benchmarks.harness import Record, compare, repeat, run_isolated, write_results
from materialize.embedding_rows import embedding_schema, ensure_readable
from materialize.stores.compact import list_column, round_trip
from tests.servers import redis_server
from tests.stores import PROFILES
from transforms.embedding_views import declare_stored_view
from transforms.names import FLOAT32, USER_KEY, VECTOR_FORMS, stored_view

SEED = 0
COMPACT = [form for form in VECTOR_FORMS if form != FLOAT32]
LISTPACK = ("--hash-max-listpack-value", "1024")
"""Lets Redis keep a row in one block; its default, 64 bytes, makes a table of each hash."""
_VERSION = "c0ffee123456"
_READ_USERS = 100
_READ_SECONDS = 3.0
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """What one form of the same rows takes and gives."""

    bytes_per_user: float
    """Growth of Redis' ``used_memory`` over the number of users."""
    bytes_per_key: float
    """Mean of MEMORY USAGE over a sample of users."""
    write: list[float]
    """Rows a second, one figure a repeat, each into an empty Redis."""
    read: list[float]
    """Rows a second through ``get_online_features``, 100 users a request, three features."""


def view_rows(n: int, vectors: _Floats) -> pa.RecordBatch:
    """Return rows of the stored view as `encode_rows` makes them."""
    schema = embedding_schema(pa.int64())
    event = pa.array([_online.START] * n, _online.INSTANT)
    columns = [
        pa.array(np.arange(n)),
        list_column(vectors),
        event.cast(pa.int64()),
        pa.array(np.ones(n, np.int64)),
        pa.array([_VERSION] * n),
        pa.array(["warm"] * n),
        pa.array(np.random.default_rng(SEED).integers(1, 200, n)),
        event,
        event,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@contextmanager
def _serving(folder: Path, form: str, options: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the Feast store, its stored view and a client of an empty Redis."""
    folder.mkdir()
    with (
        redis_server(folder, *options) as server,
        redis.Redis(port=server.port) as client,
    ):
        online = PROFILES["palate-redis"].settings(server, str(folder))
        content = {
            **{"project": "compact", "provider": "local", "registry": "registry.db"},
            **{"online_store": online, "entity_key_serialization_version": 3},
        }
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        store = FeatureStore(repo_path=str(folder))
        user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
        offline = folder / "offline"
        ensure_readable(offline, pa.int64())
        view: FeatureView = declare_stored_view(
            user, space=1, encoder_version=_VERSION, folder=offline, vectors=form
        )
        store.apply([user, view])
        yield store, store.get_feature_view(view.name), client


def _read(store: FeatureStore, users: list[int]) -> Any:
    names = ("embedding", "as_of", "status")
    return store.get_online_features(
        features=[f"{stored_view(1)}:{name}" for name in names],
        entity_rows={USER_KEY: users},
    )


def measure(
    folder: Path, form: str, options: tuple[str, ...], vectors: _Floats, repeats: int
) -> Stored:
    """Write the vectors in one form, check what is read, and measure."""
    n = len(vectors)
    rows = view_rows(n, round_trip(vectors, form))
    rng = np.random.default_rng(SEED)
    with _serving(folder, form, options) as (store, view, client):
        online = store._get_provider().online_store

        def write() -> float:
            client.flushdb()
            start = time.perf_counter()
            assert online.write_arrow(store.config, view, rows).written == n
            return n / (time.perf_counter() - start)

        def read() -> float:
            done, start = 0, time.perf_counter()
            while time.perf_counter() - start < _READ_SECONDS:
                _read(store, rng.choice(n, _READ_USERS, replace=False).tolist())
                done += _READ_USERS
            return done / (time.perf_counter() - start)

        write_rates = repeat(write, repeats)
        client.flushdb()
        client.memory_purge()
        empty = client.info("memory")["used_memory"]
        online.write_arrow(store.config, view, rows)
        grown = client.info("memory")["used_memory"] - empty
        assert client.dbsize() == n
        sample = [client.randomkey() for _ in range(1000)]
        per_key = float(np.mean([client.memory_usage(key, samples=0) for key in sample]))
        users = rng.choice(n, min(n, 1000), replace=False)
        found = np.array(_read(store, users.tolist()).to_dict()["embedding"], np.float32)
        assert found.tobytes() == round_trip(vectors, form)[users].tobytes()
        return Stored(grown / n, per_key, write_rates, repeat(read, repeats))


def cosine_error(vectors: _Floats, form: str) -> npt.NDArray[np.float64]:
    """Return 1 - cosine of each vector and what is read back of it."""
    exact, kept = vectors.astype(np.float64), round_trip(vectors, form).astype(np.float64)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(kept, axis=1)
    error: npt.NDArray[np.float64] = 1 - (exact * kept).sum(axis=1) / norms
    return error


def _storage(folder: Path, users: int, repeats: int) -> list[Record]:
    vectors = np.random.default_rng(SEED).standard_normal((users, _online.DIM), dtype=np.float32)
    records = []
    for name, options in (("", ()), (f", {' '.join(LISTPACK)[2:]}", LISTPACK)):
        found = {
            form: measure(folder / f"{form}{len(options)}", form, options, vectors, repeats)
            for form in VECTOR_FORMS
        }
        exact = found[FLOAT32]
        for form, one in found.items():
            for claim, unit, figures in (
                ("bytes of a user's row, used_memory", "bytes", lambda s: [s.bytes_per_user]),
                ("bytes of a user's row, MEMORY USAGE", "bytes", lambda s: [s.bytes_per_key]),
                ("written to an empty Redis", "rows/s", lambda s: s.write),
                ("read, 100 users a request", "rows/s", lambda s: s.read),
            ):
                records.append(
                    compare(
                        f"{form}, {users} users of {_online.DIM}-d{name}: {claim}",
                        figures(one),
                        unit=unit,
                        baseline=(FLOAT32, figures(exact)) if form != FLOAT32 else None,
                        seed=SEED,
                    )
                )
    for form in COMPACT:
        error = cosine_error(vectors, form)
        records.append(
            compare(
                f"{form}: largest 1 - cosine of {users} random {_online.DIM}-d vectors",
                [float(error.max())],
                unit="1 - cosine",
                target="ours <= 1e-4",
                seed=SEED,
            )
        )
    return records


def probe(repository: str, raw: str) -> dict[str, Any]:
    """Return the probe's figures of each form on a repository's labels and embeddings.

    The float32 embeddings stand in the place of the probe's raw baseline, so that the difference is
    a paired one: the same resampled users on both sides.
    """
    os.environ["PALATE_DATA"] = raw  # the data set's paths are read under it
    from materialize.context import Context
    from materialize.evaluate.job import repository_labels, training_set
    from materialize.evaluate.probe import run_probe

    context = Context(Path(repository))
    settings, space = context.settings, context.ledger.space()
    labels = repository_labels(settings)
    rows = training_set(context.store, space, labels)
    known = ~np.isnan(rows.embeddings).any(axis=1)
    answer: dict[str, Any] = {"dataset": settings.dataset.name, "rows": len(known)}
    for form in COMPACT:
        kept = rows.embeddings.copy()
        kept[known] = round_trip(rows.embeddings[known], form)
        report = run_probe(
            labels, kept, rows.embeddings, as_of=rows.as_of, seed=settings.file.seed
        ).groups["all"]
        lost = report.differences["raw_pooled"].auc_macro
        answer[form] = {
            "float32": report.models["raw_pooled"].auc_macro.value,
            "loss": -lost.value,
            "interval": [-lost.high, -lost.low],
            "cosine": float(cosine_error(rows.embeddings[known], form).max()),
        }
    return answer


def _quality(folder: Path) -> list[Record]:
    demo = run_demo(folder / "demo")
    where = str(demo.repository), str(demo.raw)
    answer = run_isolated("benchmarks.compact_vectors:probe", *where).result
    records = []
    for form in COMPACT:
        one = answer[form]
        low, high = one["interval"]
        records += [
            compare(
                f"{form}: macro AUC that the probe loses on {answer['dataset']}, of "
                f"{one['float32']:.4f} with float32; paired 95% interval over users "
                f"{low:.5f} to {high:.5f}",
                [one["loss"]],
                unit="AUC",
                target="ours <= 0.002",
                seed=SEED,
            ),
            compare(
                f"{form}: largest 1 - cosine of {answer['rows']} embeddings of {answer['dataset']}",
                [one["cosine"]],
                unit="1 - cosine",
                target="ours <= 1e-4",
                seed=SEED,
            ),
        ]
    return records


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        records = _storage(Path(name), args.users, args.repeats)
        records += _quality(Path(name))
    write_results("compact_vectors", records)


if __name__ == "__main__":
    main()
