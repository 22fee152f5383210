"""A worker put together for one repository: stores, source, encoders; with progress on stderr."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoder.errors import StreamConflict
from materialize.config import RepoSettings
from materialize.context import Context
from materialize.metrics import serve_metrics
from materialize.stream.connect import connect, expand_url, fix_partitions, masked, require_fit
from materialize.stream.marker import StreamMarker, read_marker, write_marker
from materialize.stream.metrics import StreamMetrics
from materialize.stream.source import EventSource, Lag

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

__all__ = ["RunOptions", "open_events", "prepare", "require_states", "run_worker"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a run of workers was asked for, beyond the settings."""

    until_idle: bool = False
    source: Path | None = None
    """File instead of the event stream."""
    from_nothing: bool = False
    """Where the online store holds no states, begin them empty."""


def open_events(store: FeatureStore, settings: RepoSettings) -> Redis:
    """Return a client of the event stream's Redis: ``stream.url``, or the online store's.

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.
    StreamConflict, StoreRefused, TransientError
        As `connect`.
    """
    from redis.cluster import RedisCluster

    from materialize.stream.atomic import UserHashes

    url = settings.file.stream.url
    if url is not None:
        return connect(expand_url(url))
    client: Any = UserHashes(store).client
    if isinstance(client, RedisCluster):
        raise StreamConflict(
            "The online store is a Redis cluster, and the event stream needs a single server. Name "
            "one in stream.url of palate.yaml; the online store may stay as it is."
        )
    require_fit(client, "the online store's Redis")
    made: Redis = client
    return made


def require_states(client: Any, project: str) -> None:
    """Check that the online store holds states.

    Raises
    ------
    StreamConflict
        It was never seeded, or has lost its data.
    """
    if read_marker(client, project) is None:
        raise StreamConflict(
            f"The online store holds no users' states of project {project!r}: it was never seeded, "
            "or it lost its data. Run `palate stream seed`; or, for a stream that has every event "
            "from the first one on, `palate stream run --from-nothing`."
        )


def prepare(context: Context, options: RunOptions) -> None:
    """Check once, before any worker starts, what all of them need; begin states if asked to.

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.
    StreamConflict
        No states; another number of partitions; a Redis that is not fit for the event stream.
    """
    from materialize.stream.atomic import UserHashes

    store, settings = context.store, context.settings
    project = store.project
    with closing(UserHashes(store).client) as online:
        if options.from_nothing and read_marker(online, project) is None:
            longest = max(settings.dataset.windows)
            write_marker(online, project, StreamMarker(None, longest, "", time.time_ns() // 1000))
        require_states(online, project)
    if options.source is None:
        with closing(open_events(store, settings)) as events:
            fix_partitions(events, project, settings.file.stream.partitions)


def run_worker(
    context: Context,
    options: RunOptions,
    metrics: StreamMetrics,
    stop: threading.Event,
    *,
    metrics_port: int,
    on_look: Callable[[Lag], None],
) -> None:
    """Run one worker in this process until ``stop`` is set, or nothing is left.

    Raises
    ------
    EmbeddingError
        See `materialize.stream.worker.Worker.run`.
    """
    from materialize.stream.apply import Applier
    from materialize.stream.atomic import UserHashes
    from materialize.stream.offline import OfflineRows
    from materialize.stream.restarts import Restarts
    from materialize.stream.worker import Worker
    from transforms.runtime import prewarm

    store, settings = context.store, context.settings
    stream = settings.file.stream
    applier = Applier(store, settings, context.ledger)
    applier.refresh()
    prewarm(store, freeze=True)
    offline = OfflineRows(store, flush_seconds=stream.flush_seconds, flush_rows=stream.flush_rows)
    project = store.project
    with ExitStack() as stack:
        online = stack.enter_context(closing(UserHashes(store).client))
        try:
            stack.enter_context(serve_metrics(metrics_port, [metrics]))
        except OSError as exc:
            raise StreamConflict(
                f"Port {metrics_port} for metrics: {exc.strerror}. Set stream.metrics_port to one "
                "that is free, with as many free ones behind it as there are workers."
            ) from exc
        events = None if options.source is not None else open_events(store, settings)
        source = _open_source(context, options, events)
        worker = Worker(
            applier,
            source,
            offline,
            stream,
            metrics,
            check=lambda: require_states(online, project),
            restarted=Restarts([online] if events is None else [online, events]),
            until_idle=options.until_idle or options.source is not None,
            on_look=on_look,
        )
        worker.run(stop)


def _open_source(context: Context, options: RunOptions, events: Redis | None) -> EventSource:
    """Return the file that was asked for, or the event stream behind a client."""
    from materialize.stream.file_source import FileSource
    from materialize.stream.redis_source import RedisSource

    settings = context.settings
    if events is None:
        assert options.source is not None  # noqa: S101 - one of the two is there
        return FileSource(options.source, settings.dataset.events.context)
    stream = settings.file.stream
    name = f"{socket.gethostname()}-{getpid()}-{secrets.token_hex(3)}"
    if stream.url is not None:
        logger.info("worker %s reads events from %s", name, masked(stream.url))
    return RedisSource(
        events,
        context.store.project,
        stream.partitions,
        name,
        lease_seconds=stream.lease_seconds,
        retention_hours=stream.retention_hours,
    )
