"""Image files: as small as is enough, the same pixels everywhere, and a cache."""

import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.engine.data import image_cache
from src.engine.data.image_reader import restored_ranges
from src.engine.data.images import Shrink, read_image, reader
from src.engine.data.loading import Indices
from src.engine.system.errors import InputError
from src.vision.image_folder import ImageFiles, central_box, random_box
from tests.conftest import picture
from tests.vision.test_image_folder import ready


def in_epoch(numbers: list[int], epoch: int) -> Indices:
    """A batch's indices, with the seed of an epoch."""
    indices = Indices(numbers)
    indices.epoch_seed = epoch
    return indices


def photos(folder: Path, count: int = 5, size: tuple[int, int] = (500, 375)) -> str:
    """Two classes of JPEGs with detail of many sizes."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(count):
            layers = [random.integers(0, 256, (side, side, 3), np.uint8) for side in (4, 16, 64)]
            scaled = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC), float) for one in layers]
            Image.fromarray((sum(scaled) / 3).astype(np.uint8)).save(folder / name / f"{number}.jpg")
    return str(folder)


def test_only_training_images_are_cropped_and_flipped(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(5):
            path = tmp_path / name / f"{number}.png"
            picture(path, 0, "L")
            with Image.open(path) as image:
                changed = Image.linear_gradient("L").rotate(30).resize(image.size)
            changed.save(path)

    def changes(images: ImageFiles) -> bool:
        first, second = (images.__getitems__(in_epoch([0], epoch))[0] for epoch in (1, 2))
        return not torch.equal(first, second)

    data = ready(path=str(tmp_path), image_size=16, crop=0.3, flip=False)
    assert changes(data.train_set)
    assert not changes(data.val_set)
    assert not changes(ready(path=str(tmp_path), image_size=16, crop=1.0, flip=False).train_set)
    flipped = ready(path=str(tmp_path), image_size=16, crop=1.0).train_set
    versions = [flipped.__getitems__(in_epoch([0], epoch))[0] for epoch in range(20)]
    assert {torch.equal(one, versions[0]) or torch.equal(one, versions[0].flip(-1)) for one in versions} == {True}
    assert {torch.equal(one, versions[0]) for one in versions} == {True, False}


def test_prediction_decodes_as_validation_does(tmp_path: Path) -> None:
    data = ready(path=photos(tmp_path), image_size=64, val_share=0.2, test_share=0.2)
    file = tmp_path / "a" / "0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(file) as photo:
        photo.save(tmp_path / "a" / "turned.jpg", exif=exif)
        photo.convert("CMYK").save(tmp_path / "a" / "cmyk.jpg")
        photo.convert("L").save(tmp_path / "a" / "grey.jpg", progressive=True)
        photo.save(tmp_path / "a" / "large.png")
        photo.putalpha(photo.convert("L"))
        photo.save(tmp_path / "a" / "clear.png")
    for name, size in {
        "0.jpg": (125, 94),
        "turned.jpg": (94, 125),
        "cmyk.jpg": (125, 94),
        "grey.jpg": (125, 94),
    }.items():
        assert reader(data)(tmp_path / "a" / name).size == size
    for path in (tmp_path / "a").iterdir():
        (trained_on, _) = data.dataset([path], [0], "val")[0]
        assert torch.equal(data.prepare([reader(data)(path)])[0], trained_on), path
        # An image that was decoded whole, as by a program that calls `prepare` itself, hardly differs.
        (whole,) = data.prepare([read_image(path)])
        assert (whole.float() - trained_on.float()).abs().mean() < (3 if path.suffix == ".jpg" else 1e-9), path


@pytest.mark.parametrize("crop", [1.0, 0.5, 0.08])
def test_images_shrink_only_as_far_as_every_crop_keeps_its_pixels(crop: float) -> None:
    random = Random(0)
    for _ in range(500):
        size, shrink = (random.randint(1, 900), random.randint(1, 900)), Shrink(random.randint(4, 300), crop)
        image = shrink(Image.new("L", size))
        assert shrink(image) is image or crop < 1
        assert Image.new("L", size).reduce(shrink.factor(*size)).size == image.size
        if image.size == size:
            continue
        boxes = [random_box(image.height, image.width, crop, random) for _ in range(5)] if crop < 1 else []
        for _, _, height, width in (*boxes, central_box(image.height, image.width)):
            assert min(height, width) >= shrink.size - 1  # rounded


@pytest.mark.slow
def test_batches_do_not_depend_on_threads_workers_or_cache(tmp_path: Path) -> None:
    def batches(epoch: int, threads: int = 1, workers: int = 0, cache: bool = False, passes: int = 1) -> list[Any]:
        data = ready(path=str(tmp_path), batch_size=4, image_size=32, num_workers=workers, cache=cache)
        loader: Any = data.train_dataloader()
        data.train_set.threads = threads
        for earlier in range(passes - 1):
            loader.sampler.set_epoch(10 + earlier)
            list(loader)
        loader.sampler.set_epoch(epoch)
        torch.rand(1)  # the global generator plays no part
        found = list(loader)
        del loader  # a garbage collection would wait 5 s for each of its workers
        return found

    photos(tmp_path)
    expected = batches(3)
    assert not torch.equal(expected[0][0], batches(4)[0][0])
    for options in ({"threads": 3}, {"workers": 2}, {"cache": True, "passes": 2}, {"workers": 1, "cache": True}):
        found = batches(3, **options)  # type: ignore[arg-type]
        for (pixels, targets), (other, others) in zip(expected, found, strict=True):
            assert torch.equal(pixels, other), options
            assert torch.equal(targets, others), options


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_images_are_read_once_by_all_processes(tmp_path: Path, workers: int, messages: list[str]) -> None:
    data = ready(path=photos(tmp_path), batch_size=4, image_size=32, num_workers=workers, cache=True)
    loaders = data.train_dataloader(), data.val_dataloader()
    for loader in loaders:
        list(loader)
    for file in tmp_path.rglob("*.jpg"):
        file.unlink()
    assert [len(list(loader)) for loader in loaders] == [2, 1]
    assert len(data.train_set.__getitems__([0, 1, 2])[1]) == 3
    with pytest.raises(InputError, match="no such file"):
        list(data.test_dataloader())
    (line,) = [line for line in messages if line.startswith("Cache")]
    assert line.startswith("Cache: decoded images take 0 MB of memory, of")


def test_images_that_do_not_fit_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    photos(tmp_path)
    needed = 3 * 8 * 63 * 47  # six training and two validation images
    for free, is_kept in ((2 * needed, True), (2 * needed - 1, False), (0, True)):
        monkeypatch.setattr(image_cache, "available_memory", lambda found=free: found)
        data = ready(path=str(tmp_path), image_size=32, cache=True)
        data.train_dataloader()
        assert (data.train_set.cache is not None) == is_kept
    assert (
        "--data.cache: decoded images take 0 MB of memory, of 0 MB that are free, which is more than half: they are"
        in ("\n".join(messages))
    )


@pytest.mark.parametrize(
    "state", [3, "text", {"float": 1}, {"float": (1, 1)}, {"float": ("a", 1)}, {"float": (0, np.inf)}]
)
def test_ranges_of_a_checkpoint_are_checked(state: Any) -> None:
    with pytest.raises(InputError, match="its value_ranges are "):
        restored_ranges(state)
    assert restored_ranges({"float": [0, 1.5]}) == {"float": (0, 1.5)}


def test_a_part_of_images_holds_no_list_that_workers_would_copy(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")  # not UTF-8
    Image.new("RGB", (9, 9)).save(tmp_path / name)
    part = ImageFiles([tmp_path / name], [1], Shrink(8), {})
    assert part.files == [tmp_path / name]
    assert [value.tolist() for value in part.__getitems__([0])] == [torch.zeros(1, 3, 8, 8).tolist(), [1]]
    assert not any(isinstance(value, list) for value in vars(part).values())
