"""A real Chromium for tests of pages. Where there is none, such tests are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "Chromium (Debian: apt-get install chromium)" if CHROMIUM is None else "the packages of [dev]"
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not all(map(find_spec, ("playwright", "axe_playwright_python"))), reason=f"needs {MISSING}"
)
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DESK, PHONE = (1400, 900), (390, 844)


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*QUIET, "--disable-component-update", "--disable-sync"]
        )
        yield browser
        browser.close()


def open_page(browser: Any, file: Path, size: tuple[int, int] = DESK, scheme: str = "light") -> Any:
    """The report, ready for use; an error of its script or a request to anywhere fails the test."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: page.problems.append("a dialogue box opened"))
    page.on("request", lambda request: page.problems.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=20_000)
    return page


def serious_faults(page: Any) -> list[str]:
    """Accessibility faults that axe-core calls serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 10, "axe-core looked at nothing"
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
