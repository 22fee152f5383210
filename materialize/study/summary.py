"""What a study found, as JSON: the one layout that tables, figures and the report read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from encoder.resampling import Interval, Replicates
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.statistics import Comparison, holm, over_seeds, two_sided_p
from materialize.study.variant import DEFAULT, Variant

__all__ = ["VariantResult", "summarise"]

_Key = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class VariantResult:
    """Everything that was found of one variant.

    Attributes
    ----------
    variant : Variant
    training : mapping of int to mapping
        Seed -> ``fit.training_facts`` and ``seconds``; finished seeds only.
    measurements : sequence of Measurement
        Of the embedding alone, of all tasks and finished seeds.
    """

    variant: Variant
    training: Mapping[int, Mapping[str, Any]]
    measurements: Sequence[Measurement]


def summarise(facts: Mapping[str, Any], results: Sequence[VariantResult]) -> dict[str, Any]:
    """Return the summary of a study, JSON types without NaN.

    Parameters
    ----------
    facts : mapping
        Put first: study, question, axis, dataset, cohort, tasks, n_resamples, command, and
        left_out (variant -> why these data cannot train it).
    results : sequence of VariantResult
        The default variant among them; variants without a finished seed are left out.

    Returns
    -------
    dict
        ``facts``, and:

        - ``variants``: a list, the default first, of ``name``, ``title``, ``x`` (place on the axis,
          or None), ``changes`` (the fields of `Variant` that differ from the default's), ``seeds``,
          ``embedding_dim``, ``n_inputs``, ``n_parameters`` (of the encoder), ``training_rows``, the
          means over seeds ``epochs``, ``validation_loss`` and ``seconds`` (of the training), and
          ``encoder_versions``, one a seed.
        - ``results``: a list, one for each task, metric, group and variant, of ``task``,
          ``metric``, ``group``, ``variant``, ``higher_is_better``, ``n_users``, ``n_rows``; the
          mean over seeds ``value`` with its 95% interval over users ``low`` and ``high``;
          ``by_seed`` and ``seed_spread`` (standard deviation over seeds, None for one seed); and
          ``against_default``, None for the default itself: ``difference`` and relative ``gain`` of
          this variant to the default, each ``value``, ``low``, ``high``, on the same users and
          seeds; ``p`` two-sided and ``p_holm``, corrected for all variants of this task, metric
          and group.

        What is not defined is None.
    """
    finished = _of_compared_seeds([result for result in results if result.training])
    return {
        **facts,
        "variants": [_told(result) for result in finished],
        "results": _figures(finished),
    }


def _of_compared_seeds(results: Sequence[VariantResult]) -> list[VariantResult]:
    """Leave out the default's seeds that no other variant has: its figure stands beside theirs.

    All studies share the default's units, and some have more seeds than others.
    """
    seeds = {k for result in results if result.variant.name != DEFAULT for k in result.training}
    return [
        replace(
            result,
            training={k: v for k, v in result.training.items() if k in seeds},
            measurements=[m for m in result.measurements if m.seed in seeds],
        )
        if result.variant.name == DEFAULT and seeds & set(result.training)
        else result
        for result in results
    ]


def _told(result: VariantResult) -> dict[str, Any]:
    variant, trainings = result.variant, list(result.training.values())
    blank = asdict(Variant(variant.name, variant.title, x=variant.x))
    first = trainings[0]
    return {
        "name": variant.name,
        "title": variant.title,
        "x": variant.x,
        "changes": {name: _plain(v) for name, v in asdict(variant).items() if v != blank[name]},
        "seeds": list(result.training),
        **{name: first[name] for name in ("embedding_dim", "n_inputs", "n_parameters")},
        "training_rows": first["training_rows"],
        **{
            name: float(np.mean([facts[name] for facts in trainings]))
            for name in ("epochs", "validation_loss", "seconds")
        },
        "encoder_versions": [facts["encoder_version"] for facts in trainings],
    }


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON has them: what is written is what is read."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _figures(results: Sequence[VariantResult]) -> list[dict[str, Any]]:
    by_key: dict[_Key, dict[str, dict[int, Measurement]]] = {}
    for result in results:
        for m in result.measurements:
            variants = by_key.setdefault((m.task, m.metric, m.group), {})
            variants.setdefault(result.variant.name, {})[m.seed] = m
    rows: list[dict[str, Any]] = []
    for (task, metric, group), variants in by_key.items():
        against = _against_default(variants)
        for name, by_seed in variants.items():
            measured = list(by_seed.values())
            figure, values = over_seeds(measured), [m.value for m in measured]
            compared = against.get(name)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "group": group,
                    "variant": name,
                    "higher_is_better": measured[0].higher_is_better,
                    "n_users": measured[0].n_users,
                    "n_rows": measured[0].n_rows,
                    **Interval.of(figure.value, figure.replicates).to_dict(),
                    "by_seed": [None if np.isnan(value) else value for value in values],
                    "seed_spread": _spread(values),
                    "against_default": None if compared is None else compared.to_dict(),
                }
            )
    return rows


def _against_default(variants: Mapping[str, Mapping[int, Measurement]]) -> dict[str, Comparison]:
    """Return each variant against the default, on the seeds that both have."""
    default = variants.get(DEFAULT, {})
    pairs: dict[str, tuple[Replicates, Replicates]] = {}
    for name, by_seed in variants.items():
        common = [seed for seed in by_seed if seed in default]
        if name != DEFAULT and common:
            pairs[name] = (
                over_seeds([by_seed[seed] for seed in common]),
                over_seeds([default[seed] for seed in common]),
            )
    differences = {name: mine.minus(theirs) for name, (mine, theirs) in pairs.items()}
    p = [two_sided_p(difference) for difference in differences.values()]
    corrected = holm(p)
    return {
        name: Comparison(
            difference.interval, pairs[name][0].gain_over(pairs[name][1]).interval, raw, float(adj)
        )
        for (name, difference), raw, adj in zip(differences.items(), p, corrected, strict=True)
    }


def _spread(values: Sequence[float]) -> float | None:
    if len(values) < 2 or np.isnan(values).any():
        return None
    return float(np.std(values, ddof=1))
