"""What an evaluation leaves behind: its figures as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from materialize.config import RepoSettings
from materialize.ledger import Space
from transforms.names import stored_view

__all__ = ["evaluation_path", "save_evaluation"]


def evaluation_path(settings: RepoSettings, space: Space) -> Path:
    """Return where the newest evaluation of a space is kept."""
    return settings.data_dir / "evaluations" / f"{stored_view(space.number)}.json"


def save_evaluation(settings: RepoSettings, space: Space, probe: Mapping[str, Any]) -> Path:
    """Write a probe's figures; an earlier evaluation of the space is replaced in one step."""
    path = evaluation_path(settings, space)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    content = {"space": space.number, "encoder_version": space.encoder_version, "probe": probe}
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, path)
    return path
