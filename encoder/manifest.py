"""What an encoder artifact says about itself: its manifest file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from encoder.errors import ArtifactError
from encoder.schema import FeatureSchema

__all__ = [
    "AUTOENCODER",
    "CLUE",
    "FLOAT32",
    "FORMAT_VERSION",
    "HYBRID",
    "INT8",
    "MANIFEST",
    "NETWORKS",
    "Manifest",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

AUTOENCODER, CLUE, HYBRID = "denoising_autoencoder", "clue", "hybrid"
NETWORKS = {AUTOENCODER: "autoencoder", CLUE: "contrastive encoder", HYBRID: "hybrid encoder"}
"""Kinds of encoders as a manifest's ``model`` names them -> what their networks are called."""

FLOAT32, INT8 = "float32", "int8"
_PRECISIONS = (FLOAT32, INT8)


@dataclass(frozen=True)
class Manifest:
    """What an artifact says about itself.

    Attributes
    ----------
    encoder_version : str
        First 12 hex digits of the content hash.
    schema : FeatureSchema
    model : dict
        ``kind``, ``embedding_dim`` and what the kind names decide the graphs, and ``precision``
        where it is not float32; the rest is kept for the reader.
    preprocessing : dict
        JSON part of the preprocessor's state.
    dataset : dict
        Facts about the data and the windows, as the caller gave them.
    data_cutoff : str
        ISO 8601: nothing learned saw an event from this instant on.
    training : dict
        History and outcome, as the caller gave them.
    created_at : str
        ISO 8601, UTC.
    libraries : dict of str to str
        Versions that wrote the artifact.
    files : dict of str to str
        SHA-256 of every other file.
    tensors : dict of str to dict
        File -> tensor name -> [dtype, shape], for the files that loading reads.
    """

    encoder_version: str
    schema: FeatureSchema
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    dataset: dict[str, Any]
    data_cutoff: str
    training: dict[str, Any]
    created_at: str
    libraries: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding."""
        return int(self.model["embedding_dim"])

    @property
    def precision(self) -> str:
        """Numbers that the graph's matrix products are made of: ``float32`` or ``int8``."""
        return str(self.model.get("precision", FLOAT32))

    def to_json(self) -> bytes:
        """Return the manifest file's bytes; ``from_json`` gives an equal manifest back."""
        data = {"format_version": FORMAT_VERSION, **vars(self), "schema": self.schema.to_dict()}
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest file.

        Raises
        ------
        ArtifactError
            No JSON, another format version, fields missing or unknown, or another precision.
        """
        try:
            fields = json.loads(data)
            given = fields.pop("format_version")
        except (ValueError, KeyError, AttributeError, TypeError) as exc:
            raise ArtifactError(
                f"{MANIFEST} cannot be read ({exc!r}). Fetch the artifact again."
            ) from exc
        if given != FORMAT_VERSION:
            raise ArtifactError(
                f"Artifact format {given!r} given, this release reads {FORMAT_VERSION}. "
                "Install the release that wrote it, or train again."
            )
        try:
            manifest = cls(**{**fields, "schema": FeatureSchema.from_dict(fields["schema"])})
        except (KeyError, TypeError, ValueError) as exc:
            raise ArtifactError(
                f"{MANIFEST} does not have this format's fields: {exc}. Fetch the artifact again."
            ) from exc
        if manifest.precision not in _PRECISIONS:
            raise ArtifactError(
                f"Artifact of precision {manifest.precision!r} given, this release reads "
                f"{', '.join(_PRECISIONS)}. Install the release that wrote it.",
                encoder_version=manifest.encoder_version,
            )
        return manifest
