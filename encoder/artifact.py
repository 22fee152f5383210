"""The encoder artifact: what a trained encoder is on disk, and how it encodes. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import platform
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from encoder.columns import RawBatch
from encoder.errors import ArtifactError
from encoder.manifest import FLOAT32, FORMAT_VERSION, MANIFEST, Manifest
from encoder.preprocessing import Preprocessor

__all__ = ["FILES", "FORMAT_VERSION", "EncoderArtifact", "Manifest", "ModalityState"]

Arrays = dict[str, npt.NDArray[Any]]
Float32 = npt.NDArray[np.float32]

WEIGHTS, PREPROCESSING = "weights.safetensors", "preprocessing.safetensors"
GRAPH, MODALITY, MODALITY_CONFIG = "encoder.onnx", "modality.safetensors", "modality.json"

FILES = (MANIFEST, WEIGHTS, PREPROCESSING, GRAPH, MODALITY, MODALITY_CONFIG)
"""Every file of an artifact, the manifest first."""

_BATCH_ROWS = 4096
_LIBRARIES = (
    *("numpy", "onnx", "onnxruntime", "palate", "pyarrow", "safetensors", "scikit-learn", "scipy"),
    "torch",
)


class ModalityState(Protocol):
    """Modality encoders as an artifact keeps them."""

    @property
    def version(self) -> str:
        """Content hash of the item vectors."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return (arrays, JSON types) from which the modality encoders are rebuilt."""


