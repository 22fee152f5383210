"""``palate doctor``: what is wrong with an installation or repository, and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy.exc import SQLAlchemyError

from encoder.errors import DataFault, EmbeddingError, LedgerConflict
from materialize.config import RepoSettings, load_settings
from materialize.ledger import Ledger, Space
from transforms.clean import CleanTables
from transforms.names import (
    FLOAT32,
    USER_KEY,
    bridged_view,
    on_demand_view,
    stored_view,
    vector_form,
)

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["Check", "examine"]

_FEAST = "0.67"
_OFFLINE = "materialize.stores.parquet.PalateParquetOfflineStore"


@dataclass(frozen=True)
class Check:
    """One finding; ``remedy`` is empty when nothing is to be done."""

    outcome: Literal["ok", "WARN", "FAIL"]
    name: str
    detail: str
    remedy: str = ""


def examine(repo: Path) -> list[Check]:
    """Examine everything that can be examined; a broken part does not hide the others."""
    checks = list(_installation())
    try:
        settings = load_settings(repo)
        dataset = settings.dataset
    except DataFault as exc:
        remedy = "Correct it; `palate init DIR` writes a repository to compare with."
        return [*checks, Check("FAIL", "repository", str(exc), remedy)]
    checks.append(Check("ok", "repository", f"{settings.repo}, data set {dataset.name}"))
    checks += _data(settings)
    spaces: list[Space] = []
    ledger: Ledger | None = None
    try:
        opened = Ledger(settings.ledger_url)
        spaces, ledger = opened.spaces(), opened
    except LedgerConflict as exc:
        checks.append(Check("FAIL", "ledger", str(exc), "palate ledger status"))
    except (SQLAlchemyError, ImportError, OSError) as exc:  # also: no driver, no such folder
        checks.append(Check("FAIL", "ledger", str(exc), "Check `ledger:` in palate.yaml."))
    else:
        detail = f"{len(spaces)} space(s)"
        remedy = "" if spaces else "palate train"
        checks.append(Check("ok" if spaces else "WARN", "ledger", detail, remedy))
    kept = [space for space in spaces if space.state != "retired"]
    checks += (_artifact(settings, space) for space in kept)
    checks += _registry(settings, ledger, kept)
    return checks


def _installation() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 10)
    yield Check("FAIL" if old else "ok", "python", version, "Use Python 3.10+." if old else "")
    feast = importlib.metadata.version("feast")
    other = not feast.startswith(f"{_FEAST}.")
    yield Check(
        "WARN" if other else "ok",
        "feast",
        feast,
        f"Palate is tested with Feast {_FEAST}: pip install 'feast=={_FEAST}.*'" if other else "",
    )
    torch = importlib.util.find_spec("torch") is not None
    yield Check(
        "ok" if torch else "WARN",
        "torch",
        "installed" if torch else "not installed: serving works, training does not",
        "" if torch else "pip install 'palate[train]'",
    )


def _data(settings: RepoSettings) -> Iterator[Check]:
    clean = CleanTables(settings.data_dir)
    if clean.exists():
        try:
            fingerprint = clean.fingerprint()
        except OSError as exc:  # a file cut short
            yield Check("FAIL", "clean data", f"{clean.folder}: {exc}", "palate data validate")
        else:
            yield Check("ok", "clean data", f"{clean.folder}, fingerprint {fingerprint}")
    else:
        yield Check("WARN", "clean data", "not validated yet", "palate data validate")
    built = sorted(p.parent.name for p in settings.features_dir.glob("user_*/*.parquet"))
    detail = ", ".join(dict.fromkeys(built)) or "not built yet"
    yield Check(
        "ok" if built else "WARN", "raw features", detail, "" if built else "palate features build"
    )


def _artifact(settings: RepoSettings, space: Space) -> Check:
    from encoder.store import ArtifactStore

    name = f"artifact of space {space.number}"
    try:
        ArtifactStore(settings.artifacts_url).load(space.encoder_version)
    except (EmbeddingError, ImportError, OSError, ValueError) as exc:  # also: no such file system
        return Check("FAIL", name, str(exc), "Restore the artifact folder, or train again.")
    return Check("ok", name, space.encoder_version)


def _registry(
    settings: RepoSettings, ledger: Ledger | None, spaces: list[Space]
) -> Iterator[Check]:
    from feast import FeatureStore

    try:
        store = FeatureStore(repo_path=str(settings.repo))
        applied = {view.name for view in store.list_all_feature_views()}
    except Exception as exc:  # noqa: BLE001  # the outermost edge: any fault of the store is a finding
        yield Check("FAIL", "registry", f"{type(exc).__name__}: {exc}", "Check feature_store.yaml.")
        return
    wanted = {view(space.number) for space in spaces for view in (stored_view, on_demand_view)}
    if ledger is not None:
        bridges = (bridge for bridge in ledger.bridges() if bridge.state == "serving")
        wanted |= {bridged_view(bridge.target, bridge.source) for bridge in bridges}
    lacking = sorted(wanted - applied) or ([] if applied else ["any view"])
    yield Check(
        "WARN" if lacking else "ok",
        "registry",
        f"lacks {', '.join(lacking)}" if lacking else f"{len(applied)} views",
        "feast apply" if lacking else "",
    )
    if ledger is not None:
        yield _services(store, ledger)
    yield _offline(store)
    if not applied:
        return
    for space in spaces:
        if stored_view(space.number) in applied:
            yield _online(store, space)


def _services(store: FeatureStore, ledger: Ledger) -> Check:
    from materialize.services import services_behind

    behind = services_behind(store, ledger)
    if not behind:
        return Check("ok", "feature services", f"{len(ledger.consumers())} consumer(s)")
    parts = {
        "behind the ledger": behind.stale,
        "of no consumer": behind.extra,
        "without their view": behind.unknown_views,
    }
    detail = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)
    remedy = "feast apply" if behind.unknown_views else "palate consumers apply"
    return Check("WARN", "feature services", detail, remedy)


def _offline(store: FeatureStore) -> Check:
    name, kind = "offline store", str(store.config.offline_store.type)
    if kind in {_OFFLINE, "duckdb"}:
        return Check("ok", name, kind)
    drops = kind in {"dask", "file"}
    return Check(
        "WARN",
        name,
        f"{kind} drops label rows without a known value"
        if drops
        else f"{kind} was never seen to read Palate's views, which are Parquet files",
        f"offline_store: {{type: {_OFFLINE}}} in feature_store.yaml",
    )


def _online(store: FeatureStore, space: Space) -> Check:
    name = f"online store, space {space.number}"
    try:
        store.get_online_features(
            features=[f"{stored_view(space.number)}:as_of"], entity_rows=[{USER_KEY: 0}]
        )
    except Exception as exc:  # noqa: BLE001  # as above
        return Check("FAIL", name, f"{type(exc).__name__}: {exc}", "Is the online store up?")
    form = vector_form(space.facts)
    if form != FLOAT32 and not hasattr(store._get_provider().online_store, "write_arrow"):
        return Check(
            "WARN",
            name,
            f"answers; it keeps float32 where the space asks for {form}, and hands out as bytes "
            "what one of Palate's stores wrote before",
            "Name one of Palate's online stores in feature_store.yaml (ADR 0015), or go on with "
            "float32: palate materialize --force",
        )
    return Check("ok", name, "answers")
