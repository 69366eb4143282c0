from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.system.errors import InputError
from src.text.text_samples import TextSamples
from tests import toy
from tests.conftest import Run, write
from tests.text.helpers import tiny_pretrained

Train = Callable[..., Run]
TINY = ("--model.net.d_model=16", "--model.net.num_heads=2", "--model.net.num_layers=1", "--data.block_size=16")
SHORT = (
    "--config=configs/text/shakespeare_gpt.yaml",
    "fit",
    *TINY,
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
)


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "own.txt").write_text("To be, or not to be. " * 60)
    return f"--data.path={tmp_path / 'own.txt'}", f"--data.cache_dir={tmp_path / 'cache'}"


@pytest.mark.slow
def test_a_sample_follows_each_validation_and_changes_nothing(train: Train, own: tuple[str, ...]) -> None:
    run = train(*SHORT, *own)
    events = EventAccumulator(str(run.folder)).Reload()
    samples = events.Tensors("sample/text_summary")
    assert [event.step for event in samples] == [2, 4]
    assert len(samples[0].tensor_proto.string_val[0]) > 100
    state = torch.get_rng_state()
    TextSamples().on_validation_batch_end(run.cli.trainer, run.cli.model, None, None, 0)
    assert torch.equal(torch.get_rng_state(), state)
    without = train(*SHORT, *own, "--trainer.callbacks=null")
    assert all((value == without.weights[name]).all() for name, value in run.weights.items())


def test_it_is_refused_where_there_is_no_text(train: Train) -> None:
    with pytest.raises(InputError, match="TextSamples needs a task that generates"):
        train(f"--config={toy.RECIPE}", "--trainer.callbacks+=TextSamples", "--fast_dev_run")


def test_a_prompt_is_needed(train: Train, own: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="TextSamples: prompt '' has no token"):
        train(*SHORT, *own, "--trainer.callbacks+=TextSamples", "--trainer.callbacks.prompt=")
    with pytest.raises(InputError, match=r"^temperature -1\.0 is out of range"):
        train(*SHORT, *own, "--trainer.callbacks+=TextSamples", "--trainer.callbacks.temperature=-1")


@pytest.mark.slow
def test_a_prompt_that_has_no_token_is_refused_before_training(
    train: Train, own: tuple[str, ...], tmp_path: Path
) -> None:
    text = write(tmp_path / "cat.txt", "the cat sat on the mat " * 100)
    words = ("--data.tokenizer", tiny_pretrained("bert", tmp_path), "--data.block_size=8", f"--data.path={text}")
    with pytest.raises(InputError, match=r"^TextSamples: prompt '\\n' has no token in the tokenizer: give another"):
        train(*SHORT, *own, *words)
