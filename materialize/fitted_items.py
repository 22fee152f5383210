"""Modality encoders on disk: fitted once on the same inputs, grown with the catalogue."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from encoder.content import folder_digest
from encoder.errors import DataFault
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
    return TextsSpec(inputs.services(), config.vocabulary, config.max_item_tokens)
