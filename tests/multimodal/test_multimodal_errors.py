"""Errors in multimodal options: one line and exit code 2."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--data.max_length=1", "max_length 1 is too small: give at least 2"),
        ("--model.net.temperature=0", "temperature 0.0 is out of range: give at least 0.01"),
        ("--model.net.temperature=0.009", "temperature 0.009 is out of range: give at least 0.01"),
    ],
)
def test_a_user_error_is_one_line(words: str, expected: str, error_of: Callable[..., str]) -> None:
    assert expected in error_of("--config=configs/multimodal/mnist_clip.yaml", words)
