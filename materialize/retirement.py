"""``palate spaces retire``: take a space down, in an order that a kill can interrupt anywhere."""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from tqdm import tqdm

from encoder.bridge import BridgeStore
from encoder.errors import ArtifactError, LedgerConflict, VerificationFailed
from encoder.store import ArtifactStore
from materialize.applied import applied_among, readers_of, undeclare
from materialize.config import RepoSettings
from materialize.ledger import Bridge, Ledger
from materialize.lineage import CHAIN_FACT, chain
from materialize.neighbours.manifest import index_folder
from materialize.offline_removal import folder_share, held_by_a_run, remove_folder
from materialize.online_rows import entity_keys
from materialize.removal_tally import TALLY_FACT, Tally, bytes_by_kind
from materialize.services import apply_services
from materialize.source import parquet_files
from transforms.names import USER_KEY, bridged_view, on_demand_view, stored_view

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

__all__ = ["RetirementReport", "plan_retirement", "retire_space"]

_log = logging.getLogger(__name__)

_SAMPLE = 500
"""Users that are looked up after the scan."""


@dataclass(frozen=True)
class RetirementReport:
    """What a retirement removed, or (``planned``) would remove.

    Attributes
    ----------
    space : int
    outcome : str
        ``planned``, ``retired``, or ``unchanged``: it was retired before.
    removed : mapping
        Place -> figure -> number: ``rows``, ``files``, ``bytes``. A figure that a store does not
        tell is left out.
    freed : mapping
        Kind of place -> bytes.
    seconds : float
        Of this call.
    refused : str or None
        Of a plan: why the space could not go at this moment.
    """

    space: int
    outcome: str
    removed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    freed: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    refused: str | None = None


def plan_retirement(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    number: int,
    *,
    keys_per_second: float | None = None,
    progress: bool = True,
) -> RetirementReport:
    """Return what `retire_space` would remove, and what stands against it; changes nothing.

    On Redis the rows are counted by a scan over all keys.
    """
    return _Retirement(
        store, settings, ledger, number, keys_per_second=keys_per_second, progress=progress
    ).plan()


def retire_space(
    store: FeatureStore,
    settings: RepoSettings,
    ledger: Ledger,
    number: int,
    *,
    who: str,
    why: str,
    keys_per_second: float | None = None,
    wait_seconds: float = 60.0,
    progress: bool = True,
) -> RetirementReport:
    """Take a space down for good; after a kill a call goes on, after the end it changes nothing.

    Parameters
    ----------
    store : FeatureStore
    settings : RepoSettings
    ledger : Ledger
    number : int
    who, why : str
    keys_per_second : float, optional
        Upper bound of the keys that are looked at on Redis.
    wait_seconds : float
        How long to wait for a reader of the space's files.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    LedgerConflict
        Somebody needs the space: a consumer, a bridge, the default, a feature service or view that
        is not Palate's, or a run that writes it at this moment.
    VerificationFailed
        Users still have a row online: a process writes the view although it is gone.
    TransientError
        A reader holds the space's files for longer than ``wait_seconds``.

    Notes
    -----
    The order: the ledger's decision, so that nobody pins or writes the space from then on; views,
    so that nobody finds it; online values; offline files; the index of neighbours; maps of bridges;
    the artifact; the ledger's end. The artifact goes last: everything else can be made from it.
    """
    return _Retirement(
        store, settings, ledger, number, keys_per_second=keys_per_second, progress=progress
    ).execute(who=who, why=why, wait_seconds=wait_seconds)


