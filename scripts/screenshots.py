"""Pictures of a run in TensorBoard, as the README shows them; needs Debian's chromium and the package playwright.

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
# Of each page: its address, its size, what must be on it, and what has to be drawn.
PAGES = {
    "curves": ("custom_scalars", (1180, 640), "acc", "vz-line-chart2 svg"),
    "pictures": ("images", (1180, 1130), "test/confusion matrix", "tf-image-loader img"),
    "hyperparameters": ("hparams", (1600, 420), "optimizer.lr", "tf-hparams-table-view"),
}

# All text of a page, also inside of its components, and "[image 640 x 480]" for each image that has been loaded.
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
    """The address of a server that `make tensorboard` starts."""
    words = f"--logdir {logdir} --port 0 --host 127.0.0.1"
    command = ["make", "tensorboard", f"ARGS={words}"]
    if not (ROOT / ".venv" / "bin" / "tensorboard").exists():  # else it would be set up
        command = [sys.executable, "-m", "tensorboard.main", *words.split()]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert server.stderr is not None
    try:
        said = ""
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", said)):
            if not (line := server.stderr.readline()):
                raise RuntimeError(f"TensorBoard did not start: {said}")
            said += line
        yield address[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def take(logdir: Path, folder: Path) -> dict[str, str]:
    """Write a picture of each page to a folder; gives the text that each shows."""
    from playwright.sync_api import sync_playwright

    found = {}
    with tensorboard(logdir) as address, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page: Any = opened.new_page()
        for name, (anchor, (width, height), expected, shown) in PAGES.items():
            page.set_viewport_size({"width": width, "height": height})
            page.goto(f"{address}/?darkMode=false#{anchor}")
            page.reload()
            page.get_by_text(expected, exact=True).first.wait_for(timeout=60_000)
            page.locator(shown).first.wait_for(timeout=60_000)
            if name == "pictures":  # of one run
                newest = max(logdir.rglob("metrics.json"), key=lambda path: path.stat().st_mtime).parent.name
                page.get_by_label("Write a regex to filter runs").fill(newest)
            page.wait_for_timeout(1500)  # lines are drawn in an animation
            page.screenshot(path=str(folder / f"{name}.png"))
            found[name] = page.evaluate(f"{TEXT}; text(document.body)")
        opened.close()
    return found


if __name__ == "__main__":
    for name, text in take(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(name, re.sub(r"\s+", " ", text)[:200])
