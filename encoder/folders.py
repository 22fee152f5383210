"""Content-addressed folders on a local disk or under any fsspec URL, complete or not there."""

from __future__ import annotations

import posixpath
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["VersionedFolders"]

_VERSION = re.compile(r"[0-9a-f]{12}")


class VersionedFolders:
    """A folder with one subfolder a version (12 hex digits).

    Locally a subfolder appears by one rename. Object stores cannot rename a folder; there the file
    ``last`` is uploaded last, and a subfolder without it does not count as stored.

    State: none besides the file system's own caches.

    Parameters
    ----------
    url : str
        A local path or an fsspec URL, for example ``s3://bucket/encoders``. Credentials come from
        the file system's own environment.
    last : str
        Name of the file that makes a subfolder complete.
    """

    def __init__(self, url: str, last: str) -> None:
        self.url, self.last = url, last
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def write(self, version: str, files: Mapping[str, bytes]) -> None:
        """Write a version's files, ``last`` after the others; one that is stored is left alone."""
        if self.exists(version):
            return
        folder = self._folder(version)
        local = isinstance(self._fs, LocalFileSystem)
        target = f"{folder}.{uuid.uuid4().hex[:8]}.tmp" if local else folder
        self._fs.makedirs(target, exist_ok=True)
        for name in sorted(files, key=lambda name: name == self.last):
            self._fs.pipe_file(posixpath.join(target, name), files[name])
        if local:
            try:
                Path(target).rename(folder)
            except OSError:
                self._fs.rm(target, recursive=True)
                if not self.exists(version):  # else another process was faster with the same
                    raise

    def names(self, version: str) -> list[str]:
        """Return the names of a stored version's files."""
        return [posixpath.basename(p) for p in self._fs.ls(self._folder(version), detail=False)]

    def read(self, version: str, name: str) -> bytes:
        """Return one file of a stored version."""
        data: bytes = self._fs.cat_file(posixpath.join(self._folder(version), name))
        return data

    def versions(self) -> list[str]:
        """Return the stored versions, sorted."""
        if not self._fs.isdir(self._root):
            return []
        names = {posixpath.basename(p.rstrip("/")) for p in self._fs.ls(self._root, detail=False)}
        return sorted(n for n in names if _VERSION.fullmatch(n) and self.exists(n))

    def exists(self, version: str) -> bool:
        """Return whether a complete folder of this version is stored."""
        self._fs.invalidate_cache()
        found: bool = self._fs.exists(posixpath.join(self._folder(version), self.last))
        return found

    def location(self, version: str) -> str:
        """Return a version's URL."""
        return str(self._fs.unstrip_protocol(self._folder(version)))

    def size(self, version: str) -> int:
        """Return the bytes that a version takes, 0 when nothing of it is there."""
        self._fs.invalidate_cache()
        folder = self._folder(version)
        return int(self._fs.du(folder)) if self._fs.exists(folder) else 0

    def delete(self, version: str) -> None:
        """Remove a version for good; safe to repeat.

        ``last`` goes first: from then on the version does not count as stored. What a killed call
        left is removed by the next.
        """
        self._fs.invalidate_cache()
        folder = self._folder(version)
        if self._fs.exists(posixpath.join(folder, self.last)):
            self._fs.rm_file(posixpath.join(folder, self.last))
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)

    def _folder(self, version: str) -> str:
        return posixpath.join(self._root, version)
