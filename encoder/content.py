"""Item vectors from what an item says of itself: text and tags."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from encoder.errors import ArtifactError, DataFault
from encoder.svd import l2_normalise, truncated_svd

__all__ = [
    "ContentEncoder",
    "SentenceEncoder",
    "TextEncoder",
    "content_from_state",
    "fit_content",
    "folder_digest",
]

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_WORD = re.compile(r"\w\w+")

_SMALLEST_KEPT = 0.05
"""A TF-IDF vector (length 1) of which the components keep no more than this is left without a
vector: what remains is rounding noise, and scaling it up would invent a direction."""


class ContentEncoder(Protocol):
    """Encodes any item, also one that was unknown when the encoder was fitted."""

    def encode_items(self, text: Sequence[str], tags: Sequence[Sequence[str]]) -> Floats:
        """Return float32 (n, dim) of length 1; zeros where nothing about the item is known."""

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return the arrays and the JSON configuration that rebuild the encoder."""


def _tokens(text: str, tags: Sequence[str]) -> list[str]:
    # A tag is one token whatever it contains; the prefix keeps it apart from the words.
    return _WORD.findall(text.lower()) + [f"tag:{t.strip().lower()}" for t in tags if t.strip()]


@dataclass(frozen=True)
class TextEncoder:
    """TF-IDF of words and tags, projected on the leading singular vectors (LSA).

    Attributes
    ----------
    terms : tuple of str
        Vocabulary in column order.
    idf : float32 (n_terms,)
    components : float32 (dim, n_terms)
        Rows of zeros where the fitted items span fewer dimensions than ``dim``.

    References
    ----------
    Deerwester et al. Indexing by latent semantic analysis. JASIS 41(6), 1990.
    """

    terms: tuple[str, ...]
    idf: Floats
    components: Floats

    def tfidf(self, text: Sequence[str], tags: Sequence[Sequence[str]]) -> Any:
        """Return scipy CSR float32 (n, n_terms), rows of length 1 or empty."""
        position = {term: k for k, term in enumerate(self.terms)}
        rows: list[int] = []
        columns: list[int] = []
        for row, (words, labels) in enumerate(zip(text, tags, strict=True)):
            known = [position[t] for t in _tokens(words, labels) if t in position]
            rows += [row] * len(known)
            columns += known
        counts = sparse.csr_array(
            (np.ones(len(rows), np.float32), (rows, columns)), shape=(len(text), len(self.terms))
        )
        # Sublinear term frequency: the tenth "love" in a description says less than the first.
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        # Words and tags are brought to the same length apart: a genre is frequent, so its idf is
        # low, and a rare word of a title would otherwise drown it.
        is_tag = np.array([t.startswith("tag:") for t in self.terms], np.int64)
        owner = np.repeat(np.arange(len(text)), np.diff(counts.indptr))
        for group in (2 * owner + is_tag[counts.indices], owner):
            counts.data /= np.sqrt(np.bincount(group, counts.data**2))[group]
        return counts.astype(np.float32)

    def encode_items(self, text: Sequence[str], tags: Sequence[Sequence[str]]) -> Floats:
        """Return the items' vectors: float32 (n, dim), length 1, zeros for no known word."""
        projected = np.asarray(self.tfidf(text, tags) @ self.components.T, np.float32)  # (n, dim)
        return l2_normalise(projected, _SMALLEST_KEPT)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return arrays ``idf`` and ``components``, and the vocabulary."""
        arrays = {"idf": self.idf, "components": self.components}
        return arrays, {"kind": "tfidf_svd", "terms": list(self.terms)}


@dataclass(frozen=True)
class SentenceEncoder:
    """A sentence-transformers model in a folder on disk; its first ``dim`` numbers are kept.

    Attributes
    ----------
    folder : str
    digest : str
        Sha256 over the names and contents of the model's files, 64 hex digits.
    dim : int
        Width of the answer; a narrower model is padded with zeros, a wider one is projected.
    projection : float32 (dim, model_width)
        Leading singular vectors of the fitted items' vectors.
    """

    folder: str
    digest: str
    dim: int
    projection: Floats

    def encode_items(self, text: Sequence[str], tags: Sequence[Sequence[str]]) -> Floats:
        """Return the items' vectors: float32 (n, dim), length 1, zeros for no text and no tags."""
        if folder_digest(self.folder) != self.digest:
            raise ArtifactError(
                f"The text model in {self.folder!r} is not the one that these vectors were made "
                f"with (sha256 {self.digest[:12]}). Restore it, or build the features anew."
            )
        return l2_normalise(_sentence_vectors(self.folder, text, tags) @ self.projection.T)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return array ``projection``, and where and what the model is."""
        config = {"kind": "sentence", "folder": self.folder, "digest": self.digest, "dim": self.dim}
        return {"projection": self.projection}, config


def fit_content(
    text: Sequence[str],
    tags: Sequence[Sequence[str]],
    weights: npt.NDArray[np.float64],
    dim: int,
    *,
    seed: int,
    text_model: str | None = None,
    max_terms: int = 50_000,
) -> ContentEncoder:
    """Fit an encoder of text and tags on the items that users consumed.

    Parameters
    ----------
    text : sequence of str, one an item
    tags : sequence of sequences of str, one an item
    weights : float64 (n_items,)
        Popularity: the components serve best what is consumed most; weight 0 is not fitted on.
    dim : int
        Vector length.
    seed : int
    text_model : str, optional
        Folder of a sentence-transformers model; default TF-IDF and SVD.
    max_terms : int
        Most frequent words and tags that are kept.

    Raises
    ------
    DataFault
        The text model's folder or the library that reads it is missing.
    """
    seen = np.flatnonzero(weights > 0)
    chosen = seen.tolist()
    words, labels = [text[i] for i in chosen], [tags[i] for i in chosen]
    root = np.sqrt(weights[seen]).astype(np.float32)
    if text_model is not None:
        vectors = l2_normalise(_sentence_vectors(text_model, words, labels))
        scaled = sparse.csr_array(vectors * root[:, None])
        _, _, right = truncated_svd(scaled, dim, seed, "content (text model)")
        return SentenceEncoder(text_model, folder_digest(text_model), dim, right)
    frequency: dict[str, int] = {}
    for item in zip(words, labels, strict=True):
        for token in set(_tokens(*item)):
            frequency[token] = frequency.get(token, 0) + 1
    # A word of one item relates it to nothing; a tag names the item even when it is alone.
    kept = [t for t, n in frequency.items() if n > 1 or t.startswith("tag:")]
    terms = tuple(sorted(sorted(kept, key=lambda t: (-frequency[t], t))[:max_terms]))
    n_with = np.array([frequency[t] for t in terms], np.float64)
    idf = (np.log((1 + len(seen)) / (1 + n_with)) + 1).astype(np.float32)
    plain = TextEncoder(terms, idf, np.zeros((dim, len(terms)), np.float32))
    tfidf = plain.tfidf(words, labels)
    _, _, right = truncated_svd(sparse.diags_array(root) @ tfidf, dim, seed, "content")
    fitted = TextEncoder(terms, idf, right)
    covered = fitted.encode_items(words, labels).any(axis=1)
    share = float(weights[seen] @ covered / max(weights[seen].sum(), 1e-300))
    if share < 1:
        logger.warning(
            "content: %d dimensions for %d terms leave %d of %d items (%.1f %% of the events) "
            "without a vector; a larger dim covers more",
            dim, len(terms), int((~covered).sum()), len(seen), 100 * (1 - share),
        )  # fmt: skip
    return fitted


def content_from_state(
    arrays: dict[str, npt.NDArray[Any]], config: dict[str, Any]
) -> ContentEncoder:
    """Rebuild what ``state`` returned.

    Raises
    ------
    ArtifactError
        The kind of encoder is unknown to this release.
    """
    if config["kind"] == "tfidf_svd":
        return TextEncoder(tuple(config["terms"]), arrays["idf"], arrays["components"])
    if config["kind"] == "sentence":
        return SentenceEncoder(
            config["folder"], config["digest"], config["dim"], arrays["projection"]
        )
    raise ArtifactError(
        f"Unknown content encoder {config['kind']!r}, known: 'sentence', 'tfidf_svd'. "
        "Read it with the release that wrote it."
    )


def folder_digest(folder: str) -> str:
    """Return the sha256 (64 hex digits) over names and contents of all files in a folder.

    Raises
    ------
    DataFault
        The folder does not exist or is empty.
    """
    root = Path(folder)
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if not files:
        raise DataFault(f"text_model {folder!r} holds no files. Name a model folder on this disk.")
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(root)).encode())
        inner = hashlib.sha256()
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                inner.update(block)
        digest.update(inner.digest())
    return digest.hexdigest()


def _sentence_vectors(folder: str, text: Sequence[str], tags: Sequence[Sequence[str]]) -> Floats:
    folder_digest(folder)  # says clearly that the folder is missing, before a download is tried
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as exc:
        raise DataFault(
            f"text_model {folder!r} needs the package sentence-transformers, which is not "
            "installed. Install it, or leave text_model out to use TF-IDF."
        ) from exc
    model = SentenceTransformer(folder, local_files_only=True)
    lines = [" ".join([words, *labels]).strip() for words, labels in zip(text, tags, strict=True)]
    vectors = np.asarray(model.encode(lines, show_progress_bar=False), np.float32)
    vectors[[not line for line in lines]] = 0
    return vectors