class _Retirement:
    """What the steps share."""

    def __init__(
        self,
        store: FeatureStore,
        settings: RepoSettings,
        ledger: Ledger,
        number: int,
        *,
        keys_per_second: float | None,
        progress: bool,
    ) -> None:
        self._store, self._settings, self._ledger = store, settings, ledger
        self._space = ledger.space(number)
        self._keys_per_second, self._progress = keys_per_second, progress
        self._bridges = {
            bridge.version: bridge
            for bridge in (*ledger.bridges(source=number), *ledger.bridges(target=number))
        }
        self._stored = [stored_view(number), *dict.fromkeys(map(_view, self._bridges.values()))]
        self._views = [*self._stored, on_demand_view(number)]
        self._index = index_folder(settings, number)
        self._artifacts = ArtifactStore(settings.artifacts_url)
        self._maps = BridgeStore(settings.artifacts_url)

    def plan(self) -> RetirementReport:
        if self._space.state == "retired":
            return self._report("unchanged")
        refused = [*self._ledger.needed_by(self._space.number), *self._foreign_readers()]
        removed: dict[str, dict[str, int]] = {}
        applied = applied_among(self._store, self._views)
        for view in self._views:
            if view in applied:
                removed[f"registry {view}"] = {"views": 1}
        for view in self._stored:
            rows, size = self._online_share(view, f"count {view}")
            removed[f"online {view}"] = _known(rows=rows, bytes=size)
        for view, folder in self._folders().items():
            removed[f"offline {view}"] = folder_share(folder)
        removed[f"neighbours {self._index.name}"] = folder_share(self._index, rows=False)
        removed["offline staging"] = self._staging_share()
        for version in self._bridges:
            removed[f"bridge {version}"] = {"bytes": self._maps.size(version)}
        version = self._space.encoder_version
        removed[f"artifact {version}"] = {"bytes": self._artifacts.size(version)}
        places = {name: numbers for name, numbers in removed.items() if any(numbers.values())}
        return RetirementReport(
            self._space.number,
            "planned",
            places,
            bytes_by_kind(places),
            refused="; ".join(refused) or None,
        )

    def execute(self, *, who: str, why: str, wait_seconds: float) -> RetirementReport:
        number = self._space.number
        if self._space.state == "retired":
            return self._report("unchanged")
        began = time.perf_counter()
        apply_services(self._store, self._ledger)  # one may lag behind a consumer's last move
        self._refuse_readers()
        self._refuse_runs()
        self._ledger.start_retiring(number, who=who, why=why)
        # A consumer, service or run of the moment before is found now; none can follow.
        self._refuse_readers()
        self._refuse_runs()
        _log.info("space %s is retiring", number)
        tally = Tally(self._ledger, number)
        views = self._remove_views(tally)
        for view in self._stored:
            self._remove_online(tally, view, views.get(view))
        for view, folder in self._folders().items():
            tally.measured(f"offline {view}", **folder_share(folder))
            remove_folder(folder, wait_seconds=wait_seconds, progress=self._progress)
        # After the state says retiring: a build that runs asks for it before its index counts.
        tally.measured(f"neighbours {self._index.name}", **folder_share(self._index, rows=False))
        remove_folder(self._index, wait_seconds=wait_seconds, progress=self._progress)
        self._remove_staging(tally)
        for version, bridge in self._bridges.items():
            if bridge.state != "retired":
                self._ledger.retire_bridge(version, who=who, why=f"space {number} is retired")
            tally.measured(f"bridge {version}", bytes=self._maps.size(version))
            self._maps.delete(version)
        # A `feast apply` that read the ledger before it was decided may have declared them again.
        for view, declared in self._remove_views(tally).items():
            self._remove_online(tally, view, declared)
        self._remove_artifact(tally)
        tally.write()
        self._ledger.finish_retiring(number, tally.freed(), who=who)
        self._space = self._ledger.space(number)
        return self._report("retired", round(time.perf_counter() - began, 3))

    def _report(self, outcome: str, seconds: float = 0.0) -> RetirementReport:
        facts = self._space.facts
        return RetirementReport(
            self._space.number,
            outcome,
            facts.get(TALLY_FACT, {}),
            facts.get("freed", {}),
            seconds,
        )

    def _foreign_readers(self) -> list[str]:
        """Return who else reads the space's views; Palate's own services follow the ledger."""
        return [
            f"{who} reads {view}, point it at another space or remove it"
            for who, view in readers_of(self._store, self._views)
        ]

    def _refuse_readers(self) -> None:
        """Raise when an object of the registry that is not Palate's reads a view of the space."""
        readers = self._foreign_readers()
        if readers:
            raise LedgerConflict(
                f"Space {self._space.number} cannot be retired: {'; '.join(readers)}. Then retire "
                "again."
            )

    def _refuse_runs(self) -> None:
        """Raise when a run writes one of the space's views at this moment."""
        for run_id, folder in self._runs():
            if held_by_a_run(folder):
                raise LedgerConflict(
                    f"Space {self._space.number} cannot be retired now: run {run_id} writes it. "
                    "Wait for it to end, or stop it, then retire again."
                )

    def _runs(self) -> Iterator[tuple[str, Path]]:
        """Yield run and staging folder of every unfinished or cleaned-up run of the space."""
        for run in self._ledger.runs():
            folder = self._settings.offline_dir / "_staging" / run.run_id
            if (run.space == self._space.number or run.view in self._stored) and folder.exists():
                yield run.run_id, folder

    def _folders(self) -> dict[str, Path]:
        return {view: self._settings.offline_dir / view for view in self._stored}

    def _remove_views(self, tally: Tally) -> dict[str, FeatureView]:
        """Take the views out of the registry; return the stored ones that were there."""
        self._refuse_readers()
        applied = applied_among(self._store, self._views)
        for view in applied:
            undeclare(self._store, view)
            tally.add(f"registry {view}", views=1)
            _log.info("view %s removed from the registry", view)
        tally.write()
        return {view: found for view, found in applied.items() if view in self._stored}

    def _online_share(self, view: str, title: str) -> tuple[int | None, int | None]:
        from materialize.stores.removal import online_share

        with self._scanned(title) as bar:
            return online_share(
                *self._online,
                _bare_view(view),
                [USER_KEY],
                keys_per_second=self._keys_per_second,
                progress=bar,
            )

    def _remove_online(self, tally: Tally, view: str, declared: FeatureView | None) -> None:
        from materialize.stores.removal import is_scanned, online_share, remove_online

        online, config = self._online
        place, target = f"online {view}", declared or _bare_view(view)
        if is_scanned(online):
            with self._scanned(f"remove {view}") as bar:
                remove_online(
                    *(online, config, target, [USER_KEY]),
                    keys_per_second=self._keys_per_second,
                    progress=bar,
                    removed=lambda s: tally.add(place, rows=s.rows, bytes=s.size_bytes),
                )
            tally.write()
            self._verify_gone(online, config, target)
        else:
            share = online_share(online, config, target, [USER_KEY])
            tally.measured(place, rows=share.rows, bytes=share.size_bytes)
            remove_online(online, config, target, [USER_KEY])

    def _verify_gone(self, online: Any, config: Any, view: FeatureView) -> None:
        """Raise when one of a sample of users still has a row."""
        users = _some_users(self._settings.offline_dir / view.name)
        keys = entity_keys(users, text=bool(users) and isinstance(users[0], str))
        found = online.online_read(config, view, keys, [view.features[0].name]) if keys else []
        left = sum(
            any(value.WhichOneof("val") for value in (values or {}).values()) for _, values in found
        )
        if left:
            raise VerificationFailed(
                f"{left} of {len(keys)} users still have a row of {view.name} online: a process "
                "that knows the view from before still writes it. Stop it, then retire again."
            )

    @cached_property
    def _online(self) -> tuple[Any, Any]:
        """The online store, with a connection of its own, and its settings."""
        from feast.infra.online_stores.helpers import get_online_store_from_config

        config = self._store.config
        return get_online_store_from_config(config.online_store), config

    @contextmanager
    def _scanned(self, title: str) -> Iterator[Callable[[int], object]]:
        from materialize.stores.removal import key_count

        total = key_count(*self._online)
        hidden = not self._progress or total is None
        with tqdm(desc=title, total=total, unit="key", unit_scale=True, disable=hidden) as bar:
            yield bar.update

    def _staging_share(self) -> dict[str, int]:
        shares = [folder_share(folder, rows=False) for _, folder in self._runs()]
        return {name: sum(s[name] for s in shares) for name in ("files", "bytes")}

    def _remove_staging(self, tally: Tally) -> None:
        tally.measured("offline staging", **self._staging_share())
        for _, folder in self._runs():
            shutil.rmtree(folder)

    def _remove_artifact(self, tally: Tally) -> None:
        version = self._space.encoder_version
        if self._artifacts.exists(version):
            self._keep_chain()
        tally.measured(f"artifact {version}", bytes=self._artifacts.size(version))
        self._artifacts.delete(version)

    def _keep_chain(self) -> None:
        """Write to the ledger what the space came from: its artifact is about to go."""
        try:
            came_from = chain(self._settings, self._space).to_dict()
        except ArtifactError as exc:  # a damaged artifact is no reason to keep the space
            _log.warning("space %s: what it came from is lost: %s", self._space.number, exc)
            return
        self._ledger.update_facts(self._space.number, {CHAIN_FACT: came_from})


def _view(bridge: Bridge) -> str:
    return bridged_view(bridge.target, bridge.source)


def _bare_view(name: str) -> FeatureView:
    """Return an embedding view for the online store, which asks for name and features alone."""
    from feast import FeatureView, FileSource

    from transforms.on_demand import EMBEDDING_FIELDS

    return FeatureView(name=name, schema=list(EMBEDDING_FIELDS), source=FileSource(path="unused"))


def _some_users(folder: Path) -> list[Any]:
    """Return some users that have rows offline, from the last of its files."""
    users: list[Any] = []
    for path in reversed(parquet_files(folder)):
        users += pq.read_table(path, columns=[USER_KEY]).column(USER_KEY).unique().to_pylist()
        if len(users) >= _SAMPLE:
            break
    return random.Random(0).sample(users, min(_SAMPLE, len(users)))  # noqa: S311 - no secret


def _known(**figures: int | None) -> dict[str, int]:
    return {name: value for name, value in figures.items() if value is not None}
