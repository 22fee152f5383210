"""Models by name, loaded when they are asked for."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from materialize.evaluate.models.base import FullRanker, PairModel, UserModel

__all__ = [
    "MODELS",
    "Kind",
    "ModelInfo",
    "choose",
    "full_ranker",
    "missing",
    "models_for",
    "of_space",
    "pair_model",
    "user_model",
]

Kind = Literal["vectors", "pairs", "ranking"]


@dataclass(frozen=True)
class ModelInfo:
    """One model.

    Attributes
    ----------
    title : str
        For tables.
    task_specific : bool
        True: trained end to end for one task; it is the bar, not a rival in kind.
    factories : dict of str to str
        ``module:name`` under ``materialize.evaluate.models`` of what makes it, by what is asked of
        it: vectors of users, scores of pairs, or a full ranking.
    needs : (str, str) or None
        Library and the extra of this package that installs it.
    """

    title: str
    task_specific: bool
    factories: dict[str, str]
    needs: tuple[str, str] | None = None


_SPACE = re.compile(r"space_\d+")

_IMPLICIT = ("implicit", "evaluate")
_PTLS = ("ptls", "coles")

MODELS: dict[str, ModelInfo] = {
    # Representations: vectors of users, read by the light head.
    "embedding": ModelInfo(
        "Embedding, light head",
        False,
        {
            "vectors": "vectors:embedding",
            "pairs": "head:embedding",
            "ranking": "ranking_head:embedding",
        },
    ),
    "mean_vectors": ModelInfo(
        "Mean item vectors, light head",
        False,
        {
            "vectors": "vectors:mean_vectors",
            "pairs": "head:mean_vectors",
            "ranking": "ranking_head:mean_vectors",
        },
    ),
    "als_vectors": ModelInfo(
        "ALS factors, light head",
        False,
        {
            "vectors": "als:AlsVectors",
            "pairs": "head:als_vectors",
            "ranking": "ranking_head:als_vectors",
        },
        _IMPLICIT,
    ),
    "coles": ModelInfo(
        "CoLES, light head",
        False,
        {
            "vectors": "coles:ColesVectors",
            "pairs": "head:coles",
            "ranking": "ranking_head:coles",
        },
        _PTLS,
    ),
    "raw_inputs": ModelInfo(
        "Raw inputs, light head",
        False,
        {
            "vectors": "vectors:raw_inputs",
            "pairs": "head:raw_inputs",
            "ranking": "ranking_head:raw_inputs",
        },
    ),
    # Recommenders that score items themselves.
    "popularity": ModelInfo(
        "Popularity",
        False,
        {"pairs": "popularity:PopularityPairs", "ranking": "popularity:ranking"},
    ),
    "mean_cosine": ModelInfo(
        "Mean item vectors, cosine",
        False,
        {"pairs": "mean_cosine:pairs", "ranking": "mean_cosine:ranking"},
    ),
    "als": ModelInfo(
        "Matrix factorisation (ALS)",
        False,
        {"pairs": "als:pairs", "ranking": "als:ranking"},
        _IMPLICIT,
    ),
    "item_knn": ModelInfo(
        "Item neighbours (cosine)",
        False,
        {"pairs": "item_knn:pairs", "ranking": "item_knn:ranking"},
        _IMPLICIT,
    ),
    "ease": ModelInfo("EASE", False, {"pairs": "ease:pairs", "ranking": "ease:ranking"}),
    "sasrec": ModelInfo("SASRec", False, {"pairs": "sasrec:pairs", "ranking": "sasrec:ranking"}),
    # Trained end to end for one task.
    "lightfm": ModelInfo("Hybrid factorisation (LightFM-like)", True, {"pairs": "lightfm:LightFm"}),
    "dlrm": ModelInfo("DLRM-like network", True, {"pairs": "dlrm:Dlrm"}),
    "raw": ModelInfo("Network on raw features", True, {"pairs": "raw:RawNetwork"}),
}
"""In the order of the tables."""


def missing(name: str) -> str | None:
    """Return why a model cannot be used here, or None when it can.

    Raises
    ------
    ValueError
        An unknown name.
    """
    needs = _info(name).needs
    if needs is None or importlib.util.find_spec(needs[0]) is not None:
        return None
    return f"{needs[0]} is not installed: pip install 'palate[{needs[1]}]'"


def user_model(name: str) -> UserModel:
    """Return a new model that gives vectors of users. Raises as ``pair_model`` does."""
    model: UserModel = _make(name, "vectors")
    return model


def pair_model(name: str) -> PairModel:
    """Return a new, unfitted model that scores pairs.

    Raises
    ------
    ValueError
        An unknown name, or a model that does not score pairs.
    ImportError
        A library of an extra is not installed; ``missing`` tells it beforehand.
    """
    model: PairModel = _make(name, "pairs")
    return model


def full_ranker(name: str) -> FullRanker:
    """Return a new, unfitted model that ranks the catalogue. Raises as ``pair_model`` does."""
    model: FullRanker = _make(name, "ranking")
    return model


def models_for(kind: Kind) -> list[str]:
    """Return the names of the models that can be asked for this, in the order of the tables."""
    _check_kind(kind)
    return [name for name, info in MODELS.items() if kind in info.factories]


def of_space(number: int) -> str:
    """Return the name of the model that is another space's embedding, read by the light head."""
    return f"space_{number}"


def choose(
    kind: Kind, names: Sequence[str] | None = None, spaces: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Return the models to run, and the others with the reason why they are left out.

    Parameters
    ----------
    kind : Kind
    names : sequence of str, optional
        None: all. Names of models of another kind are left out silently: one list serves all tasks.
    spaces : collection of str
        Names of other spaces (`of_space`), which come last whatever ``names`` are.

    Raises
    ------
    ValueError
        An unknown name.
    """
    wanted = [n for n in models_for(kind) if names is None or n in names]
    for name in names or ():
        _info(name)
    reasons = {name: why for name in wanted if (why := missing(name)) is not None}
    return [*(name for name in wanted if name not in reasons), *spaces], reasons


def _info(name: str) -> ModelInfo:
    if _SPACE.fullmatch(name):
        title = f"Embedding of {name.replace('_', ' ')}, light head"
        made = {
            "vectors": "vectors:of_space",
            "pairs": "head:of_space",
            "ranking": "ranking_head:of_space",
        }
        return ModelInfo(title, False, made)
    if name not in MODELS:
        raise ValueError(f"Unknown model {name!r}. Known: {', '.join(sorted(MODELS))}.")
    return MODELS[name]


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"Unknown kind {kind!r}, one of {', '.join(get_args(Kind))} expected.")


def _make(name: str, kind: Kind) -> Any:
    _check_kind(kind)
    factory = _info(name).factories.get(kind)
    if factory is None:
        raise ValueError(
            f"Model {name!r} cannot be asked for {kind}. These can: {', '.join(models_for(kind))}."
        )
    reason = missing(name)
    if reason is not None:
        raise ImportError(f"Model {name!r} needs a library: {reason}.")
    module, function = factory.split(":")
    make: Callable[..., Any] = getattr(
        importlib.import_module(f"materialize.evaluate.models.{module}"), function
    )
    return make(name) if _SPACE.fullmatch(name) else make()
