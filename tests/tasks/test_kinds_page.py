"""The page of the service for every kind of task, in a real browser: it shows what the service answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import toy
from tests.conftest import Run
from tests.engine.deploy.served import browser, service
from tests.tasks import kinds

PHONE = {"width": 390, "height": 800}


@pytest.fixture
def recipe() -> tuple[str, ...]:
    return (f"--config={toy.RECIPE}",)


def shown_labels(page: Any) -> list[str]:
    page.wait_for_selector("#bars p")
    return str(page.locator("#bars p").first.text_content()).split()


def fill(page: Any, sample: Any, folder: Path) -> tuple[Any, dict[str, str]]:
    """Give the page a sample as a user would, by keyboard if possible; returns the same request."""
    if isinstance(sample, str):
        page.fill("#area", sample)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        return {"text": sample}, {}
    if isinstance(sample, dict):
        for value in sample.values():
            page.keyboard.press("Tab")
            page.keyboard.type(str(value))
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        return sample, {}
    sample.save(folder / "image.png")
    page.set_input_files("#file", str(folder / "image.png"))
    return (folder / "image.png").read_bytes(), {"Content_Type": "image/png"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds.TASKS)
def test_the_page_shows_what_the_service_answers(train: Callable[..., Run], tmp_path: Path, kind: str) -> None:
    run = train(*kinds.options(kind), "--max_epochs=1", "--precision=32-true")
    sample = getattr(kinds, f"{kind}Data")().raw()[1]
    checkpoint = str(run.folder / "checkpoints" / "best.ckpt")
    with service(checkpoint, "--accelerator=cpu") as one, browser() as page:
        page.set_viewport_size(PHONE)
        page.goto(f"http://127.0.0.1:{one.port}/")
        body, headers = fill(page, sample, tmp_path)
        answer = one.predict(body, **headers).json
        if kind == "Numbers":
            page.wait_for_selector(".value")
            shown = dict(line.split(": ") for line in page.locator(".value").all_text_contents())
            values = {name: float(value) for name, value in shown.items()}
            assert values == pytest.approx({name: answer[name] for name in kinds.NumbersData.labels}, rel=1e-4)
        elif kind == "Facts":
            page.wait_for_selector("#bars .row")
            best = {row.get_attribute("data-label") for row in page.locator("#bars .best").all()}
            assert best == set(answer["labels"])
            assert page.locator("#bars .row").count() == 3
        elif kind == "Masks":
            page.wait_for_selector(".mask")
            page.wait_for_function("document.querySelector('.mask').width === 8")
            areas = {row.get_attribute("data-label"): row.get_attribute("data-probability") for row in rows(page)}
            assert {name: float(value) for name, value in areas.items()} == pytest.approx(answer["areas"])
            coloured = page.evaluate(
                "[...document.querySelector('.mask').getContext('2d').getImageData(0, 0, 8, 8).data]"
                ".filter((_, index) => index % 4 === 3).map(alpha => alpha > 100)"
            )
            assert sum(not one for one in coloured) / len(coloured) == pytest.approx(answer["areas"]["dark"])
        else:
            assert shown_labels(page) == answer["labels"]
        # Nothing is wider than a phone's screen.
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def rows(page: Any) -> Any:
    return page.locator("#bars .row").all()


@pytest.mark.slow
def test_a_value_that_is_missing_is_said_on_the_page(train: Callable[..., Run]) -> None:
    run = train(*kinds.options("Numbers"), "--max_epochs=1", "--precision=32-true")
    with (
        service(str(run.folder / "checkpoints" / "best.ckpt"), "--accelerator=cpu") as one,
        browser(refuses=True) as page,
    ):
        page.goto(f"http://127.0.0.1:{one.port}/")
        page.fill("input[name=b]", "")
        page.click("#go")
        page.wait_for_function("document.getElementById('message').textContent")
        assert "b" in page.locator("#message").text_content()
        assert one.predict({"a": 0, "b": None, "c": 0}).json["detail"] == page.locator("#message").text_content()
