"""Screenshots of a run in TensorBoard, of the service's page and of the documentation, as on a computer and on a phone.

Needs Debian's chromium and the package playwright.

python scripts/screenshots.py FOLDER [--runs FOLDER] [--ckpt_path PATH] [--site]
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# For each page: anchor, size, text that must appear, and CSS selector of an element that must be drawn.
PAGES = {
    "curves": ("custom_scalars", (1180, 640), "acc", "vz-line-chart2 svg"),
    "pictures": ("images", (1180, 1130), "test/confusion matrix", "tf-image-loader img"),
    "hyperparameters": ("hparams", (1600, 420), "optimizer.lr", "tf-hparams-table-view"),
}

PHONE = {"width": 390, "height": 844}
SIZES = {"": {"width": 820, "height": 520}, "_phone": PHONE}
# A three, in shares of the canvas.
THREE = [(0.3, 0.25), (0.45, 0.15), (0.65, 0.2), (0.68, 0.35), (0.5, 0.47), (0.7, 0.58), (0.72, 0.75), (0.5, 0.87)]
THREE += [(0.28, 0.78)]

# All text of a page, including shadow DOM, with "[image 640 x 480]" for each loaded image.
TEXT = """
var text = node => node.nodeType === 3 ? node.textContent
  : ["STYLE", "SCRIPT", "TEMPLATE"].includes(node.tagName) ? ""
  : node.tagName === "IMG" ? `[image ${node.naturalWidth} x ${node.naturalHeight}]`
  : [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes].map(text).join(" ")
"""


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Run a TensorBoard server, started by `make tensorboard` as a user does; gives its address."""
    words = f"--logdir {logdir} --port 0 --host 127.0.0.1"
    command = ["make", "tensorboard", f"ARGS={words}"]
    if not (ROOT / ".venv" / ".bounds").exists():  # make would install the packages
        command = [sys.executable, "-m", "tensorboard.main", *words.split()]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stderr is not None
    try:
        output = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", output)):
            if not (line := server.stderr.readline()):
                raise RuntimeError(f"TensorBoard did not start: {output}")
            output += line
        yield address[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def take_screenshots(logdir: Path, folder: Path) -> dict[str, str]:
    """Save a screenshot of each page to a folder; returns the text of each page."""
    from playwright.sync_api import sync_playwright

    texts = {}
    with tensorboard(logdir) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page: Any = browser.new_page()
        for name, (anchor, (width, height), expected, selector) in PAGES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.goto(f"{address}/?darkMode=false#{anchor}")
            page.reload()
            page.get_by_text(expected, exact=True).first.wait_for(timeout=60_000)
            page.locator(selector).first.wait_for(timeout=60_000)
            if name == "pictures":  # show the newest run only
                newest = max(logdir.rglob("metrics.json"), key=lambda path: path.stat().st_mtime).parent.name
                page.get_by_label("Write a regex to filter runs").fill(newest)
            page.wait_for_timeout(1500)  # for the animation of the curves
            page.screenshot(path=str(folder / f"{name}.png"))
            texts[name] = page.evaluate(f"{TEXT}; text(document.body)")
        browser.close()
    return texts


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(*words: str) -> Iterator[str]:
    """Run a server of pages as `python -m ... PORT`; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", *words, str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(address, timeout=5).close()
                break
            if server.poll() is not None:
                sys.exit(f"error: {' '.join(words)} has ended, see above")
            time.sleep(0.2)
        yield address
    finally:
        server.kill()
        server.wait()


def shoot(address: str, folder: Path, name: str, act: Callable[[Any], None] = lambda _: None) -> list[Path]:
    """Save a page as a computer and a phone show it, after `act` has done something on it; returns the files."""
    from playwright.sync_api import sync_playwright

    paths = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for suffix, size in SIZES.items():
            page = browser.new_page(viewport=size)  # type: ignore[arg-type]
            page.goto(address)
            page.wait_for_load_state("networkidle")
            act(page)
            paths.append(folder / f"{name}{suffix}.png")
            page.screenshot(path=str(paths[-1]))
        browser.close()
    return paths


def draw(page: Any, points: list[tuple[float, float]]) -> None:
    """Draw a line on the canvas of the service's page."""
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x, box["y"] + y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def draw_three(page: Any) -> None:
    """Draw a digit on the service's canvas, if the model takes drawings, and wait for the answer."""
    canvas = page.locator("#canvas")
    if not canvas.is_visible():
        return
    box = canvas.bounding_box()
    draw(page, [(x * box["width"], y * box["height"]) for x, y in THREE])
    page.wait_for_selector(".best")
    page.wait_for_timeout(500)  # bars grow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the pictures")
    parser.add_argument("--runs", type=Path, help="runs to show in TensorBoard")
    parser.add_argument("--ckpt_path", help="a checkpoint to serve")
    parser.add_argument("--site", action="store_true", help="build and show the documentation")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in take_screenshots(options.runs, options.folder).items() if options.runs else ():
        print(name, re.sub(r"\s+", " ", text)[:200])
    if options.ckpt_path:
        with served("src.serve", "--ckpt_path", options.ckpt_path, "--port") as address:
            print(*shoot(address, options.folder, "serve", draw_three))
    if options.site:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "--site-dir", folder], cwd=ROOT, check=True)
            with served("http.server", "--bind", "127.0.0.1", "--directory", folder) as address:
                print(*shoot(address, options.folder, "site"))


if __name__ == "__main__":
    main()
