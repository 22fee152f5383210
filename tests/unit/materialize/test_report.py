from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from materialize.report import figures
from materialize.report.report import ReportInput, write_report
from materialize.report.theme import PALETTE
from materialize.report.users import (
    UserMap,
    build_user_map,
    nearest_users,
    user_data,
    user_map,
)
from tests.unit.materialize.report_input import EVIL, complete, history, interval, probe

SECTIONS = {
    *("key-figures", "way", "lineage", "probe", "map", "neighbours", "training", "steps"),
    *("validation", "evaluation", "studies", "drift"),
}


class Page(HTMLParser):
    """What a browser sees: tags with attributes, ids, the text of each script, the other text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or f"{tag}-{len(self.tags)}"
            self.scripts[self._inside] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        else:
            self.scripts[self._inside] += data

    def with_id(self, tag: str) -> set[str]:
        return {str(a["id"]) for t, a in self.tags if t == tag and "id" in a}


def written(data: ReportInput, folder: Path) -> tuple[str, Page]:
    html = write_report(data, folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_every_section_and_figure_is_on_the_page(tmp_path: Path) -> None:
    _, page = written(complete(), tmp_path)
    assert page.with_id("section") == SECTIONS
    drawn = set(json.loads(page.scripts["figures"]))
    assert drawn == {
        *("loss", "blocks", "micro", "macro", "targets", "between-spaces", "cost", "exposure"),
        *("future-auc@popularity", "future-auc@uniform", "beyond-ece@uniform"),
        *("reliability-popularity", "reliability-uniform", "group-gender"),
        *("study-dimensions-probe-auc_micro", "study-dimensions-drift"),
    }
    places = {name for name in page.with_id("div") if name.startswith("figure-")}
    assert {f"figure-{name}" for name in drawn | {"map"}} == places
    for figure in (
        "1,000,209", "0.710", "95%: 0.700 to 0.730", "2.5e-07", "of 3,000 asked for",
        "c0ffee123456", "20,411", "1,234", "12.3", "38% of the variance", "2000-04-25", "1,010",
        "0.507 [0.495, 0.519]",
    ):  # fmt: skip
        assert figure in page.text


def test_the_way_to_the_space_is_drawn_with_its_bridges(tmp_path: Path) -> None:
    _, page = written(complete(), tmp_path)
    assert "svg" in {tag for tag, _ in page.tags}
    for text in ("space 3", "000000000003", "1 consumer", "1 earlier space is not shown", "0.930"):
        assert text in page.text
    boxes = [a["class"] or "" for tag, a in page.tags if tag == "rect"]
    assert len(boxes) == 10
    assert sum("chosen" in box for box in boxes) == 7


def test_nothing_is_fetched_from_outside(tmp_path: Path) -> None:
    html, page = written(complete(), tmp_path)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not {"src", "srcset", "action", "background"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), "a place on the page itself"
    styles = [text for name, text in page.scripts.items() if name.startswith("style")]
    assert styles
    assert not any("url(" in text or "@import" in text for text in styles)
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert html.count("Plotly, Inc.") == 1, "Plotly's script is inlined once"


def test_text_of_the_data_cannot_break_out(tmp_path: Path) -> None:
    _, plain = written(complete(), tmp_path)
    html, evil = written(complete(EVIL), tmp_path)
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert set(evil.scripts) == set(plain.scripts)
    assert EVIL not in html
    assert EVIL in evil.text
    users = json.loads(evil.scripts["users"])
    assert users["users"][0] == EVIL
    # Plotly obeys some HTML in labels, so these must be escaped once more inside the JSON.
    assert "<script" not in json.dumps(json.loads(evil.scripts["figures"]))


def _colouring(values: list[str]) -> dict[str, Any]:
    users = UserMap(np.zeros((len(values), 2)), 1.0, [""] * len(values), {"t": values})
    (colouring,) = user_data(users, None)["colourings"]
    names = colouring["names"]
    assert [names[code] for code in colouring["codes"]] == [v or "unknown" for v in values]
    return dict(colouring)


def test_the_most_frequent_values_have_a_colour_and_all_have_a_name() -> None:
    n_names = len(PALETTE) + 3
    values = [f"tag{k:02d}" for k in range(n_names) for _ in range(n_names - k)] + ["", ""] * 20
    found = _colouring(values)
    assert found["names"] == [*(f"tag{k:02d}" for k in range(n_names)), "unknown"]
    assert found["colours"] == list(PALETTE)
    assert found["unknown"] == n_names


def test_few_values_that_begin_with_a_number_are_ordered_by_it() -> None:
    found = _colouring(["56+", "1 to 17", "56+", "25", "9.5"])
    assert found["names"] == ["1 to 17", "9.5", "25", "56+"]
    assert found["unknown"] is None
    assert len(set(found["colours"])) == 4
    many = _colouring([str(k) for k in range(len(PALETTE) + 1)] + ["7"])  # codes, not amounts
    assert many["names"][0] == "7"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("given", "folder that was given"),
        ("fetched", "fetched from"),
        ("simulated", "not real people"),
    ],
)
def test_the_page_says_plainly_what_the_data_are(tmp_path: Path, source: str, words: str) -> None:
    _, page = written(ReportInput({"dataset": "d", "source": source}), tmp_path)
    assert words in page.text


def test_parts_that_were_not_run_are_named(tmp_path: Path) -> None:
    _, page = written(ReportInput({"dataset": "d", "source": "given"}), tmp_path)
    assert page.with_id("section") == SECTIONS
    for sentence in (
        "No probe was run.", "No map was drawn.", "No neighbours were looked for.",
        "No training history was given.", "No step was measured.",
        "No validation report was given.", "No ledger was read.", "No evaluation was run",
        "No study was run", "Nothing was measured",
    ):  # fmt: skip
        assert sentence in page.text
    assert json.loads(page.scripts["figures"]) == {}
    assert json.loads(page.scripts["users"]) is None


def test_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"source 'found' given, one of \['fetched', 'given', 'repository'"
    ):
        write_report(ReportInput({"dataset": "d", "source": "found"}), tmp_path / "r.html")


def test_failed_report_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(complete(), path)
    before = path.read_bytes()
    broken = [{**record, "train_loss": float("nan")} for record in history()]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(ReportInput({"dataset": "d", "source": "given"}, history=broken), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_verdicts_follow_the_interval(tmp_path: Path) -> None:
    html, _ = written(complete(), tmp_path)
    table = html[html.index("Embedding minus baseline") :]
    found = re.findall(r'<span class="tag \w+">(\w+)</span>', table[: table.index("</table>")])
    # Differences of +.05, -.005 (interval holds zero), -.2 and none, in each of three groups.
    assert found == ["better", "open", "worse", "undefined"] * 3


@pytest.mark.parametrize(
    "figure",
    [
        figures.loss_figure(history()),
        figures.blocks_figure(history()),
        figures.probe_figure(probe(), "auc_micro"),
        figures.targets_figure(probe()),
    ],
)
def test_figures_are_valid_for_plotly(figure: Mapping[str, Any]) -> None:
    assert len(go.Figure(figure).data) == len(figure["data"])


def test_bars_start_at_chance_and_small_groups_are_left_to_the_table() -> None:
    figure = figures.probe_figure(probe(), "auc_macro")
    bar = figure["data"][0]
    assert bar["name"] == "embedding"
    assert bar["base"] == 0.5
    assert bar["y"] == pytest.approx([0.21, 0.21])  # 0.71 - 0.5; the group of 7 users is left out
    assert bar["error_y"]["array"] == pytest.approx([0.02, 0.02])
    assert bar["error_y"]["arrayminus"] == pytest.approx([0.01, 0.01])


def test_the_probe_of_an_evaluation_is_drawn_with_all_its_models_and_groups(
    tmp_path: Path,
) -> None:
    told = probe()
    everybody = told["groups"]["all"]
    for model, value in (("raw", 0.72), ("raw_inputs", 0.7), ("another", 0.4)):
        auc = {"auc_micro": interval(value), "auc_macro": interval(value)}
        everybody["models"][model] = auc
        everybody["differences"][model] = {"auc_micro": interval(0.1), "auc_macro": interval(0.1)}
    told["groups"] = {name: everybody for name in ("all", "newcomer", "newcomer_skipped")}
    figure = figures.probe_figure(told, "auc_macro")
    assert [bar["name"] for bar in figure["data"]] == [
        "embedding", "raw pooled features", "raw inputs", "network on raw features",
        "popularity", "Another",
    ]  # fmt: skip
    assert len({bar["marker"]["color"] for bar in figure["data"]}) == 6
    assert figure["data"][0]["x"][1].startswith("first four hours<br>")
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 0.39 < 0.74 < high
    html, _ = written(replace(complete(), probe=told), tmp_path)
    assert "<td>network on raw features</td>" in html


def test_a_probe_against_chosen_baselines_is_reported(tmp_path: Path) -> None:
    told = probe()
    for group in told["groups"].values():
        del group["models"]["raw_pooled"], group["differences"]["raw_pooled"]
    for row in told["per_target"]:
        del row["raw_pooled"]
    html, _ = written(replace(complete(), probe=told), tmp_path)
    assert "macro AUC, embedding" in html
    assert "macro AUC, raw pooled features" not in html


def test_best_epoch_is_the_one_with_the_lowest_validation_loss() -> None:
    mark = figures.loss_figure(history())["data"][-1]
    assert (mark["x"], mark["y"]) == ([2], [0.4])
    figure = figures.blocks_figure(history())
    names = figure["layout"]["yaxis"]["ticktext"]
    best = figure["data"][-1]
    found = {names[y]: x for y, x in zip(best["y"], best["x"], strict=True)}
    assert found == {"counts": 0.45, "content_7d": 0.25}


def test_user_map_keeps_the_directions_of_largest_variance() -> None:
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((300, 2)) * [5.0, 2.0]
    rotation, _ = np.linalg.qr(rng.standard_normal((10, 10)))
    embeddings = plane @ rotation[:2] + 7 + 0.01 * rng.standard_normal((300, 10))
    found, explained = user_map(embeddings.astype(np.float32))
    assert found.shape == (300, 2)
    assert 0.999 < explained < 1.0
    for k in range(2):
        assert abs(np.corrcoef(found[:, k], plane[:, k])[0, 1]) > 0.97


def test_a_map_wants_one_value_a_user() -> None:
    embeddings = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    shown = build_user_map(embeddings, range(6), {"even": ["a", "b"] * 3})
    assert list(shown.users) == ["0", "1", "2", "3", "4", "5"]
    with pytest.raises(ValueError, match=r"even: 1 value\(s\) given, 6 expected"):
        build_user_map(embeddings, range(6), {"even": ["0"]})


def test_nearest_users_exclude_the_user_and_survive_a_zero_vector() -> None:
    embeddings = np.array([[1.0, 0.0], [3.0, 0.3], [0.0, 1.0], [0.0, 0.0]], np.float32)
    found, cosine = nearest_users(embeddings, 3)
    assert found[0].tolist()[0] == 1
    assert all(user not in near for user, near in enumerate(found.tolist()))
    assert cosine[0, 0] == pytest.approx(3 / np.hypot(3, 0.3))
    assert cosine[3].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="k 4 given, 1 to 3 expected"):
        nearest_users(embeddings, 4)


def test_nearest_users_in_chunks_are_those_of_all_pairs() -> None:
    embeddings = np.random.default_rng(0).standard_normal((1_300, 3))
    found, cosine = nearest_users(embeddings, 2)
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    whole = directions @ directions.T
    np.fill_diagonal(whole, -np.inf)
    assert found.tolist() == np.argsort(-whole, axis=1)[:, :2].tolist()
    assert cosine[:, 0] == pytest.approx(whole.max(axis=1))
