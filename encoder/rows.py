"""Training rows: streamed from Parquet, split by user, cached once as encoder inputs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.columns import RawBatch, raw_batch
from encoder.errors import DataFault
from encoder.preprocessing import Preprocessor
from encoder.schema import FeatureSchema

__all__ = ["CachedInputs", "InputMatrix", "Part", "RowSource", "cache_inputs", "held_out"]

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Part = Literal["all", "training", "validation"]

_READ_ROWS = 1024
"""Rows read as one piece when shuffling: large enough for the disk, small enough to mix well."""


def held_out(users: Iterable[str], share: float) -> npt.NDArray[np.bool_]:
    """Return which users are kept for validation, bool (n,), from the user id alone.

    The split has no seed: a user who is held out stays held out in every later training, so the
    validation losses of two encoders are comparable and no user of one leaks into the other.
    """
    limit = int(share * 2**64)
    return np.array(
        [
            int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest(), "big") < limit
            for user in users
        ],
        dtype=bool,
    )


def in_share(users: Iterable[str], share: float) -> npt.NDArray[np.bool_]:
    """Return which users are in a share of all, bool (n,), from the user id alone.

    By another hash than `held_out`: users of a share are held out as often as others.
    """
    return held_out((f"share:{user}" for user in users), share)


@dataclass(frozen=True)
class RowSource:
    """Raw feature rows in Parquet files, read in a fixed order with bounded memory.

    Attributes
    ----------
    path : Path
        One file, or a folder whose ``*.parquet`` files (at any depth) are read in sorted order.
    schema : FeatureSchema
        Tells which ``view__field`` columns are read.
    user_column : str
    batch_rows : int
        Most rows in memory at a time.
    future : FeatureSchema, optional
        Further columns: what comes next.
    """

    path: Path
    schema: FeatureSchema
    user_column: str = "user_id"
    batch_rows: int = 8192
    future: FeatureSchema | None = None

    def files(self) -> list[Path]:
        """Return the Parquet files in reading order.

        Raises
        ------
        DataFault
            There is none.
        """
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.parquet"))
        if not files:
            raise DataFault(
                f"No Parquet file with training rows under {str(self.path)!r}. "
                "Build the raw features first."
            )
        return files

    def count(self) -> int:
        """Return the number of rows, from the files' footers."""
        return sum(pq.read_metadata(file).num_rows for file in self.files())

    def fingerprint(self) -> str:
        """Return 12 hex digits that change when a file, its size or its footer changes.

        A Parquet footer holds offsets, row counts and column statistics; hashing it reads
        kilobytes where the data are gigabytes.
        """
        digest = hashlib.sha256()
        for file in self.files():
            digest.update(f"{file.relative_to(self.path)}:{file.stat().st_size}\n".encode())
            with file.open("rb") as f:
                f.seek(-8, os.SEEK_END)
                footer = int.from_bytes(f.read(4), "little")
                f.seek(-8 - footer, os.SEEK_END)
                digest.update(f.read(footer))
        return digest.hexdigest()[:12]

    def batches(self, part: Part = "all", share: float = 0.1) -> Iterator[RawBatch]:
        """Yield the rows of some users, at most ``batch_rows`` at a time, with user ids.

        Parameters
        ----------
        part : {"all", "training", "validation"}
            ``validation``: users that ``held_out`` keeps; ``training``: the others.
        share : float
            Share of the users to hold out.

        Raises
        ------
        DataFault
            A file lacks a column that the schema names.
        MalformedInput
            A list has another width than the schema's.
        """
        schema, further = self.schema, {} if self.future is None else self.future.array_columns
        names = [self.user_column, *schema.columns, *further]
        for file in self.files():
            with pq.ParquetFile(file) as parquet:
                lacking = sorted(set(names) - set(parquet.schema_arrow.names))
                if lacking:
                    raise DataFault(
                        f"{file.name} lacks the column(s) {', '.join(lacking)} of the encoder's "
                        "schema. Build the raw features with the same dataset.yaml."
                    )
                for batch in parquet.iter_batches(self.batch_rows, columns=names):
                    rows = self._of_part(batch, part, share)
                    if rows.num_rows:
                        yield raw_batch(rows, schema, self.user_column, further)

    def _of_part(self, batch: pa.RecordBatch, part: Part, share: float) -> pa.RecordBatch:
        if part == "all":
            return batch
        users = (str(user) for user in batch.column(self.user_column).to_pylist())
        return batch.filter(pa.array(held_out(users, share) == (part == "validation")))


