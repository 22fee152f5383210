"""What a space came from, and what two spaces have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from encoder.manifest import NETWORKS
from materialize.ledger import Space

if TYPE_CHECKING:
    from encoder.artifact import Manifest
    from encoder.parts import Part
    from materialize.config import RepoSettings

__all__ = [
    "CHAIN_FACT",
    "Chain",
    "PartChange",
    "SpaceDiff",
    "chain",
    "compare_chains",
    "diff_spaces",
]

CHAIN_FACT = "chain"
"""Fact of a space whose artifact is gone."""

_INPUTS = ("data", "modality encoder", "item texts", "input schema", "preprocessing")
_UPSTREAM = {
    "data": (),
    "modality encoder": ("data",),
    "item texts": ("data",),
    # A modality's width and number of clusters decide the layout, as do the services.
    "input schema": ("modality encoder", "item texts"),
    "preprocessing": ("data", "modality encoder", "item texts", "input schema"),
    **dict.fromkeys(NETWORKS.values(), _INPUTS),
    "quantisation": (*_INPUTS, *NETWORKS.values()),
}


@dataclass(frozen=True)
class Chain:
    """What a space came from.

    Attributes
    ----------
    space : int
    encoder_version : str
    parts : tuple of Part
        Upstream first: data, modality encoders, input schema, preprocessing, autoencoder,
        quantisation where there is one.
    figures : mapping
        Of the training; losses and block errors are those of the best epoch, which is kept.
    libraries : mapping of str to str
        Versions that wrote the artifact.
    trained_at : str
        ISO 8601, UTC.
    """

    space: int
    encoder_version: str
    parts: tuple[Part, ...]
    figures: Mapping[str, Any]
    libraries: Mapping[str, str]
    trained_at: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``from_dict`` gives an equal chain back."""
        return asdict(self) | {"parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chain:
        """Rebuild what ``to_dict`` returned."""
        from encoder.parts import Part

        return cls(**{**data, "parts": tuple(Part(**part) for part in data["parts"])})


@dataclass(frozen=True)
class PartChange:
    """One part that two spaces do not share.

    Attributes
    ----------
    part : str
        Its label.
    before, after : str or None
        Content hashes; None: that space has no such part. Equal ones: other settings gave the same
        numbers.
    follows : tuple of str
        Changed parts upstream of it; empty: it was made anew for its own sake.
    settings : mapping of str to (before, after)
        Those that differ.
    """

    part: str
    before: str | None
    after: str | None
    follows: tuple[str, ...]
    settings: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class SpaceDiff:
    """What changed from one space to another.

    Attributes
    ----------
    first, second : int
    changes : tuple of PartChange
        Upstream first.
    same : tuple of str
        Labels of the parts that are equal.
    untold : tuple of str
        Labels of parts whose content hash was not recorded and whose settings are equal.
    figures : mapping of str to (first, second)
        Training figures side by side, equal ones too.
    libraries : mapping of str to (first, second)
        Those that differ.
    """

    first: int
    second: int
    changes: tuple[PartChange, ...]
    same: tuple[str, ...]
    untold: tuple[str, ...]
    figures: Mapping[str, tuple[Any, Any]]
    libraries: Mapping[str, tuple[Any, Any]]

    @property
    def anew(self) -> tuple[str, ...]:
        """Labels of the parts that were made anew for their own sake."""
        return tuple(change.part for change in self.changes if not change.follows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"anew": self.anew}


def chain(settings: RepoSettings, space: Space) -> Chain:
    """Return what a space came from, derived from its artifact.

    Reads the item vectors, an artifact's largest file. Of a retired space it is what the ledger
    kept.

    Parameters
    ----------
    settings : RepoSettings
    space : Space

    Raises
    ------
    ArtifactError
        The artifact is missing or damaged.
    """
    if CHAIN_FACT in space.facts:
        return Chain.from_dict(space.facts[CHAIN_FACT])
    from encoder.parts import artifact_parts
    from encoder.store import ArtifactStore

    artifact = ArtifactStore(settings.artifacts_url).load(space.encoder_version)
    manifest = artifact.manifest
    return Chain(
        space.number,
        space.encoder_version,
        tuple(artifact_parts(artifact)),
        _figures(manifest),
        manifest.libraries,
        manifest.created_at,
    )


def diff_spaces(settings: RepoSettings, first: Space, second: Space) -> SpaceDiff:
    """Return what changed from one space to another; see `chain` for what it reads and raises."""
    return compare_chains(chain(settings, first), chain(settings, second))


def compare_chains(first: Chain, second: Chain) -> SpaceDiff:
    """Return what changed from one chain to another."""
    before = {_key(part): part for part in first.parts}
    after = {_key(part): part for part in second.parts}
    changes: list[PartChange] = []
    same: list[str] = []
    untold: list[str] = []
    changed_kinds: dict[str, list[str]] = {}
    for key in sorted(before | after, key=lambda key: list(_UPSTREAM).index(key[0])):
        old, new = before.get(key), after.get(key)
        settings = _different(old.settings if old else {}, new.settings if new else {})
        label = _label(old, new)
        told = old is not None and new is not None and bool(old.version and new.version)
        if old and new and not settings and (old.version == new.version or not told):
            (same if told else untold).append(label)
            continue
        upstream = (name for kind in _UPSTREAM[key[0]] for name in changed_kinds.get(kind, ()))
        changes.append(
            PartChange(
                label,
                old.version if old else None,
                new.version if new else None,
                tuple(upstream),
                settings,
            )
        )
        changed_kinds.setdefault(key[0], []).append(label)
    return SpaceDiff(
        first.space,
        second.space,
        tuple(changes),
        tuple(same),
        tuple(untold),
        {
            name: (first.figures.get(name), second.figures.get(name))
            for name in {**first.figures, **second.figures}
        },
        _different(first.libraries, second.libraries),
    )


def _key(part: Part) -> tuple[str, str]:
    # Data of another name is other data, not another part.
    return part.kind, "" if part.kind == "data" else part.name


def _label(old: Part | None, new: Part | None) -> str:
    names = dict.fromkeys(part.label for part in (old, new) if part is not None)
    return " -> ".join(names)


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def _figures(manifest: Manifest) -> dict[str, Any]:
    training = manifest.training
    history = training.get("history", [])
    best: Mapping[str, Any] = next(
        (record for record in history if record["epoch"] == training.get("best_epoch")), {}
    )
    errors = {f"block_errors.{k}": v for k, v in best.get("block_errors", {}).items()}
    return {
        "epochs": len(history),
        **{k: training.get(k) for k in ("best_epoch", "stopped_early")},
        **{k: training.get(k) for k in ("n_training_rows", "n_validation_rows")},
        **{k: best.get(k) for k in ("train_loss", "validation_loss")},
        **errors,
        "seconds": sum(record["seconds"] for record in history),
    }
