"""Serving a lagging consumer from a newer space: allowed by the loss that is on the record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from encoder.bridge import BridgeStore
from encoder.errors import LedgerConflict, SpaceMismatch
from materialize.config import RepoSettings
from materialize.ledger import Bridge, Ledger
from materialize.source import applied_view
from transforms.names import bridged_view, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["ServedBridge", "serve_bridge"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedBridge:
    """What ``serve_bridge`` did, or would do.

    Attributes
    ----------
    bridge : str
        Version.
    source, target : int
    state : str
        ``serving``; in a dry run, the state before.
    view : str
        The bridged view, declared by the next `feast apply`.
    loss : dict or None
        ``value``, ``low``, ``high``: macro AUC that a head of the target space loses; None when it
        was not measured (then it was forced).
    max_loss : float
    forced : bool
        Whether it took force.
    dry_run : bool
    """

    bridge: str
    source: int
    target: int
    state: str
    view: str
    loss: Mapping[str, float] | None
    max_loss: float
    forced: bool
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def serve_bridge(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    source: int,
    target: int,
    *,
    max_loss: float,
    who: str,
    why: str,
    force: bool = False,
    dry_run: bool = False,
) -> ServedBridge:
    """Let consumers of ``target`` read vectors of ``source`` through the bridge measured last.

    Parameters
    ----------
    store : FeatureStore
        With the source's view applied: the job that keeps it fresh writes the bridged view, too.
    settings : RepoSettings
    ledger : Ledger
    source, target : int
    max_loss : float
        Bound of the upper end of the loss' 95% interval, in macro AUC.
    who, why : str
        For the record; with ``force`` the reason must not be empty.
    force : bool
        Serve also when the loss is higher or was not measured. A bridge that was never measured at
        all has no map, and no force serves it.
    dry_run : bool
        Check everything and change nothing.

    Raises
    ------
    LedgerConflict
        No bridge of the pair was measured, its loss is unknown or too high, or the ledger does not
        let it serve (a space is not ready, another bridge of the pair serves).
    ArtifactError
        The map is not stored, or damaged.
    SpaceMismatch
        The map joins other encoders than those of the two spaces.
    DataFault
        The source's view is not applied.
    ValueError
        ``max_loss`` is negative or NaN, or force has no reason.

    Notes
    -----
    Safe to repeat. Next: `feast apply`, then `palate materialize`.
    """
    if not max_loss >= 0:
        raise ValueError(f"max_loss {max_loss} given, at least 0 expected.")
    if force and not why.strip():
        raise ValueError("force without a reason given; say why the loss is acceptable.")
    spaces = [ledger.space(number) for number in (source, target)]
    bridge = _newest(ledger, source, target)
    fault, loss = _fault(bridge, max_loss)
    if fault is not None and not force:
        raise LedgerConflict(fault)
    stored = BridgeStore(settings.artifacts_url).load(bridge.version)
    if [stored.source, stored.target] != [space.encoder_version for space in spaces]:
        raise SpaceMismatch(
            f"Bridge {bridge.version} joins encoders {stored.source} and {stored.target}; spaces "
            f"{source} and {target} are {spaces[0].encoder_version} and "
            f"{spaces[1].encoder_version}. Measure the spaces again: `palate spaces stability "
            f"{source} --against {target}`."
        )
    applied_view(store, stored_view(source))
    forced = fault is not None
    if not dry_run:
        found = "not measured" if loss is None else f"at most {loss['high']:.4f} AUC"
        record = f"{why} (loss {found}, bound {max_loss:g}{', forced' if forced else ''})"
        bridge = ledger.serve_bridge(bridge.version, who=who, why=record.strip())
        _log.info("bridge %s serves space %s from space %s", bridge.version, target, source)
    return ServedBridge(
        bridge=bridge.version,
        source=source,
        target=target,
        state=bridge.state,
        view=bridged_view(target, source),
        loss=loss,
        max_loss=max_loss,
        forced=forced,
        dry_run=dry_run,
    )


def _newest(ledger: Ledger, source: int, target: int) -> Bridge:
    known = [b for b in ledger.bridges(source=source, target=target) if b.state != "retired"]
    if not known:
        raise LedgerConflict(
            f"No bridge from space {source} to space {target} was measured. Run `palate spaces "
            f"stability {source} --against {target}` first."
        )
    return known[-1]


def _fault(bridge: Bridge, max_loss: float) -> tuple[str | None, Mapping[str, float] | None]:
    """Return why a bridge may not serve, or None, and the loss on the record."""
    probe = bridge.figures.get("probe")
    what = f"Bridge {bridge.version} from space {bridge.source} to space {bridge.target}"
    if probe is None:
        return (
            f"{what}: the loss of a head that reads it was not measured "
            f"({bridge.figures.get('no_probe')}). Measure it: `palate spaces stability "
            f"{bridge.source} --against {bridge.target}`; or force it with a reason.",
            None,
        )
    loss: Mapping[str, float] = probe["loss"]["bridged"]
    if not loss["high"] <= max_loss:
        return (
            f"{what}: a head of space {bridge.target} loses {loss['value']:.4f} macro AUC, 95% "
            f"interval {loss['low']:.4f} to {loss['high']:.4f}; at most {max_loss:g} is allowed. "
            "Move the consumers instead, allow more (--max-loss), or force it with a reason.",
            loss,
        )
    return None, loss
