"""Vectors in fewer bytes: what an online store keeps of a space whose form is not float32.

``float16`` is the numbers as little-endian halves; ``int8`` is a float32 scale of the vector's own,
then one signed byte a number. Both are lossy once: what was read back is kept without further loss,
bit for bit, so that rows may be written, read and written again. See ADR 0015.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from materialize.stores.values import blob_values, float_values, spread
from transforms.names import FLOAT32, VECTOR_FORMS, VECTORS_TAG

if TYPE_CHECKING:
    from feast import FeatureView

__all__ = [
    "compact_fields",
    "compact_form",
    "compact_messages",
    "compact_values",
    "list_column",
    "restore",
    "round_trip",
    "round_trip_column",
    "rounding_bound",
    "unpack",
]

_Floats = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]

_LEVELS = 127
_SCALE_BYTES = 4
_SCALE_BITS = 16
"""Significant bits of a scale. A level has 7, so that level * scale is exact in float32 (24)."""
_SMALLEST_SCALE = 2.0**-126
"""Below it float32 has fewer significant bits, and products would be rounded."""
_LARGEST = {"float16": 65_504.0, "int8": _LEVELS * 2.0**120}
"""Largest magnitude of a number. Rounding never leads above it."""


def compact_form(view: FeatureView) -> str:
    """Return the form in which a view's vectors are stored online.

    Raises
    ------
    ValueError
        The view's tag names no form: it was declared by a newer release.
    """
    form = view.tags.get(VECTORS_TAG, FLOAT32)
    if form not in VECTOR_FORMS:
        raise ValueError(
            f"{view.name} is tagged {VECTORS_TAG}={form!r}, one of {', '.join(VECTOR_FORMS)} "
            "expected. Update Palate."
        )
    return form


def compact_fields(view: FeatureView) -> tuple[str, frozenset[str]]:
    """Return a view's form, and which of its fields are stored in it (none for float32)."""
    form = compact_form(view)
    if form == FLOAT32:
        return form, frozenset()
    return form, frozenset(
        f.name for f in view.features if f.dtype.to_value_type().name == "FLOAT_LIST"
    )


def round_trip(vectors: _Floats, form: str) -> _Floats:
    """Return what is read back of vectors that are stored in a form.

    Parameters
    ----------
    vectors : float32 (n, dim)
    form : str
        One of ``transforms.names.VECTOR_FORMS``; ``float32`` returns ``vectors`` itself.

    Raises
    ------
    ValueError
        A number is NaN or infinite, or too large for the form.

    Notes
    -----
    Idempotent bit for bit: ``round_trip(round_trip(v)) == round_trip(v)``.
    """
    return vectors if form == FLOAT32 else unpack(_pack(vectors, form), form)


def round_trip_column(column: pa.Array | pa.ChunkedArray, form: str) -> pa.Array:
    """Return a list column as it is read back; nulls stay. Raises as `round_trip` does."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if form == FLOAT32:
        return whole
    lists = list_column(round_trip(_matrix(whole), form))
    if whole.null_count:
        valid = whole.is_valid().to_numpy(zero_copy_only=False)
        lists = lists.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
    return lists.cast(whole.type)


def list_column(vectors: _Floats) -> pa.ListArray:
    """Return float32 (n, dim) as a list column."""
    n_rows, dim = vectors.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(n_rows + 1) * dim, pa.int32()),
        pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float32()),
    )


def rounding_bound(vectors: _Floats, form: str) -> _Floats:
    """Return by how much a form changes each number at most; float32 (n, dim), NaN for NaN."""
    if form == FLOAT32:
        return np.zeros_like(vectors)
    magnitude = np.abs(vectors)
    if form == "float16":
        # Half of a unit in the last of 11 places, or of the spacing of subnormal numbers.
        return np.maximum(magnitude * np.float32(2.0**-11), np.float32(2.0**-25))
    # Exact: the middle between two levels has 24 bits, and no number beyond it divides to it.
    half = _scales(magnitude.max(axis=1, initial=0.0)) * np.float32(0.5)
    return np.broadcast_to(half[:, None], vectors.shape)


def compact_values(column: pa.Array, form: str) -> list[bytes]:
    """Return each row of a list column as the serialised ``Value`` that is stored; null is ``b""``.

    Raises
    ------
    ValueError
        Rows of several widths, or as `round_trip`.
    """
    return spread(blob_values(_pack(_matrix(column), form)), column)


def compact_messages(values: Sequence[Any], form: str) -> list[bytes]:
    """Return Feast's ``Value`` messages serialised, float lists in a form. Raises as above."""
    rows = [value.SerializeToString() for value in values]
    at = [k for k, value in enumerate(values) if value.WhichOneof("val") == "float_list_val"]
    if at:
        lists = [values[k].float_list_val.val for k in at]
        _one_width({len(numbers) for numbers in lists})
        packed = blob_values(_pack(np.array([list(n) for n in lists], np.float32), form))
        for k, row in zip(at, packed, strict=True):
            rows[k] = row
    return rows


