"""Raw rows made of states, by the functions that make the batch's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encoder.modality import ModalityEncoders
from transforms.layout import RawLayout
from transforms.stream.state import UserStates

__all__ = ["activity_rows", "onboarding_rows", "profile_rows"]

Ints = npt.NDArray[np.int64]


def activity_rows(
    states: UserStates,
    rows: Ints,
    encoders: ModalityEncoders,
    layout: RawLayout,
    cuts: Ints | None = None,
) -> pa.Table:
    """Return rows of ``user_activity`` as ``view_schema`` has them, without the created timestamp.

    Parameters
    ----------
    states : UserStates
    rows : int64 (n_rows,)
        Positions of users; with ``cuts`` a user may stand there several times.
    encoders : ModalityEncoders
    layout : RawLayout
    cuts : int64 (n_rows,), optional
        Microseconds: the row as it was when nothing later was known. Rows that cannot be known
        (nothing up to the cut, or what they need is no longer kept) are left out; the others are in
        the order of ``rows``.

    Raises
    ------
    ValueError
        Without cuts: a user without any event.
    """
    raise NotImplementedError


def onboarding_rows(
    states: UserStates,
    rows: Ints,
    encoders: ModalityEncoders,
    layout: RawLayout,
    cuts: Ints | None = None,
) -> pa.Table:
    """Return rows of ``user_onboarding``, without the created timestamp, in the order of ``rows``.

    ``cuts`` as in ``activity_rows``.
    """
    raise NotImplementedError


def profile_rows(
    states: UserStates, rows: Ints, layout: RawLayout, stored: pa.Table | None
) -> pa.Table:
    """Return rows of ``user_profile``, without the created timestamp, in the order of ``rows``.

    Parameters
    ----------
    states : UserStates
    rows : int64 (n_rows,)
    layout : RawLayout
    stored : pyarrow.Table or None
        The rows as they are stored, one each of ``rows``; nulls where there is none. Columns that
        the stream has set stand in place of the stored ones.
    """
    raise NotImplementedError
