"""The page of the service, in a real browser."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from screenshots import chromium

from tests.engine.deploy.served import TOKEN, service


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A page of a real browser without network beyond this machine."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 820, "height": 520})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        yield page
        opened.close()
        assert not problems


def strokes_of_a_three() -> list[tuple[float, float]]:
    """Points along a 3, on a square of 280."""
    import math

    upper = [(140 + 50 * math.cos(t), 90 + 45 * math.sin(t)) for t in (math.radians(a) for a in range(-150, 91, 10))]
    lower = [(140 + 58 * math.cos(t), 187 + 52 * math.sin(t)) for t in (math.radians(a) for a in range(-90, 151, 10))]
    return upper + lower


def test_a_three_that_is_drawn_has_the_highest_bar(digits: str, tmp_path: Path) -> None:
    with service(digits) as found, browser() as page:
        page.goto(f"http://127.0.0.1:{found.port}/")
        box = page.locator("#canvas").bounding_box()
        points = [(box["x"] + x, box["y"] + y) for x, y in strokes_of_a_three()]
        page.mouse.move(*points[0])
        page.mouse.down()
        for x, y in points[1:]:
            page.mouse.move(x, y)
        page.mouse.up()
        page.wait_for_selector(".best")
        page.wait_for_timeout(500)  # answers that are on their way
        bars = {
            row.get_attribute("data-label"): float(row.get_attribute("data-probability"))
            for row in page.locator(".row").all()
        }
        assert len(bars) == 10
        assert max(bars, key=bars.__getitem__) == "3"
        widths = {
            row.get_attribute("data-label"): row.locator(".bar").bounding_box()["width"]
            for row in page.locator(".row").all()
        }
        assert max(widths, key=widths.__getitem__) == "3"
        page.get_by_text("Clear").click()
        assert page.locator(".row").count() == 0


@pytest.mark.slow
def test_a_text_that_is_typed_gets_bars_where_a_token_is_given(sentiments: str) -> None:
    with service(sentiments, "--token", TOKEN) as found, browser() as page:
        page.goto(f"http://127.0.0.1:{found.port}/")
        page.fill("#token", TOKEN)
        page.fill("#area", "an awful film")
        page.click("#go")
        page.wait_for_selector(".best")
        assert page.locator(".best").get_attribute("data-label") == "bad"


@pytest.mark.slow
def test_a_text_that_is_begun_goes_on_in_the_page(writer: str) -> None:
    with service(writer) as found, browser() as page:
        page.goto(f"http://127.0.0.1:{found.port}/")
        page.fill("#area", "To be")
        page.click("#go")
        page.wait_for_function("document.getElementById('text').textContent.length > 40")
        assert page.locator("#text").text_content().startswith("To be")
