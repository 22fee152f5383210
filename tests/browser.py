"""A real headless browser for pages: the machine's own program, nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.servers import find_program

__all__ = ["Opened", "chromium", "opened"]

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_MOST_MILLISECONDS = 120_000
"""That a step may take on a machine that does much else."""


@dataclass(frozen=True)
class Opened:
    """A page, and what it asked for and complained of since it was opened."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """URLs, the page's own among them."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings on the console, and errors that no script caught."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the machine's Chromium without a window.

    Raises
    ------
    ServerMissing
        None is installed.
    """
    program = find_program(*_PROGRAMS)
    # Chromium's sandbox refuses root.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path=program, args=options, timeout=_MOST_MILLISECONDS
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path) -> Iterator[Opened]:
    """Open a file as a page of its own, listening from before it is read."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(_MOST_MILLISECONDS)
    found = Opened(context.new_page())

    def told(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            found.complaints.append(message.text)

    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("console", told)
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.goto(path.as_uri())
    try:
        yield found
    finally:
        context.close()
