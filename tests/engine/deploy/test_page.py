"""The page of the service, in a real browser."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from screenshots import PHONE, draw, draw_three, shoot

from src.engine.deploy.service import page as html_of
from tests.engine.deploy.local import local, writer
from tests.engine.deploy.served import TOKEN, Service, bars_of, browser
from tests.seen import faults

SITE = "http://127.0.0.1/"
LONG = "a label much longer than the column of labels on a phone"

STROKE_AND_CLEAR = """() => {
  const canvas = document.getElementById("canvas");
  canvas.setPointerCapture = () => {};
  for (const name of ["pointerdown", "pointermove", "pointerup"])
    canvas.dispatchEvent(new PointerEvent(name, {clientX: 80, clientY: 150}));
  [...document.querySelectorAll("button")].find(one => one.textContent === "Clear").click();
}"""


@pytest.mark.slow
def test_a_drawing_gets_bars_until_it_is_cleared(image_service: Service) -> None:
    # Ink on the left and in the middle leaves a light bar on the right, which is what these classes are about.
    zigzag = [(x, y) for x in range(10, 205, 20) for y in ((2, 278) if x % 40 == 10 else (278, 2))]
    with browser() as page:
        page.goto(f"http://127.0.0.1:{image_service.port}/")
        draw(page, zigzag)
        page.wait_for_selector('.best[data-label="right"]')  # not an answer to a part of the drawing
        bars = bars_of(page)
        assert list(bars) == ["left", "middle", "right"]
        assert page.locator(".best").get_attribute("data-label") == "right"
        assert max(bars, key=lambda label: bars[label].probability) == "right"
        assert max(bars, key=lambda label: bars[label].width) == "right"
        page.evaluate(STROKE_AND_CLEAR)
        page.wait_for_timeout(600)  # for an answer to what was cleared
        assert page.locator(".row").count() == 0


@pytest.mark.slow
def test_pictures_of_the_page_show_drawing_and_answer_on_a_computer_and_a_phone(
    image_service: Service, tmp_path: Path
) -> None:
    with browser():  # skips without one
        pass
    sizes = []
    for path in shoot(f"http://127.0.0.1:{image_service.port}/", tmp_path, "serve", draw_three):
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        sizes.append(pixels.shape[1::-1])
        assert (pixels.max(axis=2) < 40).sum() > 3000, "no drawing"
        assert (pixels[..., 2] - pixels[..., 0] > 100).sum() > 500, "no bar"
    assert sizes == [(820, 520), (390, 844)]


@pytest.mark.slow
def test_a_text_that_is_typed_gets_bars_where_a_token_is_given(text_service: Service) -> None:
    with browser() as page:
        page.goto(f"http://127.0.0.1:{text_service.port}/")
        page.fill("#token", TOKEN)
        page.fill("#area", "an awful film")
        page.click("#go")
        page.wait_for_selector(".best")
        assert page.locator(".best").get_attribute("data-label") == "bad"


@pytest.mark.slow
def test_a_text_that_is_begun_goes_on_in_the_page(writer_service: Service) -> None:
    with browser() as page:
        page.goto(f"http://127.0.0.1:{writer_service.port}/")
        page.fill("#area", "to be")
        page.click("#go")
        page.wait_for_function("document.getElementById('text').textContent.length > 40")
        assert page.locator("#text").text_content().startswith("to be")


@pytest.mark.slow
def test_a_text_that_is_begun_again_replaces_the_first() -> None:
    over = threading.Event()

    def pieces(prompt: str, before: list[int]) -> Iterator[str]:
        yield "la "
        while bytes(before) == b"first " and not over.wait(0.01):
            yield "la "

    with local(writer(pieces)) as one, browser() as page:
        page.goto(f"http://127.0.0.1:{one.port}/")
        page.fill("#area", "first ")
        page.click("#go")
        page.wait_for_function("document.getElementById('text').textContent.startsWith('first la la la ')")
        page.fill("#area", "second ")
        page.click("#go")
        page.wait_for_function("document.getElementById('text').textContent.startsWith('second la ')")
        page.wait_for_timeout(300)  # for more of the first
        assert page.locator("#text").text_content() == "second la "
        over.set()


@pytest.mark.slow
def test_a_text_has_the_title_of_its_data() -> None:
    reviews = SimpleNamespace(input_kind="text", input_title="Enter a review")
    one = SimpleNamespace(kind="text", data=reviews, task=None, device=torch.device("cpu"))
    with local(one) as running, browser() as page:
        page.goto(f"http://127.0.0.1:{running.port}/")
        assert page.locator("#title").text_content() == "Enter a review"


KINDS = {
    "drawing": {"kind": "image", "draws": True},
    "image": {"kind": "image", "draws": False},
    "table": {"kind": "table", "draws": False},
    "text": {"kind": "text", "draws": False},
    "prompt": {"kind": "prompt", "draws": False},
}


PREDICTED = {"label": LONG, "probabilities": {LONG: 0.9, "b": 0.1}, "note": "dark ink was inverted"}


def answered(page: Any, facts: dict[str, Any], answer: dict[str, Any] = PREDICTED) -> list[Any]:
    """Open the page with made-up answers; returns the bodies of what it will ask."""
    asked: list[Any] = []

    def fulfill(route: Any) -> None:
        if route.request.method == "GET":
            route.fulfill(body=html_of(facts), content_type="text/html")
        else:
            asked.append(route.request.post_data)
            route.fulfill(json=answer)

    page.route("**/*", fulfill)
    page.goto(SITE)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_shows_everything_with_contrast_and_names(kind: str) -> None:
    with browser() as page:
        page.set_viewport_size(PHONE)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            columns = ["age", "a_column_whose_name_is_longer_than_a_phone_is_wide"]
            answered(page, {**KINDS[kind], "columns": columns, "token": True})
            assert faults(page) == {}
            if kind == "drawing":
                draw(page, [(20, 20), (200, 200)])
            elif kind != "image":
                page.click("#go")
            if kind != "image":
                page.get_by_text(LONG).first.wait_for()
            page.evaluate("document.getElementById('message').textContent = 'something is wrong'")
            assert faults(page) == {}


@pytest.mark.slow
def test_the_keyboard_is_enough_for_a_table() -> None:
    with browser() as page:
        asked = answered(page, {"kind": "table", "draws": False, "columns": ["x", "y"], "token": False})
        page.keyboard.press("Tab")
        page.keyboard.press("ControlOrMeta+A")
        page.keyboard.type("2.5")
        page.keyboard.press("Enter")
        page.get_by_text(LONG).wait_for()
        assert [json.loads(one) for one in asked] == [{"x": 2.5, "y": 0}]


@pytest.mark.slow
def test_a_table_may_have_texts_and_missing_numbers() -> None:
    with browser() as page:
        asked = answered(page, {"kind": "table", "draws": False, "columns": ["x", "y"], "texts": ["y"], "token": False})
        page.locator("input[name=x]").fill("")
        page.locator("input[name=y]").fill("Ulm")
        page.keyboard.press("Enter")
        page.get_by_text(LONG).wait_for()
        assert [json.loads(one) for one in asked] == [{"x": None, "y": "Ulm"}]


@pytest.mark.slow
def test_the_keyboard_is_enough_for_a_text() -> None:
    with browser() as page:
        asked = answered(page, {"kind": "text", "draws": False, "columns": [], "token": False})
        page.wait_for_function("document.activeElement.id === 'area'")  # the field has the focus
        page.keyboard.type("fine")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_text(LONG).wait_for()
        assert [json.loads(one) for one in asked] == [{"text": "fine"}]


def test_numbers_of_any_name_are_shown() -> None:
    with browser() as page:
        answered(page, KINDS["text"], {"label": -2.13, "mask": 4.0, "price": 1.5})
        page.fill("#area", "CCO")
        page.click("#go")
        page.wait_for_selector(".value")
        assert page.locator(".value").all_text_contents() == ["label: -2.13", "mask: 4", "price: 1.5"]


@pytest.mark.slow
def test_an_error_of_a_proxy_takes_the_place_of_the_last_answer() -> None:
    with browser(refuses=True) as page:
        answered(page, KINDS["text"])
        page.fill("#area", "fine")
        page.click("#go")
        page.get_by_text(LONG).first.wait_for()
        page.route("**/predict", lambda route: route.fulfill(status=413, body="<html>Too Large</html>"))
        page.click("#go")
        page.wait_for_function("document.getElementById('message').textContent.includes('413')")
        assert page.locator("#bars").inner_text() == ""


@pytest.mark.slow
def test_the_same_file_can_be_chosen_again(tmp_path: Path) -> None:
    (tmp_path / "a.numbers").write_text("1")
    with browser() as page:
        asked = answered(page, {"kind": "file", "draws": False, "suffixes": [".numbers"]})
        for count in (1, 2):
            with page.expect_file_chooser() as chooser:
                page.click("#file")
            assert page.locator("#file").input_value() == ""  # else choosing it would be no change
            with page.expect_response("**/predict"):
                chooser.value.set_files(tmp_path / "a.numbers")
            assert len(asked) == count
