"""`palate stream` by its command line, and what a repository serves and keeps afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result

from materialize.cli import main
from tests.streams import LAYOUT, TinyStream
from transforms.names import stored_view
from transforms.stream.events import StreamEvent, event_payload

__all__ = ["PARTITIONS", "SPACE", "STREAM", "kept", "lines", "palate", "run_to_the_end", "served"]

SPACE = stored_view(1)
PARTITIONS = 4
STREAM = {"partitions": PARTITIONS, "flush_seconds": 0.5, "lease_seconds": 1.5, "linger_ms": 1}


def palate(
    stream: TinyStream, *arguments: str, code: int = 0, repo: Path | None = None, **more: Any
) -> Result:
    """Run a command in this process, where Feast is imported already."""
    where = ("--repo", str(repo or stream.context.settings.repo))
    result = CliRunner().invoke(main, ["stream", *arguments, *where], **more)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def lines(path: Path, events: Sequence[StreamEvent | bytes]) -> Path:
    payloads = [
        one if isinstance(one, bytes) else event_payload(one, LAYOUT.context) for one in events
    ]
    path.write_bytes(b"\n".join(payloads) + b"\n")
    return path


def run_to_the_end(stream: TinyStream, *arguments: str) -> dict[str, Any]:
    result = palate(stream, "run", "--until-idle", "--quiet", *arguments)
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def served(stream: TinyStream, *users: int) -> dict[str, list[Any]]:
    return stream.online(SPACE, users)


def kept(stream: TinyStream) -> set[tuple[int, int]]:
    """Return user and ``as_of`` of the offline rows of the space."""
    folder = stream.offline(stream.context.ledger.space(1))
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(folder.rglob("*.parquet")))
    return set(zip(rows["user_id"].to_pylist(), rows["as_of"].to_pylist(), strict=True))
