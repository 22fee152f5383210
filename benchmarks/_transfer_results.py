"""What the benchmark `transfer` found: means over encoder seeds, paired differences, a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._transfer_mlp import ALL, NEW_SERVICE
from benchmarks._transfer_plan import METRIC
from encoder.resampling import Replicates
from materialize.evaluate.measurement import Measurement
from materialize.evaluate.models.registry import MODELS
from materialize.evaluate.statistics import holm, over_seeds, two_sided_p

if TYPE_CHECKING:
    from benchmarks._transfer_judge import Judged
    from benchmarks._transfer_plan import Variant
    from benchmarks._transfer_repo import Trained

__all__ = ["markdown", "mean_over_encoders", "summarise"]

_SIGNIFICANT = 0.05
_TITLES = {
    "raw_pooled": "Mean item vectors of all windows, linear head",
    "raw_inputs": "Raw inputs, linear head",
    "coles": "CoLES, linear head",
}
"""Where the registry's title tells of another head, or has none."""


def mean_over_encoders(figures: Sequence[Replicates]) -> Replicates:
    """Return the mean of figures of several encoders on the same resamples of users.

    Raises
    ------
    ValueError
        None, or other numbers of resamples.

    Notes
    -----
    Replicate ``b`` is the mean over the encoders on resample ``b``: the interval is one of users
    for the average of just these encoders. How far encoders differ is another question, which
    their spread answers.
    """
    sizes = {len(one.replicates) for one in figures}
    if len(sizes) != 1:
        raise ValueError(
            f"Figures of {len(figures)} encoders with {sorted(sizes)} resamples given, some with "
            "the same number of resamples expected."
        )
    return Replicates(
        float(np.mean([one.value for one in figures])),
        np.mean([one.replicates for one in figures], axis=0),
    )


