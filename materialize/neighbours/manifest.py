"""The manifest of a neighbour index: what it is of, and which files it consists of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from encoder.errors import ArtifactError, SpaceMismatch
from materialize.config import RepoSettings
from materialize.stores.append import sync, working_name
from transforms.names import stored_view

__all__ = ["FILES", "IDS", "INDEX", "FileFact", "Manifest", "index_folder"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX, IDS = "index.faiss", "ids.arrow"
FILES = (IDS, INDEX)
_CHUNK = 2**22


def index_folder(settings: RepoSettings, space: int) -> Path:
    """Return where a space's index is, or will be."""
    return settings.data_dir / "neighbours" / stored_view(space)


@dataclass(frozen=True)
class FileFact:
    """Length and SHA-256 of a file."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFact:
        """Read a file whole, a few MiB in memory at a time."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return cls(path.stat().st_size, digest.hexdigest())


@dataclass(frozen=True)
class Manifest:
    """Of the version of an index that is served; it lies beside the versions' folders.

    Replacing this one file is the swap: a folder that no manifest names does not count.

    Attributes
    ----------
    space : int
    encoder_version : str
    fingerprint : str
        12 hex digits of the files that the users were read from (`materialize.neighbours.rows`).
    runs : tuple of str
        Committed runs among them.
    dim, count : int
        Length of the vectors, number of users.
    metric : str
        ``cosine``.
    user_type : str
        Arrow type of the ids: ``int64`` or ``string``.
    library, library_version : str
    lists, probes : int
        Cells of the index, and how many of them one search looks into; 1 and 1: all is searched.
    recall : float
        Share of the true ``recall_at`` nearest users that searches found, over a sample of users.
    recall_at, recall_users : int
        The k of ``recall``, and the size of the sample.
    folder : str
        Name of the version's folder.
    previous : str or None
        The one before it, which a reader may still be opening.
    files : mapping
        File name -> its length and hash.
    created_at : str
        ISO 8601, UTC.
    """

    space: int
    encoder_version: str
    fingerprint: str
    runs: tuple[str, ...]
    dim: int
    count: int
    metric: str
    user_type: str
    library: str
    library_version: str
    lists: int
    probes: int
    recall: float
    recall_at: int
    recall_users: int
    folder: str
    previous: str | None
    files: Mapping[str, FileFact]
    created_at: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest of a space's folder, or None when no index was built.

        Raises
        ------
        ArtifactError
            It cannot be read, or is of a format that this release does not know.
        """
        path = folder / MANIFEST
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = found["format_version"]
            if version == FORMAT_VERSION:
                if set(found) != {field.name for field in fields(cls)}:
                    raise ValueError(f"fields {sorted(found)}")
                files = {name: FileFact(**fact) for name, fact in found["files"].items()}
                return cls(**{**found, "runs": tuple(found["runs"]), "files": files})
        except FileNotFoundError:
            return None
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ArtifactError(
                f"{path} cannot be read: {exc}. Remove it, then build the index again."
            ) from exc
        raise ArtifactError(
            f"{path} is of format {version!r}, {FORMAT_VERSION} expected. Build the index with "
            "this release: `palate neighbours build`."
        )

    def write(self, folder: Path) -> None:
        """Put it into place by one rename."""
        working = folder / working_name(MANIFEST)
        working.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        sync(working)
        os.replace(working, folder / MANIFEST)
        sync(folder)

    def require(self, space: int, encoder_version: str) -> None:
        """Check that the index is of one space.

        Raises
        ------
        SpaceMismatch
        """
        if (self.space, self.encoder_version) != (space, encoder_version):
            raise SpaceMismatch(
                f"The neighbour index is of space {self.space} ({self.encoder_version}), space "
                f"{space} ({encoder_version}) expected. Open the index of that space, or build it: "
                f"`palate neighbours build --space {space}`."
            )

    def verify(self, folder: Path) -> None:
        """Compare the files with the manifest; reads them whole, which also warms the page cache.

        Raises
        ------
        FileNotFoundError
            A file is not there.
        ArtifactError
            A file was changed or cut short.
        """
        for name in FILES:
            path = folder / self.folder / name
            found, expected = FileFact.of(path), self.files.get(name)
            if found != expected:
                raise ArtifactError(
                    f"{path} has {found.size_bytes} bytes and SHA-256 {found.sha256}, the manifest "
                    f"says {expected}. Remove {folder / MANIFEST} and build the index again: "
                    f"`palate neighbours build --space {self.space}`.",
                    encoder_version=self.encoder_version,
                )
