"""Draws the report's plots of studies as SVG, for pages that run no script.

PYTHONPATH=. python docs/plots.py docs/studies/decay.json --metric auc_micro --metric ndcg@50_taste
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from materialize.report.studied import study_views
from tests.browser import chromium

_COLOURS = {"ink": "#1f2933", "soft": "#5b6776", "line": "#dfe4ea", "grid": "#e6e9ee"}
_WIDTH = 860


def main() -> None:
    """Draw each metric that was asked for of each summary, beside its file."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("summaries", nargs="+", type=Path, help="what `palate study run` kept")
    asked.add_argument("--metric", action="append", required=True)
    given = asked.parse_args()
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(f"<script>{get_plotlyjs()}</script><div></div>")
        for path in given.summaries:
            (view,) = study_views([json.loads(path.read_text(encoding="utf-8"))])
            figures = {m.key: m.figure for m in view.metrics} | {"drift": view.drift}
            for metric in given.metric:
                ending = f"-{metric}"
                found = [f for key, f in figures.items() if f"-{key}".endswith(ending) and f]
                for figure in found:
                    name = re.sub(r"[^a-z0-9_]", "-", metric)
                    target = path.with_name(f"{path.stem}-{name}.svg")
                    target.write_text(page.evaluate(_DRAW, _plain(figure)), encoding="utf-8")
                    print(target)


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
