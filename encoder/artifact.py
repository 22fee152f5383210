"""The encoder artifact: what a trained encoder is on disk, and how it encodes. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors import numpy as safetensors_numpy

from encoder.artifact_files import (
    Arrays,
    libraries,
    read_tensors,
    require_names,
    sha256,
    shapes,
)
from encoder.columns import RawBatch
from encoder.errors import ArtifactError
from encoder.hybrid.inputs import HybridInputs
from encoder.kinds import GRAPH, EncoderInputs, Feed, Runner, Sessions, kind_of
from encoder.manifest import FLOAT32, FORMAT_VERSION, MANIFEST, Manifest
from encoder.preprocessing import Preprocessor

__all__ = ["FORMAT_VERSION", "EncoderArtifact", "Manifest", "ModalityState", "artifact_files"]

Float32 = npt.NDArray[np.float32]

WEIGHTS, PREPROCESSING = "weights.safetensors", "preprocessing.safetensors"
MODALITY, MODALITY_CONFIG = "modality.safetensors", "modality.json"

_COMMON = (MANIFEST, WEIGHTS, PREPROCESSING, MODALITY, MODALITY_CONFIG)


def artifact_files(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Return every file of an artifact by its manifest's ``model``, the manifest first.

    Raises
    ------
    ArtifactError
        Unknown kind.
    """
    return (*_COMMON, *kind_of(model).graphs)


