"""Draws the report's plots of studies as SVG, for pages that run no script.

PYTHONPATH=. python docs/plots.py docs/studies/decay.json --metric auc_micro --metric ndcg@50_taste
PYTHONPATH=. python docs/plots.py docs/studies/scaling.json  # of `palate scaling fit --record`
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from materialize.report.studied import study_views
from materialize.scaling.plot import figures
from tests.browser import chromium

_COLOURS = {"ink": "#1f2933", "soft": "#5b6776", "line": "#dfe4ea", "grid": "#e6e9ee"}
_WIDTH = 860


def main() -> None:
    """Draw each metric that was asked for of each summary, beside its file."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("summaries", nargs="+", type=Path, help="what a study or grid left")
    asked.add_argument("--metric", action="append", default=[])
    given = asked.parse_args()
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(f"<script>{get_plotlyjs()}</script><div></div>")
        for path in given.summaries:
            content = json.loads(path.read_text(encoding="utf-8"))
            grid = "grid" in content
            for name, figure in _of_grid(content) if grid else _of_study(content, given.metric):
                target = path.with_name(f"{path.stem}-{name}.svg")
                target.write_text(page.evaluate(_DRAW, _plain(figure)), encoding="utf-8")
                print(target)


def _of_study(content: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[tuple[str, Any]]:
    (view,) = study_views([content])
    plots = {m.key: m.figure for m in view.metrics} | {"drift": view.drift}
    for metric in metrics:
        ending = f"-{metric}"
        for key, figure in plots.items():
            if f"-{key}".endswith(ending) and figure:
                yield re.sub(r"[^a-z0-9_]", "-", metric), figure


def _of_grid(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    drawn = figures(content["runs"], content["fit"]).values()
    for name, figure in zip(("loss", "batches", "mrr", "downstream"), drawn, strict=True):
        figure.update_layout(height=480, template="plotly_white")
        yield name, json.loads(figure.to_json())


def _plain(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return a figure on white, with colours in place of the page's variables."""
    text = json.dumps(figure)
    for name, colour in _COLOURS.items():
        text = text.replace(f"var(--{name})", colour)
    plain: dict[str, Any] = json.loads(re.sub(r"var\(--\w+\)", "#7b8794", text))
    plain["layout"] |= {"paper_bgcolor": "#fff", "plot_bgcolor": "#fff", "width": _WIDTH}
    return plain


_DRAW = """
async figure => {
    const link = await Plotly.toImage(figure, {format: "svg", width: figure.layout.width,
                                               height: figure.layout.height});
    return decodeURIComponent(link.slice(link.indexOf(",") + 1));
}
"""


if __name__ == "__main__":
    main()