@dataclass(frozen=True)
class InputMatrix:
    """Encoder inputs in a raw little-endian float32 file, read in pieces.

    Plain reads, not a memory map: a map's pages count as the process's memory while the kernel
    keeps them, and a buffer of known size does not grow with the file.

    Attributes
    ----------
    path : Path
    n_rows : int
    n_inputs : int
        Columns, those that ``cache_inputs`` set beside the encoder inputs among them.
    """

    path: Path
    n_rows: int
    n_inputs: int

    def read(self, start: int, stop: int) -> Float32:
        """Return rows [start, stop) as float32 (stop - start, n_inputs)."""
        count, offset = (stop - start) * self.n_inputs, start * self.n_inputs * 4
        values = np.fromfile(self.path, "<f4", count, offset=offset)
        return values.reshape(stop - start, self.n_inputs)

    def in_order(self, batch_size: int) -> Iterator[Float32]:
        """Yield all rows in file order."""
        for start in range(0, self.n_rows, batch_size):
            yield self.read(start, min(start + batch_size, self.n_rows))

    def n_batches(self, batch_size: int, buffer_rows: int) -> int:
        """Return how many batches ``shuffled`` yields."""
        pieces = self._pieces(np.random.default_rng(0))
        sizes = (sum(b - a for a, b in g) for g in _groups(pieces, buffer_rows))
        return sum(-(-size // batch_size) for size in sizes)

    def shuffled(
        self, batch_size: int, buffer_rows: int, seed: tuple[int, ...], first: int = 0
    ) -> Iterator[Float32]:
        """Yield every row once, in an order that depends on ``seed`` only.

        Pieces of 1,024 consecutive rows are read in random order into a buffer, whose rows are
        shuffled again: sequential reads, bounded memory, good mixing.

        Parameters
        ----------
        batch_size, buffer_rows : int
        seed : tuple of int
            For example (seed, epoch).
        first : int
            Number of batches to leave out; the rest is the same as without it (exact resume).
        """
        rng = np.random.default_rng(seed)
        done = 0
        for group in _groups(self._pieces(rng), buffer_rows):
            size = sum(stop - start for start, stop in group)
            order = rng.permutation(size)
            batches = -(-size // batch_size)
            if done + batches <= first:
                done += batches
                continue
            buffer = np.empty((size, self.n_inputs), np.float32)
            filled = 0
            for start, stop in group:
                buffer[filled : filled + stop - start] = self.read(start, stop)
                filled += stop - start
            for k in range(max(first - done, 0), batches):
                yield buffer[order[k * batch_size : (k + 1) * batch_size]]
            done += batches

    def _pieces(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        starts = np.arange(0, self.n_rows, _READ_ROWS)
        # The last piece is short; it stays last so that the groups, and with them the number of
        # batches, are the same for every seed.
        starts[:-1] = rng.permutation(starts[:-1])
        return [(int(s), min(int(s) + _READ_ROWS, self.n_rows)) for s in starts]


def _groups(pieces: list[tuple[int, int]], buffer_rows: int) -> Iterator[list[tuple[int, int]]]:
    per_group = max(buffer_rows // _READ_ROWS, 1)
    for k in range(0, len(pieces), per_group):
        yield pieces[k : k + per_group]


@dataclass(frozen=True)
class CachedInputs:
    """Preprocessed rows on disk, training and held-out users apart."""

    training: InputMatrix
    validation: InputMatrix


def cache_inputs(
    source: RowSource,
    preprocessor: Preprocessor,
    folder: Path,
    share: float = 0.1,
    progress: bool = True,
    beside: Sequence[Callable[[RawBatch], Float32]] = (),
) -> CachedInputs:
    """Write the encoder inputs of all rows once, and return them; epochs then read only floats.

    Takes 4 bytes of disk a row and column. Written to ``<folder>.tmp``, then renamed; a
    complete ``folder`` is returned as it is, so the caller names it after what went in.

    Parameters
    ----------
    source : RowSource
    preprocessor : Preprocessor
    folder : Path
    share : float
        Share of users in ``validation``.
    progress : bool
        Show a progress bar on stderr.
    beside : sequence of callable
        Each raw rows -> float32 (n_rows, width): further columns, behind the encoder inputs.

    Raises
    ------
    DataFault
        One of the two parts has no row.
    """
    if not folder.exists():
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        rows = {"training": 0, "validation": 0}
        with (
            (temporary / "training.f32").open("wb") as training,
            (temporary / "validation.f32").open("wb") as validation,
            tqdm(
                total=source.count(), desc="inputs", unit="row", unit_scale=True,
                disable=not progress,
            ) as bar,
        ):  # fmt: skip
            for batch in source.batches():
                inputs = preprocessor.transform(batch)  # (n_rows, n_inputs)
                if beside:
                    inputs = np.concatenate([inputs, *(add(batch) for add in beside)], axis=1)
                inputs = inputs.astype("<f4", copy=False)
                kept = held_out(batch.users, share)
                training.write(inputs[~kept].data)
                validation.write(inputs[kept].data)
                rows["training"] += int((~kept).sum())
                rows["validation"] += int(kept.sum())
                bar.update(batch.n_rows)
        (temporary / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        temporary.rename(folder)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    empty = [part for part, n in rows.items() if n == 0]
    if empty:
        raise DataFault(
            f"No user falls into the {' and the '.join(empty)} part of {source.count()} rows "
            f"(held-out share {share}). Train on more users."
        )
    logger.info(
        "inputs cached: %s training rows, %s validation rows", rows["training"], rows["validation"]
    )
    return CachedInputs(
        *(
            InputMatrix(file, rows[file.stem], file.stat().st_size // (4 * rows[file.stem]))
            for file in (folder / "training.f32", folder / "validation.f32")
        )
    )
