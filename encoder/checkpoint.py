"""One file that a killed training run continues from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from encoder.errors import TrainingFault

__all__ = ["read_checkpoint", "write_checkpoint"]

FORMAT_VERSION = 1


def write_checkpoint(
    path: Path, run: str, tensors: dict[str, Tensor], scalars: dict[str, Any]
) -> None:
    """Replace the checkpoint in one step; a kill at any moment leaves the old or the new one.

    Parameters
    ----------
    path : Path
        A safetensors file; the scalars are JSON in its header, so the two cannot disagree.
    run : str
        Fingerprint of configuration and data.
    tensors : dict of str to Tensor
    scalars : dict
        JSON types. Floats come back bit-equal.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, "run": run, "scalars": scalars})
    temporary = path.with_name(path.name + ".tmp")
    save_file(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
        temporary,
        metadata={"palate": text},
    )
    with temporary.open("rb+") as f:
        os.fsync(f.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path, run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and scalars of ``write_checkpoint``.

    Raises
    ------
    TrainingFault
        The file is damaged, of another format, or belongs to another run.
    """
    advice = "Train with resume=False to start over, or name another checkpoint folder."
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("palate", "{}"))
            if header.get("format_version") != FORMAT_VERSION:
                raise TrainingFault(
                    f"{path} has checkpoint format {header.get('format_version')!r}, "
                    f"{FORMAT_VERSION} expected. {advice}"
                )
            if header["run"] != run:
                raise TrainingFault(
                    f"{path} belongs to run {header['run']!r}, this is run {run!r}: the "
                    f"configuration, the preprocessing or the training rows differ. {advice}"
                )
            return {name: f.get_tensor(name) for name in f.keys()}, header["scalars"]  # noqa: SIM118
    except SafetensorError as exc:
        raise TrainingFault(f"{path} is damaged: {exc}. {advice}") from exc
