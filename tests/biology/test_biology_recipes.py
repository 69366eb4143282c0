"""The recipes for sequences learn, draw pictures, predict, export and serve."""

import csv
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.biology.sequence_logo import SequenceLogo
from src.biology.sequences import SequenceDataModule
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.tensorboard.task_pictures import TaskPictures
from tests.conftest import Run, fit, once, write
from tests.engine.deploy.exports import example, written
from tests.engine.deploy.served import browser, service

Train = Callable[..., Run]
DRUGS = "--config=configs/biology/drugs.yaml"
GENOMES = "--config=configs/biology/genomes.yaml"
SMALL_GENOMES = (GENOMES, "--data.batch_size=256", "--model.net.num_members=1")
PROTEINS = "--config=configs/biology/proteins.yaml"


def molecules(folder: Path) -> str:
    """A table of chains of carbon and oxygen, with the number of oxygens."""
    rng = random.Random(0)
    chains = ["".join(rng.choices("CO", k=rng.randint(4, 10))) for _ in range(200)]
    return write(folder / "own.csv", "smiles,oxygens\n" + "".join(f"{one},{one.count('O')}\n" for one in chains))


def train_drugs(folder: Path) -> str:
    data = (f"--data.path={molecules(folder)}", "--data.sequence_column=smiles", "--data.label_column=oxygens")
    return fit(folder, DRUGS, *data, "--data.variants=2", "--max_epochs=5", "--optimizer.lr=0.01")


@pytest.fixture(scope="module")
def drugs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the recipe for molecules, trained for a few steps on a table."""
    return once(tmp_path_factory, "drugs", train_drugs)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_numbers_of_molecules_are_learned_and_predicted(drugs: str, tmp_path: Path) -> None:
    table, output = write(tmp_path / "a.csv", "smiles\nCCCCCC\nOCOCOO\nCC(\n\nCO\n"), tmp_path / "out.csv"
    assert predict(["--ckpt_path", drugs, table, "--output", str(output)]) == 3  # one cannot be used
    none, many, bad, few = rows_of(output)
    assert float(none["oxygens"]) < float(few["oxygens"]) + 0.5 < float(many["oxygens"])
    assert bad["error"] == "'CC(' is not SMILES: a parenthesis is left open"
    assert bad["oxygens"] == ""


@pytest.mark.slow
def test_a_model_of_molecules_is_exported(drugs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, said = written(drugs, "onnx", tmp_path, f"--data.path={Path(drugs).parents[4] / 'own.csv'}")
    assert "validation samples, limit 1e-04" in said
    inference = Inference(drugs)
    tokens, mask = inference.prepare(["CCOC"])[0]
    assert not mask.all()  # it is written in two ways
    with torch.no_grad():
        expected = inference.net(tokens, mask).item()
    found = example(output, [str(number) for number in tokens[0].tolist()], monkeypatch)
    assert float(found.strip("[]")) == pytest.approx(expected, abs=1e-4)
    assert f"mask = {SequenceDataModule.mask_example}" in output.with_name(f"{output.name}.example.py").read_text()


@pytest.mark.slow
def test_the_page_takes_a_molecule_and_the_service_says_what_is_wrong_with_one(drugs: str) -> None:
    with service(drugs) as one, browser() as page:
        page.goto(f"http://127.0.0.1:{one.port}/")
        assert page.locator("#title").text_content() == SequenceDataModule().input_title == "Enter a sequence (smiles)"
        assert page.locator("#go").text_content() == "Predict"
        page.fill("#area", "OCOCOO")
        page.click("#go")
        page.wait_for_selector(".value")
        assert page.locator(".value").text_content().startswith("oxygens: ")
        answer = one.predict({"text": "CC("})
        assert (answer.status, answer.json["detail"]) == (422, "'CC(' is not SMILES: a parenthesis is left open")


def test_classes_of_sequences_are_learned_and_predicted_from_fasta(train: Train, tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = tmp_path / "own"
    folder.mkdir()
    for name, letters in (("rich", "GGC"), ("poor", "AAT")):
        found = ("".join(rng.choices(letters, k=rng.randint(10, 20))) for _ in range(60))
        write(folder / f"{name}.fa", "".join(f">{number}\n{one}\n" for number, one in enumerate(found)))
    data = (f"--data.path={folder}", "--data.predicts=class", "--data.reverse_complement=true", "--data.batch_size=16")
    run = train(
        GENOMES,
        "--model=src.tasks.classifier.Classifier",
        "--model.net=TextEncoder",
        "--model.net.d_model=32",
        *data,
        "--max_epochs=4",
    )
    assert run.metrics["test/acc"] > 0.9
    inputs, output = write(tmp_path / "a.fa", ">a\nGGCGGC\n>b\nTTTAAT\n>c\nGGN\n"), tmp_path / "out.csv"
    words = ["--ckpt_path", str(run.folder / "checkpoints" / "last.ckpt"), inputs, "--output", str(output)]
    assert predict(words) == 3
    rows = rows_of(output)
    assert [row["label"] for row in rows] == ["rich", "poor", ""]
    assert rows[2]["input"] == f"{inputs}:3"
    assert rows[2]["error"].startswith("'N' at position 3 is not a base")


@pytest.mark.slow
def test_the_frequency_of_splice_sites_is_learned_and_drawn(train: Train) -> None:
    pytest.importorskip("logomaker", reason="is not installed")
    run = train(*SMALL_GENOMES, "--max_epochs=3")
    assert run.metrics["test/r2"] > 0.5
    assert "test/sequence logo" in EventAccumulator(str(run.folder)).Reload().Tags()["images"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "picture"),
    [(SMALL_GENOMES, "test/predicted and true"), ((PROTEINS,), "test/sequences")],
    ids=["dna", "protein"],
)
def test_predictions_are_drawn(config: tuple[str, ...], picture: str, train: Train) -> None:
    pytest.importorskip("logomaker", reason="is not installed")
    run = train(*config, "--max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
    assert any(isinstance(one, TaskPictures) for one in run.cli.trainer.callbacks)  # type: ignore[attr-defined]
    assert picture in EventAccumulator(str(run.folder)).Reload().Tags()["images"]


@pytest.mark.slow
def test_hidden_residues_are_recovered(train: Train) -> None:
    pytest.importorskip("logomaker", reason="is not installed")
    run = train(PROTEINS, "--max_epochs=2")
    assert run.metrics["test/acc"] > 0.3  # the most frequent residue everywhere: 0.1


def test_no_logo_of_long_sequences_is_drawn() -> None:
    batch = (torch.zeros(2, 300, dtype=torch.int64), torch.ones(2, 300, dtype=torch.bool), torch.zeros(2))
    module: Any = lambda *_: pytest.fail("it would take minutes")  # noqa: E731
    trainer: Any = SimpleNamespace(is_global_zero=True)
    SequenceLogo().on_test_batch_end(trainer, module, None, batch, 0)