class ModalityState(Protocol):
    """Modality encoders as an artifact keeps them."""

    @property
    def version(self) -> str:
        """Content hash of the item vectors."""

    @property
    def texts_version(self) -> str | None:
        """Content hash of the texts' tokenizer; None: there is none."""

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Return (arrays, JSON types) from which the modality encoders are rebuilt."""


@dataclass(frozen=True)
class EncoderArtifact:
    """A trained encoder of any kind: manifest, inputs, weights, graphs and modality encoders.

    State: immutable, but for the ONNX Runtime sessions, cached per graph and number of threads, and
    what the kind's runner remembers. Threads may share it.

    Attributes
    ----------
    manifest : Manifest
    preprocessor : EncoderInputs
        From raw features to what the graphs read.
    weights : dict of str to array
        All of the model's; the kind tells which make the embedding.
    graphs : dict of str to bytes
        By file name.
    modality : ModalityState
        Of a loaded artifact: read, and its hash verified, when ``state()`` is called, because
        serving never needs the item vectors and they are the largest file.
    """

    manifest: Manifest
    preprocessor: EncoderInputs
    weights: Arrays
    graphs: Mapping[str, bytes]
    modality: ModalityState
    _sessions: dict[tuple[str, int], ort.InferenceSession] = field(default_factory=dict, repr=False)
    _making: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def encoder_version(self) -> str:
        """The content hash, 12 hex digits."""
        return self.manifest.encoder_version

    @property
    def block_inputs(self) -> Preprocessor:
        """The preprocessor of the blocks that an encoder reads.

        Raises
        ------
        ArtifactError
            The encoder is of a kind that reads none.
        """
        inputs = self.preprocessor
        if isinstance(inputs, HybridInputs):
            return inputs.blocks
        if isinstance(inputs, Preprocessor):
            return inputs
        kind = self.manifest.model["kind"]
        raise ArtifactError(
            f"Encoder {self.encoder_version!r} is of kind {kind!r} and reads no blocks. Name an "
            "autoencoder's space.",
            encoder_version=self.encoder_version,
        )

    @property
    def onnx(self) -> bytes:
        """The graph "inputs" float32 (n, n_inputs) -> "embedding" of an encoder that reads blocks.

        Raises
        ------
        ArtifactError
            As ``block_inputs``.
        """
        _ = self.block_inputs
        return self.graphs[GRAPH]

    @classmethod
    def build(
        cls,
        *,
        preprocessor: EncoderInputs,
        weights: Arrays,
        graphs: Mapping[str, bytes],
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
            The modality encoders, or their item texts, are of another version than the schema
            names.
        """
        schema = preprocessor.schema
        if schema.modality_version not in (modality.version, modality.texts_version):
            raise ArtifactError(
                f"Modality encoders of version {modality.version!r} given, the schema was built "
                f"for {schema.modality_version!r}. Pass the ones the raw features were built with."
            )
        texts = schema.texts_modality
        if texts is not None and texts.version != modality.texts_version:
            raise ArtifactError(
                f"Item texts of version {modality.texts_version!r} given, the schema was built for "
                f"{texts.version!r}. Pass the ones the raw features were built with."
            )
        manifest = Manifest(
            encoder_version=_version(preprocessor, weights, model, graphs),
            schema=schema,
            model=model,
            preprocessing=preprocessor.state()[1],
            dataset=dataset,
            data_cutoff=data_cutoff.isoformat(),
            training=training,
            created_at=created_at.isoformat(),
            libraries=libraries(),
        )
        return cls(manifest, preprocessor, weights, graphs, modality)

    def files(self) -> dict[str, bytes]:
        """Return the content of every file of the artifact, the manifest last."""
        modality_arrays, modality_config = self.modality.state()
        tensors = {WEIGHTS: self.weights, PREPROCESSING: self.preprocessor.state()[0]}
        content = {name: safetensors_numpy.save(arrays) for name, arrays in tensors.items()}
        content |= self.graphs
        content[MODALITY] = safetensors_numpy.save(modality_arrays)
        content[MODALITY_CONFIG] = json.dumps(modality_config, sort_keys=True).encode()
        manifest = Manifest(
            **{
                **vars(self.manifest),
                "files": {name: sha256(data) for name, data in content.items()},
                "tensors": {name: shapes(arrays) for name, arrays in tensors.items()},
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
        require_names("Files", found & set(_COMMON), set(_COMMON))
        manifest = Manifest.from_json(read(MANIFEST))
        expected = set(artifact_files(manifest.model))
        require_names("Files", found, expected)
        require_names("Hashes of files", set(manifest.files), expected - {MANIFEST})
        kind = kind_of(manifest.model)

        def verified(name: str) -> bytes:
            data = read(name)
            if sha256(data) != manifest.files[name]:
                raise ArtifactError(
                    f"{name} of encoder version {manifest.encoder_version!r} has SHA-256 "
                    f"{sha256(data)}, the manifest says {manifest.files[name]}. The file was "
                    "changed or cut short: fetch the artifact again.",
                    encoder_version=manifest.encoder_version,
                )
            return data

        weights = read_tensors(WEIGHTS, verified(WEIGHTS), manifest)
        arrays = read_tensors(PREPROCESSING, verified(PREPROCESSING), manifest)
        preprocessor = kind.inputs(manifest.schema, arrays, manifest.preprocessing)
        graphs = {name: verified(name) for name in kind.graphs}
        version = _version(preprocessor, weights, manifest.model, graphs)
        for claimed in {manifest.encoder_version, expected_version or version}:
            if claimed != version:
                raise ArtifactError(
                    f"The content is encoder version {version!r}, {claimed!r} was expected. "
                    "The folder or the manifest was changed: fetch the artifact again.",
                    encoder_version=claimed,
                )
        schema = manifest.schema
        texts = schema.texts_modality
        modality = _StoredModality(
            schema.modality_version, verified, None if texts is None else texts.version
        )
        return cls(manifest, preprocessor, weights, graphs, modality)

    def warm(self, threads: int = 1) -> None:
        """Make the sessions of all graphs, which the first encoding would otherwise wait for."""
        for name in self.graphs:
            self._session(name, threads)

    def _session(self, graph: str, threads: int) -> ort.InferenceSession:
        """Return an ONNX Runtime session (CPU); made once per graph and number of threads."""
        session = self._sessions.get((graph, threads))
        if session is None:
            with self._making:  # or threads that come first together make one each
                session = self._sessions.get((graph, threads))
                if session is None:
                    # Some builds report their use; a server of user data tells nobody anything.
                    ort.disable_telemetry_events()
                    options = ort.SessionOptions()
                    options.intra_op_num_threads = threads
                    options.inter_op_num_threads = 1
                    session = self._sessions[graph, threads] = ort.InferenceSession(
                        self.graphs[graph], options, providers=["CPUExecutionProvider"]
                    )
        return session

    @cached_property
    def _runner(self) -> Runner:
        return self._run_with(self._session)

    def _run_with(self, sessions: Sessions) -> Runner:
        model = self.manifest.model
        return kind_of(model).runner(sessions, model, self.weights, self.preprocessor)

    def encode_inputs(self, inputs: npt.NDArray[Any], threads: int = 1) -> Float32:
        """Return the embeddings float32 (n, embedding_dim) of preprocessed ``inputs``.

        Parameters
        ----------
        inputs : array (n, n_inputs at most)
            From ``preprocessor.transform``.
        threads : int
            Threads of the sessions.
        """
        return self._runner(inputs, threads)

    def graph_inputs(self, inputs: npt.NDArray[Any]) -> dict[str, list[Feed]]:
        """Return what each graph is given when ``inputs`` are encoded, by file name."""
        given: dict[str, list[Feed]] = {name: [] for name in self.graphs}

        def recording(name: str, threads: int) -> _Recorder:
            return _Recorder(self._session(name, threads), given[name])

        self._run_with(recording)(inputs, 1)
        return given

    def encode(self, batch: RawBatch, threads: int = 1) -> Float32:
        """Return the embeddings float32 (n_rows, embedding_dim) of raw features.

        A row's embedding depends on that row alone.

        Raises
        ------
        MalformedInput, SpaceMismatch
            As in ``preprocessor.transform``.
        """
        return self.encode_inputs(self.preprocessor.transform(batch), threads)


@dataclass(frozen=True)
class _Recorder:
    """A session that notes what it is given."""

    session: ort.InferenceSession
    given: list[Feed]

    def run(self, outputs: list[str], feed: Feed) -> list[npt.NDArray[Any]]:
        self.given.append(feed)
        found: list[npt.NDArray[Any]] = self.session.run(outputs, feed)
        return found


@dataclass(frozen=True)
class _StoredModality:
    """Modality encoders of a loaded artifact, read and verified when asked for."""

    version: str
    read: Callable[[str], bytes]
    texts_version: str | None = None

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return safetensors_numpy.load(self.read(MODALITY)), json.loads(self.read(MODALITY_CONFIG))


def _version(
    preprocessor: EncoderInputs,
    weights: Arrays,
    model: Mapping[str, Any],
    graphs: Mapping[str, bytes],
) -> str:
    """Return the first 12 hex digits of the SHA-256 of what changes an embedding, and only that.

    The decoder, descriptions, history and times are not part of it. A float32 graph follows from
    the weights and is not, either; another precision's holds numbers of its own, so its bytes are.
    """
    kind = kind_of(model)
    arrays, config = preprocessor.state()
    encoder = {name: array for name, array in weights.items() if name.startswith(kind.weights)}
    digest = hashlib.sha256()
    decisive: dict[str, Any] = {k: model[k] for k in kind.model}
    if model.get("precision", FLOAT32) != FLOAT32:
        one = {"graph": sha256(graphs[kind.graphs[0]])}
        several = {f"graph {name}": sha256(graphs[name]) for name in kind.graphs}
        decisive |= {"precision": model["precision"], **(one if len(graphs) == 1 else several)}
    facts = {
        "schema": preprocessor.schema.to_dict(),
        **kind.preprocessing(config),
        "model": decisive,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for part in (arrays, encoder):
        digest.update(json.dumps(shapes(part), sort_keys=True).encode())
        for name in sorted(part):
            digest.update(np.ascontiguousarray(part[name]).data)
    return digest.hexdigest()[:12]
