"""What a run shows, in a real browser."""

import re
from pathlib import Path

import pytest
from screenshots import chromium, take_screenshots

from src.engine.cli.cli import StarterCLI
from tests import toy
from tests.conftest import fit


@pytest.mark.slow
def test_a_browser_shows_the_curves_the_pictures_and_the_settings_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if chromium() is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    recipe = f"--config={toy.RECIPE}"
    fit(tmp_path, recipe, "--max_epochs=2", "--optimizer.lr=1e-5")  # too small to learn: leaves mistakes to show
    StarterCLI(["test", recipe, "--accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'logs'}"], 0.0).run()
    found = take_screenshots(tmp_path / "logs", tmp_path)
    assert re.search(r"training and validation.*acc.*f1.*loss.*optimizer", found["curves"], re.DOTALL)
    for title in ("confusion matrix", "worst mistakes"):
        assert re.search(rf"test/{title}.*?\[image [1-9]\d\d x [1-9]\d\d\]", found["pictures"], re.DOTALL), title
    assert re.search(r"optimizer\.lr", found["hyperparameters"])
    assert "version_0" in found["hyperparameters"]
    for name in found:
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000, name
