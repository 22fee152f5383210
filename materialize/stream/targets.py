"""What a stream writes at this moment: raw views, live spaces, bridges, and how each is stored."""

from __future__ import annotations

__all__: list[str] = []
