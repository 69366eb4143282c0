"""Tables of text and labels."""

from pathlib import Path

from src.engine.data.tables import read_table
from tests.conftest import write


def test_a_quotation_mark_in_a_tsv_swallows_no_rows(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(60)]
    texts[8], texts[41] = '"row 8', '"great row 41'
    rows = [f"{text}\t{number % 2}" for number, text in enumerate(texts)]
    path = write(tmp_path / "own.tsv", "text\tlabel\n" + "\n".join(rows) + "\n")
    found = read_table(path, "text", "label")
    assert len(found) == 60
    assert found[8] == ('"row 8', "0")
