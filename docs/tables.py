"""Puts the tables of evaluations into docs/quality.md, so that nobody edits figures by hand.

PYTHONPATH=. python docs/tables.py ml1m=REPO/data/evaluations/space-1/KEY/summary.json

A table stands between `<!-- ml1m future: auc@popularity; all, cold -->` and `<!-- end -->`; the
tables of data sets that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from materialize.evaluate.table import figure_table

_PAGE = Path(__file__).with_name("quality.md")
_TABLE = re.compile(r"(<!-- (\w+) (\w+): ([^;\n]+); ([^;\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Fill the tables of the data sets that were named."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("summaries", nargs="+", help="NAME=summary.json of `palate evaluate`")
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

    page = _TABLE.sub(table, _PAGE.read_text(encoding="utf-8"))
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


if __name__ == "__main__":
    main()