@dataclass(frozen=True)
class EncoderArtifact:
    """A trained encoder: manifest, preprocessing, weights, graph and modality encoders.

    State: immutable, but for the ONNX Runtime sessions, cached per number of threads. Threads may
    share it.

    Attributes
    ----------
    manifest : Manifest
    preprocessor : Preprocessor
    weights : dict of str to array
        All of the model's; those under ``encoder.`` make the embedding.
    onnx : bytes
        Graph "inputs" float32 (n, n_inputs) -> "embedding" float32 (n, embedding_dim).
    modality : ModalityState
        Of a loaded artifact: read, and its hash verified, when ``state()`` is called, because
        serving never needs the item vectors and they are the largest file.
    """

    manifest: Manifest
    preprocessor: Preprocessor
    weights: Arrays
    onnx: bytes
    modality: ModalityState
    _sessions: dict[int, ort.InferenceSession] = field(default_factory=dict, repr=False)
    _making: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def encoder_version(self) -> str:
        """The content hash, 12 hex digits."""
        return self.manifest.encoder_version

    @classmethod
    def build(
        cls,
        *,
        preprocessor: Preprocessor,
        weights: Arrays,
        onnx: bytes,
        modality: ModalityState,
        model: dict[str, Any],
        dataset: dict[str, Any],
        data_cutoff: datetime,
        training: dict[str, Any],
        created_at: datetime,
    ) -> EncoderArtifact:
        """Put an artifact together and name it by its content.

        Raises
        ------
        ArtifactError
            The modality encoders are of another version than the schema names.
        """
        schema = preprocessor.schema
        if modality.version != schema.modality_version:
            raise ArtifactError(
                f"Modality encoders of version {modality.version!r} given, the schema was built "
                f"for {schema.modality_version!r}. Pass the ones the raw features were built with."
            )
        manifest = Manifest(
            encoder_version=_version(preprocessor, weights, model, onnx),
            schema=schema,
            model=model,
            preprocessing=preprocessor.state()[1],
            dataset=dataset,
            data_cutoff=data_cutoff.isoformat(),
            training=training,
            created_at=created_at.isoformat(),
            libraries=_libraries(),
        )
        return cls(manifest, preprocessor, weights, onnx, modality)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file of the artifact, the manifest last."""
        modality_arrays, modality_config = self.modality.state()
        tensors = {WEIGHTS: self.weights, PREPROCESSING: self.preprocessor.state()[0]}
        content = {name: safetensors_numpy.save(arrays) for name, arrays in tensors.items()}
        content[GRAPH] = self.onnx
        content[MODALITY] = safetensors_numpy.save(modality_arrays)
        content[MODALITY_CONFIG] = json.dumps(modality_config, sort_keys=True).encode()
        manifest = Manifest(
            **{
                **vars(self.manifest),
                "files": {name: _sha256(data) for name, data in content.items()},
                "tensors": {name: _shapes(arrays) for name, arrays in tensors.items()},
            }
        )
        return {**content, MANIFEST: manifest.to_json()}

    @classmethod
    def from_files(
        cls, names: Iterable[str], read: Callable[[str], bytes], expected_version: str | None = None
    ) -> EncoderArtifact:
        """Rebuild an artifact and verify it.

        Every file but the modality encoders' is read and compared with the manifest's SHA-256, and
        the encoder version is computed again from the content. The modality encoders' two files
        must be there; they are read and verified on access (``modality``).

        Parameters
        ----------
        names : iterable of str
            Files found in the artifact's folder.
        read : callable
            File name -> content.
        expected_version : str, optional
            The version that was asked for.

        Raises
        ------
        ArtifactError
            Files or tensors are missing, unexpected or changed, or the format is unknown.
        """
        found = set(names)
        _same_names("Files", found, set(FILES))
        manifest = Manifest.from_json(read(MANIFEST))
        _same_names("Hashes of files", set(manifest.files), set(FILES) - {MANIFEST})

        def verified(name: str) -> bytes:
            data = read(name)
            if _sha256(data) != manifest.files[name]:
                raise ArtifactError(
                    f"{name} of encoder version {manifest.encoder_version!r} has SHA-256 "
                    f"{_sha256(data)}, the manifest says {manifest.files[name]}. The file was "
                    "changed or cut short: fetch the artifact again.",
                    encoder_version=manifest.encoder_version,
                )
            return data

        weights = _tensors(WEIGHTS, verified(WEIGHTS), manifest)
        arrays = _tensors(PREPROCESSING, verified(PREPROCESSING), manifest)
        preprocessor = Preprocessor.from_state(manifest.schema, arrays, manifest.preprocessing)
        onnx = verified(GRAPH)
        version = _version(preprocessor, weights, manifest.model, onnx)
        for claimed in {manifest.encoder_version, expected_version or version}:
            if claimed != version:
                raise ArtifactError(
                    f"The content is encoder version {version!r}, {claimed!r} was expected. "
                    "The folder or the manifest was changed: fetch the artifact again.",
                    encoder_version=claimed,
                )
        modality = _StoredModality(manifest.schema.modality_version, verified)
        return cls(manifest, preprocessor, weights, onnx, modality)

    def session(self, threads: int = 1) -> ort.InferenceSession:
        """Return an ONNX Runtime session (CPU) with ``threads`` threads; made once per number."""
        session = self._sessions.get(threads)
        if session is None:
            with self._making:  # or threads that come first together make one each
                session = self._sessions.get(threads)
                if session is None:
                    # Some builds report their use; a server of user data tells nobody anything.
                    ort.disable_telemetry_events()
                    options = ort.SessionOptions()
                    options.intra_op_num_threads = threads
                    options.inter_op_num_threads = 1
                    session = self._sessions[threads] = ort.InferenceSession(
                        self.onnx, options, providers=["CPUExecutionProvider"]
                    )
        return session

    def encode_inputs(self, inputs: Float32, threads: int = 1) -> Float32:
        """Return the embeddings float32 (n, embedding_dim) of preprocessed ``inputs``.

        Parameters
        ----------
        inputs : float32 (n, n_inputs)
            From ``preprocessor.transform``; run 4,096 rows at a time.
        threads : int
            Threads of the session.
        """
        session = self.session(threads)
        embedding: Float32
        if 0 < len(inputs) <= _BATCH_ROWS:
            (embedding,) = session.run(["embedding"], {"inputs": inputs})
            return embedding
        embedding = np.empty((len(inputs), self.manifest.embedding_dim), np.float32)
        for start in range(0, len(inputs), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            (embedding[part],) = session.run(["embedding"], {"inputs": inputs[part]})
        return embedding

    def encode(self, batch: RawBatch, threads: int = 1) -> Float32:
        """Return the embeddings float32 (n_rows, embedding_dim) of raw features.

        A row's embedding depends on that row alone.

        Raises
        ------
        MalformedInput, SpaceMismatch
            As in ``Preprocessor.transform``.
        """
        return self.encode_inputs(self.preprocessor.transform(batch), threads)


@dataclass(frozen=True)
class _StoredModality:
    """Modality encoders of a loaded artifact, read and verified when asked for."""

    version: str
    read: Callable[[str], bytes]

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return safetensors_numpy.load(self.read(MODALITY)), json.loads(self.read(MODALITY_CONFIG))


def _version(
    preprocessor: Preprocessor, weights: Arrays, model: Mapping[str, Any], onnx: bytes
) -> str:
    """Return the first 12 hex digits of the SHA-256 of what changes an embedding, and only that.

    The decoder, descriptions, history and times are not part of it. A float32 graph follows from
    the weights and is not, either; another precision's holds numbers of its own, so its bytes are.
    """
    arrays, config = preprocessor.state()
    encoder = {name: array for name, array in weights.items() if name.startswith("encoder.")}
    digest = hashlib.sha256()
    decisive: dict[str, Any] = {
        k: model[k] for k in ("kind", "n_inputs", "embedding_dim", "hidden")
    }
    if model.get("precision", FLOAT32) != FLOAT32:
        decisive |= {"precision": model["precision"], "graph": _sha256(onnx)}
    facts = {
        "schema": preprocessor.schema.to_dict(),
        # The entropies scale the training loss and nothing else.
        "categories": config["categories"],
        "model": decisive,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for part in (arrays, encoder):
        digest.update(json.dumps(_shapes(part), sort_keys=True).encode())
        for name in sorted(part):
            digest.update(np.ascontiguousarray(part[name]).data)
    return digest.hexdigest()[:12]


def _shapes(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, list[Any]]:
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def _tensors(name: str, data: bytes, manifest: Manifest) -> Arrays:
    try:
        arrays: Arrays = safetensors_numpy.load(data)
    except SafetensorError as exc:
        raise ArtifactError(f"{name} cannot be read: {exc}. Fetch the artifact again.") from exc
    expected = manifest.tensors.get(name, {})
    _same_names(f"Tensors of {name}", set(arrays), set(expected))
    shapes = _shapes(arrays)
    wrong = [
        f"{k} {shapes[k]} instead of {expected[k]}" for k in expected if shapes[k] != expected[k]
    ]
    if wrong:
        raise ArtifactError(
            f"Tensors of {name} have another type or shape than the manifest says: "
            f"{', '.join(sorted(wrong))}. Fetch the artifact again."
        )
    return arrays


def _same_names(what: str, given: set[str], expected: set[str]) -> None:
    faults = [
        f"{word}: {', '.join(sorted(names))}"
        for word, names in (("missing", expected - given), ("unexpected", given - expected))
        if names
    ]
    if faults:
        raise ArtifactError(
            f"{what} do not match the artifact's format ({'; '.join(faults)}). "
            "Fetch the artifact again, and keep nothing else in its folder."
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _libraries() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # serving installs have no torch
    return versions
