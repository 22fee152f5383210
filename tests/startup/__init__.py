"""What Python runs first in the processes that tests start: `sitecustomize.py`."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["python_path"]


def python_path(*folders: str | Path) -> str:
    """Return PYTHONPATH with some folders, and the one of `sitecustomize.py` after them."""
    return os.pathsep.join(
        [*(str(folder) for folder in folders if folder), str(Path(__file__).parent)]
    )
