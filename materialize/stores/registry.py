"""A registry file that readers see whole, and that a kill leaves as it was.

Feast's own store empties the file and then writes it: a process that reads in between finds no view
at all, and one that is killed there leaves an empty registry or half of one. Named by class path in
``feature_store.yaml``::

    registry:
      path: data/registry.db
      registry_store_type: materialize.stores.registry.PalateRegistryStore
"""

from __future__ import annotations

import os
import uuid
from datetime import datetime, timezone
from pathlib import Path

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry

__all__ = ["PalateRegistryStore"]

_STEP_NS = 1_000
"""Feast keeps a file's time as a float, which tells microseconds apart, and no less."""


class PalateRegistryStore(FileRegistryStore):
    """Feast's registry in a local file, replaced by one rename.

    Notes
    -----
    Of two processes that change the registry at the same moment, one may undo the other's change,
    as with Feast's own: each writes the whole file. ``palate doctor`` finds what is missing.
    """

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(datetime.now(timezone.utc))
        path = self._filepath
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(registry_proto.SerializeToString())
                file.flush()
                os.fsync(file.fileno())
            _make_newer(temporary, than=path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _make_newer(path: Path, *, than: Path) -> None:
    """Give a file a later time than another one's, by which Feast tells whether to read it again.

    A file system's clock ticks every few milliseconds; two writes within one tick look alike.
    """
    try:
        earlier = than.stat().st_mtime_ns
    except FileNotFoundError:
        return
    own = path.stat()
    os.utime(path, ns=(own.st_atime_ns, max(own.st_mtime_ns, earlier + _STEP_NS)))
