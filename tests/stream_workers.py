"""Workers of an event stream in processes of their own, that can be stopped, woken up and killed.

They only note what they were handed: what an event does is other tests' matter.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from materialize.stream.connect import connect
from materialize.stream.redis_source import RedisSource

__all__ = ["NotingWorker"]


class NotingWorker:
    """A process that polls, writes each payload to a file and acknowledges it.

    Parameters
    ----------
    url, project : str
    partitions : int
    name : str
        Of the worker.
    folder : Path
        Where its notes go.
    lease_seconds : float
    acknowledge : bool
        False: hold everything, as a worker does until its rows are offline.
    """

    def __init__(
        self,
        url: str,
        project: str,
        partitions: int,
        name: str,
        folder: Path,
        *,
        lease_seconds: float,
        acknowledge: bool = True,
    ) -> None:
        self.name = name
        self.notes = folder / name
        self.notes.touch()
        arguments = [url, project, partitions, name, self.notes, lease_seconds, int(acknowledge)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, arguments)],
            cwd=Path(__file__).resolve().parents[1],
        )

    def handled(self) -> list[bytes]:
        """Return the payloads that it was handed and finished with."""
        return [line for line in self.notes.read_bytes().splitlines() if line]

    def end(self) -> None:
        """Kill it, if it lives."""
        self.process.kill()
        self.process.wait()


def _main() -> None:
    url, project, partitions, name, notes, lease_seconds, acknowledge = sys.argv[1:]
    source = RedisSource(
        connect(url), project, int(partitions), name, lease_seconds=float(lease_seconds)
    )
    with Path(notes).open("ab", buffering=0) as file:
        while True:
            found = source.poll(5, 50)
            if found and int(acknowledge):
                # As a real one: the effect first, the acknowledgement second; and time between.
                file.write(b"".join(delivery.payload + b"\n" for delivery in found))
                time.sleep(0.002)
                source.ack(found)


if __name__ == "__main__":
    _main()
