"""``palate stream``: apply events as they come, and look after the stream."""

from __future__ import annotations

import click

__all__ = ["stream_group"]


@click.group("stream")
def stream_group() -> None:
    """Apply events as they come: raw features and embeddings within a breath."""
