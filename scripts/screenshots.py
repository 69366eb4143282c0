"""Pictures of a run in TensorBoard, as the README shows them; needs Debian's chromium and the package playwright.

python scripts/screenshots.py LOGDIR FOLDER
"""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of each page: its address, what must be on it, and what of it is shown.
PAGES = {
    "curves": ("custom_scalars", "acc", "vz-line-chart2 svg, tf-line-chart-data-loader svg"),
    "confusion": ("images", "test/confusion matrix", "tf-image-loader img"),
    "hyperparameters": ("hparams", "optimizer.lr", "tf-hparams-table-view"),
}


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """The address of a server that `make tensorboard` starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["make", "tensorboard", f"ARGS=--logdir {logdir} --port {port} --host 127.0.0.1 --load_fast=false"]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}/data/runs").read()
                break
            time.sleep(0.3)
        yield address
    finally:
        with suppress(ProcessLookupError):
            import os
            import signal

            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def take(logdir: Path, folder: Path) -> dict[str, str]:
    """Write a picture of each page to a folder; gives the text that each shows."""
    from playwright.sync_api import sync_playwright

    found = {}
    with tensorboard(logdir) as address, sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page: Any = opened.new_page(viewport={"width": 1180, "height": 640})
        for name, (anchor, expected, shown) in PAGES.items():
            page.goto(f"{address}/?darkMode=false#{anchor}")
            page.reload()
            page.get_by_text(expected, exact=True).first.wait_for(timeout=60_000)
            page.locator(shown).first.wait_for(timeout=60_000)
            page.wait_for_timeout(1500)  # lines are drawn in an animation
            page.screenshot(path=str(folder / f"{name}.png"))
            found[name] = page.locator("body").inner_text()
        opened.close()
    return found


if __name__ == "__main__":
    for name, text in take(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(name, re.sub(r"\s+", " ", text)[:200])