def summarise(
    name: str,
    variants: Sequence[Variant],
    trained: Sequence[Trained],
    judged: Judged,
    other: str = "",
) -> dict[str, Any]:
    """Return one data set's result, JSON types; ``other`` is the data set of adopted encoders.

    Returns
    -------
    dict
        ``name``, ``metric``, ``cohort``, ``evaluation_seconds``, ``skipped``, ``spaces`` (see
        ``Trained``), ``reference`` (the first variant), and ``models``: encoders first, each
        ``name``, ``title``, ``kind`` (``encoder`` or ``baseline``), ``by_encoder_seed`` (empty for
        a baseline), ``encoder_spread`` (standard deviation over encoder seeds, None for fewer than
        two), the mean over seeds of encoders and heads ``value`` with its 95% interval over users
        ``low`` and ``high``, and ``against_reference``, None for the reference itself: the model's
        ``difference`` to it (``value``, ``low``, ``high``), paired; ``p`` two-sided, and ``p_holm``
        corrected for all models of the data set. ``network``: the same of a network on the vectors
        (mean over encoders, one seed of the network), by group (``all``, ``new_service``) and
        model. ``beside``: further paired differences, each ``name``, ``than``, ``group``,
        ``difference`` and ``p``, two-sided, not corrected: of linear heads (group None) and of the
        network.
    """
    by_model: dict[str, list[Measurement]] = {}
    for measurement in judged.measurements:
        by_model.setdefault(measurement.model, []).append(measurement)
    heads = {model: over_seeds(found) for model, found in by_model.items()}
    figures: dict[str, Replicates] = {}
    rows: list[dict[str, Any]] = []
    for variant in variants:
        own = [heads.pop(one.model) for one in trained if one.variant == variant.name]
        figures[variant.name] = mean_over_encoders(own)
        values = [one.value for one in own]
        rows.append(
            {
                "name": variant.name,
                "title": variant.title.format(other=other),
                "kind": "encoder",
                "by_encoder_seed": values,
                "encoder_spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            }
        )
    for model, figure in heads.items():
        figures[model] = figure
        title = _TITLES.get(model) or MODELS[model].title
        rows.append(
            {
                "name": model,
                "title": title,
                "kind": "baseline",
                "by_encoder_seed": [],
                "encoder_spread": None,
            }
        )
    reference = variants[0].name
    against = _against(figures, reference)
    return {
        "name": name,
        "metric": METRIC,
        "cohort": judged.cohort,
        "evaluation_seconds": judged.seconds,
        "skipped": judged.skipped,
        "spaces": [asdict(one) for one in trained],
        "reference": reference,
        "models": [
            {
                **row,
                **figures[row["name"]].interval.to_dict(),
                "against_reference": against.get(row["name"]),
            }
            for row in rows
        ],
        "network": {
            group: _under_a_network(
                [m for m in judged.network if m.group == group], variants, trained, reference
            )
            for group in dict.fromkeys(m.group for m in judged.network)
        },
        "beside": [
            told
            for variant in variants
            for than in variant.beside
            if than in figures
            for told in _beside(variant, than, figures, judged.network, trained)
        ],
    }


def _beside(
    variant: Variant,
    than: str,
    linear: Mapping[str, Replicates],
    network: Sequence[Measurement],
    trained: Sequence[Trained],
) -> Iterator[dict[str, Any]]:
    """Yield how a variant differs from another one."""
    by_group: dict[str | None, Mapping[str, Replicates]] = {None: linear}
    for group in dict.fromkeys(m.group for m in network):
        alone = {m.model: Replicates(m.value, m.replicates) for m in network if m.group == group}
        by_group[group] = {
            name: mean_over_encoders([alone[one.model] for one in trained if one.variant == name])
            for name in (variant.name, than)
        }
    for of_group, figures in by_group.items():
        difference = figures[variant.name].minus(figures[than])
        yield {
            "name": variant.name,
            "than": than,
            "group": of_group,
            "difference": difference.interval.to_dict(),
            "p": two_sided_p(difference),
        }


def _under_a_network(
    measured: Sequence[Measurement],
    variants: Sequence[Variant],
    trained: Sequence[Trained],
    reference: str,
) -> dict[str, Any]:
    alone = {m.model: Replicates(m.value, m.replicates) for m in measured}
    figures = {
        variant.name: mean_over_encoders(
            [alone.pop(one.model) for one in trained if one.variant == variant.name]
        )
        for variant in variants
    } | alone
    against = _against(figures, reference)
    return {
        name: {**figure.interval.to_dict(), "against_reference": against.get(name)}
        for name, figure in figures.items()
    }


def _against(figures: Mapping[str, Replicates], reference: str) -> dict[str, Any]:
    """Return each other model's paired difference to the reference; all are one family for Holm."""
    differences = {
        name: figure.minus(figures[reference])
        for name, figure in figures.items()
        if name != reference
    }
    p = [two_sided_p(difference) for difference in differences.values()]
    return {
        name: {"difference": difference.interval.to_dict(), "p": raw, "p_holm": float(corrected)}
        for (name, difference), raw, corrected in zip(differences.items(), p, holm(p), strict=True)
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return one data set's result as a Markdown table, one model a line."""
    cohort = result["cohort"]
    reference = next(m["title"] for m in result["models"] if m["name"] == result["reference"])
    lines = [
        f"**{result['name']}** (next {cohort['horizon_days']} days, {cohort['test_rows']:,} rows "
        f"of test users)",
        "",
        f"| model | micro AUC | by encoder seed | difference to {reference} | p "
        "| with a network | its difference | in a new service | its difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        against = model["against_reference"]
        cells = [
            model["title"],
            f"{model['value']:.3f} [{model['low']:.3f}, {model['high']:.3f}]",
            ", ".join(f"{value:.3f}" for value in model["by_encoder_seed"]),
        ]
        cells += [_difference(against), "" if against is None else f"{against['p_holm']:.3f}"]
        for group in (ALL, NEW_SERVICE):
            told = result["network"].get(group, {}).get(model["name"])
            if told is None:
                cells += ["", ""]
            else:
                cells += [f"{told['value']:.3f}", _difference(told["against_reference"])]
        lines.append(f"| {' | '.join(cells)} |")
    titles = {model["name"]: model["title"] for model in result["models"]}
    for told in result["beside"]:
        found = told["difference"]
        head = {None: "linear head", ALL: "network", NEW_SERVICE: "network, in a new service"}
        lines += [
            "",
            f"{titles[told['name']]} against {titles[told['than']]}, {head[told['group']]}: "
            f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}], "
            f"p {told['p']:.3f}.",
        ]
    return "\n".join(lines)


def _difference(against: Mapping[str, Any] | None) -> str:
    """Return a difference with its interval, in bold where Holm's p is small; "" for none."""
    if against is None:
        return ""
    found = against["difference"]
    text = f"{found['value']:+.3f}"
    sure = against["p_holm"] < _SIGNIFICANT
    return f"{f'**{text}**' if sure else text} [{found['low']:+.3f}, {found['high']:+.3f}]"
