"""Where a project's events lie: Redis Streams, or NATS with leases and dead letters in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from materialize.config import RepoSettings
from materialize.stream.connect import connect, expand_url, fix_partitions, require_fit
from materialize.stream.dead_letters import DeadLetters
from materialize.stream.keys import config_key

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

    from materialize.stream.nats_writer import NatsWriter
    from materialize.stream.source import EventSource, Lag
    from transforms.stream.events import StreamEvent

__all__ = ["Broker", "Writer", "open_broker"]


class Writer(Protocol):
    """Appends events; see `EventWriter`."""

    def append(self, events: Iterable[StreamEvent | Mapping[str, Any] | bytes]) -> int:
        """Append events and return their number."""
        ...


class Broker:
    """A project's events on Redis Streams.

    Parameters
    ----------
    client : redis.Redis
        Of the event stream's Redis: events, leases, dead letters, the number of partitions.
    project : str
    settings : RepoSettings

    Notes
    -----
    State: the client, which ``close`` closes; ``source`` hands it over to the source.
    """

    def __init__(self, client: Redis, project: str, settings: RepoSettings) -> None:
        self.client, self.project = client, project
        self._settings, self._stream = settings, settings.file.stream

    @property
    def where(self) -> str | None:
        """URL of the events, when they are not in the online store's Redis."""
        return self._stream.url

    @property
    def used(self) -> bool:
        """Whether events were ever appended or read."""
        return bool(self.client.exists(config_key(self.project)))

    def partitions(self) -> int:
        """Return the number of partitions. Raises StreamConflict when none is fixed."""
        return fix_partitions(self.client, self.project, None)

    def fix_partitions(self) -> int:
        """Fix the number of partitions as the settings have it; see `connect.fix_partitions`."""
        return fix_partitions(self.client, self.project, self._stream.partitions)

    def source(self, worker: str) -> EventSource:
        """Return what a worker of this name reads; closing it closes this broker, too."""
        from materialize.stream.redis_source import RedisSource

        return RedisSource(
            self.client,
            self.project,
            self._stream.partitions,
            worker,
            lease_seconds=self._stream.lease_seconds,
            retention_hours=self._stream.retention_hours,
        )

    def writer(self) -> Writer:
        """Return what appends events; it fixes the number of partitions."""
        from materialize.stream.writer import EventWriter

        names = self._settings.dataset.events.context
        return EventWriter(self.client, self.project, self._stream.partitions, context=names)

    def lag(self) -> Lag:
        """Return what is left to do."""
        from materialize.stream.status import read_lag

        return read_lag(self.client, self.project, self.partitions())

    def payloads(self) -> Iterator[bytes]:
        """Yield the events that the stream holds at this moment, by partition, oldest first."""
        from materialize.stream.given import redis_payloads

        return redis_payloads(self.client, self.project, self.partitions())

    def dead_letters(self) -> DeadLetters:
        """Return the dead letters."""
        return DeadLetters(self.client, self.project, self.partitions())

    def close(self) -> None:
        """Close the clients."""
        self.client.close()


class _NatsBroker(Broker):
    """A project's events on NATS JetStream; leases and dead letters in Redis."""

    def __init__(self, client: Redis, project: str, settings: RepoSettings, url: str) -> None:
        from materialize.stream.nats_link import NatsLink

        super().__init__(client, project, settings)
        self._link = NatsLink(url, project)

    @property
    def where(self) -> str | None:
        return self._stream.nats

    def source(self, worker: str) -> EventSource:
        from materialize.stream.nats_source import NatsSource

        return NatsSource(
            self._link,
            self.client,
            self.project,
            self.fix_partitions(),
            worker,
            lease_seconds=self._stream.lease_seconds,
            retention_hours=self._stream.retention_hours,
            # Acknowledged after rows were written offline, which two flushes may take.
            ack_seconds=max(60.0, 4 * self._stream.flush_seconds),
        )

    def writer(self) -> NatsWriter:
        from materialize.stream.nats_writer import NatsWriter

        names = self._settings.dataset.events.context
        return NatsWriter(self._link, self.fix_partitions(), context=names)

    def lag(self) -> Lag:
        from materialize.stream.nats_lag import read_nats_lag

        return read_nats_lag(self._link, self.client, self.partitions())

    def payloads(self) -> Iterator[bytes]:
        from materialize.stream.nats_lag import nats_payloads

        return nats_payloads(self._link)

    def dead_letters(self) -> DeadLetters:
        return DeadLetters(self.client, self.project, self.partitions(), self.writer().put)

    def close(self) -> None:
        self._link.close()
        super().close()


def open_broker(store: FeatureStore, settings: RepoSettings) -> Broker:
    """Return where a project's events lie: ``stream.nats``, ``stream.url``, or the online store.

    Raises
    ------
    DataFault
        The online store is not Palate's for Redis.
    StreamConflict, StoreRefused, TransientError
        As `connect`, and as `NatsLink`.
    """
    client, url = _redis(store, settings), settings.file.stream.nats
    if url is None:
        return Broker(client, store.project, settings)
    try:
        return _NatsBroker(client, store.project, settings, expand_url(url))
    except BaseException:
        client.close()
        raise


def _redis(store: FeatureStore, settings: RepoSettings) -> Redis:
    from redis.cluster import RedisCluster

    from encoder.errors import StreamConflict
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
