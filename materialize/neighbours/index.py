"""Reading a neighbour index in serving code: vectors in, ids and cosines out."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.errors import ArtifactError
from materialize.neighbours.cells import Cells, directions, read_cells
from materialize.neighbours.manifest import IDS, INDEX, Manifest

__all__ = ["NeighbourIndex"]

_log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Version:
    """One version of the index, opened; nothing in it changes."""

    manifest: Manifest
    cells: Cells
    ids: pa.Array


class NeighbourIndex:
    """The users of one space, to be searched by embedding; safe for threads.

    Both files are mapped, so that processes on a machine share one copy of them in memory.

    State: the version that is open. `refresh` replaces it between two searches; a search that runs
    meanwhile ends on the version it began with.

    Parameters
    ----------
    folder : Path
        Of one space, see `materialize.neighbours.manifest.index_folder`.
    space : int
    encoder_version : str
        Of the vectors that will be asked with.
    """

    def __init__(self, folder: Path, space: int, encoder_version: str) -> None:
        self._folder, self._space, self._encoder_version = folder, space, encoder_version
        self._lock = threading.Lock()  # of `refresh`; searches need none
        self._open = self._load(self._read_manifest())

    @classmethod
    def open(cls, folder: str | Path, space: int, encoder_version: str) -> NeighbourIndex:
        """Open the index of a space.

        Its files are read whole and compared with the manifest's hashes, which takes about a second
        for 500 MB.

        Raises
        ------
        ArtifactError
            There is none, or a file is missing or damaged.
        SpaceMismatch
            It is of another space or encoder version.
        ModuleNotFoundError
            The extra ``neighbours`` is not installed.
        """
        return cls(Path(folder), space, encoder_version)

    @property
    def manifest(self) -> Manifest:
        """Of the version that is open."""
        return self._open.manifest

    def search(
        self, vectors: npt.NDArray[np.floating[Any]], k: int
    ) -> tuple[npt.NDArray[Any], Float32]:
        """Return the users nearest to some vectors.

        Parameters
        ----------
        vectors : float (n, dim)
            Embeddings of the index's space, of any length; not modified.
        k : int
            At least 1; at most all users are returned.

        Returns
        -------
        ids : int64 or object (of str) (n, min(k, count))
            Nearest first. A user of the index whose own vector is asked for is among them.
        cosine : float32 (n, min(k, count))
            In [-1, 1], right to 1e-3.

        Raises
        ------
        ValueError
            Vectors of another width, zero, or not finite; or ``k`` below 1.

        Notes
        -----
        Approximate: ``manifest.recall`` is the share of the true nearest that the build found.
        """
        version = self._open
        queries = _unit(vectors, version.manifest.dim)
        if k < 1:
            raise ValueError(f"k {k} given, at least 1 expected.")
        k = min(k, version.manifest.count)
        position, cosine = version.cells.search(queries, k, version.manifest.probes)
        ids = version.ids.take(pa.array(position.ravel()))
        return ids.to_numpy(zero_copy_only=False).reshape(position.shape), cosine

    def refresh(self) -> bool:
        """Open the version that was built since, if there is one; return whether there was.

        On an error the version that was open stays.

        Raises
        ------
        ArtifactError, SpaceMismatch
            As `open`.
        """
        with self._lock:
            manifest = self._read_manifest()
            if manifest.folder == self._open.manifest.folder:
                return False
            self._open = self._load(manifest)
        _log.info("space %s: neighbour index %s is open", self._space, manifest.folder)
        return True

    def _read_manifest(self) -> Manifest:
        manifest = Manifest.read(self._folder)
        if manifest is None:
            raise ArtifactError(
                f"{self._folder} holds no neighbour index of space {self._space}. Build it: "
                f"`palate neighbours build --space {self._space}`.",
                encoder_version=self._encoder_version,
            )
        manifest.require(self._space, self._encoder_version)
        return manifest

    def _load(self, manifest: Manifest) -> _Version:
        while True:
            try:
                return self._open_files(manifest)
            except FileNotFoundError as exc:
                # Two builds that ended since the manifest was read took the version away.
                newest = self._read_manifest()
                if newest.folder == manifest.folder:
                    raise ArtifactError(
                        f"{exc.filename} of the neighbour index is missing. Remove the manifest in "
                        f"{self._folder} and build the index again: `palate neighbours build "
                        f"--space {self._space}`.",
                        encoder_version=self._encoder_version,
                    ) from exc
                manifest = newest

    def _open_files(self, manifest: Manifest) -> _Version:
        folder = self._folder / manifest.folder
        manifest.verify(self._folder)
        cells = read_cells(folder / INDEX)
        with pa.memory_map(str(folder / IDS)) as source:
            ids = pa.ipc.open_file(source).get_batch(0).column(0)
        found = (cells.count, cells.dim, len(ids))
        expected = (manifest.count, manifest.dim, manifest.count)
        if found != expected:
            raise ArtifactError(
                f"The index in {folder} has (vectors, dim, ids) {found}, its manifest says "
                f"{expected}. Build it again: `palate neighbours build --space {self._space}`.",
                encoder_version=self._encoder_version,
            )
        return _Version(manifest, cells, ids)


def _unit(vectors: npt.NDArray[np.floating[Any]], dim: int) -> Float32:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"Vectors of shape {vectors.shape} given, (n, {dim}) expected.")
    queries, wrong = directions(np.ascontiguousarray(vectors, np.float32))
    if len(wrong):
        raise ValueError(
            f"Vector {wrong[0]} and {len(wrong) - 1} other(s) are zero or not finite; they have no "
            "direction, so nothing is near them."
        )
    return queries
