"""Screenshots of a run in TensorBoard, as in the README; needs Debian's chromium and the package playwright.

python scripts/screenshots.py LOGDIR FOLDER
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
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
    if not (ROOT / ".venv" / "bin" / "tensorboard").exists():  # make would create the environment
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


if __name__ == "__main__":
    for name, text in take_screenshots(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(name, re.sub(r"\s+", " ", text)[:200])
