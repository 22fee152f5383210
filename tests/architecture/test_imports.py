"""Imports point one way: encoder <- transforms <- materialize, and serving needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.modules import FOLDERS, ROOT, Import, files, imports

# The third parties and own folders that each folder may name, anywhere in its files.
_DATA = {"numpy", "pyarrow", "scipy", "sklearn", "fsspec", "safetensors", "tqdm", "threadpoolctl"}
_ENCODER = {"encoder", "torch", "onnx", "onnxruntime", "onnxscript", "sentence_transformers"}
_ENCODER |= {"tokenizers"}
MAY_IMPORT = {
    "encoder": _DATA | _ENCODER,
    "transforms": _DATA
    | {"encoder", "transforms", "feast", "duckdb", "pandas", "pydantic", "yaml", "mmh3"},
    "materialize": {"ibis"}
    | _DATA
    | {"encoder", "transforms", "materialize", "feast", "duckdb", "pandas", "pydantic", "yaml"}
    | {
        "faiss",
        "torch",
        "onnxruntime",
        "redis",
        "sqlalchemy",
        "alembic",
        "psycopg",
        "ray",
        "click",
        "psutil",
    }
    | {"plotly", "jinja2", "umap", "requests", "tenacity", "prometheus_client"}
    | {"cachetools", "async_timeout", "google.protobuf.message", "google.protobuf.timestamp_pb2"}
    | {"fairlearn", "implicit", "nats", "ptls"},
    # Views are declared from the ledger's spaces, so its config and ledger are the exception.
    "feature_repo": {"transforms", "feast", "materialize.config", "materialize.ledger"},
}

# These cannot do anything without the library; everything else imports it in a function.
TORCH_ON_LOAD = {
    "encoder/autoencoder.py",
    "encoder/checkpoint.py",
    "encoder/clue/artifact.py",
    "encoder/clue/encoding.py",
    "encoder/clue/export.py",
    "encoder/clue/flops.py",
    "encoder/clue/grad_cache.py",
    "encoder/clue/info_nce.py",
    "encoder/clue/network.py",
    "encoder/clue/training.py",
    "encoder/compatibility.py",
    "encoder/export.py",
    "encoder/heads.py",
    "encoder/losses.py",
    "encoder/network_probe.py",
    "encoder/placement.py",
    "encoder/progress.py",
    "encoder/training.py",
    "encoder/training_config.py",
    "encoder/universal_probe.py",
    "materialize/evaluate/models/dlrm.py",
    "materialize/evaluate/models/lightfm.py",
    "materialize/evaluate/models/ranking_head.py",
    "materialize/evaluate/models/sasrec.py",
    "materialize/evaluate/models/two_tower.py",
    "materialize/evaluate/models/user_towers.py",
}
FEAST_ON_LOAD = {
    # Declarations are Feast objects.
    "feature_repo/entities.py",
    "feature_repo/services.py",
    "feature_repo/spaces.py",
    "feature_repo/views.py",
    "transforms/embedding_views.py",
    "transforms/on_demand.py",
    "transforms/raw_views.py",
    "transforms/services.py",
    # Its hash fields are spelled by Feast's own functions, and only a Redis store needs them.
    "materialize/reader/redis_layout.py",
    # Feast loads these by class path; they subclass its classes.
    "materialize/engine.py",
    "materialize/stores/base.py",
    "materialize/stores/on_demand.py",
    "materialize/stores/on_demand_reads.py",
    "materialize/stores/parquet.py",
    "materialize/stores/parquet_files.py",
    "materialize/stores/parquet_job.py",
    "materialize/stores/parquet_settings.py",
    "materialize/stores/postgres.py",
    "materialize/stores/redis.py",
    "materialize/stores/registry.py",
    "materialize/stores/retrieval.py",
    "materialize/stores/sqlite.py",
}


def _faults(path: Path, source: str | None = None) -> list[str]:
    folder = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder]
    siblings = {file.stem for file in (ROOT / "feature_repo").glob("*.py")}
    faults = []
    for found in imports(path, source):
        if found.package in sys.stdlib_module_names:
            continue
        if folder == "feature_repo" and found.package in siblings:
            continue  # `feast apply` puts the folder itself on the path
        if found.package not in allowed and not allowed.intersection(found.dotted):
            faults.append(f"{found}; {folder} may import {', '.join(sorted(allowed))}")
    return faults


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_imports_only_what_its_row_of_the_table_allows(folder: str) -> None:
    own = [path for path in files() if path.relative_to(ROOT).parts[0] == folder]
    assert own, f"{folder} holds no Python file"
    assert [fault for path in own for fault in _faults(path)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("encoder/x.py", "import feast"),
        ("encoder/x.py", "def f():\n    from transforms.layout import y"),
        ("encoder/x.py", "try:\n    import redis\nexcept ImportError:\n    raise"),
        ("transforms/x.py", "from materialize import ledger"),
        ("materialize/x.py", "import feature_repo.views"),
        ("feature_repo/x.py", "from materialize.batch import run"),
        ("feature_repo/x.py", "import torch"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(_faults(ROOT / path, source)) == 1


def _loading(package: str) -> list[Import]:
    return [
        found
        for path in files()
        for found in imports(path)
        if found.on_load and found.package == package
    ]


def test_torch_is_imported_on_load_only_where_nothing_works_without_it() -> None:
    assert [str(i) for i in _loading("torch") if i.importer not in TORCH_ON_LOAD] == []


def test_feast_is_imported_on_load_only_where_nothing_works_without_it() -> None:
    assert [str(i) for i in _loading("feast") if i.importer not in FEAST_ON_LOAD] == []


def test_an_import_in_a_function_or_for_type_checkers_is_not_on_load() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
def f():
    import feast
class C:
    import numpy
"""
    found = {i.module: i.on_load for i in imports(ROOT / "encoder/x.py", source)}
    assert found == {"typing": True, "torch": False, "feast": False, "numpy": True}


# What a serving process and the command line load, and what they must do without: torch is not
# installed where only serving runs, and `import feast` costs seconds.
@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("transforms.runtime", ["torch", "feast"]),
        ("materialize.cli", ["torch", "feast", "pandas", "duckdb", "sklearn", "onnxruntime"]),
        ("materialize.client", ["torch", "feast", "redis", "pandas", "duckdb", "onnxruntime"]),
        ("materialize.neighbours", ["torch", "feast", "faiss", "pandas", "duckdb", "onnxruntime"]),
        ("transforms.stream.state", ["torch", "feast", "redis", "pandas"]),
        # What a producer loads beside a Redis client.
        ("transforms.stream.events", ["torch", "feast", "numpy", "pyarrow", "duckdb"]),
        ("encoder.schema", ["torch", "feast"]),
        ("encoder.columns", ["torch", "feast"]),
        ("encoder.preprocessing", ["torch", "feast"]),
        ("encoder.modality", ["torch", "feast"]),
        ("encoder.artifact", ["torch", "feast"]),
        ("encoder.bridge", ["torch", "feast", "sklearn"]),
    ],
)
def test_module_loads_without(module: str, without: list[str], tmp_path: Path) -> None:
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [name for name in without if name in json.loads(done.stdout)] == []
