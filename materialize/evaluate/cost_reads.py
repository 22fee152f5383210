"""What reading costs: fields, numbers, bytes and time of raw features and of the embedding."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from encoder.schema import FeatureSchema
from materialize.stores.compact import compact_form, compact_messages
from transforms.names import FLOAT32, USER_KEY

if TYPE_CHECKING:
    from feast import FeatureStore

__all__ = ["OnlineCost", "online_costs", "raw_features", "training_set_seconds"]

_WARM_UP = 3


@dataclass(frozen=True, eq=False)
class OnlineCost:
    """What one list of features costs to read.

    Attributes
    ----------
    fields : int
        Features of the request.
    numbers : int
        Numbers and strings in them.
    value_bytes : float64 (n_users,)
        Of each user's values, as the online store keeps them; without keys and times.
    seconds : float64 (n_requests,)
        Of each request.
    """

    fields: int
    numbers: int
    value_bytes: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]


def raw_features(schema: FeatureSchema) -> list[str]:
    """Return the raw fields that hold features, as Feast names them (``view:field``).

    Times and versions are left out: a model does not read them.
    """
    return [c.replace("__", ":", 1) for c in dict.fromkeys(b.column for b in schema.blocks)]


def online_costs(
    store: FeatureStore,
    lists: Mapping[str, Sequence[str]],
    users: Sequence[Any],
    *,
    users_a_request: int,
    requests: int,
    seed: int,
) -> dict[str, OnlineCost] | str:
    """Read the same users through several lists of features, in turn.

    Parameters
    ----------
    store : FeatureStore
    lists : mapping of str to sequence of str
        Name -> features (``view:field``).
    users : sequence
        User ids to draw from.
    users_a_request : int
        Fewer where there are fewer users.
    requests : int
        Of each list; the lists change places from one to the next, so that none is favoured by
        caches.
    seed : int
        Of the draws.

    Returns
    -------
    dict or str
        By name; or why nothing can be compared: the views that are not applied, or hold no row of
        these users online.
    """
    applied = {view.name for view in store.list_feature_views()}
    wanted = {f.split(":")[0] for features in lists.values() for f in features}
    unknown = sorted(wanted - applied)
    if unknown:
        return f"not applied: {', '.join(unknown)}. Run `feast apply`."
    size = min(users_a_request, len(users))
    rng = np.random.default_rng(seed)
    names = list(lists)
    sizes: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    numbers = dict.fromkeys(names, 0)
    for number in range(_WARM_UP + requests):
        drawn = rng.choice(len(users), size, replace=False)
        rows = [{USER_KEY: users[k]} for k in drawn.tolist()]
        for name in names if number % 2 else reversed(names):
            began = time.perf_counter()
            answer = store.get_online_features(features=list(lists[name]), entity_rows=rows)
            took = time.perf_counter() - began
            if number < _WARM_UP:
                columns = _values(answer, lists[name])
                empty = [f for f, column in columns.items() if not any(map(_width, column))]
                if empty:
                    return f"no row online: {', '.join(empty)}. Run `palate materialize`."
                numbers[name] = sum(max(map(_width, column)) for column in columns.values())
                sizes[name].append(_bytes(store, columns))
            else:
                seconds[name].append(took)
    return {
        name: OnlineCost(
            len(lists[name]),
            numbers[name],
            np.concatenate(sizes[name]),
            np.array(seconds[name]),
        )
        for name in names
    }


def training_set_seconds(
    store: FeatureStore,
    lists: Mapping[str, Sequence[str]],
    user_id: npt.NDArray[Any],
    moment: npt.NDArray[np.datetime64],
    *,
    repeats: int,
) -> dict[str, npt.NDArray[np.float64]] | str:
    """Read the same point-in-time training set through several lists of features, in turn.

    Parameters
    ----------
    store : FeatureStore
    lists : mapping of str to sequence of str
    user_id : (n_rows,)
    moment : datetime64[us] (n_rows,)
        UTC.
    repeats : int
        Of each list.

    Returns
    -------
    dict or str
        float64 (repeats,) by name; or why nothing can be compared.
    """
    times = pd.to_datetime(moment, utc=True)
    frame = pd.DataFrame({USER_KEY: user_id, "event_timestamp": times})
    seconds: dict[str, list[float]] = {name: [] for name in lists}
    for number in range(repeats):
        for name in lists if number % 2 else reversed(list(lists)):
            began = time.perf_counter()
            answer = store.get_historical_features(
                entity_df=frame, features=list(lists[name])
            ).to_arrow()
            seconds[name].append(time.perf_counter() - began)
            fields = [feature.split(":")[1] for feature in lists[name]]
            empty = [f for f in fields if answer.column(f).null_count == answer.num_rows]
            if empty:
                return (
                    f"no row offline at these moments: {', '.join(empty)}. Run `palate materialize "
                    "--from-history`."
                )
    return {name: np.array(spent) for name, spent in seconds.items()}


def _values(answer: Any, features: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of an online answer by feature (``view:field``), one a row."""
    proto = answer.proto
    names = list(proto.metadata.feature_names.val)
    columns = {name: list(proto.results[k].values) for k, name in enumerate(names)}
    return {feature: columns[feature.split(":")[1]] for feature in features}


def _width(value: Any) -> int:
    """Return how many numbers or strings a value has; 0 for one that is not set."""
    kind = value.WhichOneof("val")
    if kind is None:
        return 0
    return len(getattr(value, kind).val) if kind.endswith("_list_val") else 1


def _bytes(store: FeatureStore, columns: Mapping[str, Sequence[Any]]) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] = np.zeros(len(next(iter(columns.values()))))
    for feature, values in columns.items():
        form = compact_form(store.get_feature_view(feature.split(":")[0]))
        stored = (
            [value.SerializeToString() for value in values]
            if form == FLOAT32
            else compact_messages(values, form)
        )
        total += [len(message) for message in stored]
    return total
