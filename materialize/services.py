"""Feast's registry follows the ledger: one feature service a consumer, one for the default space.

The ledger changes first and is the truth. A process that ends in between leaves a service that
lags behind; whatever calls ``apply_services`` next repairs it, and so does ``feast apply``.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from encoder.errors import DataFault, LedgerConflict, TransientError
from materialize.ledger import Ledger
from materialize.source import applied_view
from transforms.names import EMBEDDING_ALIAS, SPACE_TAG, stored_view
from transforms.services import declare_service

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

__all__ = ["Lag", "apply_services", "services_behind"]

_log = logging.getLogger(__name__)

_ATTEMPTS = 10


@dataclass(frozen=True)
class Lag:
    """Where the registry is behind the ledger, by names of services.

    Attributes
    ----------
    stale : tuple of str
        The registry has none of that name, or one that reads something else.
    extra : tuple of str
        The ledger has no such consumer any more.
    unknown_views : tuple of str
        Of these the view is not applied, so that no service can name it.
    """

    stale: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    unknown_views: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything is behind."""
        return bool(self.stale or self.extra or self.unknown_views)


def services_behind(store: FeatureStore, ledger: Ledger) -> Lag:
    """Compare the registry's services with the ledger's pins; reads both, writes nothing."""
    return _compare(_applied(store), *_wanted(store, ledger))


def apply_services(store: FeatureStore, ledger: Ledger) -> Lag:
    """Make the registry's services follow the ledger; only those that differ are written.

    Safe to repeat, and beside other processes that do the same: each looks again after it wrote.

    Returns
    -------
    Lag
        What was behind; its ``unknown_views`` still are, until ``feast apply`` has run.

    Raises
    ------
    TransientError
        Other processes kept changing the registry.
    """
    first = None
    for _ in range(_ATTEMPTS):
        wanted, unknown = _wanted(store, ledger)
        lag = _compare(_applied(store), wanted, unknown)
        first = first or lag
        if not (lag.stale or lag.extra):
            if unknown:
                _log.warning("services %s lack their view: run `feast apply`", ", ".join(unknown))
            return first
        for name in lag.extra:
            _remove(store, name)
        if lag.stale:
            store.apply([wanted[name] for name in lag.stale])
        _log.info("services applied: %s; removed: %s", lag.stale, lag.extra)
    raise TransientError(
        f"Feast's registry did not follow the ledger in {_ATTEMPTS} attempts: other processes "
        "apply to it at the same time. Run `palate consumers apply` when they are done."
    )


def _wanted(
    store: FeatureStore, ledger: Ledger
) -> tuple[dict[str, FeatureService], tuple[str, ...]]:
    """Return the services that the ledger asks for, and the names of those without a view."""
    pins = []
    for consumer in ledger.consumers():
        with suppress(LedgerConflict):  # removed meanwhile
            pins.append(ledger.pin(consumer.name))
    rows: list[tuple[str, str, int, str, int | None]] = [
        (p.consumer, p.view, p.space, p.encoder_version, p.revision) for p in pins
    ]
    default = ledger.default_space()
    if default is not None:
        view = stored_view(default.number)
        rows.append((EMBEDDING_ALIAS, view, default.number, default.encoder_version, None))
    wanted, unknown = {}, []
    for name, view, space, encoder_version, revision in rows:
        try:
            applied = applied_view(store, view)
        except DataFault:
            unknown.append(name)
            continue
        wanted[name] = declare_service(name, applied, space, encoder_version, revision)
    return wanted, tuple(unknown)


def _applied(store: FeatureStore) -> dict[str, FeatureService]:
    """Return the registry's services that are Palate's, by name."""
    return {s.name: s for s in store.list_feature_services() if SPACE_TAG in s.tags}


def _compare(
    applied: dict[str, FeatureService], wanted: dict[str, FeatureService], unknown: tuple[str, ...]
) -> Lag:
    stale = (n for n, s in wanted.items() if n not in applied or _reads(applied[n]) != _reads(s))
    extra = applied.keys() - wanted.keys() - set(unknown)
    return Lag(tuple(sorted(stale)), tuple(sorted(extra)), tuple(sorted(unknown)))


def _reads(service: FeatureService) -> object:
    """Return what decides which rows a service reads, and how they are called."""
    views = [(p.name, p.name_alias) for p in service.feature_view_projections]
    return views, dict(service.tags)


def _remove(store: FeatureStore, name: str) -> None:
    from feast.errors import FeatureServiceNotFoundException

    try:
        store.delete_feature_service(name)
    except FeatureServiceNotFoundException:
        return  # another process removed it meanwhile
