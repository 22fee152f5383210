"""Repositories for `on_demand`: Palate's, stock Feast's, and the naive design, all on one Redis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml

from benchmarks import _raw_rows
from transforms.names import USER_KEY

__all__ = ["LAYOUT", "NAIVE_USERS", "NAIVE_VIEW", "SEED", "make", "run_naive"]

SEED = 0
LAYOUT = _raw_rows.SMALL
NAIVE_VIEW = "naive"
NAIVE_USERS = 10_000
"""Its hashes take ten times the memory."""

_PIECE = 10_000
_MOMENT = 1_767_268_800_000_000
_TIMES = ("event_timestamp", "created_timestamp")


def _open(folder: Path, online: Mapping[str, Any]) -> Any:
    """Write a repository and return its store; stock Feast but for the online store."""
    from feast import FeatureStore

    folder.mkdir(parents=True)
    content = {
        **{"project": folder.name, "provider": "local", "registry": "registry.db"},
        **{"online_store": dict(online), "offline_store": {"type": "duckdb"}},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return FeatureStore(repo_path=str(folder))


def _timed(columns: Mapping[str, Any], n: int) -> pa.RecordBatch:
    moments = pa.array(np.full(n, _MOMENT)).cast(pa.timestamp("us", "UTC"))
    return pa.record_batch({**columns, **dict.fromkeys(_TIMES, moments)})


def _write(store: Any, view: str, batches: Iterator[pa.RecordBatch]) -> None:
    """Write through Palate's store, whose rows stock Feast reads."""
    from materialize.stores.redis import PalateRedisOnlineStore

    online, definition = PalateRedisOnlineStore(), store.get_feature_view(view)
    for batch in batches:
        online.write_arrow(store.config, definition, batch)


def _raw(users: int) -> Iterator[pa.Table]:
    """Yield the raw features of all users."""
    for start in range(0, users, _PIECE):
        n = min(_PIECE, users - start)
        yield _raw_rows.table(n, SEED + start, start, _raw_rows.schema(LAYOUT))


def make(folder: Path, artifacts: Path, version: str, users: int, port: int) -> None:
    """Apply and fill the repositories ``palate``, ``stock`` and ``naive`` under ``folder``."""
    from feast import Entity, ValueType

    from encoder.store import ArtifactStore
    from transforms.embedding_views import declare_on_demand_view, declare_stored_view
    from transforms.raw_views import declare_raw_views

    address = f"127.0.0.1:{port}"
    palate = {
        "type": "materialize.stores.redis.PalateRedisOnlineStore",
        "connection_string": address,
    }
    stock = {"type": "redis", "connection_string": address}
    user = Entity(name="user", join_keys=[USER_KEY], value_type=ValueType.INT64)
    views = declare_raw_views(user, LAYOUT, folder / "raw")
    named: dict[str, Any] = {"space": 1, "encoder_version": version}
    encoder = ArtifactStore(str(artifacts)).load(version)
    schema = encoder.preprocessor.schema
    for name, online in (("palate", palate), ("stock", stock)):
        store = _open(folder / name, online)
        stored = declare_stored_view(user, **named, folder=folder / "offline")
        fresh = declare_on_demand_view(views, **named, store=str(artifacts))
        store.apply([user, *views, stored, fresh])
        for view in views if name == "palate" else ():
            _write(store, view.name, _rows_of(view.name, users))

        def embeddings() -> Iterator[pa.RecordBatch]:
            for table in _raw(users):
                yield _embedding_rows(table, encoder.encode(_raw_batch(table, schema)), version)

        _write(store, stored.name, embeddings())
    store = _open(folder / "naive", stock)
    store.apply([user, *_naive_views(user, schema, str(artifacts), version)])
    few = min(users, NAIVE_USERS)
    _write(store, f"{NAIVE_VIEW}_raw", _scalars(few, encoder.preprocessor))


def _rows_of(view: str, users: int) -> Iterator[pa.RecordBatch]:
    for table in _raw(users):
        names = [name for name in table.column_names if name.startswith(f"{view}__")]
        columns = {n.removeprefix(f"{view}__"): table.column(n).combine_chunks() for n in names}
        yield _timed({USER_KEY: table.column(USER_KEY).combine_chunks(), **columns}, len(table))


def _embedding_rows(
    table: pa.Table, embedding: npt.NDArray[np.float32], version: str
) -> pa.RecordBatch:
    n, dim = embedding.shape
    lists = pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1, dtype=np.int32) * dim), pa.array(embedding.ravel())
    )
    columns = {
        USER_KEY: table.column(USER_KEY).combine_chunks(),
        "embedding": lists,
        "as_of": pa.array(np.full(n, _MOMENT)),
        "space": pa.array(np.full(n, 1)),
        "encoder_version": pa.array([version] * n),
        "status": pa.array(["warm"] * n),
        "n_events": pa.array(np.full(n, 10)),
    }
    return _timed(columns, n)


