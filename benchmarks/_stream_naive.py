"""The stream processor that one would write with stock Feast: one event after the other.

For each event: the user's state from Redis, the raw row of the new state by the same function as
the stream, ``push()`` to the raw view, ``get_online_features`` of the on-demand view (which reads
the raw features that were just pushed and encodes them), ``push()`` to the embedding view, and the
state back to Redis. Online only, while the stream also keeps rows offline; no lock, no guard and no
atomic step, so that nothing is right once two of them run.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
import yaml

from benchmarks._stream_data import Replay
from benchmarks._stream_load import payloads
from benchmarks._stream_repo import apply_views

__all__ = ["run_naive", "write_payloads"]

_PROJECT = "naive"


def write_payloads(path: Path, replay: Replay) -> None:
    """Leave events for `run_naive`."""
    path.write_bytes(b"\n".join(payloads(replay)))


def run_naive(repository: str, folder: str, events: str, port: int) -> dict[str, Any]:
    """Process events in this process.

    Parameters
    ----------
    repository : str
        Palate's: data set, item vectors and encoders. Its Redis holds the states to begin with.
    folder : str
        Of the stock repository, to be made.
    events : str
        Of `write_payloads`.
    port : int
        Of the Redis of both.

    Returns
    -------
    dict
        ``events``, ``seconds``, ``cpu_seconds``, ``users`` and their last ``embeddings``.
    """
    from feast.data_source import PushMode

    from materialize.context import Context
    from materialize.features import current_modalities
    from materialize.stream.atomic import STATE_FIELD, UserHashes
    from transforms.clean import CleanTables
    from transforms.layout import ACTIVITY, RawLayout
    from transforms.names import EMBEDDING_FEATURES, USER_KEY, on_demand_view, stored_view
    from transforms.stream.events import EventParser
    from transforms.stream.rows import activity_rows
    from transforms.stream.state import UserStates
    from transforms.tables import CREATED, EVENT_TIME

    context = Context(Path(repository))
    settings = context.settings
    clean, encoders = CleanTables(settings.data_dir), current_modalities(settings.features_dir)
    layout = RawLayout.of(settings.dataset)
    (space,) = context.ledger.spaces()
    store = _stock(context, Path(folder), port)
    hashes = UserHashes(context.store)
    parser = EventParser(
        settings.dataset, clean.user_type(), clean.item_type(), future_seconds=60.0,
        known_items=encoders,
    )  # fmt: skip
    given = Path(events).read_bytes().splitlines()
    demand, stored = on_demand_view(space.number), stored_view(space.number)
    features = [f"{demand}:{name}" for name in EMBEDDING_FEATURES]
    limits: dict[str, Any] = {
        "longest_window": max(layout.windows),
        "floor": None,
        "max_events": settings.file.stream.max_events_per_user,
    }
    last: dict[Any, list[float]] = {}
    client = redis.Redis(port=port)

    def process(payload: bytes) -> None:
        event = parser.parse(payload)
        user, key = event.user_id, b"naive:%a" % event.user_id
        state = client.get(key)
        if state is None:  # the first time: as the batch left it
            ((state,),) = hashes.read(hashes.keys([user]), [STATE_FIELD])
        states = UserStates.decode([user], [state], {}).apply([[event]], **limits).states
        now = datetime.now(timezone.utc)
        raw = activity_rows(states, np.array([0]), encoders, layout).to_pandas()
        store.push(f"{ACTIVITY}_push", raw.assign(**{CREATED: now}), to=PushMode.ONLINE)
        answer = store.get_online_features(features=features, entity_rows=[{USER_KEY: user}])
        row = answer.to_dict()
        moments = pd.to_datetime(row["as_of"], unit="us", utc=True)
        frame = pd.DataFrame(
            {USER_KEY: [user], **{name: row[name] for name in EMBEDDING_FEATURES}}
        ).assign(**{EVENT_TIME: moments, CREATED: now})
        store.push(f"{stored}_push", frame, to=PushMode.ONLINE)
        client.set(key, states.encode()[0])
        last[user] = [float(value) for value in row["embedding"][0]]

    process(given[0])  # loads the encoder, connects
    began, cpu = time.perf_counter(), time.process_time()
    for payload in given[1:]:
        process(payload)
    seconds = time.perf_counter() - began
    return {
        "events": len(given) - 1,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "users": list(last),
        "embeddings": list(last.values()),
    }


def _stock(context: Any, folder: Path, port: int) -> Any:
    """Return a store with the same views on stock Feast's Redis store."""
    from feast import FeatureStore

    folder.mkdir(parents=True)
    content = {
        **{"project": _PROJECT, "provider": "local", "registry": "registry.db"},
        "online_store": {"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        **{"offline_store": {"type": "duckdb"}, "entity_key_serialization_version": 3},
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    store = FeatureStore(repo_path=str(folder))
    apply_views(context, store)
    return store
