"""Files and tensors of an artifact: hashes, shapes, and what is missing or was changed."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from encoder.errors import ArtifactError
from encoder.manifest import Manifest

__all__ = ["Arrays", "libraries", "read_tensors", "require_names", "sha256", "shapes"]

Arrays = dict[str, npt.NDArray[Any]]

_LIBRARIES = (
    *("numpy", "onnx", "onnxruntime", "palate", "pyarrow", "safetensors", "scikit-learn", "scipy"),
    "torch",
)


def sha256(data: bytes) -> str:
    """Return the hash of a file's content, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def shapes(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
    """Return name -> [dtype, shape], in JSON types."""
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def read_tensors(name: str, data: bytes, manifest: Manifest) -> Arrays:
    """Return the tensors of a file, as the manifest has them.

    Raises
    ------
    ArtifactError
        The file is damaged, or holds other tensors.
    """
    try:
        arrays: Arrays = safetensors_numpy.load(data)
    except SafetensorError as exc:
        raise ArtifactError(f"{name} cannot be read: {exc}. Fetch the artifact again.") from exc
    expected = manifest.tensors.get(name, {})
    require_names(f"Tensors of {name}", set(arrays), set(expected))
    found = shapes(arrays)
    wrong = [
        f"{k} {found[k]} instead of {expected[k]}" for k in expected if found[k] != expected[k]
    ]
    if wrong:
        raise ArtifactError(
            f"Tensors of {name} have another type or shape than the manifest says: "
            f"{', '.join(sorted(wrong))}. Fetch the artifact again."
        )
    return arrays


def require_names(what: str, given: set[str], expected: set[str]) -> None:
    """Refuse names that are missing or too many.

    Raises
    ------
    ArtifactError
    """
    faults = [
        f"{word}: {', '.join(sorted(names))}"
        for word, names in (("missing", expected - given), ("unexpected", given - expected))
        if names
    ]
    if faults:
        raise ArtifactError(
            f"{what} do not match the artifact's format ({'; '.join(faults)}). "
            "Fetch the artifact again, and keep nothing else in its folder."
        )


def libraries() -> dict[str, str]:
    """Return the versions of Python and of what an artifact's numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # serving installs have no torch
    return versions
