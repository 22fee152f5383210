"""``palate neighbours build``: the index of a space, swapped in by one rename."""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from encoder.errors import LedgerConflict, TransientError, VerificationFailed
from materialize.config import RepoSettings
from materialize.ledger import Ledger, Space
from materialize.neighbours.cells import LIBRARY, Tuning, build_cells, faiss_library
from materialize.neighbours.manifest import (
    FILES,
    IDS,
    INDEX,
    FileFact,
    Manifest,
    index_folder,
)
from materialize.neighbours.rows import OpenRows, SpaceRows, space_rows, unit_rows
from materialize.stores.append import locked, sync

__all__ = ["BuildReport", "build_neighbours", "is_current"]

_log = logging.getLogger(__name__)

_VERSION = "version-"
_SCRATCH = "vectors.f16"
_CHUNK = 65_536

Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]


@dataclass(frozen=True)
class BuildReport:
    """What a build did, or (``planned``) would do.

    Attributes
    ----------
    space : int
    outcome : str
        ``built``, ``unchanged``: the index is of the space's present rows; or ``planned``.
    users : int
        In the index; of a plan: that would be.
    size_bytes : int
        Of the version that is served; of a plan 0.
    probes, lists : int
        As in `Manifest`; of a plan 0.
    recall : float or None
        As in `Manifest`; of a plan None.
    seconds : float
        Of this call.
    """

    space: int
    outcome: str
    users: int
    size_bytes: int
    probes: int
    lists: int
    recall: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def is_current(settings: RepoSettings, ledger: Ledger, space: Space, manifest: Manifest) -> bool:
    """Return whether an index is of the rows that its space has now."""
    with space_rows(settings, ledger, space) as rows:
        return _same(manifest, space, rows)


