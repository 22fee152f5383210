"""The mark in the online Redis that says that users' states are there, and from which day on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encoder.errors import StreamConflict
from materialize.stream.keys import marker_key
from transforms.layout import RawLayout
from transforms.stream.circumstances import kept_circumstances

if TYPE_CHECKING:
    from redis import Redis
    from redis.cluster import RedisCluster

__all__ = ["MARKER_FORMAT", "StreamMarker", "delete_marker", "read_marker", "write_marker"]

MARKER_FORMAT = 1


@dataclass(frozen=True)
class StreamMarker:
    """What the states of an online store know.

    Attributes
    ----------
    floor_day : int or None
        Day since 1970 (UTC) from which on every event is in the states; None: the stream began
        from nothing, so that every event there ever was is in them.
    longest_window : int
        Days of the longest window when the states were begun.
    fingerprint : str
        `CleanTables.fingerprint` of the data that were seeded; "" without.
    at_us : int
        When, microseconds since 1970.
    circumstances : tuple of str or None
        Names of what the states keep of an event's circumstances; None: a release wrote the mark
        that did not say so, and kept no services.
    """

    floor_day: int | None
    longest_window: int
    fingerprint: str
    at_us: int
    circumstances: tuple[str, ...] | None = None

    def fits(self, layout: RawLayout) -> bool:
        """Return whether the states keep of events what rows of a layout need."""
        if self.circumstances is None:
            return layout.texts is None
        return self.circumstances == kept_circumstances(layout)


def read_marker(client: Redis | RedisCluster, project: str) -> StreamMarker | None:
    """Return the mark of a project; None when there is none: never seeded, or the data are lost.

    Raises
    ------
    StreamConflict
        It is of a format that this release does not read.
    """
    stored: Any = client.hgetall(marker_key(project))
    if not stored:
        return None
    fields = {_text(name): _text(value) for name, value in stored.items()}
    if fields.get("format") != str(MARKER_FORMAT):
        raise StreamConflict(
            f"The states in the online store are of format {fields.get('format')!r}, this release "
            f"reads {MARKER_FORMAT}. Run `palate stream seed` with this release."
        )
    floor, names = fields["floor_day"], fields.get("circumstances")
    return StreamMarker(
        floor_day=int(floor) if floor else None,
        longest_window=int(fields["longest_window"]),
        fingerprint=fields["fingerprint"],
        at_us=int(fields["at_us"]),
        circumstances=None if names is None else tuple(json.loads(names)),
    )


def write_marker(client: Redis | RedisCluster, project: str, marker: StreamMarker) -> None:
    """Write the mark of a project, in one step."""
    fields = {
        "format": str(MARKER_FORMAT),
        "floor_day": "" if marker.floor_day is None else str(marker.floor_day),
        "longest_window": str(marker.longest_window),
        "fingerprint": marker.fingerprint,
        "at_us": str(marker.at_us),
    }
    if marker.circumstances is not None:
        fields["circumstances"] = json.dumps(marker.circumstances)
    client.hset(marker_key(project), mapping=fields)


def delete_marker(client: Redis | RedisCluster, project: str) -> None:
    """Take the mark of a project away: workers stop, and none starts until there is one again."""
    client.delete(marker_key(project))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
