"""Where encoder artifacts live: a local folder or any fsspec URL."""

from __future__ import annotations

import logging

from encoder.artifact import EncoderArtifact
from encoder.errors import ArtifactError
from encoder.folders import VersionedFolders
from encoder.manifest import MANIFEST

__all__ = ["ArtifactStore", "artifact_at"]

logger = logging.getLogger(__name__)


class ArtifactStore:
    """A folder with one subfolder per encoder version, which is complete or not there.

    State: none besides the file system's own caches.

    Parameters
    ----------
    url : str
        A local path or an fsspec URL, see `encoder.folders.VersionedFolders`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._folders = VersionedFolders(url, last=MANIFEST)

    def save(self, artifact: EncoderArtifact) -> str:
        """Store ``artifact`` and return its URL; one that is stored is verified and left alone.

        Raises
        ------
        ArtifactError
            The version is stored, but damaged.
        """
        version = artifact.encoder_version
        location = self._folders.location(version)
        if self.exists(version):
            self.load(version)
            logger.info("encoder %s is stored already at %s", version, location)
            return location
        self._folders.write(version, artifact.files())
        logger.info("encoder %s stored at %s", version, location)
        return location

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

        def read(name: str) -> bytes:
            return self._folders.read(encoder_version, name)

        return EncoderArtifact.from_files(
            self._folders.names(encoder_version), read, encoder_version
        )

    def list(self) -> list[str]:
        """Return the stored encoder versions, sorted."""
        return self._folders.versions()

    def exists(self, encoder_version: str) -> bool:
        """Return whether a complete artifact of this version is stored."""
        return self._folders.exists(encoder_version)

    def size(self, encoder_version: str) -> int:
        """Return the bytes that a version takes, 0 when nothing of it is there."""
        return self._folders.size(encoder_version)

    def delete(self, encoder_version: str) -> None:
        """Remove an artifact for good; safe to repeat."""
        self._folders.delete(encoder_version)
        logger.info("encoder %s removed", encoder_version)


def artifact_at(url: str) -> EncoderArtifact:
    """Return the artifact in a folder, verified.

    Raises
    ------
    ArtifactError
        There is none, or it is damaged.
    """
    folder, _, version = url.rstrip("/").rpartition("/")
    try:
        return ArtifactStore(folder or ".").load(version)
    except ArtifactError as exc:
        raise ArtifactError(
            f"{url} is no encoder artifact: {exc} Name its folder, .../artifacts/VERSION."
        ) from exc
