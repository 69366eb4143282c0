"""The page of the service, in a real browser."""

from tests.engine.deploy.local import local, writer
from tests.engine.deploy.served import TOKEN, Service, bars_of, browser, draw

STROKE_AND_CLEAR = """() => {
  const canvas = document.getElementById("canvas");
  canvas.setPointerCapture = () => {};
  for (const name of ["pointerdown", "pointermove", "pointerup"])
    canvas.dispatchEvent(new PointerEvent(name, {clientX: 80, clientY: 150}));
  [...document.querySelectorAll("button")].find(one => one.textContent === "Clear").click();
}"""


def test_a_drawing_gets_bars_until_it_is_cleared(image_service: Service) -> None:
    # Ink on the left and in the middle leaves a light bar on the right, which is what these classes are about.
    zigzag = [(x, y) for x in range(10, 205, 20) for y in ((2, 278) if x % 40 == 10 else (278, 2))]
    with browser() as page:
        page.goto(f"http://127.0.0.1:{image_service.port}/")
        draw(page, zigzag)
        bars = bars_of(page)
        assert list(bars) == ["left", "middle", "right"]
        assert page.locator(".best").get_attribute("data-label") == "right"
        assert max(bars, key=lambda label: bars[label].probability) == "right"
        assert max(bars, key=lambda label: bars[label].width) == "right"
        page.evaluate(STROKE_AND_CLEAR)
        page.wait_for_timeout(600)  # for an answer to what was cleared
        assert page.locator(".row").count() == 0


def test_a_text_that_is_typed_gets_bars_where_a_token_is_given(text_service: Service) -> None:
    with browser() as page:
        page.goto(f"http://127.0.0.1:{text_service.port}/")
        page.fill("#token", TOKEN)
        page.fill("#area", "an awful film")
        page.click("#go")
        page.wait_for_selector(".best")
        assert page.locator(".best").get_attribute("data-label") == "bad"


def test_a_text_that_is_begun_goes_on_in_the_page(writer_service: Service) -> None:
    with browser() as page:
        page.goto(f"http://127.0.0.1:{writer_service.port}/")
        page.fill("#area", "to be")
        page.click("#go")
        page.wait_for_function("document.getElementById('text').textContent.length > 40")
        assert page.locator("#text").text_content().startswith("to be")


def test_a_token_in_any_script_is_sent() -> None:
    with local(writer(lambda prompt: iter(["la la"])), token="ключ") as one, browser() as page:
        page.goto(f"http://127.0.0.1:{one.port}/")
        page.fill("#token", "ключ")
        page.fill("#area", "to be ")
        page.click("#go")
        page.wait_for_function("document.getElementById('text').textContent === 'to be la la'")
