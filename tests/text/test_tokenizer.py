import random
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, pre_tokenizers, processors

from src.engine.system.errors import InputError, SampleError
from src.text.tokenizer import (
    ByteTokenizer,
    SubwordTokenizer,
    Tokenizer,
    check_tokens,
    restore_tokenizer,
    train_bpe,
    train_words,
)
from tests.text.helpers import WORDS

# All below the Chinese signs, and every 17th above: so each byte of UTF-8 is among them.
CODES = (*range(0x3000), *range(0x3000, 0xD800, 17), *range(0xE000, sys.maxunicode + 1, 17), sys.maxunicode)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else train_bpe([WORDS] * 20, 300)


def test_characters_from_all_of_unicode_come_back_unchanged(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, CODES))
    ids = tokenizer.encode(text)
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids.tolist()) == text


@pytest.mark.parametrize(
    "text", ["", "\r\n\t  \n", " leading and trailing ", "e\u0301 é \U0001f468\u200d\U0001f469", "\0"]
)
def test_awkward_texts_come_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_a_stream_gives_the_same_text_and_no_half_characters(tokenizer: Tokenizer) -> None:
    text = "naïve 日本語 \U0001f600 the cat"
    pieces = list(tokenizer.stream(tokenizer.encode(text).tolist()))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 5


def test_a_stream_that_ends_within_a_character_says_so() -> None:
    assert "".join(ByteTokenizer().stream([0x41, 0xE2, 0x82])) == "A\ufffd"


def test_a_text_goes_on_with_the_blank_before_its_next_word() -> None:
    inner = Inner(models.WordLevel({"▁once": 0, "▁upon": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = SubwordTokenizer(inner.to_str())
    prompt = tokenizer.encode("once").tolist()
    assert "".join(tokenizer.stream([1, 0], prompt)) == " upon once"
    assert "".join(tokenizer.stream([1, 0])) == "upon once"


def test_a_state_restores_the_tokenizer(tokenizer: Tokenizer) -> None:
    again = restore_tokenizer(tokenizer.state)
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(WORDS).tolist() == tokenizer.encode(WORDS).tolist()


def test_byte_pairs_shorten_the_text_they_were_trained_on() -> None:
    trained = train_bpe([WORDS] * 20, 300)
    assert len(trained.encode(WORDS)) < len(WORDS) / 2
    assert 256 < trained.vocab_size <= 300


def test_words_are_lower_case_and_rare_ones_unknown() -> None:
    words = train_words(["The cat, the dog.", "A cat!"], 300)
    assert words.decode(words.encode("THE cat dog").tolist()).split() == ["the", "cat", "[UNK]"]


def test_texts_are_cut_to_a_length_with_their_special_tokens() -> None:
    assert [ids.tolist() for ids in ByteTokenizer().encode_batch(["abcdef", "ab"], 4)] == [[97, 98, 99, 100], [97, 98]]
    tokenizer = train_bpe([WORDS], 300)
    assert isinstance(tokenizer, SubwordTokenizer)
    assert [len(ids) for ids in tokenizer.encode_batch([WORDS, "the"], 5)] == [5, 1]
    assert len(tokenizer.encode(WORDS)) > 5  # and no longer


def with_special_tokens() -> SubwordTokenizer:
    """Words between a token for the beginning and one for the end of a text."""
    inner = Inner(models.WordLevel({"?": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "cat": 4, "dog": 5}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    return SubwordTokenizer(inner.to_str())


@pytest.mark.parametrize("make", [ByteTokenizer, lambda: train_bpe([WORDS], 300), with_special_tokens])
@pytest.mark.parametrize("text", [WORDS, "the", "naïve"])
def test_other_programs_cut_a_text_as_training_does(
    make: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Tokenizer = make()
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.json or "")
    monkeypatch.setattr(sys, "argv", ["program", text])

    def ids(special: bool, max_length: int | None) -> list[int]:
        first, expression = tokenizer.example(str(file), special, max_length)
        names: dict[str, Any] = {"sys": sys}
        exec(f"{first}\nids = {expression}", names)
        return list(names["ids"])

    for max_length in (4, 10_000):
        assert ids(True, max_length) == tokenizer.encode_batch([text], max_length)[0].tolist()
    assert ids(False, None) == tokenizer.encode(text).tolist()


def test_a_stream_of_any_numbers_is_what_decoding_gives(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    for _ in range(200):
        ids = [generator.randrange(tokenizer.vocab_size) for _ in range(12)]
        assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


def test_numbers_beyond_the_bytes_are_left_out() -> None:
    assert ByteTokenizer().decode([65, 300, 66]) == "AB"


def test_a_tokenizer_that_knows_no_words_is_an_error_and_one_that_knows_few_is_reported(messages: list[str]) -> None:
    words = train_words([WORDS] * 2, 1000)
    check_tokens(words, words.encode_batch(["the cat", "a dog"], 9), "mine")
    assert not messages
    check_tokens(words, words.encode_batch(["the cat", "der Hund lief davon"], 9), "mine")
    assert messages == ["The tokenizer mine does not know 67% of the tokens of the training texts"]
    for texts in (["der Hund", "lief"], ["cat der", "cat"]):
        with pytest.raises(InputError, match=r"the tokenizer mine has [01] different tokens .* it does not fit them"):
            check_tokens(words, words.encode_batch(texts, 9), "mine")
    check_tokens(ByteTokenizer(), ByteTokenizer().encode_batch(["aaa"], 9), "bytes")


def test_a_stream_goes_on_where_bytes_are_no_character() -> None:
    vocabulary = {"<unk>": 0, "a": 1, "<0xE4>": 2, "<0xBD>": 3, "<0xA0>": 4}
    inner = Inner(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    text = "".join(SubwordTokenizer(inner.to_str()).stream([1, 2, 3, 4, 3, 1]))
    assert text.startswith("a\u4f60")
    assert text.endswith("a")


def test_a_text_that_a_tokenizer_cannot_read_is_an_error_of_that_text() -> None:
    tokenizer = SubwordTokenizer(Inner(models.WordLevel({"cat": 0}, unk_token="[UNK]")).to_str())
    for read in (lambda: tokenizer.encode("dog"), lambda: tokenizer.encode_batch(["cat", "dog"], 4)):
        with pytest.raises(SampleError, match=r"the tokenizer cannot read this text \(.*\): give one with a token"):
            read()
