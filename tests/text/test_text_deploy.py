"""Texts in the commands that predict, export and serve: tokenizers, language models and models of the hub."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from src.engine.deploy.exporting import export
from src.engine.deploy.formats import Reference, _example_lines
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.system.errors import InputError
from src.text.pretrained import PretrainedClassifier
from tests.conftest import fit
from tests.engine.deploy.exports import SUFFIXES, check_format, check_free_sizes, check_int8, example, written
from tests.engine.deploy.served import service
from tests.text.helpers import tiny_pretrained


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a tiny BERT, fine-tuned for a few steps."""
    return own_pretrained(tmp_path_factory.mktemp("pretrained"), "bert")


def own_pretrained(folder: Path, kind: str, *more: str) -> str:
    table = folder / "own.csv"
    rows = [
        f"the {'cat sat on the mat' if i % 2 else 'dog ran over the hill'},{'cat' if i % 2 else 'dog'}"
        for i in range(60)
    ]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    words = (f"--data.path={table}", f"--model.net.pretrained={tiny_pretrained(kind, folder)}", "--data.max_length=16")
    return fit(folder, "--config=configs/text/sentiment_pretrained.yaml", "--max_epochs=1", *words, *more)


def own_data(checkpoint: str) -> tuple[str, ...]:
    """The options that name the data of a checkpoint of these tests."""
    folder = Path(checkpoint).parents[4]
    if (folder / "own.csv").exists():
        return (f"--data.path={folder / 'own.csv'}",)
    return f"--data.path={folder / 'own.txt'}", f"--data.cache_dir={folder / 'cache'}"


@pytest.mark.slow
def test_texts_of_a_table_are_classified(sentiments: str, tmp_path: Path) -> None:
    table, output = tmp_path / "table.csv", tmp_path / "out.csv"
    texts = ["a fine film", "an awful film", "ein Film", "good, really good", "bad\tand awful"]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    assert predict(["--ckpt_path", sentiments, str(table), "--output", str(output)]) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["input", "label", "probability_bad", "probability_good", "error", "note"]
    assert [row["label"] for row in (*rows[:2], *rows[3:])] == ["good", "bad", "good", "bad"]


@pytest.mark.slow
def test_a_language_model_is_not_for_prediction(writer: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a language model, which only continues texts"):
        predict(["--ckpt_path", writer, str(tmp_path), "--output", str(tmp_path / "out.csv")])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentiments", "writer", "pretrained"])
@pytest.mark.parametrize("form", SUFFIXES)
def test_a_model_of_texts_is_exported_to_every_format_with_its_tokenizer(
    kind: str, form: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = request.getfixturevalue(kind)
    given = {"sentiments": "a fine film", "writer": "To be", "pretrained": "the cat sat"}[kind]
    more = own_data(checkpoint)
    shown = check_format(checkpoint, form, tmp_path, given, monkeypatch, *more, tokenizer=kind != "writer")
    if form == "safetensors":
        return
    if kind == "writer":
        assert shown == ("(1, 5, 256)" if form == "onnx" else "torch.Size([1, 5, 256])")
    if kind == "sentiments":
        assert shown == "good"
    shapes = [(1, 3), (5, 13 if kind == "pretrained" else 29)]
    check_free_sizes(checkpoint, tmp_path / f"model{SUFFIXES[form]}", shapes, 250 if kind == "writer" else 8)


@pytest.mark.slow
def test_the_program_beside_an_exported_classifier_cuts_a_text_as_its_data_does(sentiments: str) -> None:
    data = dict(word.removeprefix("--data.").split("=") for word in own_data(sentiments))
    reference = Reference(Inference(sentiments, "forward", data))
    first, *_ = _example_lines(reference, Path("model.onnx"), "onnxruntime", "None")
    assert f"enable_truncation({reference.inference.data.max_length})" in first


@pytest.mark.slow
def test_a_text_encoder_of_int8_says_what_it_costs(sentiments: str, tmp_path: Path) -> None:
    check_int8(sentiments, tmp_path, 85, *own_data(sentiments))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_pretrained_model_goes_back_to_transformers(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    lora = ("--model.net.lora_rank=2",) if kind == "roberta" else ()
    is_bert = kind == "bert"
    checkpoint = request.getfixturevalue("pretrained") if is_bert else own_pretrained(tmp_path, kind, *lora)
    (tmp_path / "exported").mkdir()
    folder, _ = written(checkpoint, "huggingface", tmp_path / "exported", *own_data(checkpoint))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    texts = ["the cat sat on the mat", "dog"]
    inference = Inference(checkpoint)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        expected = inference.net(*inference.prepare(texts)[0])
    assert torch.allclose(logits, expected, atol=1e-4)
    assert example(folder, "the cat", monkeypatch) in ("cat", "dog")


def test_transformers_is_told_that_a_text_may_have_several_labels(tmp_path: Path) -> None:
    net = PretrainedClassifier(tiny_pretrained("bert", tmp_path), num_classes=2)
    for independent, problem, shown in ((True, "multi_label_classification", "sigmoid"), (False, None, "argmax")):
        _, lines = net.write_huggingface(tmp_path / "out", ["a", "b"], None, independent=independent)
        assert json.loads((tmp_path / "out" / "config.json").read_text()).get("problem_type") == problem
        assert shown in lines[-1]
        shutil.rmtree(tmp_path / "out")


def test_a_network_of_this_project_is_not_for_transformers(sentiments: str, tmp_path: Path) -> None:
    words = ("--format", "huggingface", "--output", str(tmp_path / "folder"), *own_data(sentiments))
    with pytest.raises(InputError, match="TextEnsemble is not a transformers model; give onnx or torch"):
        export(["--ckpt_path", sentiments, *words])
    assert not list(tmp_path.iterdir())


ASK = {"prompt": "To be", "max_new_tokens": 60, "seed": 1}


@pytest.mark.slow
def test_a_language_model_is_served(writer: str) -> None:
    with service(writer) as found:
        first = found.generate(ASK)
        assert first.status == 200
        assert 20 <= len(first.body.decode()) <= 60
        assert found.generate(ASK).body == first.body
        for _ in range(9):  # more than are generated at once: whoever hangs up leaves the others alone
            answer = found.stream("/generate", {**ASK, "max_new_tokens": 2000})
            answer.read(1)
            answer.close()
        assert found.generate(ASK).body == first.body
        for wrong in ({"temperature": -1}, {"top_p": 7}, {"top_k": 0}, {"max_new_tokens": 10**6}, {"prompt": ""}):
            refused = found.generate({**ASK, **wrong})
            assert (refused.status, list(refused.json)) == (422, ["detail"]), wrong


def test_texts_are_classified_by_the_service(sentiments: str) -> None:
    with service(sentiments) as found:
        assert found.predict({"text": "a fine film"}).json["label"] == "good"
        assert found.predict("an awful film").json["label"] == "bad"
        assert found.predict({"text": "\ud800"}).status == 422
