"""A bridge: the stored map by which one space's vectors are read as another's. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from encoder.alignment import OrthogonalMap
from encoder.errors import ArtifactError
from encoder.folders import VersionedFolders

__all__ = ["FORMAT_VERSION", "BridgeArtifact", "BridgeStore"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

_MANIFEST, _MAP = "bridge.json", "map.safetensors"
_FOLDER = "bridges"
_REMEDY = "Remove its folder and measure it again: `palate spaces stability`."
_ORTHOGONAL_TO = 1e-4
"""Largest element of ``M M^T - I`` (of the smaller side) of a map that counts as orthogonal."""


@dataclass(frozen=True)
class BridgeArtifact:
    """The map from a source space into a target space.

    Attributes
    ----------
    source, target : str
        Encoder versions, 12 hex digits.
    map : OrthogonalMap
    facts : mapping
        JSON types, for the reader; no part of the version.
    """

    source: str
    target: str
    map: OrthogonalMap
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """First 12 hex digits of the SHA-256 of both encoder versions, the matrix and the shift."""
        digest = hashlib.sha256()
        names = {"source": self.source, "target": self.target, "shape": self.map.matrix.shape}
        digest.update(json.dumps(names, sort_keys=True).encode())
        for array in (self.map.matrix, self.map.shift):
            digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()[:12]

    def apply(self, embedding: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return vectors of the source space (n, d) in the target space, float32 (n, d').

        See `encoder.alignment.OrthogonalMap.apply`, also for what it raises.
        """
        return self.map.apply(embedding)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file of the bridge."""
        arrays = {"matrix": self.map.matrix, "shift": self.map.shift}
        content = safetensors_numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        manifest = {
            "format_version": FORMAT_VERSION,
            "version": self.version,
            "source": self.source,
            "target": self.target,
            "facts": dict(self.facts),
        }
        text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
        return {_MAP: content, _MANIFEST: text.encode()}

    @classmethod
    def from_files(cls, manifest: bytes, arrays: bytes, expected_version: str) -> BridgeArtifact:
        """Rebuild a bridge and verify it.

        Raises
        ------
        ArtifactError
            The files cannot be read, are of another format or version, or hold no orthogonal map.
        """
        name = f"Bridge {expected_version!r}"
        try:
            fields = json.loads(manifest)
            tensors = safetensors_numpy.load(arrays)
            given = fields["format_version"]
            if given != FORMAT_VERSION:
                raise ArtifactError(
                    f"{name} has format {given!r}, this release reads {FORMAT_VERSION}. Install "
                    "the release that wrote it, or measure it again."
                )
            fitted = OrthogonalMap(tensors["matrix"], tensors["shift"])
            bridge = cls(fields["source"], fields["target"], fitted, fields["facts"])
        except (ValueError, KeyError, TypeError, SafetensorError) as exc:
            raise ArtifactError(f"{name} cannot be read: {exc!r}. {_REMEDY}") from exc
        fault = _fault(fitted)
        if fault is None and bridge.version != expected_version:
            fault = f"holds the content of bridge {bridge.version!r}"
        if fault is not None:
            raise ArtifactError(f"{name} {fault}: its files were changed or cut short. {_REMEDY}")
        return bridge


class BridgeStore:
    """Bridges beside the encoder artifacts, in ``<artifacts>/bridges/<version>/``.

    Parameters
    ----------
    artifacts : str
        Folder or fsspec URL of the artifact store.
    """

    def __init__(self, artifacts: str) -> None:
        self._folders = VersionedFolders(posixpath.join(artifacts, _FOLDER), last=_MANIFEST)

    def save(self, bridge: BridgeArtifact) -> str:
        """Store a bridge and return its URL; one that is stored is verified and left alone.

        Raises
        ------
        ArtifactError
            The version is stored, but damaged.
        """
        version = bridge.version
        if self.exists(version):
            self.load(version)
        else:
            self._folders.write(version, bridge.files())
            logger.info("bridge %s stored at %s", version, self._folders.location(version))
        return self._folders.location(version)

    def load(self, version: str) -> BridgeArtifact:
        """Return a stored bridge, verified.

        Raises
        ------
        ArtifactError
            The version is not stored, or damaged.
        """
        if not self.exists(version):
            stored = ", ".join(repr(v) for v in self.list()) or "none"
            raise ArtifactError(f"Unknown bridge {version!r}. Stored: {stored}.")
        manifest = self._folders.read(version, _MANIFEST)
        try:
            arrays = self._folders.read(version, _MAP)
        except FileNotFoundError as exc:
            raise ArtifactError(f"Bridge {version!r} lacks {_MAP}. {_REMEDY}") from exc
        return BridgeArtifact.from_files(manifest, arrays, version)

    def list(self) -> list[str]:
        """Return the stored bridge versions, sorted."""
        return self._folders.versions()

    def exists(self, version: str) -> bool:
        """Return whether a complete bridge of this version is stored."""
        return self._folders.exists(version)

    def size(self, version: str) -> int:
        """Return the bytes that a version takes, 0 when nothing of it is there."""
        return self._folders.size(version)

    def delete(self, version: str) -> None:
        """Remove a bridge for good; safe to repeat."""
        self._folders.delete(version)
        logger.info("bridge %s removed", version)


def _fault(fitted: OrthogonalMap) -> str | None:
    """Return what is wrong with a map's arrays, or None."""
    matrix, shift = fitted.matrix, fitted.shift
    if matrix.dtype != np.float32 or shift.dtype != np.float32:
        return f"has {matrix.dtype} and {shift.dtype} arrays, float32 is expected"
    if matrix.ndim != 2 or shift.shape != matrix.shape[1:]:
        return f"has a matrix {matrix.shape} and a shift {shift.shape} that do not fit"
    if not np.isfinite(shift).all():
        return "has a shift with NaN or infinity"
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    exact = tall.astype(np.float64)
    if not np.abs(exact.T @ exact - np.eye(exact.shape[1])).max(initial=0.0) <= _ORTHOGONAL_TO:
        return "has a matrix that is not orthogonal"
    return None