def restore(values: Iterable[Any], form: str) -> None:
    """Turn ``Value`` messages of bytes into float lists, in place; others stay as they are.

    A float list is a row that a store without this form wrote.
    """
    by_width: dict[int, list[Any]] = {}
    for value in values:
        if value.WhichOneof("val") == "bytes_val":
            by_width.setdefault(len(value.bytes_val), []).append(value)
    for width, group in by_width.items():
        packed = np.frombuffer(b"".join([value.bytes_val for value in group]), np.uint8)
        rows = float_values(unpack(packed.reshape(len(group), width), form))
        for value, row in zip(group, rows, strict=True):
            value.ParseFromString(row)


def _pack(vectors: _Floats, form: str) -> _Bytes:
    """Return the stored bytes, uint8 (n, width)."""
    magnitude = _checked_magnitude(vectors, form)
    if form == "float16":
        return np.ascontiguousarray(vectors.astype("<f2")).view(np.uint8)
    scales = _scales(magnitude)  # (n,)
    levels = np.rint(vectors / scales[:, None]).astype(np.int8)  # (n, dim)
    head = scales.astype("<f4")[:, None].view(np.uint8)  # (n, 4)
    return np.concatenate([head, levels.view(np.uint8)], axis=1)


def unpack(packed: _Bytes, form: str) -> _Floats:
    """Return stored bytes, uint8 (n, width), as float32 (n, dim).

    Bytes that no writer of a form made may give NaN or infinity.

    Raises
    ------
    ValueError
        No vector of the form has this width.
    """
    width = packed.shape[1]
    if form == "float16" and width % 2 == 0:
        return np.ascontiguousarray(packed).view("<f2").astype(np.float32)
    if form == "int8" and width >= _SCALE_BYTES:
        scales = np.ascontiguousarray(packed[:, :_SCALE_BYTES]).view("<f4")  # (n, 1)
        levels = np.ascontiguousarray(packed[:, _SCALE_BYTES:]).view(np.int8)
        with np.errstate(all="ignore"):  # a damaged scale may be anything
            return (scales * levels.astype(np.float32)).astype(np.float32, copy=False)
    raise ValueError(
        f"a stored vector of {width} bytes given, which is no {form} vector. Did another view or "
        "program write to this store?"
    )


def _scales(largest: _Floats) -> _Floats:
    """Return each vector's scale: its largest magnitude / 127, rounded up to 16 bits.

    Rounded up, the largest number stays within 127 levels; at 16 bits it is level 127 exactly, so
    the vector that is read back has the same scale again.
    """
    mantissa, exponent = np.frexp(largest.astype(np.float64) / _LEVELS)
    rounded = np.ldexp(np.ceil(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS)
    scales: _Floats = np.maximum(rounded, _SMALLEST_SCALE).astype(np.float32)
    return scales


def _checked_magnitude(vectors: _Floats, form: str) -> _Floats:
    """Return the largest magnitude of each vector, (n,)."""
    magnitude: _Floats = np.abs(vectors).max(axis=1, initial=0.0)  # NaN where one is
    for fault, what in (
        (~np.isfinite(magnitude), "NaN or infinity"),
        (magnitude > _LARGEST[form], f"a number beyond {_LARGEST[form]:g}"),
    ):
        if fault.any():
            raise ValueError(
                f"{int(fault.sum())} of {len(vectors)} vectors hold {what}, the first in row "
                f"{int(fault.argmax())}; {form} takes finite numbers of up to {_LARGEST[form]:g}."
            )
    return magnitude


def _matrix(column: pa.Array) -> _Floats:
    """Return the rows of a list column that are not null, float32 (n, dim)."""
    present = column.drop_null()
    widths = pc.list_value_length(present).unique().to_pylist()
    _one_width(set(widths))
    flat: _Floats = present.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    return flat.reshape(len(present), widths[0] if widths else 0)


def _one_width(widths: set[int]) -> None:
    if len(widths) > 1:
        raise ValueError(
            f"vectors of widths {sorted(widths)} given, one width expected: a view holds the "
            "vectors of one space."
        )
