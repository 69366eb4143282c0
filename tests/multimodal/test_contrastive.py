"""A model of images and texts, its data, and what it is used for."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from src.engine.system.errors import InputError
from src.multimodal.captions import NAMES, PHRASINGS, CaptionDataModule
from src.multimodal.clip import CLIP
from src.multimodal.contrastive import ContrastiveModel
from src.predict import predict
from tests.conftest import QUIET, Run, fit, own_pairs, program

Train = Callable[..., Run]
CONFIG = "--config=configs/multimodal/mnist_clip.yaml"


def test_the_loss_is_the_symmetric_one_of_the_paper() -> None:
    torch.manual_seed(0)
    task = ContrastiveModel(CLIP(vocab_size=30)).eval()
    images, tokens = torch.randn(5, 1, 28, 28), torch.randint(0, 30, (5, 4))
    mask = torch.ones(5, 4, dtype=torch.bool)
    loss, seen = task.step((images, tokens, mask, torch.arange(5)))
    one, other = task.net(images, tokens, mask)
    assert torch.allclose(one.norm(dim=1), torch.ones(5))
    logits = one @ other.T / 0.07
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    assert torch.allclose(loss, expected, atol=1e-5)
    assert seen["weight"] == 5
    loss.backward()
    assert task.net.log_scale.grad is not None


def test_phrasings_of_a_part_are_seen_in_no_other() -> None:
    parts = [set(one) for one in PHRASINGS.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    data = CaptionDataModule(source="sample", batch_size=50)
    data.setup("fit")
    for part, phrasings in PHRASINGS.items():
        images, tokens, mask, targets = data.sets[part].__getitems__(list(range(50)))
        assert images.shape == (50, 1, 28, 28)
        assert tokens.shape == mask.shape
        assert len(data.sets[part].matching[0]) == 2 * len(phrasings)
        for row, target in zip(tokens, targets.tolist(), strict=True):
            text = data.tokenizer.decode(row[row > 0].tolist())
            assert any(re.search(rf"\b{name}\b", text) for name in NAMES[target])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = (CONFIG, "--data.source=sample", "--max_epochs=4", "--trainer.callbacks=[]")
    return fit(tmp_path_factory.mktemp("clip"), *words)


def test_unseen_phrasings_tell_digits_apart(trained: str, train: Train) -> None:
    metrics = train("test", "--ckpt_path", trained).metrics
    assert metrics["test/acc"] > 0.9
    for name in ("image_to_text", "text_to_image"):
        assert 0.5 < metrics[f"test/{name}_r1"] <= metrics[f"test/{name}_r5"] <= 1


def test_images_are_told_apart_by_texts_of_ones_own(trained: str, tmp_path: Path) -> None:
    data = CaptionDataModule(source="sample")
    data.setup("test")
    targets = data.digits.test_set.targets
    given = [*(targets == 3).nonzero()[:10, 0].tolist(), *(targets == 7).nonzero()[:10, 0].tolist()]
    for place, number in enumerate(given):
        Image.fromarray(data.digits.test_set.images[number].numpy()).save(tmp_path / f"{place:02}.png")
    output = tmp_path / "out.csv"
    words = ["--ckpt_path", trained, str(tmp_path), "--output", str(output)]
    assert predict([*words, "--labels", "my lovely three", "a seven"]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[2:4] == ["probability_my lovely three", "probability_a seven"]
    wanted = ["my lovely three"] * 10 + ["a seven"] * 10
    assert sum(row["label"] == want for row, want in zip(rows, wanted, strict=True)) >= 18
    output.unlink()
    assert predict(words) == 0
    with output.open() as file:
        assert sum(row["label"] == "three" for row in csv.DictReader(file)) >= 8


def test_labels_are_for_such_models_only(digits: str, tmp_path: Path) -> None:
    words = ["--ckpt_path", digits, str(tmp_path), "--output", str(tmp_path / "out.csv")]
    with pytest.raises(InputError, match="ImageClassifier tells the classes it was trained on: leave it out"):
        predict([*words, "--labels", "a", "b"])


def test_own_images_with_captions(train: Train, tmp_path: Path) -> None:
    table = own_pairs(tmp_path / "pairs")
    words = (f"--data.path={table}", "--data.image_size=16", "--data.batch_size=12", "--max_epochs=2")
    run = train(CONFIG, *words, sample=False)
    assert run.cli.model.net.in_channels == 3
    assert run.cli.model.net.image_size == 16
    assert "test/acc" not in run.metrics
    assert 0 <= run.metrics["test/image_to_text_r1"] <= run.metrics["test/image_to_text_r5"] <= 1
    assert run.metrics["data_source"] == str(table)
    (tmp_path / "pairs" / "7.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"1 of 60 images cannot be used: .*7\.png"):
        train(CONFIG, *words, sample=False)


def test_the_similarities_are_drawn(train: Train) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(CONFIG, "--trainer.limit_train_batches=3", "--max_epochs=1")
    events = EventAccumulator(str(run.folder), size_guidance={"images": 0})
    events.Reload()
    assert {"val/similarity", "test/similarity"} <= set(events.Tags()["images"])
    similarity = run.cli.model.similarity
    assert similarity.shape == (10, 10)
    assert similarity.abs().max() <= 1


def test_what_cannot_be_done_with_it_is_said(trained: str, tmp_path: Path) -> None:
    from src.export import export

    with pytest.raises(InputError, match="ContrastiveModel compares images with texts"):
        export(["--ckpt_path", trained, "--format", "onnx", "--output", str(tmp_path / "model.onnx")])


def steps(tmp_path: Path, name: str, *more: str) -> dict[str, torch.Tensor]:
    words = (CONFIG, "--data.source=sample", "--data.max_shift=0", "--data.max_rotation=0", "--model.net.dropout=0")
    words += ("--precision=64-true", "--trainer.max_steps=3", "--trainer.limit_val_batches=0", "--trainer.callbacks=[]")
    words += ("--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=null")  # Adam would make noise of tiny gradients
    root = f"--trainer.default_root_dir={tmp_path / name}"
    done = program("fit", *words, *QUIET, root, *more, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / name).glob("*/*/checkpoints/last.ckpt")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


@pytest.mark.slow
def test_two_processes_learn_from_the_pairs_of_both_as_one_does(tmp_path: Path) -> None:
    one: Any = steps(tmp_path, "one", "--devices=1")
    two: Any = steps(tmp_path, "two", "--devices=2", "--strategy=ddp")
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-6), name
