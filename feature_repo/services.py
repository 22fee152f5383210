"""Feature services: what each consumer reads, as the ledger pins it, and the default space's."""

from __future__ import annotations

from collections.abc import Iterable

from feast import FeatureService, FeatureView, OnDemandFeatureView

from materialize.ledger import Ledger
from transforms.names import EMBEDDING_ALIAS, stored_view
from transforms.services import declare_service

__all__ = ["declare_services"]


def declare_services(
    ledger: Ledger, views: Iterable[FeatureView | OnDemandFeatureView]
) -> list[FeatureService]:
    """Return one service a consumer and one for the default space, if there is one.

    Parameters
    ----------
    ledger : Ledger
    views : iterable of views
        The declared embedding views, among them every pinned one.
    """
    stored = {view.name: view for view in views if isinstance(view, FeatureView)}
    services = []
    for consumer in ledger.consumers():
        pin = ledger.pin(consumer.name)
        services.append(
            declare_service(
                pin.consumer, stored[pin.view], pin.space, pin.encoder_version, pin.revision
            )
        )
    default = ledger.default_space()
    if default is not None:
        view = stored[stored_view(default.number)]
        services.append(
            declare_service(EMBEDDING_ALIAS, view, default.number, default.encoder_version)
        )
    return services