def build_neighbours(
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    *,
    dry_run: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Index the users of a space by their newest embeddings; safe to kill and to repeat.

    Parameters
    ----------
    settings : RepoSettings
    ledger : Ledger
    space : Space
    dry_run : bool
        Count users; write nothing.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    DataFault
        The space has no committed rows, or a vector without a direction.
    SpaceMismatch
        Rows of another space lie in its folder.
    LedgerConflict
        The space is retiring or retired.
    TransientError
        Another build of the space is running.
    ModuleNotFoundError
        The extra ``neighbours`` is not installed.

    Notes
    -----
    A version is built in a folder of its own, which counts from the moment at which the manifest
    names it. The version before is kept, because a reader may be opening it; older ones, and what
    a killed build left, are removed.

    Memory: DuckDB within the repository's limit, and `build_cells`, and the ids once. Vectors pass
    through a scratch file (2 bytes a number). No user is a Python object.
    """
    faiss_library()
    _require_live(space)
    if dry_run:
        return _plan(settings, ledger, space)
    folder = index_folder(settings, space.number)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return _build(settings, ledger, space, folder, progress=progress)
    except BlockingIOError:
        raise TransientError(
            f"Another build of the neighbour index of space {space.number} is running. Repeat when "
            "it has ended."
        ) from None


def _require_live(space: Space) -> None:
    if space.state in {"retiring", "retired"}:
        raise LedgerConflict(
            f"Space {space.number} is {space.state}; no index of it is built. Name another one, "
            "`palate spaces list` shows them."
        )


def _same(manifest: Manifest | None, space: Space, rows: SpaceRows) -> bool:
    return (
        manifest is not None
        and manifest.encoder_version == space.encoder_version
        and manifest.fingerprint == rows.fingerprint
    )


def _plan(settings: RepoSettings, ledger: Ledger, space: Space) -> BuildReport:
    began = time.perf_counter()
    manifest = Manifest.read(index_folder(settings, space.number))
    with space_rows(settings, ledger, space) as rows:
        if manifest is not None and _same(manifest, space, rows):
            return _report("unchanged", manifest, began)
        with rows.opened() as found:
            return BuildReport(
                *(space.number, "planned", found.count, 0, 0, 0, None),
                round(time.perf_counter() - began, 3),
            )


def _build(
    settings: RepoSettings, ledger: Ledger, space: Space, folder: Path, *, progress: bool
) -> BuildReport:
    began = time.perf_counter()
    served = Manifest.read(folder)
    _remove_others(folder, served)
    with space_rows(settings, ledger, space) as rows:
        if served is not None and _same(served, space, rows):
            return _report("unchanged", served, began)
    version = folder / f"{_VERSION}{uuid.uuid4().hex[:12]}"
    version.mkdir()
    try:
        manifest = _make(settings, ledger, space, version, served, progress=progress)
        _require_live(ledger.space(space.number))  # it may have been retired meanwhile
    except BaseException:
        shutil.rmtree(version)
        raise
    manifest.write(folder)
    _remove_others(folder, manifest)
    report = _report("built", manifest, began)
    _log.info(
        "space %s: %s users indexed, recall@%s %.3f with %s of %s cells, %.1f s",
        *(space.number, manifest.count, manifest.recall_at, manifest.recall),
        *(manifest.probes, manifest.lists, report.seconds),
    )
    return report


def _make(
    settings: RepoSettings,
    ledger: Ledger,
    space: Space,
    version: Path,
    served: Manifest | None,
    *,
    progress: bool,
) -> Manifest:
    """Write a version's files; return the manifest that will name it."""
    with space_rows(settings, ledger, space) as rows:
        with rows.opened() as found:
            ids, vectors = _copy(found, version, progress=progress)
        fingerprint, runs = rows.fingerprint, rows.runs
    tuning = _write_index(vectors, version, progress=progress)
    _write_ids(ids, version)
    (version / _SCRATCH).unlink()
    sync(version)
    return Manifest(
        space=space.number,
        encoder_version=space.encoder_version,
        fingerprint=fingerprint,
        runs=runs,
        dim=vectors.shape[1],
        count=len(vectors),
        metric="cosine",
        user_type="int64" if pa.types.is_integer(ids.type) else "string",
        library=LIBRARY,
        library_version=faiss_library().__version__,
        lists=tuning.lists,
        probes=tuning.probes,
        recall=round(tuning.recall, 4),
        recall_at=tuning.k,
        recall_users=tuning.users,
        folder=version.name,
        previous=None if served is None else served.folder,
        files={name: FileFact.of(version / name) for name in FILES},
        created_at=datetime.now(timezone.utc).isoformat(),
    )


def _copy(
    found: OpenRows, version: Path, *, progress: bool
) -> tuple[pa.ChunkedArray, np.memmap[Any, np.dtype[np.float16]]]:
    """Write all unit vectors to the scratch file; return the ids in the same order, and a map."""
    ids: list[pa.Array] = []
    dim = 0
    path = version / _SCRATCH
    with (
        path.open("wb") as file,
        tqdm(
            total=found.count, desc="read", unit="user", unit_scale=True, disable=not progress
        ) as bar,
    ):
        for users, vectors in found.batches():
            unit_rows(users, vectors).astype(np.float16).tofile(file)
            # 64-bit offsets: the texts of all ids together may pass 2 GiB.
            ids.append(users if pa.types.is_integer(users.type) else users.cast(pa.large_string()))
            if dim and vectors.shape[1] != dim:
                raise VerificationFailed(
                    f"Embeddings of {dim} and of {vectors.shape[1]} numbers were found; one width "
                    "is expected."
                )
            dim = vectors.shape[1]
            bar.update(len(users))
    read = pa.chunked_array(ids)
    if len(read) != found.count:
        raise VerificationFailed(f"{found.count} users were expected and {len(read)} came.")
    return read, np.memmap(path, np.float16, "r", shape=(found.count, dim))


def _write_index(vectors: Float16, version: Path, *, progress: bool) -> Tuning:
    count, dim = vectors.shape
    rng = np.random.default_rng(0)
    with tqdm(total=count, desc="index", unit="user", unit_scale=True, disable=not progress) as bar:

        def sample(n: int) -> Float32:
            # Rows come in no order of their vectors' own; sorted, so that the file is read forward.
            return vectors[np.sort(rng.choice(count, n, replace=False))].astype(np.float32)

        def chunks() -> Iterator[Float32]:
            for start in range(0, count, _CHUNK):
                yield vectors[start : start + _CHUNK].astype(np.float32)
                bar.update(min(_CHUNK, count - start))

        cells, tuning = build_cells(count, dim, sample, chunks)
    cells.write(version / INDEX)
    sync(version / INDEX)
    return tuning


def _write_ids(ids: pa.ChunkedArray, version: Path) -> None:
    """Write one batch, so that a reader maps one array."""
    table = pa.record_batch([ids.combine_chunks()], names=["user_id"])
    with pa.OSFile(str(version / IDS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table)
    sync(version / IDS)


def _remove_others(folder: Path, served: Manifest | None) -> None:
    """Remove versions that no reader can be opening."""
    kept = set() if served is None else {served.folder, served.previous}
    for version in folder.glob(f"{_VERSION}*"):
        if version.name not in kept:
            shutil.rmtree(version)


def _report(outcome: str, manifest: Manifest, began: float) -> BuildReport:
    return BuildReport(
        manifest.space,
        outcome,
        manifest.count,
        sum(fact.size_bytes for fact in manifest.files.values()),
        manifest.probes,
        manifest.lists,
        manifest.recall,
        round(time.perf_counter() - began, 3),
    )
