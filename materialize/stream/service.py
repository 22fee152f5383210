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
from typing import Any

from encoder.errors import StreamConflict
from materialize.context import Context
from materialize.metrics import serve_metrics
from materialize.stream.broker import Broker, open_broker
from materialize.stream.connect import masked
from materialize.stream.marker import StreamMarker, read_marker, write_marker
from materialize.stream.metrics import StreamMetrics
from materialize.stream.source import EventSource, Lag
from transforms.layout import RawLayout
from transforms.stream.circumstances import kept_circumstances

__all__ = ["RunOptions", "prepare", "require_states", "run_worker"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What a run of workers was asked for, beyond the settings."""

    until_idle: bool = False
    source: Path | None = None
    """File instead of the event stream."""
    from_nothing: bool = False
    """Where the online store holds no states, begin them empty."""


def require_states(client: Any, project: str, layout: RawLayout) -> None:
    """Check that the online store holds states, and that rows of a layout can be made of them.

    Raises
    ------
    StreamConflict
        It was never seeded, or has lost its data, or was seeded with another dataset.yaml.
    """
    marker = read_marker(client, project)
    if marker is None:
        raise StreamConflict(
            f"The online store holds no users' states of project {project!r}: it was never seeded, "
            "or it lost its data. Run `palate stream seed`; or, for a stream that has every event "
            "from the first one on, `palate stream run --from-nothing`."
        )
    if not marker.fits(layout):
        kept = marker.circumstances
        found = "no services" if kept is None else ", ".join(kept) or "nothing"
        raise StreamConflict(
            f"The users' states of project {project!r} keep {found} of an event's circumstances, "
            f"{', '.join(kept_circumstances(layout)) or 'nothing'} expected: dataset.yaml was "
            "another one. Stop all workers, and run `palate stream seed` with clean tables that "
            "hold what was streamed so far."
        )


def prepare(context: Context, options: RunOptions) -> None:
    """Check once, before any worker starts, what all of them need; begin states if asked to.

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.
    StreamConflict
        No states, or those of another dataset.yaml; another number of partitions; a Redis that is
        not fit for the event stream.
    """
    from materialize.stream.atomic import UserHashes

    store, settings = context.store, context.settings
    project, layout = store.project, RawLayout.of(settings.dataset)
    with closing(UserHashes(store).client) as online:
        if options.from_nothing and read_marker(online, project) is None:
            longest, now = max(settings.dataset.windows), time.time_ns() // 1000
            names = kept_circumstances(layout)
            write_marker(online, project, StreamMarker(None, longest, "", now, names))
        require_states(online, project, layout)
    if options.source is None:
        with closing(open_broker(store, settings)) as broker:
            broker.fix_partitions()


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
    project, layout = store.project, RawLayout.of(settings.dataset)
    with ExitStack() as stack:
        online = stack.enter_context(closing(UserHashes(store).client))
        try:
            stack.enter_context(serve_metrics(metrics_port, [metrics]))
        except OSError as exc:
            raise StreamConflict(
                f"Port {metrics_port} for metrics: {exc.strerror}. Set stream.metrics_port to one "
                "that is free, with as many free ones behind it as there are workers."
            ) from exc
        broker = None if options.source is not None else open_broker(store, settings)
        source = _open_source(context, options, broker)
        worker = Worker(
            applier,
            source,
            offline,
            stream,
            metrics,
            check=lambda: require_states(online, project, layout),
            restarted=Restarts([online] if broker is None else [online, broker.client]),
            until_idle=options.until_idle or options.source is not None,
            on_look=on_look,
        )
        worker.run(stop)


def _open_source(context: Context, options: RunOptions, broker: Broker | None) -> EventSource:
    """Return the file that was asked for, or the event stream behind a broker."""
    from materialize.stream.file_source import FileSource

    if broker is None:
        assert options.source is not None  # noqa: S101 - one of the two is there
        return FileSource(options.source, context.settings.dataset.events.context)
    name = f"{socket.gethostname()}-{getpid()}-{secrets.token_hex(3)}"
    if broker.where is not None:
        logger.info("worker %s reads events from %s", name, masked(broker.where))
    return broker.source(name)