# The naive design: a field for each number, torch in the view's function.
_NAIVE_SOURCE = """\
def {view}(inputs):
    from benchmarks._on_demand_repos import run_naive

    return run_naive(inputs, {n_inputs!r}, {store!r}, {version!r})
"""


def _scalar_names(n_inputs: int) -> list[str]:
    return [f"x{k}" for k in range(n_inputs)]


def _naive_views(user: Any, schema: Any, artifacts: str, version: str) -> list[Any]:
    """Return a view of one Float32 field a number, and a view whose function runs torch."""
    from feast import FeatureView, Field, FileSource, OnDemandFeatureView
    from feast.transformation.python_transformation import PythonTransformation
    from feast.types import Array, Float32

    class Declared(PythonTransformation):
        def infer_features(self, random_input: Any, singleton: bool | None = False) -> list[Any]:
            return [Field(name="embedding", dtype=Array(Float32))]

    n_inputs = sum(schema.array_columns.values()) + sum(schema.text_columns.values())
    raw = FeatureView(
        name=f"{NAIVE_VIEW}_raw",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name=name, dtype=Float32) for name in _scalar_names(n_inputs)],
        source=FileSource(
            path="unused.parquet",
            timestamp_field=_TIMES[0],
            created_timestamp_column=_TIMES[1],
        ),
    )
    source = _NAIVE_SOURCE.format(
        view=NAIVE_VIEW, n_inputs=n_inputs, store=artifacts, version=version
    )
    scope: dict[str, Any] = {}
    exec(source, scope)  # noqa: S102  as Feast does
    declared = Declared(udf=scope[NAIVE_VIEW], udf_string=source)
    return [
        raw,
        OnDemandFeatureView(
            name=NAIVE_VIEW,
            sources=[raw],
            schema=[Field(name="embedding", dtype=Array(Float32))],
            feature_transformation=declared,
            udf=scope[NAIVE_VIEW],
            udf_string=source,
            mode="python",
        ),
    ]


def _scalars(users: int, preprocessor: Any) -> Iterator[pa.RecordBatch]:
    """Yield every number of the raw arrays as a column of its own; strings as their codes."""
    schema = preprocessor.schema
    for table in _raw(users):
        batch = _raw_batch(table, schema)
        parts = [batch.columns[name].values for name in schema.array_columns]
        for name in schema.text_columns:
            text = batch.columns[name].values
            parts.append(np.array([[float(t or -1) for t in row] for row in text], np.float32))
        numbers = np.concatenate(parts, axis=1)  # (n, n_inputs)
        columns = {
            name: pa.array(numbers[:, k]) for k, name in enumerate(_scalar_names(numbers.shape[1]))
        }
        user = table.column(USER_KEY).combine_chunks()
        yield _timed({USER_KEY: user, **columns}, len(table))


def _raw_batch(table: pa.Table, schema: Any) -> Any:
    from encoder.columns import batch_from_arrow

    scalars = (*schema.as_of_columns, *schema.modality_columns)
    return batch_from_arrow(table, schema.array_columns, schema.text_columns, scalars)


_naive: dict[str, Any] = {}


def run_naive(
    inputs: Mapping[str, list[float]], n_inputs: int, store: str, version: str
) -> dict[str, list[Any]]:
    """Standardise the numbers and run the same layers in torch; called by the naive view."""
    import torch

    if not _naive:
        _naive["model"], _naive["scale"] = _naive_model(n_inputs, store, version)
    model, (mean, deviation) = _naive["model"], _naive["scale"]
    rows = torch.tensor(list(zip(*(inputs[name] for name in _scalar_names(n_inputs)), strict=True)))
    with torch.inference_mode():
        embedding = model((torch.nan_to_num(rows) - mean) / deviation)
    return {"embedding": embedding.tolist()}


def _naive_model(n_inputs: int, store: str, version: str) -> tuple[Any, Any]:
    """Return layers of the encoder's widths with initial weights, and a mean and deviation."""
    import torch
    from torch import nn

    from encoder.store import ArtifactStore

    model = ArtifactStore(store).load(version).manifest.model
    torch.manual_seed(SEED)
    widths = [n_inputs, *model["hidden"], model["embedding_dim"]]
    layers: list[Any] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.SELU()]
    scale = (torch.zeros(n_inputs), torch.ones(n_inputs))
    return nn.Sequential(*layers[:-1]).eval(), scale
