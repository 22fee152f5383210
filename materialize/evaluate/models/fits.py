"""Fits that do not depend on a task, kept while the process lives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

if TYPE_CHECKING:
    from materialize.evaluate.cohort import Cohort

__all__ = ["Fit", "forget", "past_fingerprint", "shared_fit"]

Fit = Mapping[str, npt.NDArray[Any]]

_MAX_BYTES = 2 << 30


def _size(fit: Fit) -> int:
    return sum(int(np.asarray(array).nbytes) for array in fit.values())


_fits: LRUCache[tuple[str, str, int], Fit] = LRUCache(_MAX_BYTES, getsizeof=_size)


def past_fingerprint(cohort: Cohort) -> str:
    """Return 12 hex digits of the sequences to fit on: cohorts of the same data share them."""
    digest = hashlib.blake2b(digest_size=6)
    for name in ("item", "ts"):
        digest.update(cohort.sequences[name].to_numpy().tobytes())
    return digest.hexdigest()


def shared_fit(of: Cohort | str, model: str, seed: int, make: Callable[[], Fit]) -> Fit:
    """Return what ``make`` returned first for this cohort, model and seed.

    Parameters
    ----------
    of : Cohort or str
        A cohort, whose fingerprint is the key: two cohorts of one fingerprint are equal. Or the
        fingerprint of what alone the fit depends on.
    model : str
        Name of the fit, with every setting that changes it.
    seed : int
        0 for what no seed changes.
    make : callable
        Returns arrays by name, which nobody changes afterwards; not called where the fit is there.

    Notes
    -----
    Matrix factorisation, item neighbours, EASE, SASRec and CoLES learn from events before the
    cut-off alone, so that every task of one evaluation asks for the same fit. They are kept in
    memory, the last used of them up to 2 GiB: a resumed evaluation fits anew, to the same numbers.
    """
    key = (of if isinstance(of, str) else of.fingerprint, model, seed)
    found = _fits.get(key)
    if found is None:
        found = make()
        if _size(found) <= _MAX_BYTES:
            _fits[key] = found
    return found


def forget() -> None:
    """Drop all kept fits."""
    _fits.clear()
