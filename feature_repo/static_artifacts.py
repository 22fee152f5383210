"""What `feast serve` does in each worker before the worker answers (docs/guides/serve.md).

Feast calls `load_artifacts` once a worker. It logs what that raises, and serves all the same: the
encoders are then loaded by the first requests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["load_artifacts"]


def load_artifacts(app: Any) -> None:
    """Load the encoders of all applied spaces; ``app``, Feast's web application, stays as it is."""
    from feast import FeatureStore

    from transforms.runtime import prewarm

    prewarm(FeatureStore(repo_path=str(Path(__file__).parent)), freeze=True)
