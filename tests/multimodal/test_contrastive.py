"""The contrastive model: loss, data, evaluation and prediction."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src.engine.data.loading import Batches, Indices
from src.engine.deploy.exporting import export
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.system.errors import InputError
from src.engine.training.hyperparameters import check_limits
from src.multimodal import contrastive
from src.multimodal.captions import NAMES, PHRASINGS, CaptionDataModule
from src.multimodal.clip import CLIP
from src.multimodal.contrastive import ContrastiveModel, _distinct
from src.text.text_encoder import TextEncoder
from src.vision.vgg import VGG
from tests.conftest import QUIET, Run, fit, once, program, trainer
from tests.multimodal.helpers import captions, own_pairs

Train = Callable[..., Run]
CONFIG = "--config=configs/multimodal/mnist_clip.yaml"


def test_the_loss_is_the_symmetric_loss_of_the_paper() -> None:
    torch.manual_seed(0)
    task = ContrastiveModel(CLIP(vocab_size=30)).eval()
    images, tokens = torch.randn(5, 1, 28, 28), torch.randint(0, 30, (5, 4))
    mask = torch.ones(5, 4, dtype=torch.bool)
    loss, seen = task.step((images, tokens, mask, torch.arange(5)))
    image_features, text_features = task.net(images, tokens, mask)
    assert torch.allclose(image_features.norm(dim=1), torch.ones(5))
    logits = image_features @ text_features.T / 0.07
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    assert torch.allclose(loss, expected, atol=1e-5)
    assert seen["weight"] == 5
    loss.backward()
    assert task.net.log_scale.grad is not None


class Given(nn.Module):
    """Returns features as they are given."""

    modalities = ("image", "text")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features


@pytest.mark.parametrize(
    ("count", "asks"), [(12, False), (10, False), (11, True), (9, True), (None, True)], ids=lambda value: str(value)
)
def test_processes_ask_each_other_for_their_pairs_only_if_the_last_batch_is_uneven(
    count: int | None, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ContrastiveModel(Given())
    run: Any = SimpleNamespace(world_size=2, global_rank=1, training=True)
    run.strategy = SimpleNamespace(root_device=torch.device("cpu"))
    run.train_dataloader = SimpleNamespace(sampler=Batches(count, 4, run) if count else None)
    task.trainer = run
    asked: list[int] = []
    monkeypatch.setattr(contrastive, "gathered", lambda own: asked.append(own) or [own + 1, own])
    monkeypatch.setattr(task, "all_gather", lambda features, sync_grads: torch.stack([features, features]))
    everyone, first = task._everyone(torch.ones(2, 1, 3))
    assert asked == [1] * asks
    assert (everyone.shape, first) == ((2, 2 + asks, 3), 1 + asks)


class SeveralCaptions(LightningDataModule):
    """Three images with six captions each, of which the first image and caption is the nearest one of the second."""

    modalities, repeats_images = ("image", "text"), True

    def test_dataloader(self) -> DataLoader[Any]:
        images, targets = torch.eye(3).repeat_interleave(6, dim=0), torch.arange(3).repeat_interleave(6)
        texts = 0.9 * images
        texts[6:12] = torch.tensor([0.8, 0.5, 0.0])
        texts[[0, 6]] = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.9, 0.0]])
        return DataLoader([(images, texts, targets)], None)


def test_every_caption_of_an_image_is_right_and_an_image_counts_once(tmp_path: Path) -> None:
    (found,) = trainer(tmp_path).test(ContrastiveModel(Given()), SeveralCaptions(), verbose=False)
    assert found["test/image_to_text_r1"] == 1  # not the caption of their own row
    assert found["test/text_to_image_r1"] == pytest.approx(12 / 18)
    assert found["test/text_to_image_r5"] == 1  # not five times the first image


def test_copies_of_a_sound_count_once() -> None:
    sounds = torch.eye(4)[[0, 0, 1, 2, 2, 3]]
    sounds[1] += 1e-6  # computed in another batch
    assert _distinct(sounds, torch.tensor([0, 0, 0, 1, 1, 2])).tolist() == [0, 2, 3, 5]
    assert _distinct(sounds, torch.tensor([0, 1, 0, 1, 1, 2])).tolist() == [0, 1, 2, 3, 5]


@pytest.mark.slow
def test_images_with_captions_train_with_weights_of_another_type(train: Train, tmp_path: Path) -> None:
    words = (CONFIG, "--data.source=sample", "--model.net.width=4", "--precision=bf16-true", "--max_epochs=1")
    run = train("fit", *words, "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2")
    assert 0 <= run.metrics["val/acc"] <= 1
    own = (f"--data.path={own_pairs(tmp_path / 'own')}", "--data.image_size=16", "--model.net.hidden=16")
    assert 0 <= train("fit", *words, *own).metrics["val/text_to_image_r1"] <= 1


def test_a_validation_without_batches_as_after_continuing_at_the_end_of_an_epoch_logs_nothing() -> None:
    task = ContrastiveModel(CLIP(vocab_size=8))
    task.trainer = trainer = Trainer(logger=False, enable_checkpointing=False)
    task.on_validation_epoch_end()
    assert not trainer.callback_metrics
    assert task.similarity is None


def test_no_phrasing_is_in_two_parts() -> None:
    parts = [set(phrasings) for phrasings in PHRASINGS.values()]
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    still = ("--data.max_shift=0", "--data.max_rotation=0")
    words = (CONFIG, "--data.source=sample", *still, "--max_epochs=3", "--data.batch_size=64", "--trainer.callbacks=[]")
    words += ("--model.net.width=8", "--model.net.hidden=64")
    return once(tmp_path_factory, "clip", lambda folder: fit(folder, *words))


@pytest.mark.slow
def test_unseen_phrasings_classify_and_retrieve_digits(trained: str, train: Train) -> None:
    metrics = train("test", "--ckpt_path", trained).metrics
    assert metrics["test/acc"] > 0.9
    for name in ("image_to_text", "text_to_image"):
        assert 0.5 < metrics[f"test/{name}_r1"] <= metrics[f"test/{name}_r5"] <= 1


@pytest.mark.slow
def test_images_are_classified_by_your_own_labels(trained: str, tmp_path: Path) -> None:
    data = CaptionDataModule(source="sample")
    data.setup("test")
    targets = data.digits.test_set.targets
    given = [*(targets == 3).nonzero()[:10, 0].tolist(), *(targets == 7).nonzero()[:10, 0].tolist()]
    for position, number in enumerate(given):
        Image.fromarray(data.digits.test_set.images[number].numpy()).save(tmp_path / f"{position:02}.png")
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


@pytest.mark.slow
def test_your_own_images_with_captions_train_and_bad_files_are_named(train: Train, tmp_path: Path) -> None:
    table = own_pairs(tmp_path / "pairs")
    words = (f"--data.path={table}", "--data.image_size=16", "--data.batch_size=12", "--max_epochs=2")
    run = train(CONFIG, *words)
    assert run.cli.model.net.in_channels == 3
    assert run.cli.model.net.image_size == 16
    assert "test/acc" not in run.metrics
    assert 0 <= run.metrics["test/image_to_text_r1"] <= run.metrics["test/image_to_text_r5"] <= 1
    assert run.metrics["data_source"] == str(table)
    (tmp_path / "pairs" / "7.png").write_bytes(b"none")
    with pytest.raises(InputError, match=r"1 of 60 files cannot be used: .*7\.png"):
        train(CONFIG, *words)


@pytest.mark.slow
def test_the_similarity_matrix_is_drawn(train: Train) -> None:
    run = train(CONFIG, "--data.source=sample", "--trainer.limit_train_batches=3", "--max_epochs=1")
    events = EventAccumulator(str(run.folder), size_guidance={"images": 0})
    events.Reload()
    assert {"val/similarity", "test/similarity"} <= set(events.Tags()["images"])
    similarity = run.cli.model.similarity
    assert similarity.shape == (10, 10)
    assert similarity.abs().max() <= 1


@pytest.mark.slow
def test_export_of_a_contrastive_model_is_an_error(trained: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ContrastiveModel compares images with texts"):
        export(["--ckpt_path", trained, "--format", "onnx", "--output", str(tmp_path / "model.onnx")])


@pytest.mark.slow
def test_two_processes_compare_the_pairs_of_both_and_match_one_process(train: Train, tmp_path: Path) -> None:
    words = (CONFIG, "--data.source=sample", "--data.max_shift=0", "--data.max_rotation=0", "--data.batch_size=32")
    words += ("--model.net.width=4", "--model.net.hidden=16", "--model.net.dropout=0", "--precision=64-true")
    words += ("--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.callbacks=[]")
    words += ("--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=null")  # Adam would amplify rounding errors
    alone = train("fit", *words, "--devices=1")
    one = alone.weights
    root = f"--trainer.default_root_dir={tmp_path / 'two'}"
    done = program("fit", *words, *QUIET, root, "--devices=2", "--strategy=ddp", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "two").glob("*/*/checkpoints/last.ckpt")
    two = torch.load(path, weights_only=True)["state_dict"]
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-6), name
    seen = json.loads((path.parent.parent / "metrics.json").read_text())
    for name in ("val/loss", "val/image_to_text_r1"):  # 500 samples: the last batch has an odd share
        assert seen[name] == pytest.approx(alone.metrics[name], abs=1e-5)


@pytest.mark.slow
def test_labels_of_words_that_the_model_does_not_know_are_refused(trained: str, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    words = ["--ckpt_path", trained, str(tmp_path), "--output", str(tmp_path / "out.csv")]
    with pytest.raises(InputError, match="labels 'a cat' and 'a dog' are the same to this model: give texts that"):
        predict([*words, "--labels", "a cat", "a three", "a dog"])
    with pytest.raises(InputError, match="label ' ' is empty to this model"):
        predict([*words, "--labels", "a three", " "])


def test_captions_of_one_image_are_in_different_batches_and_long_ones_are_said(
    tmp_path: Path, messages: list[str]
) -> None:
    folder = own_pairs(tmp_path / "own").parent
    rows = [(f"{number}.png", f"a picture of {'many ' * 30} {number}") for number in range(60) for _ in range(5)]
    data = CaptionDataModule(str(captions(folder, rows)), image_size=16, batch_size=6)
    data.setup("fit")
    for *_, targets in data.val_dataloader():
        assert len(targets.unique()) == len(targets)
    assert any(re.match(r"\d+ of \d+ training captions reach the limit of 32 tokens", line) for line in messages)
    with pytest.raises(InputError, match="label 'zebra' has no word that the model was trained on"):
        data.prepare_texts(["a picture", "zebra"])
    data.prepare_texts(["a picture", "a zebra"])
    assert "label 'a zebra': the model was not trained with zebra, which it reads as unknown" in messages


def test_images_with_captions_may_be_whole_and_have_workers_of_ones_own(tmp_path: Path) -> None:
    data = CaptionDataModule(str(own_pairs(tmp_path / "own")), image_size=16, crop=1.0, num_workers=0)
    data.setup("fit")
    seen = []
    for epoch_seed in (3, 4):
        indices = Indices([0])
        indices.epoch_seed = epoch_seed
        seen.append(data.train_set.images.__getitems__(indices)[0])
    assert torch.equal(*seen)
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy, num_nodes=1)  # type: ignore[assignment]
    assert data.train_dataloader().num_workers == 0


@pytest.mark.slow
def test_a_pretrained_encoder_is_rebuilt_without_its_file(tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    table = own_pairs(tmp_path / "own")
    words = (CONFIG, f"--data.path={table}", "--data.image_size=32", "--trainer.max_steps=1", "--data.batch_size=8")
    net = (
        "--model.net.image=TorchvisionNet",
        "--model.net.image.num_classes=64",
        f"--model.net.image.weights={weights}",
    )
    path = fit(tmp_path, *words, *net)
    weights.unlink()
    inference = Inference(path)
    assert inference.task.net.image_net.net is not None
    assert len({id(one) for one in inference.task.net.parameters()}) == len([*inference.task.net.parameters()])


def test_networks_that_do_not_fit_the_data_are_one_line() -> None:
    for networks in ({"text": TextEncoder(256, 64)}, {"image": VGG(num_classes=64)}):
        with pytest.raises(ValueError, match=r"CLIP (500|3): give it (vocab_size 500|in_channels 3)$"):
            CLIP(vocab_size=500, in_channels=3, **networks)  # type: ignore[arg-type]
    CLIP(image=VGG(in_channels=3, num_classes=64))  # with data of one's own, which gives CLIP no sizes
    net = nn.Linear(2, 2)
    net.pretrained, net.vocab_size = "some/model", 9  # type: ignore[assignment]
    with pytest.raises(InputError, match="Linear was trained with tokens of its own, CaptionDataModule has others"):
        check_limits(nn.Sequential(net), CaptionDataModule(source="sample"))
