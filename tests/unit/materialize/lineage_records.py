"""Records of spaces as `materialize.space_record` gives them, made up."""

from __future__ import annotations

from typing import Any

__all__ = ["bridge", "record"]

FIGURES = {
    "cosine": {"before": None, "after": {"value": 0.93, "low": 0.92, "high": 0.94}},
    "probe": None,
}


def part(kind: str, name: str, version: str, **settings: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "version": version, "settings": settings}


def record(number: int, **changes: Any) -> dict[str, Any]:
    """Return what `space_record` would; spaces share all but the autoencoder."""
    told: dict[str, Any] = {
        **{"modalities": {"collaborative": "c" * 12}, "preprocessing": "b" * 12, "data": "tiny"},
        **{"consumers": (), "runs": 1, "state": "ready", "default": False, "bridges": ()},
        **{"drift": ()},
        **changes,
    }
    blocks = {"blocks.a": "counts, 2 wide"}
    parts = [
        part("data", told["data"], "d" * 12, cutoff="2026-01-01T00:00:00+00:00"),
        *(
            part("modality encoder", name, version, dim=4, clusters=3)
            for name, version in told["modalities"].items()
        ),
        part("input schema", "", "a" * 12, **blocks),
        part("preprocessing", "", told["preprocessing"]),
        part("autoencoder", "", f"{number:012x}", **{"model.embedding_dim": 8}),
    ]
    chain = {"parts": parts, "figures": {"validation_loss": 0.5}, "libraries": {}}
    run = {"started_at": "2026-01-02T00:00:00", "state": "committed", "counts": {"rows": 5}}
    return {
        **{"space": number, "encoder_version": f"{number:012x}", "state": told["state"]},
        **{"default": told["default"], "chain": chain, "runs": [run] * told["runs"]},
        "consumers": [{"name": name, "bridge": None} for name in told["consumers"]],
        **{"bridges": list(told["bridges"]), "drift": list(told["drift"])},
    }


def bridge(source: int, target: int, state: str = "serving") -> dict[str, Any]:
    names = {"source": source, "target": target, "state": state}
    return {"version": f"{source:06x}{target:06x}", "figures": FIGURES, **names}
