"""Folders of downloads."""

import threading
import time
from pathlib import Path

from src.engine.data.download import locked_folder


def test_a_process_that_waits_for_a_download_that_fails_tries_itself(tmp_path: Path) -> None:
    path, has_waited = tmp_path / "new" / "raw" / "file", threading.Event()

    def wait() -> None:
        with locked_folder(path):
            path.write_text("mine")
            has_waited.set()

    thread = threading.Thread(target=wait)
    with locked_folder(path):
        thread.start()
        time.sleep(0.2)  # it waits for the lock
        assert not has_waited.is_set()
    thread.join(10)
    assert path.read_text() == "mine"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


def test_a_folder_that_stays_empty_is_removed_with_its_parents(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with locked_folder(tmp_path / "old" / "new" / "raw" / "file"):
        pass
    assert [*(tmp_path / "old").iterdir()] == []
