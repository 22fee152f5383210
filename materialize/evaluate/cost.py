"""Task ``cost``: what a downstream task pays with raw features, and with the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from encoder.resampling import Replicates, mean_replicates, user_draws
from materialize.evaluate.cost_reads import (
    OnlineCost,
    online_costs,
    raw_features,
    training_set_seconds,
)
from materialize.evaluate.cost_training import (
    Fitted,
    cheapest_equal,
    fit_ladder,
    fit_linear,
    interests_of,
)
from materialize.evaluate.measurement import EMBEDDING, Measurement
from materialize.ledger import Ledger
from transforms.names import stored_view

if TYPE_CHECKING:
    from materialize.config import RepoSettings
    from materialize.evaluate.cohort import Cohort, LoadedEncoder
    from materialize.evaluate.task import Progress

__all__ = ["RAW", "CostTask"]

RAW = "raw"
"""Name of the baseline: a model that reads all raw features."""

_USERS_A_REQUEST = 100
_REQUESTS = 40
_USERS = 1_000
_TRAINING_SET_ROWS = 2_000
_TRAINING_SET_REPEATS = 3


class CostTask:
    """Reads, bytes, and training of a downstream model: the embedding against raw features.

    The downstream task is one that a team would have: which kinds of item will the user consume
    within the horizon? With the embedding it is a linear head on frozen vectors. With raw features
    it is the smallest of a linear head and networks of 16, 64 and 256 hidden units whose AUC is not
    significantly worse; where all are worse, the best one, and the detail ``equal_quality`` is
    false. Both read the same users at the same moments.

    Metrics, lower is better but for the last:

    - ``fields``, ``numbers``: features of a request, and numbers and strings in them.
    - ``value_bytes``: of a user's values in the online store, without keys and times.
    - ``read_ms``: median of requests for 100 users to the repository's own online store.
    - ``training_set_s``: median time of a point-in-time read of up to 2,000 training rows.
    - ``model_numbers``, ``parameters``: inputs of the downstream model, and its weights.
    - ``train_s``: processor time of its fit, with the choice of its settings.
    - ``auc``: over all pairs of a test row and a kind of item.

    Intervals are over requests or repeats for times, over users for bytes and AUC; counts have
    none.

    Parameters
    ----------
    settings : RepoSettings
        The repository whose own stores are read through Feast.

    Notes
    -----
    Raw features are packed into a few wide fields here, which favours them: a request pays for
    fields more than for bytes. So does that they come to the downstream model already standardised
    by the encoder's preprocessing. What the embedding costs once for all tasks (training it, a
    detail) is not spread over tasks; ``break_even_tasks`` says how many of them it takes, counting
    training alone.
    """

    name = "cost"

    def __init__(self, settings: RepoSettings) -> None:
        self._settings = settings

    def unavailable(self, cohort: Cohort) -> str | None:
        """Return why the task cannot run on this cohort, or None."""
        if interests_of(cohort) is None:
            return "no kind of item that some, but not all, training and test users consume."
        return None

    def measure(
        self,
        cohort: Cohort,
        encoder: LoadedEncoder,
        seed: int,
        *,
        models: Sequence[str] | None,
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        """Return the figures of ``embedding`` and of the baseline ``raw``; see ``Task.measure``.

        Reads are left out, with the reason in the detail ``reads``, where the encoder is no space
        of the repository or its rows are not in the stores.
        """
        names = [EMBEDDING, RAW] if models is None or RAW in models else [EMBEDDING]
        found = self._reads(cohort, encoder, seed, names, n_resamples, progress)
        progress.step("cost: reads")
        return found + self._training(cohort, encoder, seed, names, n_resamples, progress)

    def _reads(
        self,
        cohort: Cohort,
        encoder: LoadedEncoder,
        seed: int,
        names: Sequence[str],
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        version = encoder.encoder_version
        spaces = Ledger(self._settings.ledger_url).spaces()
        numbers = [space.number for space in spaces if space.encoder_version == version]
        if not numbers:
            progress.detail("reads", {"left_out": f"encoder {version} is no space of this ledger"})
            return []
        from feast import FeatureStore

        store = FeatureStore(repo_path=str(self._settings.repo))
        lists = {
            EMBEDDING: [f"{stored_view(numbers[0])}:embedding"],
            RAW: raw_features(cohort.schema),
        }
        lists = {name: lists[name] for name in names}
        users = np.unique(cohort.user_id)
        users = np.random.default_rng(seed).permutation(users)[:_USERS]
        found: list[Measurement] = []
        reads: dict[str, Any] = {"space": numbers[0]}
        online = online_costs(
            store,
            lists,
            users.tolist(),
            users_a_request=_USERS_A_REQUEST,
            requests=_REQUESTS,
            seed=seed,
        )
        if isinstance(online, str):
            reads["online_left_out"] = online
        else:
            reads |= {
                "online_store": type(store.config.online_store).__name__,
                "users_a_request": min(_USERS_A_REQUEST, len(users)),
                "requests": _REQUESTS,
            }
            for name, cost in online.items():
                found += _online(name, cost, seed, n_resamples)
        rows = np.flatnonzero(cohort.training)[:_TRAINING_SET_ROWS]
        spent = training_set_seconds(
            store,
            lists,
            cohort.user_id[rows],
            cohort.moment[rows],
            repeats=_TRAINING_SET_REPEATS,
        )
        if isinstance(spent, str):
            reads["training_set_left_out"] = spent
        else:
            reads["training_set_rows"] = len(rows)
            for name, seconds in spent.items():
                figure = _median(seconds, n_resamples)
                found.append(_timed("training_set_s", name, seed, figure, len(rows)))
        progress.detail("reads", reads)
        return found

    def _training(
        self,
        cohort: Cohort,
        encoder: LoadedEncoder,
        seed: int,
        names: Sequence[str],
        n_resamples: int,
        progress: Progress,
    ) -> list[Measurement]:
        task = interests_of(cohort)
        if task is None:  # `unavailable` has said so
            return []
        head = fit_linear(cohort, task, cohort.encode(encoder), seed, n_resamples)
        fitted = {EMBEDDING: head}
        detail: dict[str, Any] = {"targets": list(task.targets), "embedding": head.to_dict()}
        progress.step("cost: head on the embedding")
        if RAW in names:
            ladder = fit_ladder(cohort, task, cohort.inputs(encoder), seed, n_resamples)
            fitted[RAW], equal = cheapest_equal(ladder, head.auc)
            once = sum(epoch["seconds"] for epoch in encoder.manifest.training["history"])
            saved = fitted[RAW].seconds - head.seconds
            detail |= {
                "raw": [step.to_dict() for step in ladder],
                "raw_chosen": fitted[RAW].model,
                "equal_quality": equal,
                "encoder_training_s": round(once, 1),
                "break_even_tasks": round(once / saved, 1) if saved > 0 else None,
            }
            progress.step("cost: models on raw features")
        progress.detail("training", detail)
        n_rows = int((~cohort.training).sum())
        n_users = len(np.unique(cohort.user_id[~cohort.training]))
        return [
            measurement
            for name, model in fitted.items()
            for measurement in _model(name, model, seed, n_users, n_rows)
        ]


def _online(name: str, cost: OnlineCost, seed: int, n_resamples: int) -> list[Measurement]:
    users = len(cost.value_bytes)
    held = mean_replicates(cost.value_bytes, user_draws(np.arange(users), n_resamples))
    milliseconds = _median(1e3 * cost.seconds, n_resamples)
    return [
        _count("fields", name, seed, cost.fields, users),
        _count("numbers", name, seed, cost.numbers, users),
        _timed("value_bytes", name, seed, held, users),
        _timed("read_ms", name, seed, milliseconds, users),
    ]


def _model(name: str, model: Fitted, seed: int, n_users: int, n_rows: int) -> list[Measurement]:
    auc = Measurement(
        "cost", "auc", "all", name, seed, model.auc.value, model.auc.replicates, n_users, n_rows
    )
    return [
        _count("model_numbers", name, seed, model.numbers, n_users),
        _count("parameters", name, seed, model.parameters, n_users),
        _count("train_s", name, seed, model.seconds, n_users),
        auc,
    ]


def _count(metric: str, model: str, seed: int, value: float, users: int) -> Measurement:
    nothing = Replicates(float(value), np.empty(0))
    return _timed(metric, model, seed, nothing, users)


def _timed(metric: str, model: str, seed: int, figure: Replicates, users: int) -> Measurement:
    return Measurement(
        *("cost", metric, "all", model, seed, figure.value, figure.replicates, users, users),
        higher_is_better=False,
    )


def _median(values: npt.NDArray[np.float64], n_resamples: int) -> Replicates:
    """Return the median, resampled over the values; paired between models measured in turn."""
    drawn = np.random.default_rng(0).integers(0, len(values), (n_resamples, len(values)))
    return Replicates(float(np.median(values)), np.median(values[drawn], axis=1))
