"""Where encoder artifacts live: a local folder or any fsspec URL."""

from __future__ import annotations

import logging
import posixpath
import re
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from encoder.artifact import MANIFEST, EncoderArtifact
from encoder.errors import ArtifactError

__all__ = ["ArtifactStore"]

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"[0-9a-f]{12}")


class ArtifactStore:
    """A folder with one subfolder per encoder version.

    Locally an artifact appears by one rename. Object stores cannot rename a folder; there the
    manifest is uploaded last, and a folder without one does not count as stored.

    State: none besides the file system's own caches.

    Parameters
    ----------
    url : str
        A local path or an fsspec URL, for example ``s3://bucket/encoders``. Credentials come from
        the file system's own environment.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def save(self, artifact: EncoderArtifact) -> str:
        """Store ``artifact`` and return its URL; one that is stored is verified and left alone.

        Raises
        ------
        ArtifactError
            The version is stored, but damaged.
        """
        version = artifact.encoder_version
        folder = self._folder(version)
        if self.exists(version):
            self.load(version)
            logger.info("encoder %s is stored already at %s", version, folder)
            return self._url(folder)
        local = isinstance(self._fs, LocalFileSystem)
        target = f"{folder}.{uuid.uuid4().hex[:8]}.tmp" if local else folder
        self._fs.makedirs(target, exist_ok=True)
        for name, data in artifact.files().items():
            self._fs.pipe_file(posixpath.join(target, name), data)
        if local:
            try:
                Path(target).rename(folder)
            except OSError:
                self._fs.rm(target, recursive=True)
                if not self.exists(version):  # else another process was faster with the same
                    raise
        logger.info("encoder %s stored at %s", version, folder)
        return self._url(folder)

    def load(self, encoder_version: str) -> EncoderArtifact:
        """Return a stored artifact, verified (``EncoderArtifact.from_files`` says how far).

        Raises
        ------
        ArtifactError
            The version is not stored, or damaged.
        """
        if not self.exists(encoder_version):
            stored = ", ".join(repr(v) for v in self.list()) or "none"
            raise ArtifactError(
                f"Unknown encoder version {encoder_version!r}. Stored: {stored}.",
                encoder_version=encoder_version,
            )
        folder = self._folder(encoder_version)
        names = [posixpath.basename(p) for p in self._fs.ls(folder, detail=False)]

        def read(name: str) -> bytes:
            data: bytes = self._fs.cat_file(posixpath.join(folder, name))
            return data

        return EncoderArtifact.from_files(names, read, encoder_version)

    def list(self) -> list[str]:
        """Return the stored encoder versions, sorted."""
        if not self._fs.isdir(self._root):
            return []
        names = {posixpath.basename(p.rstrip("/")) for p in self._fs.ls(self._root, detail=False)}
        return sorted(n for n in names if _VERSION.fullmatch(n) and self.exists(n))

    def exists(self, encoder_version: str) -> bool:
        """Return whether a complete artifact of this version is stored."""
        self._fs.invalidate_cache()
        found: bool = self._fs.exists(posixpath.join(self._folder(encoder_version), MANIFEST))
        return found

    def _folder(self, encoder_version: str) -> str:
        return posixpath.join(self._root, encoder_version)

    def _url(self, folder: str) -> str:
        return str(self._fs.unstrip_protocol(folder))
