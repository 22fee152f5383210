"""The report in a real browser: what is drawn, what can be chosen, and that nothing is fetched."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from materialize.report.report import ReportInput, write_report
from materialize.report.users import Neighbours, UserMap
from materialize.report.words import number
from tests.browser import Opened, opened
from tests.unit.materialize.report_input import EVIL, complete
from tests.unit.materialize.report_records import evaluation, people, study

_MOST_SECONDS = 60.0

_SHOWN = """
() => document.getElementById("figure-map").data
    .filter((trace) => !["neighbours"].includes(trace.name) && !trace.name.startsWith("user "))
    .map((trace) => [trace.name, trace.customdata])
"""


def _content() -> ReportInput:
    users, neighbours = people()
    return replace(
        complete(),
        user_map=users,
        neighbours=neighbours,
        studies=[study(), study("ablations", None)],
    )


@pytest.fixture(scope="module")
def report(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    path = write_report(_content(), tmp_path_factory.mktemp("page") / "report.html")
    with opened(browser, path) as found:
        yield found


@pytest.fixture
def page(report: Opened) -> Page:
    """The page as a reader who has just opened it would see it."""
    report.page.locator("#show-all").click()
    report.page.select_option("#colouring", "0")
    return report.page


@pytest.fixture(scope="module")
def users() -> UserMap:
    return people()[0]


@pytest.fixture(scope="module")
def neighbours() -> Neighbours:
    return people()[1]


def _shown(page: Page) -> dict[str, list[int]]:
    """Return the rows that are drawn, by name in the legend."""
    return {str(name): list(rows) for name, rows in page.evaluate(_SHOWN)}


def _draw_everything(page: Page) -> set[str]:
    """Meet every plot, those behind a choice too, and return their names."""
    drawn = set()
    for place in page.locator("[id^=figure-]").all():
        name = str(place.get_attribute("id"))
        view = page.locator(f'.metric-view:has([id="{name}"])')
        if view.count():
            key = str(view.get_attribute("id")).removeprefix("view-")
            choice = page.locator(f'select.metric:has(option[value="{key}"])')
            if choice.is_visible():
                choice.select_option(key)
        place.scroll_into_view_if_needed()
        expect(place.locator(".main-svg").first).to_be_visible()
        drawn.add(name.removeprefix("figure-"))
    return drawn


def test_every_plot_is_drawn_nothing_is_requested_and_nothing_complains(report: Opened) -> None:
    drawn = _draw_everything(report.page)
    assert {"map", "loss", "blocks", "micro", "future-auc@uniform", "between-spaces"} <= drawn
    assert {"reliability-uniform", "study-dimensions-drift", "exposure", "cost"} <= drawn
    assert report.requests == [report.page.url]
    assert report.complaints == []


def test_a_request_would_be_refused_and_seen(browser: Browser, report: Opened) -> None:
    with opened(browser, _path(report)) as other:
        outcome = other.page.evaluate("fetch('http://127.0.0.1:9/').catch((e) => e.name)")
        assert outcome == "TypeError"
        assert any("Content Security Policy" in text for text in other.complaints)


def test_filters_change_who_is_drawn_and_combine(page: Page, users: UserMap) -> None:
    assert sum(len(rows) for rows in _shown(page).values()) == 60
    page.select_option('select.filter[data-colouring="0"]', label="jazz")
    jazz = [row for row, taste in enumerate(users.colourings["taste"]) if taste == "jazz"]
    assert _shown(page) == {"jazz (30)": jazz, "rock (0)": []}
    page.select_option('select.filter[data-colouring="1"]', label="25")
    both = [row for row in jazz if users.colourings["age"][row] == "25"]
    assert _shown(page)[f"jazz ({len(both)})"] == both
    expect(page.locator("#shown")).to_have_text(f"{len(both)} of 60 users")
    page.locator("#show-all").click()
    expect(page.locator("#shown")).to_have_text("60 of 60 users")


def test_the_map_is_coloured_by_what_is_chosen(page: Page, users: UserMap) -> None:
    page.select_option("#colouring", label="age")
    counts = Counter(value or "unknown" for value in users.colourings["age"])
    assert {name: len(rows) for name, rows in _shown(page).items()} == {
        f"{value} ({n})": n for value, n in counts.items()
    }
    (x, row) = page.evaluate(
        "() => { const t = document.getElementById('figure-map').data[1];"
        " return [t.x[0], t.customdata[0]]; }"
    )
    assert x == pytest.approx(users.coordinates[row, 0], abs=1e-4)


def test_a_chosen_user_shows_its_neighbours_and_what_they_consume(
    page: Page, neighbours: Neighbours
) -> None:
    page.locator("#user-id").fill("u7")
    page.locator("#find button[type=submit]").click()
    expect(page.locator("#chosen-user")).to_have_text("user u7")
    near = page.locator("#near > li")
    expect(near).to_have_count(5)
    told = near.evaluate_all("(all) => all.map((one) => [one.dataset.user, one.innerText])")
    for (user, text), row, cosine in zip(
        told, neighbours.rows[7], neighbours.cosine[7], strict=True
    ):
        assert user == f"u{row}"
        assert f"cosine {cosine:.3f}" in text
        for item in neighbours.consumed[row]:
            assert neighbours.items[item] in text
    ringed = page.evaluate(
        "() => document.getElementById('figure-map').data.find((t) => t.name === 'neighbours')"
        ".customdata"
    )
    assert ringed == neighbours.rows[7].tolist()
    # All five are of the planted group, half of all users are.
    shares = page.locator("#shares tr").first.locator("td").all_inner_texts()
    assert shares == ["taste jazz", "100%", "50%"]


def test_a_neighbour_and_a_dot_can_be_chosen_in_turn(page: Page, neighbours: Neighbours) -> None:
    page.locator("#user-id").fill("u4")
    page.locator("#find button[type=submit]").click()
    page.locator("#near button").first.click()
    nearest = int(neighbours.rows[4, 0])
    expect(page.locator("#chosen-user")).to_have_text(f"user u{nearest}")
    page.evaluate(
        "() => document.getElementById('figure-map').emit('plotly_click',"
        " { points: [{ customdata: 9 }] })"
    )
    expect(page.locator("#chosen-user")).to_have_text("user u9")


def test_a_user_who_is_not_on_the_page_is_told(page: Page) -> None:
    page.locator("#user-id").fill("nobody")
    page.locator("#find button[type=submit]").click()
    expect(page.locator("#find-message")).to_contain_text(
        "User nobody is not among the 60 users of this page"
    )


def test_figures_of_the_tables_are_those_of_the_summaries(page: Page) -> None:
    expected = {
        f"view-future-{metric}": [
            r["value"] for r in evaluation()["results"] if r["metric"] == metric
        ]
        for metric in ("auc@popularity", "auc@uniform")
    }
    expected["view-study-dimensions-probe-auc_micro"] = [r["value"] for r in study()["results"]]
    for view, values in expected.items():
        cells = page.locator(f'[id="{view}"] td[data-value]').evaluate_all(
            "(all) => all.map((cell) => [Number(cell.dataset.value), cell.textContent])"
        )
        assert sorted(value for value, _ in cells) == sorted(values)
        assert all(text.strip().startswith(number(value)) for value, text in cells)


def test_another_figure_of_a_task_is_shown_instead(page: Page) -> None:
    choice = page.locator('select.metric:has(option[value="future-auc@uniform"])')
    for shown, hidden in (("uniform", "popularity"), ("popularity", "uniform")):
        choice.select_option(f"future-auc@{shown}")
        expect(page.locator(f'[id="view-future-auc@{shown}"]')).to_be_visible()
        expect(page.locator(f'[id="view-future-auc@{hidden}"]')).to_be_hidden()


def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    before = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 800})
    try:
        _wait_until(page, "() => document.documentElement.scrollWidth <= 390")  # plots follow
    finally:
        assert before is not None
        page.set_viewport_size(before)


def test_the_dark_page_has_dark_plots(page: Page) -> None:
    colour = "document.getElementById('figure-map').layout.font.color"
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour), page.evaluate(back)
    page.emulate_media(color_scheme="dark")
    try:
        _wait_until(page, f"() => {colour} !== '{light[0]}'")  # plots are drawn anew
        dark = page.evaluate(colour), page.evaluate(back)
    finally:
        page.emulate_media(color_scheme="light")
    _wait_until(page, f"() => {colour} === '{light[0]}'")
    assert [_lightness(c) > 128 for c in light] == [False, True]
    assert [_lightness(c) > 128 for c in dark] == [True, False]


def test_text_of_the_data_stays_text(browser: Browser, tmp_path: Path) -> None:
    content = complete(EVIL)
    path = write_report(content, tmp_path / "report.html")
    with opened(browser, path) as other:
        expect(other.page.locator("#chosen-user")).to_have_text(f"user {EVIL}")
        expect(other.page.locator("#near")).to_contain_text(EVIL)
        assert other.page.locator("img").count() == 0
        assert other.requests == [other.page.url]
        assert other.complaints == []


def _wait_until(page: Page, condition: str) -> None:
    """Poll here: the page's policy forbids the ``eval`` of Playwright's own polling."""
    deadline = time.monotonic() + _MOST_SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"not so after {_MOST_SECONDS} s: {condition}"
        page.wait_for_timeout(50)


def _path(report: Opened) -> Path:
    return Path(unquote(urlparse(report.page.url).path))


def _lightness(colour: str) -> float:
    """Return the mean of red, green and blue of "#abcdef" or "rgb(1, 2, 3)"."""
    parts = (
        [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        if colour.startswith("#")
        else [int(part) for part in colour[4:-1].split(",")]
    )
    return float(np.mean(parts))
