"""How rows of raw features and embeddings are written as Parquet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

__all__ = ["writer_options"]


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Return options of ``pyarrow.parquet.ParquetWriter`` for rows with wide vectors.

    Vectors are all different: a dictionary of them costs time and space and is thrown away, and
    their statistics say nothing.
    """
    texts = [
        f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name
        for f in schema
        if pa.types.is_string(getattr(f.type, "value_type", f.type))
    ]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": texts,
        "write_statistics": [f.name for f in schema if not pa.types.is_nested(f.type)],
    }
