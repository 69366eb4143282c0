"""What recipes need in tests: options by the name of their DataModule."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from src.engine.cli.config import load_config
from tests.conftest import pictures

GIVEN: dict[str, Callable[[Path], str]] = {}
GIVEN["MNISTDataModule"] = lambda folder: "--data.source=sample"
GIVEN["ImageFolderDataModule"] = lambda folder: f"--data.path={pictures(folder / 'pictures')}"
GIVEN["SpokenWordsDataModule"] = lambda folder: (
    f"--data.path={import_module('tests.audio.helpers').own_sounds(folder / 'sounds')}"
)


def with_options(config: str, folder: Path) -> list[str]:
    """The options for a run of a recipe, short and with data that needs no network."""
    data = (load_config(config)[1].get("data") or {}).get("class_path", "").rpartition(".")[2]
    given = GIVEN.get(data)
    return ["--config", config, "--fast_dev_run", *([given(folder)] if given else [])]
