"""docs/notebook.ipynb runs from its first cell to its last."""

import json
from pathlib import Path
from typing import Any

import pytest

from src import ROOT
from tests.recipes import DELETED

PATH = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_holds_no_outputs() -> None:
    cells = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.skipif("vision" in DELETED, reason="the notebook trains on digits")
def test_the_notebook_trains_and_predicts(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook: Any = nbformat.read(PATH, as_version=4)
    (first,) = [cell for cell in notebook.cells if 'LOGS = "logs"' in cell.source]
    first.source = first.source.replace('LOGS = "logs"', f'LOGS = "{tmp_path}"')
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    results = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    texts = [str(output.get("data", {}).get("text/plain", "")) for output in results]
    assert any("'test/acc': 0." in text and "best_epoch" in text for text in texts), texts
    assert any("image/png" in output.get("data", {}) for output in results)
    assert sum("test/acc" in text for text in texts) == 2
    assert (tmp_path / "notebook" / "version_0" / "checkpoints" / "best.ckpt").is_file()
