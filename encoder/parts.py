"""What an artifact was made of, part by part: a content hash and the settings of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder.artifact import EncoderArtifact
from encoder.item_texts import ItemTexts
from encoder.kinds import EncoderInputs
from encoder.manifest import FLOAT32, NETWORKS
from encoder.modality import ItemVectors, ModalityEncoders

__all__ = ["Part", "artifact_parts", "modality_parts"]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """One link of the chain from data to embeddings.

    Attributes
    ----------
    kind : str
        ``data``, ``modality encoder``, ``item texts`` where raw features carry any, ``input
        schema``, ``preprocessing``, one of ``NETWORKS``, and ``quantisation`` where the graph is
        not float32.
    name : str
        Which of its kind: a modality's name, the data set's; "" where there is one only.
    version : str
        Content hash, 12 hex digits: equal only for equal numbers. "" where none was recorded.
    settings : mapping
        What it was made with, flat: dotted name -> JSON type.
    """

    kind: str
    name: str
    version: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.kind} {self.name}".rstrip()


def artifact_parts(artifact: EncoderArtifact) -> list[Part]:
    """Return an artifact's parts, upstream first.

    Derived from the content, so that every artifact of the format has them, whenever it was
    written. Reads the item vectors, an artifact's largest file.

    Raises
    ------
    ArtifactError
        The modality encoders are damaged, or no modality encoders.
    """
    manifest = artifact.manifest
    encoders = ModalityEncoders.from_state(*artifact.modality.state())
    schema = manifest.schema.to_dict()
    # Named by the modality encoders: the layout is the same when they alone are new.
    del schema["modality_version"]
    if "texts_modality" in schema:
        del schema["texts_modality"]["version"]
    blocks = {f"blocks.{b.name}": f"{b.kind}, {b.width} wide" for b in manifest.schema.blocks}
    model = {k: v for k, v in manifest.model.items() if k not in ("n_inputs", "precision")}
    training = {k: v for k, v in manifest.training.get("config", {}).items() if k != "model"}
    settings = {"model": model, "training": training}
    if "predicted" in manifest.dataset:
        settings["training"]["predicted"] = manifest.dataset["predicted"]
    if manifest.dataset.get("compatibility"):
        settings["compatibility"] = manifest.dataset["compatibility"]
    return [
        _data(manifest.dataset, manifest.data_cutoff, manifest.training),
        *modality_parts(encoders),
        Part("input schema", "", _hash({}, schema), blocks),
        _preprocessing(artifact.preprocessor),
        Part(NETWORKS[model["kind"]], "", _network_hash(artifact), _flat(settings)),
        *_quantisation(artifact),
    ]


def modality_parts(encoders: ModalityEncoders) -> list[Part]:
    """Return one part for each modality, in their order, and one for the items' texts if any.

    The hash is over the items that were fitted on, as the version of all together is: a catalogue
    that grows changes neither.
    """
    parts = [_modality(encoders, vectors) for vectors in encoders.modalities]
    return parts if encoders.texts is None else [*parts, _texts(encoders.texts)]


def _modality(encoders: ModalityEncoders, vectors: ItemVectors) -> Part:
    fitted = encoders.fitted
    arrays: dict[str, npt.NDArray[Any]] = {
        "vectors": vectors.vectors[fitted],
        "cluster_of": vectors.cluster_of[fitted],
        "centroids": vectors.centroids,
    }
    config: dict[str, Any] = {"clusters": vectors.n_clusters}
    settings = {"dim": vectors.dim, "clusters": vectors.n_clusters} | {
        name: value
        for name, value in encoders.config.items()
        if name != "max_session_items" or vectors.name == "collaborative"
    }
    if vectors.name == "content" and encoders.content is not None:
        inner, config["content"] = encoders.content.state()
        arrays |= {f"content.{name}": array for name, array in inner.items()}
        settings["encoder"] = config["content"]["kind"]
        # A model's files are named by their digest: its folder may lie elsewhere on each machine.
        settings |= {k: v for k, v in config["content"].items() if k == "digest"}
        config["content"].pop("folder", None)
    ids = encoders.item_ids.filter(fitted).to_pylist()
    return Part("modality encoder", vectors.name, _hash(arrays, config | {"ids": ids}), settings)


def _texts(texts: ItemTexts) -> Part:
    settings = {
        "services": list(texts.tokenizer.services),
        "max_tokens": texts.tokenizer.max_tokens,
    }
    return Part("item texts", "", texts.tokenizer.version, settings)


def _network_hash(artifact: EncoderArtifact) -> str:
    return _hash(artifact.weights, {"kind": artifact.manifest.model["kind"]})


def _quantisation(artifact: EncoderArtifact) -> list[Part]:
    precision = artifact.manifest.precision
    if precision == FLOAT32:
        return []
    rows = artifact.manifest.training["quantisation"]["calibration_rows"]
    version = hashlib.sha256(b"".join(artifact.graphs.values())).hexdigest()[:12]
    return [Part("quantisation", "", version, {"precision": precision, "calibration_rows": rows})]


def _preprocessing(inputs: EncoderInputs) -> Part:
    arrays, config = inputs.state()
    # Of strings their number; entropies scale the training loss and nothing else.
    known = {k: v for k, v in config.items() if k not in ("categories", "entropies")}
    known |= {f"categories.{k}": len(v) for k, v in config.get("categories", {}).items()}
    return Part("preprocessing", "", _hash(arrays, config), _flat(known))


def _data(dataset: Mapping[str, Any], cutoff: str, training: Mapping[str, Any]) -> Part:
    rows = {name: training.get(name) for name in ("n_training_rows", "n_validation_rows")}
    settings = {"cutoff": cutoff, "windows": dataset.get("windows")} | rows
    name = str(dataset.get("dataset", ""))
    return Part("data", name, str(dataset.get("data_fingerprint") or ""), settings)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _hash(arrays: Arrays, config: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:12]
