"""Puts the tables of evaluations and studies into docs/quality.md: nobody edits figures by hand.

PYTHONPATH=. python docs/tables.py ml1m=REPO/data/evaluations/space-1/KEY/summary.json

Tables of an evaluation stand between `<!-- ml1m future: auc@popularity; all, cold -->` and
`<!-- end -->`; those of data sets that are not named stay as they are. The table of a study stands
between `<!-- study decay: auc_micro all, auc_micro cold -->` and `<!-- end -->`, and comes from
docs/studies; that of the benchmark `transfer` between `<!-- transfer amazon_crossdomain -->` and
`<!-- end -->`. Those of a scaling grid stand in docs/guides/scaling.md, between `<!-- scaling -->`
and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks._transfer_results import markdown
from benchmarks.harness import RESULTS
from materialize.evaluate.table import figure_table
from materialize.scaling.fit import markdown as laws

_PAGE = Path(__file__).with_name("quality.md")
_GUIDE = Path(__file__).with_name("guides") / "scaling.md"
_STUDIES = Path(__file__).with_name("studies")
_SIGNIFICANT = 0.05
_STUDY = re.compile(r"(<!-- study (\w+): ([^;\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TABLE = re.compile(r"(<!-- (\w+) (\w+): ([^;\n]+); ([^;\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SCALING = re.compile(r"(<!-- scaling -->\n).*?(<!-- end -->)", re.DOTALL)
_TRANSFER = re.compile(r"(<!-- transfer (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Fill the tables of the data sets that were named."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("summaries", nargs="*", help="NAME=summary.json of `palate evaluate`")
    paths = dict(given.split("=", 1) for given in asked.parse_args().summaries)
    known = {name: json.loads(Path(path).read_text()) for name, path in paths.items()}
    filled = 0

    def table(found: re.Match[str]) -> str:
        nonlocal filled
        begin, name, task, metrics, groups, end = found.groups()
        if name not in known:
            return found.group(0)
        filled += 1
        return f"{begin}\n{_tables(known[name], task, _names(metrics), _names(groups))}\n\n{end}"

    def study(found: re.Match[str]) -> str:
        nonlocal filled
        filled += 1
        begin, name, columns, end = found.groups()
        summary = json.loads((_STUDIES / f"{name}.json").read_text(encoding="utf-8"))
        pairs = [column.split() for column in _names(columns)]
        return f"{begin}\n{_study_table(summary, pairs)}\n\n{end}"

    def transfer(found: re.Match[str]) -> str:
        nonlocal filled
        filled += 1
        begin, name, end = found.groups()
        content = json.loads((RESULTS / "transfer.json").read_text(encoding="utf-8"))
        (result,) = [one for one in content["datasets"] if one["name"] == name]
        return f"{begin}\n{markdown(result)}\n\n{end}"

    def scaling(found: re.Match[str]) -> str:
        nonlocal filled
        filled += 1
        content = json.loads((_STUDIES / "scaling.json").read_text(encoding="utf-8"))
        return f"{found.group(1)}\n{laws(content['fit'])}\n{found.group(2)}"

    _GUIDE.write_text(_SCALING.sub(scaling, _GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    page = _TABLE.sub(table, _PAGE.read_text(encoding="utf-8"))
    page = _STUDY.sub(study, page)
    page = _TRANSFER.sub(transfer, page)
    _PAGE.write_text(page, encoding="utf-8")
    print(f"{filled} places filled in {_PAGE}")


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]


def _tables(summary: dict[str, Any], task: str, metrics: list[str], groups: list[str]) -> str:
    parts = []
    for metric in metrics:
        for group in groups:
            wanted = {"task": task, "metric": metric, "group": group}
            rows = [r for r in summary["results"] if all(r[k] == v for k, v in wanted.items())]
            if not rows:
                raise SystemExit(f"No figure of {wanted} in {summary['dataset']}.")
            parts.append(figure_table((task, metric, group), rows))
    return "\n\n".join(parts)


def _study_table(summary: dict[str, Any], columns: list[list[str]]) -> str:
    """Return a row for each variant, each figure with its difference to the default."""
    heads = [f"{metric}, {group}" for metric, group in columns]
    lines = [
        f"| variant | seeds | inputs | {' | '.join(heads)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for variant in summary["variants"]:
        cells = [variant["title"], str(len(variant["seeds"])), f"{variant['n_inputs']:,}"]
        for metric, group in columns:
            wanted = {"variant": variant["name"], "metric": metric, "group": group}
            (row,) = [r for r in summary["results"] if all(r[k] == v for k, v in wanted.items())]
            cells.append(_compared(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _compared(row: dict[str, Any]) -> str:
    value, against = f"{row['value']:.3f}", row["against_default"]
    if against is None:
        return f"{value} [{row['low']:.3f}, {row['high']:.3f}]"
    difference = f"{against['difference']['value']:+.3f}"
    sure = against["p_holm"] < _SIGNIFICANT
    return f"{value} ({f'**{difference}**' if sure else difference})"


if __name__ == "__main__":
    main()
