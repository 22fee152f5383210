"""Whole jobs over generated users: a fresh process, repository and Redis database each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import redis

from benchmarks import _job_repo
from benchmarks.harness import run_isolated
from materialize.batch import materialize_space
from materialize.context import Context
from materialize.meter import StepMeter
from materialize.source import parquet_files
from tests.servers import Server, redis_server
from tests.stores import PROFILES
from transforms.names import USER_KEY, stored_view

SEED = 0
STORED = stored_view(_job_repo.SPACE)
_SAMPLE = 1_000

Runs = list[dict[str, Any]]
"""What runs took: ``rows``, ``seconds`` and ``peak_mb`` of each."""


class Jobs:
    """Raw rows by number of users and encoders, made once; a new repository for every run."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder, self._server = folder, server
        self._artifacts = folder / "artifacts"
        self._encoders: list[str] = []
        self._runs = 0

    def run(
        self,
        target: str,
        side: str,
        users: int,
        settings: Mapping[str, Any],
        spaces: int = 1,
    ) -> tuple[Path, dict[str, Any]]:
        """Run a job, ``module:function``, over so many users.

        Parameters
        ----------
        target : str
            Called with the repository's folder and the number of users in a fresh process; it
            returns ``rows``, ``seconds`` and ``peak_mb``.
        side : {"palate", "stock"}
            Whose online store the repository names.
        users : int
        settings : mapping
            Fields of palate.yaml.
        spaces : int
            How many the repository has, each of an encoder of its own.

        Returns
        -------
        Path
            The repository: its offline store stays, its rows in Redis until the next run of the
            same side.
        dict
            What the job returned.
        """
        raw = self._folder / f"raw-{users}"
        if not raw.exists():
            _job_repo.write_raw(raw, users, SEED)
        for seed in range(len(self._encoders), spaces):
            self._encoders.append(_job_repo.save_encoder(self._artifacts, SEED + seed))
        self._runs += 1
        name = f"{side}_{self._runs}"
        with redis.Redis(port=self._server.port, db=_DATABASES[side]) as client:
            client.flushdb()
        online = PROFILES[f"{side}-redis"].settings(self._server, "")
        online["connection_string"] += f",db={_DATABASES[side]}"
        repository = _job_repo.make(
            self._folder / name, raw, self._artifacts, self._encoders[:spaces], online, settings
        )
        measured = run_isolated(target, str(repository), users)
        result: dict[str, Any] = measured.result
        assert result["rows"] == users
        # The sampler sees all processes and may miss a spike; the kernel's mark has this one's.
        result["peak_mb"] = max(result["peak_mb"], round(measured.peak_rss_bytes / 2**20, 1))
        print(f"{target} {dict(settings)}: {result}", flush=True)
        return repository, result


_DATABASES = {"palate": 0, "stock": 1}


@contextmanager
def jobs() -> Iterator[Jobs]:
    """Yield jobs with a Redis of their own, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "redis").mkdir()
        with redis_server(folder / "redis") as server:
            yield Jobs(folder, server)


def palate(repository: str, users: int) -> dict[str, Any]:
    """Run Palate's whole job in this process; return rows, seconds and peak memory."""
    context = Context(Path(repository))
    space = context.ledger.space(_job_repo.SPACE)
    assert context.store.get_feature_view(STORED)
    meter = StepMeter()
    with meter.step("job") as step:
        began = time.perf_counter()
        report = materialize_space(
            context.store,
            context.settings,
            context.ledger,
            space,
            end=_job_repo.END,
            progress=False,
        )
        seconds = time.perf_counter() - began
    assert report.outcome == "committed"
    assert report.online_rows == report.rows == users
    return {
        **{"rows": report.rows, "seconds": seconds, "peak_mb": step.peak_memory_mb},
        "stage_seconds": dict(report.stage_seconds),
    }


def same(repositories: Sequence[Path], users: int, emptied: Sequence[Path] = ()) -> None:
    """Check that a sample of the first users is the same in all stores, to 1e-5.

    Of ``emptied`` repositories only the offline store is read: others have used their Redis since.
    """
    rng = np.random.default_rng(SEED)
    numbers = rng.choice(users, min(users, _SAMPLE), replace=False)
    sample = _job_repo.user_ids(numbers).tolist()
    answers = [_served(repository, sample) for repository in repositories]
    answers += [_kept(repository, sample) for repository in (*repositories, *emptied)]
    vectors, as_of = answers[0]
    assert vectors.shape == (len(sample), 120)
    for other, moments in answers[1:]:
        assert moments == as_of
        apart = float(np.abs(other - vectors).max())
        assert apart <= 1e-5, f"two stores hold vectors {apart} apart"


def _served(repository: Path, users: list[int]) -> tuple[Any, list[int]]:
    """Return vectors, float32 (n, 120), and ``as_of`` of users from the online store."""
    answer = (
        Context(repository)
        .store.get_online_features(
            features=[f"{STORED}:embedding", f"{STORED}:as_of"],
            entity_rows=[{USER_KEY: user} for user in users],
        )
        .to_dict()
    )
    return np.array(answer["embedding"], np.float32), answer["as_of"]


def _kept(repository: Path, users: list[int]) -> tuple[Any, list[int]]:
    """Return the same from the stored view's Parquet files."""
    files = parquet_files(Context(repository).settings.offline_dir / STORED)
    columns = [USER_KEY, "embedding", "as_of"]
    table = pq.ParquetDataset(files, filters=[(USER_KEY, "in", users)]).read(columns)
    rows = table.to_pandas().set_index(USER_KEY).loc[users]
    assert len(rows) == len(users), "one row a user"
    return np.stack(rows["embedding"].tolist()), rows["as_of"].tolist()


def rates(runs: Runs) -> list[float]:
    """Return rows a second of each run."""
    return [run["rows"] / run["seconds"] for run in runs]


def peaks(runs: Runs) -> list[float]:
    """Return the peak memory of each run, MiB."""
    return [run["peak_mb"] for run in runs]
