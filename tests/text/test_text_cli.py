"""What a command line makes of text recipes: sizes, tokenizers and labels that follow from the data."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from src.engine.system.errors import InputError
from src.engine.training.hyperparameters import check_limits
from src.text.text_classifier import TextClassifier
from tests.conftest import Run, own_text, write
from tests.text.helpers import tiny_pretrained

Train = Callable[..., Run]


def test_a_language_model_takes_its_sizes_from_the_data(train: Train, tmp_path: Path) -> None:
    small = ("--model.net.d_model=16", "--model.net.num_heads=2", "--model.net.num_layers=1")
    data = (f"--data.path={own_text(tmp_path)}", f"--data.cache_dir={tmp_path / 'cache'}", "--data.block_size=12")
    data = (*data, "--data.tokenizer=bpe", "--data.max_vocab_size=270")
    steps = ("--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.callbacks=null")
    run = train("fit", "--config=configs/text/shakespeare_gpt.yaml", *small, *data, *steps)
    assert (run.cli.model.net.block_size, run.cli.model.net.vocab_size) == (12, run.cli.datamodule.vocab_size)
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["net"]["init_args"]["vocab_size"] == run.cli.datamodule.vocab_size


@pytest.mark.slow
def test_a_text_classifier_takes_its_sizes_from_the_data(train: Train, tmp_path: Path) -> None:
    table = write(tmp_path / "own.csv", "text,label\n" + "".join(f"text {n % 20},{n % 5}\n" for n in range(60)))
    encoder = ("--config=configs/text/sentiment_transformer.yaml", "--fast_dev_run", f"--data.path={table}")
    built = train(*encoder).cli
    assert built.model.net.num_classes == 5
    assert built.model.net.vocab_size == built.datamodule.vocab_size < 30
    with pytest.raises(InputError, match="the data has 5 classes and TextEnsemble 2: leave num_classes out, or give 5"):
        train(*encoder, "--model.net.num_classes=2")


@pytest.mark.slow
def test_a_tokenizer_that_does_not_fit_a_network_is_one_line(train: Train, tmp_path: Path) -> None:
    folder = tiny_pretrained("bert", tmp_path)
    table = write(tmp_path / "own.csv", "text,label\n" + "the cat,1\na dog,2\n" * 30)
    words = (
        "--config=configs/text/sentiment_pretrained.yaml",
        f"--model.net.pretrained={folder}",
        "--data.tokenizer=bytes",
    )
    with pytest.raises(InputError, match="vocab_size 256 of the data does not fit PretrainedClassifier"):
        train(*words, f"--data.path={table}", "--data.max_length=40", "--fast_dev_run")


@pytest.mark.slow
def test_a_pretrained_network_brings_its_tokenizer_and_its_checkpoint_stands_alone(
    train: Train, tmp_path: Path
) -> None:
    folder = tiny_pretrained("bert", tmp_path)
    rows = "".join(f"the {('cat', 'dog')[n % 2]} sat,{('C', 'D')[n % 2]}\n" for n in range(60))
    table = write(tmp_path / "own.csv", f"text,label\n{rows}")
    words = ("--config=configs/text/sentiment_pretrained.yaml", f"--data.path={table}", "--data.max_length=40")
    words = (*words, "--data.batch_size=4", "--max_epochs=6", "--optimizer.lr=0.01", "--model.net.dropout=0")
    words = (*words, "--model.adversarial=0.001")  # the vectors of so small a model are short
    run = train(*words, f"--model.net.pretrained={folder}")
    assert run.cli.config.data.init_args.tokenizer == folder
    assert run.metrics["test/acc"] == 1
    (tmp_path / "bert").rename(tmp_path / "gone")
    best = run.folder / "checkpoints" / "best.ckpt"
    with pytest.raises(InputError, match=r"--data.path is missing: paths are read from a checkpoint only if"):
        train("test", "--ckpt_path", str(best))
    again = train("test", "--ckpt_path", str(best), f"--data.path={table}", "--data.max_length=40")
    assert again.metrics["test/loss"] == pytest.approx(run.metrics["test/loss"])
    loaded = TextClassifier.load_from_checkpoint(best, weights_only=True)
    assert all(torch.equal(value, run.weights[name]) for name, value in loaded.state_dict().items())


@pytest.mark.slow
def test_a_checkpoint_brings_the_labels_it_was_trained_on(train: Train, tmp_path: Path) -> None:
    rows = "".join(f"{'abc'[n % 3] * 4},{'xyz'[n % 3]}\n" for n in range(60))
    first = write(tmp_path / "first.csv", f"text,label\n{rows}")
    fewer = write(tmp_path / "fewer.csv", "text,label\n" + "bbbb,y\ncccc,z\n" * 20)
    small = ("--model.net.d_model=32", "--model.net.num_layers=1", "--max_epochs=12", "--data.batch_size=8")
    words = ("--config=configs/text/language_id.yaml", *small)
    run = train("fit", *words, f"--data.path={first}")
    path = str(run.folder / "checkpoints" / "last.ckpt")
    tested = train("test", "--ckpt_path", path, f"--data.path={fewer}")
    assert tested.cli.datamodule.labels == ["x", "y", "z"]
    assert tested.metrics["test/acc"] == 1


def test_texts_that_are_longer_than_the_network_takes_are_refused_before_training() -> None:
    data = SimpleNamespace(max_length=64, vocab_size=10)
    check_limits(SimpleNamespace(block_size=64, vocab_size=10), data)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"which has block_size 40: give --data\.max_length 40$"):
        check_limits(SimpleNamespace(block_size=40, vocab_size=10), data)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"which has block_size 40: give --data\.block_size 40$"):
        check_limits(SimpleNamespace(block_size=40), SimpleNamespace(block_size=64))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_checkpoint_keeps_its_tokenizer(train: Callable[..., Run], tmp_path: Path) -> None:
    own = ("--config=configs/text/shakespeare_gpt.yaml", "--model.net.d_model=16", "--model.net.num_heads=2")
    own += ("--model.net.num_layers=1", f"--data.path={own_text(tmp_path)}", f"--data.cache_dir={tmp_path / 'cache'}")
    own += ("--data.block_size=12", "--trainer.limit_val_batches=1", "--trainer.callbacks=null")
    first = train("fit", *own, "--trainer.max_steps=1")
    path = str(first.folder / "checkpoints" / "last.ckpt")
    run = train("fit", *own, "--trainer.max_steps=2", f"--ckpt_path={path}", "--data.tokenizer=bpe")
    assert "--data.tokenizer bpe is not used: the checkpoint has its own, bytes" in run.messages
    assert "tokenizer: bytes" in (run.folder / "config.yaml").read_text()
