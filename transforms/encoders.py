"""Encoders in memory: each is loaded once, those used last are kept, and nobody waits in vain."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

from transforms.serving import serving_settings

if TYPE_CHECKING:
    from encoder.artifact import EncoderArtifact

__all__ = ["EncoderCache", "load_encoder"]

_Key = tuple[str, str]


class EncoderCache:
    """Encoders by store and version; safe for threads.

    State: the encoders used last, ``serving_settings().keep`` of them, and those that some thread
    is loading. The lock guards the two tables and is never held while an encoder is loaded: who
    needs a loaded encoder does not wait for the loading of another. An encoder that is dropped
    while a thread encodes with it lives until that thread is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: OrderedDict[_Key, EncoderArtifact] = OrderedDict()
        self._loading: dict[_Key, Future[EncoderArtifact]] = {}

    def get(self, store: str, encoder_version: str) -> EncoderArtifact:
        """Return an encoder, loading it unless it is there or another thread is loading it.

        Raises
        ------
        ArtifactError
            Unknown version, or a damaged artifact. The next call tries again.
        """
        key = (store, encoder_version)
        with self._lock:
            artifact = self._loaded.get(key)
            if artifact is not None:
                self._loaded.move_to_end(key)
                return artifact
            others = self._loading.get(key)
            if others is None:
                mine = self._loading[key] = Future()
        if others is not None:
            return others.result()
        try:
            artifact = _load(store, encoder_version)
        except BaseException as exc:
            with self._lock:
                del self._loading[key]
            mine.set_exception(exc)
            raise
        keep = serving_settings().keep
        with self._lock:
            del self._loading[key]
            self._loaded[key] = artifact
            while len(self._loaded) > keep:
                self._loaded.popitem(last=False)
        mine.set_result(artifact)
        return artifact


def _load(store: str, encoder_version: str) -> EncoderArtifact:
    from encoder.store import ArtifactStore

    artifact = ArtifactStore(store).load(encoder_version)
    artifact.warm()  # made once here, not by every first request at the same moment
    return artifact


_cache = EncoderCache()


def load_encoder(store: str, encoder_version: str) -> EncoderArtifact:
    """Return an encoder, kept in memory after the first call; thread-safe.

    Parameters
    ----------
    store : str
        Folder or fsspec URL of the artifact store.
    encoder_version : str
        12 hex digits.

    Raises
    ------
    ArtifactError
        Unknown version, or a damaged artifact.
    """
    return _cache.get(store, encoder_version)
