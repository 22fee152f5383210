"""Modality encoders on disk: fitted once on the same inputs, grown with the catalogue."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from encoder.clue.tokenizer import ItemTokenizer
from encoder.content import folder_digest
from encoder.errors import ArtifactError, DataFault
from encoder.item_texts import TextsSpec
from encoder.modality import ModalityEncoders, ModalitySpec, fit_modalities
from materialize.publish import write_json
from transforms.clean import CleanTables
from transforms.dataset import Dataset
from transforms.engine import bounded_connection
from transforms.fit_inputs import FitInputs

__all__ = ["digest", "fitted_encoders", "modality_folder"]

_MODALITY, _FIT_NOTE = "modality", "fit.json"


def fitted_encoders(
    dataset: Dataset, clean: CleanTables, out: Path, *, memory_limit_mb: int, seed: int
) -> ModalityEncoders:
    """Load the encoders that were fitted on the same inputs, or fit them; add new items.

    Parameters
    ----------
    dataset : Dataset
    clean : CleanTables
    out : Path
        Folder of the raw features.
    memory_limit_mb : int
        Of DuckDB.
    seed : int

    Raises
    ------
    DataFault
        No event before the cut-off, or a fault in the items' vectors or texts.
    ArtifactError
        ``texts.tokenizer`` names no artifact, or one without texts.
    """
    specs = [
        ModalitySpec(name, config.dim, config.clusters, config.text_model)
        for name, config in dataset.modalities.items()
    ]
    cutoff = dataset.item_vectors_cutoff
    brought = tuple(dataset.items.vectors) if dataset.items else ()
    with bounded_connection(memory_limit_mb, out) as connection:
        inputs = FitInputs(connection, clean, brought, cutoff)
        models = [folder_digest(s.text_model) for s in specs if s.text_model is not None]
        facts = [inputs.fingerprint(), [asdict(s) for s in specs], models, str(cutoff), seed]
        texts = _texts_spec(dataset, inputs)
        fit = digest([*facts, *([] if texts is None else [asdict(texts)])])
        items = inputs.items()
        for note in sorted((out / _MODALITY).glob(f"*/{_FIT_NOTE}")):
            if json.loads(note.read_text(encoding="utf-8"))["fit"] == fit:
                fitted = ModalityEncoders.load(note.parent)
                grown = fitted.with_new_items(items)
                if grown is not fitted:
                    grown.save(note.parent)
                return grown
        popularity = inputs.popularity(items.ids)
        if not popularity.any():
            raise DataFault(
                f"No event lies before the cut-off {cutoff.isoformat()}: there is nothing to "
                "learn item vectors from. Move evaluation.cutoff (item_vectors_until, where it "
                "is given) into the events' time."
            )
        encoders = fit_modalities(
            items,
            specs,
            cutoff=cutoff.isoformat(),
            popularity=popularity,
            sessions=lambda: inputs.sessions(items.ids),
            seed=seed,
            texts=texts,
        )
    folder = modality_folder(out, encoders.version)
    encoders.save(folder)
    write_json(folder / _FIT_NOTE, {"fit": fit})
    return encoders


def modality_folder(out: Path, version: str) -> Path:
    """Return the folder of some modality encoders among the raw features."""
    return out / _MODALITY / version


def digest(value: Any) -> str:
    """Return 12 hex digits of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _texts_spec(dataset: Dataset, inputs: FitInputs) -> TextsSpec | None:
    config = dataset.texts
    if config is None:
        return None
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = _tokenizer_at(config.tokenizer)
        if tokenizer.max_tokens != config.max_item_tokens:
            raise DataFault(
                f"texts.max_item_tokens {config.max_item_tokens} given, the tokenizer of "
                f"{config.tokenizer} makes {tokenizer.max_tokens}. Say so in dataset.yaml."
            )
    return TextsSpec(inputs.services(), config.vocabulary, config.max_item_tokens, tokenizer)


def _tokenizer_at(url: str) -> ItemTokenizer:
    """Return the tokenizer of an artifact's item texts."""
    from encoder.store import artifact_at  # loads ONNX Runtime

    texts = artifact_at(url).modality.state()[1].get("texts")
    if texts is None:
        raise ArtifactError(
            f"{url} was made without texts and has no tokenizer. Name an artifact of kind clue."
        )
    return ItemTokenizer.from_json(texts)
