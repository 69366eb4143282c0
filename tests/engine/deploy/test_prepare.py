"""The contract of a DataModule's `prepare`, and true values from files."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.engine.data.images import read_mask
from src.engine.deploy.prepare import kind_of, prepare_inputs, prepare_targets
from src.engine.system.errors import InputError
from tests.contract import check_prepare
from tests.engine.deploy.toys import NotingData, ToyTexts
from tests.toy import MEAN, STD, ToyData


def data(result: Any = None, **attributes: Any) -> Any:
    return SimpleNamespace(prepare=lambda inputs: result, **attributes)


PIXELS = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SimpleNamespace(input_kind="text"), "cannot prepare single inputs: give it a method prepare and input_kind ="),
        (data(), "input_kind = 'image', 'text', 'table' or 'file'; see docs/your_own.md"),
        (data(input_kind="audio"), "cannot prepare single inputs"),
        (data(input_kind="table"), "has no columns, which input_kind = 'table' needs"),
        (data(input_kind="file"), "has no read_file, which input_kind = 'file' needs"),
        (data(input_kind="file", read_file=len), "has no file_suffixes, which input_kind = 'file' needs"),
        (data(None, input_kind="text"), "prepare returns NoneType: give a tensor or a tuple of tensors"),
        (data([[1, 2]], input_kind="text"), "prepare returns list: give a tensor or a tuple of tensors"),
        (data((), input_kind="text"), "prepare returns tuple: give a tensor or a tuple of tensors"),
        (data((PIXELS, "a note"), input_kind="image"), "prepare returns tuple: give a tensor"),
        (data(PIXELS[0], input_kind="text"), r"returns shape \(1, 4, 4\) for 2 inputs: give one row each"),
        (
            data(PIXELS / 255, input_kind="image"),
            r"float32 \(2, 1, 4, 4\): for images give one tensor, uint8 \(B, C, H",
        ),
        (
            data(PIXELS[:, 0], input_kind="image"),
            r"uint8 \(2, 4, 4\): for images give one tensor, uint8 \(B, C, H, W\)",
        ),
        (data((PIXELS, PIXELS), input_kind="image"), "for images give one tensor"),
    ],
)
def test_a_data_module_that_breaks_the_contract_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare_inputs(given, [kind_of(given)] * 2)


def test_notes_are_kept_and_images_are_not_normalised() -> None:
    images = [Image.new("L", (8, 8), 255), Image.new("RGB", (9, 9))]
    (pixels,), notes = prepare_inputs(NotingData(), images)
    assert (pixels.dtype, pixels.shape, pixels.max()) == (torch.uint8, (2, 1, 8, 8), 255)
    assert notes == ["", "scaled"]


def test_the_toys_keep_the_contract() -> None:
    images = ToyData()
    images.setup("test")
    check_prepare(images, [Image.fromarray(one[0].numpy()) for one in images.test_set.pixels])
    texts = ToyTexts()
    kinds = ("a fine and good film", "an awful and bad film")
    check_prepare(texts, [kinds[number % 2][number % 3 :] for number in range(32)])


class TwiceNormalised(ToyData):
    """A DataModule that normalises in `prepare` as well, and rounds to pixels so that it is not seen at once."""

    def prepare(self, inputs: list[Image.Image]) -> torch.Tensor:
        pixels = super().prepare(inputs)
        return ((pixels / 255 - MEAN) / STD).clamp(0, 255).byte()


def test_the_contract_test_sees_pixels_that_are_normalised_twice() -> None:
    images = TwiceNormalised()
    images.setup("test")
    raw = [Image.fromarray(one[0].numpy()) for one in images.test_set.pixels]
    with pytest.raises(AssertionError, match="input 0 of prepare: Tensor-likes are not close"):
        check_prepare(images, raw)
    with pytest.raises(AssertionError, match="the first test batch has 32 samples, and raw 3"):
        check_prepare(images, raw[:3])


LABELS = SimpleNamespace(labels=("cat", "big dog", 7))


def test_labels_become_class_numbers() -> None:
    assert prepare_targets(LABELS, ["big dog", "cat", "7", 7]).tolist() == [1, 0, 2, 2]


def test_several_labels_in_a_text_become_a_padded_sequence() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = prepare_targets(LABELS, ["cat 7 7", "big dog"], (mask.long(), mask))
    assert found.tolist() == [[0, 2, 2], [1, -100, -100]]
    with pytest.raises(InputError, match="another number of labels than positions: give one label per position"):
        prepare_targets(LABELS, ["cat 7", "big dog"], (mask.long(), mask))


def test_blanks_around_a_label_are_left_out_unless_they_are_part_of_it() -> None:
    assert prepare_targets(LABELS, [" cat", "big dog\t", " 7 ", "  "]).tolist() == [0, 1, 2, -100]
    assert prepare_targets(data(labels=["a", " a"]), ["a ", " a", "a"]).tolist() == [0, 1, 0]


def test_several_labels_for_an_input_of_numbers_are_one_line() -> None:
    numbers = (torch.zeros(2, 4),)
    assert prepare_targets(LABELS, ["cat", "7"], numbers).tolist() == [0, 2]
    with pytest.raises(
        InputError, match=r"^the true value 'cat 7' is not one label of .*: .* per label, as in cat,big dog$"
    ):
        prepare_targets(LABELS, ["big dog", "cat 7"], numbers)


def test_a_true_value_that_is_none_of_the_labels_is_named_where_they_are_numbers_too() -> None:
    for unknown in ("7", "0.0"):
        with pytest.raises(InputError, match=rf"^the true value '{unknown}' is none of the labels of .*, 0, 1$"):
            prepare_targets(data(labels=["0", "1"]), ["1", unknown, "0"])
    years = prepare_targets(data(labels=["2019", "2020"]), [["1.5", "2"], ["", "3"]])  # two columns of numbers
    assert years.isnan().tolist() == [[False, False], [True, False]]


def test_numbers_stay_numbers_and_empty_ones_are_unknown() -> None:
    named = SimpleNamespace(labels=("price",))
    found = prepare_targets(named, ["1.5", "", None, 2])
    assert torch.equal(found.nan_to_num(-1), torch.tensor([[1.5], [-1], [-1], [2]]))
    assert prepare_targets(SimpleNamespace(), [["1", 0], ["0", "1"]]).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("empty", ["", None])
def test_a_class_that_is_empty_is_left_out(empty: Any) -> None:
    assert prepare_targets(LABELS, ["big dog", empty, "cat"]).tolist() == [1, -100, 0]
    assert prepare_targets(data(labels=["0", "1"]), ["1", empty]).tolist() == [1, -100]
    assert prepare_targets(LABELS, [empty]).tolist() == [-100]
    mask = torch.tensor([[True, True], [True, True]])
    assert prepare_targets(LABELS, ["cat 7", empty], (mask.long(), mask)).tolist() == [[0, 2], [-100, -100]]
    longer = torch.tensor([[True, True, False], [True, True, True]])
    found = prepare_targets(LABELS, ["cat 7", empty], (longer.long(), longer))
    assert found.tolist() == [[0, 2, -100], [-100, -100, -100]]


def test_a_true_value_that_is_neither_is_one_line() -> None:
    for values, unknown in ((["cat", "bird"], "'bird'"), (["", "cat", 3.5], "3.5")):
        with pytest.raises(
            InputError, match=rf"^the true value {unknown} is none of the labels of \w+, cat, big dog, 7"
        ):
            prepare_targets(LABELS, values)
    with pytest.raises(InputError, match=r"neither labels nor numbers \(.*\); the labels of \w+ are cat, big dog, 7;"):
        prepare_targets(LABELS, [["cat"]])


def test_a_data_module_may_read_true_values_itself() -> None:
    own = SimpleNamespace(prepare_targets=lambda values: torch.tensor([len(value) for value in values]))
    assert prepare_targets(own, ["ab", "c"]).tolist() == [2, 1]


def test_masks_keep_their_class_numbers(tmp_path: Any) -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(numbers)
    palette.putpalette([255 - value for value in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    Image.fromarray(numbers.astype(np.uint16) + 300).save(tmp_path / "deep.png")
    masks = [read_mask(tmp_path / f"{name}.png") for name in ("palette", "grey", "deep")]
    found = prepare_targets(SimpleNamespace(), masks)
    assert found.tolist() == [numbers.tolist(), numbers.tolist(), (numbers.astype(int) + 300).tolist()]
    Image.new("RGB", (4, 3)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="it has 3 channels; a mask has one, of class numbers"):
        read_mask(tmp_path / "colour.png")
    with pytest.raises(InputError, match="masks differ in size: give SimpleNamespace a method prepare_targets that"):
        prepare_targets(SimpleNamespace(), [masks[0], masks[1].resize((2, 2))])


@pytest.mark.parametrize("value", [10**310, 1e39, "-1e39", "inf"])
def test_a_number_that_does_not_fit_is_one_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"the true values are neither labels nor numbers \("):
        prepare_targets(SimpleNamespace(), [1, value])
