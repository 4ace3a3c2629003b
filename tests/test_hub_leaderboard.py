"""The leaderboard: what the page holds, and the page in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from persona_tasks.hub.leaderboard import data
from persona_tasks.hub.registry import load
from tests.browser import DESK, PHONE, chromium, needs_browser, open_page, serious_faults
from tests.hub_scores import HOSTILE, call, written
from tests.hub_server import HubServer
from tests.hub_world import World

# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_is_one_file_with_all_scores(filled: World, tmp_path: Path) -> None:
    page = written(filled, tmp_path / "site").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    rows = json.loads(found[1])["rows"]
    assert [row["model"] for row in rows] == [
        "A tiny simulator",
        "hf/org/strong",
        "hf/org/weak",
        HOSTILE,
        "hf/org/other",
    ]
    assert rows[0]["link"] == "https://huggingface.co/org/tiny-sim" and rows[3]["link"] == ""
    assert HOSTILE not in page and "<img" not in page and page.count("</script>") == 2
    card = yaml.safe_load((tmp_path / "site" / "README.md").read_text().split("---")[1])
    assert card["sdk"] == "static" and card["app_file"] == "index.html"


def test_it_is_published_as_a_static_space(hub: HubServer, filled: World) -> None:
    for _ in range(2):
        result = call("publish-leaderboard")
        assert result.exit_code == 0, result.output
    repo = hub.repo("org/leaderboard", "space")
    assert len(repo.history()) == 2 and {"index.html", "README.md"} <= set(repo.at("main").tree)


def test_a_page_without_scores(world: World, tmp_path: Path) -> None:
    assert '"rows": []' in written(world, tmp_path).read_text()


# --------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def models(page: Any) -> list[str]:
    return [text.split("\n")[0] for text in page.locator("tr.row td[data-label=Model]").all_inner_texts()]


@needs_browser
@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_accessible_and_no_wider_than_the_screen(
    browser: Any, filled: World, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    page = open_page(browser, written(filled, tmp_path), size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert page.locator("#sort").is_visible() == (size == PHONE)  # the column heads are hidden there
    assert page.locator("thead").bounding_box()["y"] > page.locator("caption").bounding_box()["y"]
    page.locator("button.open").first.click()
    assert page.locator("tr.more svg").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    assert serious_faults(page) == []
    assert page.problems == []
    page.screenshot(path=tmp_path / f"{size[0]}-{scheme}.png", full_page=True)


@needs_browser
def test_sorting_filters_and_ranks(browser: Any, filled: World, tmp_path: Path) -> None:
    page = open_page(browser, written(filled, tmp_path))
    assert models(page) == ["hf/org/strong", "A tiny simulator", HOSTILE, "hf/org/weak"]  # of the usable judge
    assert page.locator("tr.row td[data-label=Rank]").all_inner_texts() == ["1", "2", "3", "4"]
    assert page.locator("tr.row").first.locator(".band").first.inner_text() == "[0.890, 0.990]"
    page.click("#by-prompt_to_line")
    assert models(page)[0] == "hf/org/weak"
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Prompt to line")
    page.click("#by-model")
    assert models(page)[0] == HOSTILE
    page.select_option("#scenario", "service")
    page.click("#by-qa")
    assert page.locator("tr.row").first.locator("td[data-label=Questions]").inner_text().startswith("0.770")
    page.select_option("#judge", "")
    assert models(page)[0] == "hf/org/other" and "not comparable" in page.inner_text("#note")
    assert set(page.locator("tr.row td[data-label=Rank]").all_inner_texts()) == {"–"}
    page.select_option("#judge", "bad/judge")
    assert "not usable: Chance." in page.inner_text("#note")
    assert page.problems == []


@needs_browser
def test_by_keyboard_alone(browser: Any, filled: World, tmp_path: Path) -> None:
    page = open_page(browser, written(filled, tmp_path))
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"scenario", "judge", "by-prompt_to_line", "by-date", "open-0", "open-1"} <= reached
    page.focus("#open-0")
    assert page.locator(".tip svg").count() == 1  # the curve shows on focus as it does under the mouse
    page.keyboard.press("Escape")
    assert page.locator(".tip").count() == 0
    page.keyboard.press("Enter")
    assert page.locator("tr.more").count() == 1
    assert page.evaluate("document.activeElement.id") == "open-0"
    assert page.locator("tr.more a").get_attribute("href") == "https://example.org/a.eval"
    page.keyboard.press("Enter")
    assert page.locator("tr.more").count() == 0
    page.focus("#by-qa")
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.id") == "by-qa"
    assert page.problems == []


@needs_browser
def test_under_the_mouse_the_curve_shows(browser: Any, filled: World, tmp_path: Path) -> None:
    page = open_page(browser, written(filled, tmp_path))
    page.hover("#open-0")
    box = page.locator(".tip").bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= DESK[0]
    page.mouse.move(0, 0)
    assert page.locator(".tip").count() == 0


def test_a_judge_with_a_card_is_shown_with_what_it_is_worth() -> None:
    root = Path(__file__).parents[1]
    shown = {judge["name"]: judge["worth"] for judge in data(load(root / "registry.yaml"), root)["judges"]}
    assert "kappa" in shown["persona/judge-135m-audit"]
    assert shown["persona/judge-135m-audit"] in (root / "model_cards/sim-135m/README.md").read_text(encoding="utf-8")
