"""What has to be kept fresh: the spaces and bridges that somebody reads."""

from __future__ import annotations

from dataclasses import dataclass

from materialize.config import RepoSettings
from materialize.features import current_versions
from materialize.ledger import Bridge, Ledger, Space
from transforms.names import bridged_view, stored_view

__all__ = ["TEXTS_FACT", "LiveTargets", "live_targets"]

TEXTS_FACT = "texts_version"
"""Fact of a space that reads item texts beside item vectors: the version of the texts."""


@dataclass(frozen=True)
class LiveTargets:
    """What a nightly job materialises.

    Attributes
    ----------
    spaces : list of Space
    bridges : list of Bridge
    skipped : dict of str to str
        View -> why no present raw feature can make its rows.
    """

    spaces: list[Space]
    bridges: list[Bridge]
    skipped: dict[str, str]


def live_targets(settings: RepoSettings, ledger: Ledger) -> LiveTargets:
    """Return the live spaces (`Ledger.live_spaces`) and the serving bridges.

    A space of other item vectors or texts than those that the raw features were made of cannot be
    encoded any more. It keeps what it has, and a bridge from a newer space can serve its consumers.
    """
    versions = current_versions(settings.features_dir)
    targets = LiveTargets([], [], {})
    stale: dict[int, str] = {}
    for space in ledger.live_spaces():
        own = space.facts.get("modality_version", versions[0])
        texts = space.facts.get(TEXTS_FACT, versions[-1])
        if {own, texts} <= set(versions):
            targets.spaces.append(space)
        else:
            beside = f" and item texts {texts}" if TEXTS_FACT in space.facts else ""
            stale[space.number] = (
                f"space {space.number} reads item vectors {own}{beside}, raw features hold "
                f"{' and item texts '.join(versions)}"
            )
            targets.skipped[stored_view(space.number)] = stale[space.number]
    for bridge in ledger.bridges():
        if bridge.state != "serving":
            continue
        if bridge.source in stale:
            view = bridged_view(bridge.target, bridge.source)
            targets.skipped[view] = stale[bridge.source]
        else:
            targets.bridges.append(bridge)
    return targets
