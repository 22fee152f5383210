"""Modality encoders: item -> vector, in one or several kinds of space, with item clusters."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder.clusters import assign_clusters, fit_centroids
from encoder.collaborative import fit_collaborative
from encoder.content import ContentEncoder, content_from_state, fit_content
from encoder.errors import ArtifactError, DataFault
from encoder.item_texts import ItemTexts, TextsSpec, fit_item_texts

__all__ = ["ItemVectors", "Items", "ModalityEncoders", "ModalitySpec", "fit_modalities"]

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FORMAT_VERSION = 1
_ARRAYS, _CONFIG = "encoders.safetensors", "encoders.json"


@dataclass(frozen=True)
class ModalitySpec:
    """What to fit.

    Attributes
    ----------
    name : str
        ``collaborative``, ``content``, or the name of a brought vector.
    dim : int
        Vector length; a brought vector keeps its own and ignores this.
    clusters : int
        Width of the interest histogram.
    text_model : str or None
        ``content`` only: folder of a sentence-transformers model.
    """

    name: str
    dim: int
    clusters: int
    text_model: str | None = None


@dataclass(frozen=True)
class Items:
    """What is known of some items, in one order.

    Attributes
    ----------
    ids : pyarrow int64 or string array (n_items,), distinct
    text : sequence of str
        "" where an item has none; may be empty as a whole when no modality reads it.
    tags : sequence of sequences of str
    brought : mapping of str to float32 (n_items, dim)
        Vectors that the company brings; a row of zeros is an item without one.
    """

    ids: pa.Array
    text: Sequence[str] = ()
    tags: Sequence[Sequence[str]] = ()
    brought: Mapping[str, Floats] = field(default_factory=dict)

    def take(self, positions: Ints) -> Items:
        """Return the items at ``positions``, in that order."""
        return Items(
            self.ids.take(pa.array(positions)),
            [self.text[i] for i in positions] if self.text else (),
            [self.tags[i] for i in positions] if self.tags else (),
            {name: vectors[positions] for name, vectors in self.brought.items()},
        )


@dataclass(frozen=True)
class ItemVectors:
    """The vectors of one modality.

    Attributes
    ----------
    name : str
    vectors : float32 (n_items, dim)
        Zeros: the item has no vector in this modality.
    cluster_of : int32 (n_items,)
        Cluster in ``[0, n_clusters)``, -1 for no vector.
    n_clusters : int
        Width of the interest histogram; clusters in use may be fewer.
    centroids : float32 (n_used_clusters, dim)
    """

    name: str
    vectors: Floats
    cluster_of: npt.NDArray[np.int32]
    n_clusters: int
    centroids: Floats

    @property
    def dim(self) -> int:
        """Vector length."""
        return int(self.vectors.shape[1])


class ModalityEncoders:
    """All modalities of a data set, over one list of items.

    State: item ids, one ``ItemVectors`` a modality, the content encoder, and which items were known
    when it was fitted. Immutable; ``with_new_items`` returns a larger one of the same version.

    Parameters
    ----------
    item_ids : pyarrow int64 or string array (n_items,)
    modalities : tuple of ItemVectors
    fitted : bool (n_items,)
        Items that had an event before the cut-off.
    config : mapping
        Plain JSON: ``cutoff`` (ISO 8601), ``seed`` and whatever else describes the fit.
    content : ContentEncoder, optional
        Present when there is a ``content`` modality.
    texts : ItemTexts, optional
        Tokens of the items, in their order, where raw features carry texts.
    """

    def __init__(
        self,
        item_ids: pa.Array,
        modalities: tuple[ItemVectors, ...],
        fitted: npt.NDArray[np.bool_],
        config: Mapping[str, Any],
        content: ContentEncoder | None = None,
        texts: ItemTexts | None = None,
    ) -> None:
        self.item_ids = item_ids
        self.modalities = modalities
        self.fitted = fitted
        self.config = dict(config)
        self.content = content
        self.texts = texts
        self.version = self._version()

    @property
    def cutoff(self) -> str:
        """Instant (ISO 8601, UTC) before which every event that was fitted on lies."""
        return str(self.config["cutoff"])

    @cached_property
    def texts_version(self) -> str | None:
        """Content hash of the texts' tokenizer, which ``version`` does not depend on; None: none.

        Texts may be added, or taken anew, while spaces that read vectors stay fresh. What items
        say is no part of it: an encoder of texts reads token ids, whichever items they are of.
        """
        return None if self.texts is None else self.texts.tokenizer.version

    def index_of(self, ids: pa.Array | Sequence[Any] | npt.NDArray[Any]) -> Ints:
        """Return each id's position in ``item_ids``, -1 for an unknown one: int64 (n,)."""
        array = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids)
        if array.type != self.item_ids.type:
            array = array.cast(self.item_ids.type)
        found = pc.fill_null(pc.index_in(array, value_set=self.item_ids), -1)
        return np.asarray(found.to_numpy(), np.int64)

    def encode_items(self, text: Sequence[str], tags: Sequence[Sequence[str]]) -> Floats:
        """Return content vectors of any items, without refitting.

        Raises
        ------
        ValueError
            There is no content modality.
        """
        if self.content is None:
            names = ", ".join(m.name for m in self.modalities)
            raise ValueError(f"No 'content' modality was fitted, only: {names}.")
        return self.content.encode_items(text, tags)

    def with_new_items(self, items: Items) -> ModalityEncoders:
        """Return encoders that also know those of ``items`` that are unknown here.

        New items get content and brought vectors with the nearest cluster, and no collaborative
        vector. Vectors of known items do not move, so ``version`` stays.

        Raises
        ------
        DataFault
            A brought vector has another length than at the fit.
        """
        new = np.flatnonzero(self.index_of(items.ids) < 0)
        if not len(new):
            return self
        added = items.take(new)
        grown = []
        for m in self.modalities:
            if m.name == "content":
                vectors = self.encode_items(added.text, added.tags)
            elif m.name in added.brought:
                vectors = added.brought[m.name]
                if vectors.shape[1] != m.dim:
                    raise DataFault(
                        f"Brought vector {m.name!r}: {vectors.shape[1]} numbers given, {m.dim} "
                        "expected as at the fit. Bring the same vectors, or move the cut-off."
                    )
            else:
                vectors = np.zeros((len(new), m.dim), np.float32)
            clusters = assign_clusters(vectors, m.centroids)
            grown.append(
                ItemVectors(
                    m.name,
                    np.concatenate([m.vectors, vectors]),
                    np.concatenate([m.cluster_of, clusters]),
                    m.n_clusters,
                    m.centroids,
                )
            )
        ids = pa.concat_arrays([self.item_ids, added.ids.cast(self.item_ids.type)])
        fitted = np.concatenate([self.fitted, np.zeros(len(new), np.bool_)])
        texts = None if self.texts is None else self.texts.with_items(added)
        return ModalityEncoders(ids, tuple(grown), fitted, self.config, self.content, texts)

    def _version(self) -> str:
        # Items without an event before the cut-off are left out: theirs follow from the rest,
        # and a catalogue that grows daily must not make yesterday's encoder refuse today's rows.
        arrays, config = self._parts(np.flatnonzero(self.fitted))
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name in sorted(arrays):
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()[:12]

    def _parts(self, items: Ints | None) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        pick = slice(None) if items is None else items
        ids = self.item_ids if items is None else self.item_ids.take(pa.array(items))
        arrays: dict[str, npt.NDArray[Any]] = {"fitted": self.fitted[pick].astype(np.uint8)}
        if pa.types.is_integer(ids.type):
            arrays["ids"] = ids.to_numpy()
        else:
            texts = [i.encode() for i in ids.to_pylist()]
            arrays["ids_utf8"] = np.frombuffer(b"".join(texts), np.uint8)
            arrays["ids_end"] = np.cumsum([len(t) for t in texts], dtype=np.int64)
        config: dict[str, Any] = {"format_version": FORMAT_VERSION, "fit": self.config}
        config["modalities"] = [{"name": m.name, "clusters": m.n_clusters} for m in self.modalities]
        for k, m in enumerate(self.modalities):
            arrays[f"{k}.vectors"] = m.vectors[pick]
            arrays[f"{k}.cluster_of"] = m.cluster_of[pick]
            arrays[f"{k}.centroids"] = m.centroids
        if self.content is not None:
            inner, config["content"] = self.content.state()
            arrays |= {f"content.{name}": array for name, array in inner.items()}
        return arrays, config

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return everything as arrays (safetensors) and a configuration (JSON)."""
        arrays, config = self._parts(None)
        if self.texts is not None:
            tokens, said = self.texts.state()
            arrays |= tokens
            config |= {"texts": said, "texts_version": self.texts_version}
            config["texts_content"] = self.texts.content()
        return arrays, config | {"version": self.version}

    @classmethod
    def from_state(
        cls, arrays: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any]
    ) -> ModalityEncoders:
        """Rebuild what ``state`` returned; the vectors are bit-equal.

        Raises
        ------
        ArtifactError
            Unknown format, a missing array, or content that does not have the stated version.
        """
        if config.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"Modality encoders of format {config.get('format_version')!r} were given, "
                f"{FORMAT_VERSION} is expected. Build the features anew with this release."
            )
        try:
            if "ids" in arrays:
                ids = pa.array(arrays["ids"])
            else:
                ends = np.concatenate([np.zeros(1, np.int64), arrays["ids_end"]])
                ids = pa.LargeStringArray.from_buffers(
                    len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(arrays["ids_utf8"].tobytes())
                ).cast(pa.string())
            modalities = tuple(
                ItemVectors(
                    m["name"],
                    arrays[f"{k}.vectors"],
                    arrays[f"{k}.cluster_of"],
                    m["clusters"],
                    arrays[f"{k}.centroids"],
                )
                for k, m in enumerate(config["modalities"])
            )
            content = None
            if "content" in config:
                prefix = "content."
                inner = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
                content = content_from_state(inner, config["content"])
            texts = None
            if "texts" in config:
                texts = ItemTexts.from_state(arrays, config["texts"])
            fitted = arrays["fitted"].astype(np.bool_)
            made = cls(ids, modalities, fitted, config["fit"], content, texts)
        except KeyError as exc:
            raise ArtifactError(f"Modality encoders lack {exc}. Build the features anew.") from exc
        for said, held in (
            (config["version"], made.version),
            (config.get("texts_version"), made.texts_version),
            (config.get("texts_content"), None if texts is None else texts.content()),
        ):
            if said != held:
                raise ArtifactError(
                    f"Modality encoders say version {said!r} and hold {held!r}: the files were "
                    "changed. Build the features anew."
                )
        return made

    def save(self, folder: str | Path) -> None:
        """Write into ``folder``, which is made; each file is complete or not there at all."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays, config = self.state()
        temporary = folder / f"{_ARRAYS}.tmp"
        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, temporary)
        os.replace(temporary, folder / _ARRAYS)
        temporary = folder / f"{_CONFIG}.tmp"
        temporary.write_text(json.dumps(config, sort_keys=True), encoding="utf-8")
        os.replace(temporary, folder / _CONFIG)

    @classmethod
    def load(cls, folder: str | Path) -> ModalityEncoders:
        """Read what ``save`` wrote.

        Raises
        ------
        ArtifactError
            A file is missing or damaged; see ``from_state``.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            return cls.from_state(load_file(folder / _ARRAYS), config)
        except (FileNotFoundError, json.JSONDecodeError, SafetensorError) as exc:
            raise ArtifactError(
                f"No whole modality encoders in {folder}: {exc}. Run `palate features build`."
            ) from exc


def fit_modalities(
    items: Items,
    specs: Sequence[ModalitySpec],
    *,
    cutoff: str,
    popularity: Ints,
    sessions: Callable[[], Iterable[tuple[Ints, Ints]]],
    seed: int,
    max_session_items: int = 300,
    texts: TextsSpec | None = None,
) -> ModalityEncoders:
    """Fit every modality on what was known before the cut-off.

    Parameters
    ----------
    items : Items
        All items; those that no event names before the cut-off are encoded, not fitted on.
    specs : sequence of ModalitySpec
        In the order of the answer.
    cutoff : str
        ISO 8601; recorded. The caller counts only events before it.
    popularity : int64 (n_items,)
        Events of each item before the cut-off.
    sessions : callable
        Returns the chunks that ``fit_collaborative`` reads, of events before the cut-off.
    seed : int
    max_session_items : int
        See ``fit_collaborative``.
    texts : TextsSpec, optional
        Learn tokens of what items say, too.

    Raises
    ------
    DataFault
        A brought vector that a spec names is not among the items, or texts are wanted and no item
        says anything.
    """
    weights = popularity.astype(np.float64)
    content: ContentEncoder | None = None
    made: list[ItemVectors] = []
    for spec in specs:
        if spec.name == "collaborative":
            vectors = fit_collaborative(
                sessions(), len(items.ids), spec.dim, seed=seed, max_session_items=max_session_items
            )
        elif spec.name == "content":
            content = fit_content(
                items.text, items.tags, weights, spec.dim, seed=seed, text_model=spec.text_model
            )
            vectors = content.encode_items(items.text, items.tags)
        elif spec.name in items.brought:
            vectors = items.brought[spec.name]
        else:
            raise DataFault(
                f"Modality {spec.name!r}: the items carry no such vector, only "
                f"{', '.join(sorted(items.brought)) or 'none'}. Name it under items.vectors."
            )
        centroids = fit_centroids(vectors, weights, spec.clusters, seed)
        clusters = assign_clusters(vectors, centroids)
        made.append(ItemVectors(spec.name, vectors, clusters, spec.clusters, centroids))
        logger.info(
            "modality %s: %d of %d items have a vector of %d numbers, %d clusters",
            spec.name, int((clusters >= 0).sum()), len(items.ids), vectors.shape[1], len(centroids),
        )  # fmt: skip
    config = {"cutoff": cutoff, "seed": seed, "max_session_items": max_session_items}
    fitted = popularity > 0
    said = None if texts is None else fit_item_texts(items, fitted, texts)
    return ModalityEncoders(items.ids, tuple(made), fitted, config, content, said)
