"""Reading back what a run wrote, before the ledger says it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoder.errors import VerificationFailed
from materialize.embedding_rows import embedding_matrix
from materialize.online_rows import entity_keys
from materialize.source import parquet_files
from transforms.names import USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["check_embeddings", "row_count", "verify_count", "verify_file", "verify_online"]

_SAMPLE = 200


def check_embeddings(batch: pa.RecordBatch, mark: tuple[int, str], where: str) -> None:
    """Check rows of a space's view: this space only, no NaN, no null, no zero vector.

    Parameters
    ----------
    batch : RecordBatch
    mark : (int, str)
        The space and the encoder version that each row must carry.
    where : str
        For messages.

    Raises
    ------
    VerificationFailed
        Names ``where`` and what is wrong.
    """
    spaces = set(batch.column("space").unique().to_pylist())
    versions = set(batch.column("encoder_version").unique().to_pylist())
    space, version = mark
    if batch.num_rows and (spaces != {space} or versions != {version}):
        raise VerificationFailed(
            f"{where} holds spaces {_listed(spaces)} and encoders {_listed(versions)}; "
            f"only space {space} ({version}) is expected."
        )
    vectors = embedding_matrix(batch.column("embedding"))
    bad = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)
    if bad.any():
        raise VerificationFailed(
            f"{where} holds {int(bad.sum())} embedding(s) that are NaN, infinite or zero."
        )


def verify_file(path: Path, written: pa.Table) -> None:
    """Check that a Parquet file answers exactly the rows that were written to it.

    Raises
    ------
    VerificationFailed
    """
    if not pq.read_table(path).equals(written):
        raise VerificationFailed(
            f"{path} answers other rows than the {written.num_rows} that were written to it. "
            "Check the disk, then run the command again."
        )


def row_count(folder: Path) -> int:
    """Return how many rows a run's files hold, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in parquet_files(folder))


def verify_count(where: str, rows: int, expected_rows: int) -> None:
    """Check how many rows a run has.

    Raises
    ------
    VerificationFailed
        Names ``where``.
    """
    if rows != expected_rows:
        raise VerificationFailed(
            f"{where} holds {rows} rows, {expected_rows} are expected from the raw features. Did "
            "raw features change during the run? Run the command again."
        )


def verify_online(store: FeatureStore, view: str, folder: Path) -> int:
    """Read a sample of a published run back from the online store and compare it.

    A user whose online row is newer (a stream wrote it meanwhile) is right as it is.

    Returns
    -------
    int
        Number of users compared.

    Raises
    ------
    VerificationFailed
        A sampled user is absent, older, or has another vector at the same ``as_of``.
    """
    written = _sample(folder)
    if written is None:
        return 0
    users = written.column(USER_KEY).to_pylist()
    answer = _read_online(store, view, users)
    vectors = embedding_matrix(written.column("embedding").combine_chunks())
    moments = written.column("as_of").to_pylist()
    for row, user in enumerate(users):
        online, as_of = answer[row]
        if online is None or as_of is None or as_of < moments[row]:
            raise VerificationFailed(
                f"User {user} was written to {view} with as_of {moments[row]}, the online store "
                f"answers {as_of}. Check the online store, then run the command again."
            )
        same = np.array_equal(np.asarray(online, np.float32), vectors[row])
        if as_of == moments[row] and not same:
            raise VerificationFailed(
                f"User {user}: the online store answers another vector of {view} than was written "
                f"at as_of {as_of}. Check the online store, then run the command again."
            )
    return len(users)


def _listed(values: set[Any]) -> str:
    return f"[{', '.join(sorted(map(repr, values)))}]"


def _read_online(
    store: FeatureStore, view: str, users: list[Any]
) -> list[tuple[Any | None, int | None]]:
    """Return each user's embedding and ``as_of``, None where the online store has none.

    Straight from the store: while `feast materialize` runs, Feast 0.67 marks the view MATERIALIZING
    and `get_online_features` refuses to serve it.
    """
    from feast.infra.online_stores.helpers import get_online_store_from_config

    online = get_online_store_from_config(store.config.online_store)
    keys = entity_keys(users, text=isinstance(users[0], str))
    found = online.online_read(
        store.config, store.get_feature_view(view), keys, ["embedding", "as_of"]
    )
    answer: list[tuple[Any | None, int | None]] = []
    for _, values in found:
        if values and values["embedding"].WhichOneof("val") is not None:
            answer.append((values["embedding"].float_list_val.val, values["as_of"].int64_val))
        else:
            answer.append((None, None))
    return answer


def _sample(folder: Path) -> pa.Table | None:
    """Return about 200 rows, spread over the run's row groups; None: it has no row."""
    groups = [
        (pq.ParquetFile(path), group)
        for path in parquet_files(folder)
        for group in range(pq.read_metadata(path).num_row_groups)
        if pq.read_metadata(path).row_group(group).num_rows
    ]
    if not groups:  # a run over a range without rows
        return None
    chosen = groups[:: max(1, len(groups) // 8)]
    tables = []
    for file, group in chosen:
        table = file.read_row_group(group, columns=[USER_KEY, "embedding", "as_of"])
        each = -(-_SAMPLE // len(chosen))
        tables.append(table.take(np.unique(np.linspace(0, table.num_rows - 1, each).astype(int))))
    return pa.concat_tables(tables)
