"""Any two or three of images, sounds and texts in one space."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch.nn import functional as F

from src.engine.deploy.predicting import predict
from src.engine.system.errors import InputError
from src.multimodal.clip import CLIP
from src.multimodal.contrastive import ContrastiveModel
from src.multimodal.spoken import SpokenCaptionDataModule
from src.vision.vgg import VGG
from tests.audio.helpers import RATE, tone
from tests.conftest import Run, fit, once
from tests.multimodal.helpers import own_pairs

Train = Callable[..., Run]
CONFIG = "--config=configs/multimodal/three.yaml"
SMALL = (CONFIG, "--data.source=sample", "--data.batch_size=64", "--model.net.width=8", "--model.net.hidden=64")
SAMPLES = {
    "image": [torch.randn(5, 1, 28, 28)],
    "sound": [torch.randn(5, 1, 40, 40)],
    "text": [torch.randint(0, 30, (5, 4)), torch.ones(5, 4, dtype=torch.bool)],
}


def samples_of(names: list[str]) -> list[Any]:
    return [one for name in names for one in SAMPLES[name]]


def test_the_loss_of_three_is_the_mean_of_the_pairs_with_the_image() -> None:
    torch.manual_seed(0)
    three = ContrastiveModel(CLIP(vocab_size=30, modalities=("text", "sound", "image"))).eval()
    assert three.modalities == ["image", "sound", "text"]
    loss, _ = three.step((*samples_of(three.modalities), torch.arange(5)))
    images, sounds, texts = three.net(*samples_of(three.modalities))
    pairs = [(images @ other.T / 0.07, torch.arange(5)) for other in (sounds, texts)]
    expected = [F.cross_entropy(one, at) for logits, at in pairs for one in (logits, logits.T)]
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-5)


@pytest.mark.parametrize("names", [["image", "text"], ["image", "sound"], ["sound", "text"]])
def test_any_two_are_a_network_with_encoders_of_these_alone(names: list[str]) -> None:
    net = CLIP(vocab_size=30, modalities=names)  # type: ignore[arg-type]
    features = net(*samples_of(names))
    assert [one.shape for one in features] == [(5, 64)] * 2
    assert {name.split("_net")[0] for name in net.state_dict() if "_net" in name} == set(names)


def test_an_encoder_is_given_by_name() -> None:
    net = CLIP(vocab_size=30, modalities=("sound", "text"), sound=VGG(num_classes=64, width=4))
    assert isinstance(net.sound_net, VGG)
    assert net(*samples_of(["sound", "text"]))[0].shape == (5, 64)
    assert not any(name.startswith("sound.") for name in net.state_dict())
    for wrong, message in (
        ({"sound": VGG(num_classes=10), "modalities": ("sound", "text")}, "VGG has 10 outputs, embedding_dim is 64"),
        ({"sound": VGG(num_classes=64)}, "sound is not a modality of this network"),
        ({"modalities": ("image",)}, "modalities image: give two or three of image, sound, text"),
        ({"modalities": ("image", "image")}, "give two or three"),
    ):
        with pytest.raises(ValueError, match=message):
            CLIP(**wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = (*SMALL, "--max_epochs=2", "--trainer.callbacks=[]")
    return once(tmp_path_factory, "three", lambda folder: fit(folder, *words))


@pytest.mark.slow
def test_a_spoken_digit_finds_its_image_and_every_pair_is_reported(trained: str, train: Train) -> None:
    metrics = train("test", "--ckpt_path", trained).metrics
    pairs = [(one, other) for one in SAMPLES for other in SAMPLES if one != other]
    for one, other in pairs:
        assert 0.4 < metrics[f"test/{one}_to_{other}_r1"] <= metrics[f"test/{one}_to_{other}_r5"] <= 1, (one, other)
    assert metrics["test/acc"] > 0.8


@pytest.mark.slow
def test_the_pairs_are_of_the_same_digit_and_no_voice_is_in_two_parts() -> None:
    data = SpokenCaptionDataModule(source="sample")
    data.setup("fit")
    words = data.words
    for part, clips in zip(data.sets, (words.train_set, words.val_set, words.test_set), strict=True):
        _, waveforms, _, _, targets = data.sets[part].__getitems__(list(range(40)))
        labels = {wave.numpy().tobytes(): target for wave, target in zip(clips.waveforms, clips.targets, strict=True)}
        found = [labels[wave.numpy().tobytes()] for wave in (waveforms * 2**15).short()]
        assert found == targets.tolist()
    first, again = (data.sets["test"].__getitems__([3, 4])[1] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["[image,sound]", "[sound,text]", "[image,text]"])
def test_two_modalities_train_and_are_reported(names: str, train: Train) -> None:
    short = ("--max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    run = train("fit", *SMALL, f"--data.modalities={names}", *short)
    one, other = names.strip("[]").split(",")
    assert f"val/{one}_to_{other}_r1" in run.metrics
    assert sum(name.endswith("_r1") for name in run.metrics if name.startswith("val/")) == 2
    assert ("val/acc" in run.metrics) == ("text" in names)


@pytest.mark.slow
def test_sounds_are_classified_by_texts(tmp_path: Path) -> None:
    words = (*SMALL, "--data.modalities=[sound,text]", "--trainer.callbacks=[]", "--max_epochs=2")
    checkpoint = fit(tmp_path, *words)
    data = SpokenCaptionDataModule(source="sample")
    data.words.setup("test")
    clips = data.words.test_set
    chosen = [*(clips.targets == 3).nonzero()[:10, 0].tolist(), *(clips.targets == 7).nonzero()[:10, 0].tolist()]
    (tmp_path / "new").mkdir()
    for place, number in enumerate(chosen):
        soundfile.write(tmp_path / "new" / f"{place:02}.wav", clips.waveforms[number].numpy(), RATE)
    output = tmp_path / "out.csv"
    given = ["--ckpt_path", checkpoint, str(tmp_path / "new"), "--output", str(output)]
    assert predict([*given, "--labels", "a three", "a seven"]) == 0
    with output.open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    wanted = ["a three"] * 10 + ["a seven"] * 10
    assert sum(label == want for label, want in zip(labels, wanted, strict=True)) >= 14


def triples(folder: Path) -> Path:
    """Pictures of one colour, captions, and a tone for each colour."""
    table = own_pairs(folder)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["sound"] = f"{number}.wav"
        soundfile.write(folder / row["sound"], tone((300, 1000, 3000)[number % 3], 0.4), RATE)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.mark.slow
def test_your_own_triples_train_and_bad_sounds_are_named_with_their_row(train: Train, tmp_path: Path) -> None:
    table = triples(tmp_path / "own")
    words = (CONFIG, f"--data.path={table}", "--data.image_size=16", "--data.batch_size=12", "--max_epochs=1")
    run = train(*words)
    assert {"test/image_to_sound_r1", "test/sound_to_text_r1"} <= run.metrics.keys()
    (tmp_path / "own" / "7.wav").write_bytes(b"none")
    with pytest.raises(InputError, match=r"1 of 60 files cannot be used: .*captions\.csv, row 8: 7\.wav \(not a sound"):
        train(*words)
    with pytest.raises(InputError, match=r"no column audio, it has image, caption, sound: give --data\.sound_column"):
        train(*words, "--data.sound_column=audio")
    with pytest.raises(InputError, match=r"no column said, it has image, caption, sound: give --data\.caption_column"):
        train(*words, "--data.caption_column=said")
    table.write_text("\n".join(table.read_text().splitlines()[:4]))
    with pytest.raises(InputError, match=r"words has . different tokens .*: it does not fit them"):
        train(*words)
    with pytest.raises(InputError, match=r"own is a folder: give a \.csv"):
        train(*words, f"--data.path={table.parent}")


def test_sounds_of_validation_can_be_in_a_table_of_their_own(tmp_path: Path) -> None:
    table, other = triples(tmp_path / "own"), triples(tmp_path / "other")
    lines = other.read_text().splitlines()
    other.write_text("\n".join([lines[0], *lines[2:4]]) + "\n")  # tones of 1,000 and 3,000 Hz
    data = SpokenCaptionDataModule(path=str(table), val_path=str(other), image_size=16)
    data.setup("fit")
    waves, matching = data.sets["val"].sounds or ((), ())
    expected = data.words.read(["1", "2"], [tmp_path / "own" / f"{number}.wav" for number in (1, 2)])
    assert torch.equal(torch.as_tensor(waves), torch.stack(expected))
    assert list(matching) == [[0], [1]]
    assert [file.parent.name for file in data.sets["val"].images.files] == ["other"] * 2


def test_rows_of_one_image_keep_their_own_sounds(tmp_path: Path) -> None:
    table = triples(tmp_path / "own")
    lines = table.read_text().splitlines()
    again = [line.replace(f",{number}.wav", f",{(number + 1) % 60}.wav") for number, line in enumerate(lines[1:])]
    table.write_text("\n".join([*lines, *again]))
    data = SpokenCaptionDataModule(path=str(table), image_size=16)
    data.setup("fit")
    rows = [line.split(",") for line in [*lines[1:], *again]]
    for part, own in data.rows_of.items():
        _, found, _, _, targets = data.sets[part].__getitems__(range(len(own)))
        sounds = torch.stack(data.words.read(own, [table.parent / rows[row][2] for row in own]))
        assert torch.equal((found * 2**15).short(), sounds)
        assert len({*targets.tolist()}) == len(own) / 2


def test_modalities_are_checked_where_they_are_given() -> None:
    for given in (["image", "image", "text"], ["image"]):
        with pytest.raises(InputError, match=f"modalities {', '.join(given)}: give two or three of image, sound"):
            SpokenCaptionDataModule(modalities=given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.net.modalities=[image,text]", "the data has image, sound, text, CLIP takes image, text: give"),
        ("--data.modalities=[image]", "modalities image: give two or three of image, sound, text"),
    ],
)
def test_wrong_modalities_are_one_line(words: str, message: str, error_of: Callable[..., str]) -> None:
    assert message in error_of(*SMALL, words)


@pytest.mark.slow
def test_a_model_without_texts_says_that_it_cannot_name_classes(tmp_path: Path) -> None:
    short = ("--max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
    checkpoint = fit(tmp_path, *SMALL, "--data.modalities=[image,sound]", *short)
    with pytest.raises(InputError, match="has no texts to name classes with"):
        predict(["--ckpt_path", checkpoint, str(tmp_path), "--output", str(tmp_path / "out.csv")])


def test_longer_sounds_are_given_by_their_seconds(tmp_path: Path) -> None:
    data = SpokenCaptionDataModule(path=str(triples(tmp_path / "own")), image_size=16, seconds=2.0)
    data.setup("fit")
    assert data.sets["train"].sounds[0].shape[1] == 2 * 16_000


def test_a_temperature_at_its_limit_can_rise_again() -> None:
    net = CLIP(temperature=0.01)
    net.log_scale.data.fill_(5)
    scale = net.scale
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert float(net.log_scale.grad) > 0  # type: ignore[arg-type]
