"""Text to token numbers and back: bytes, byte-pair encoding, or a pretrained model's own tokenizer."""

import codecs
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from src.engine.system.errors import InputError
from src.text.pretrained import load_from_hub, transformers

Ids = npt.NDArray[Any]

UNKNOWN = "[UNK]"


class ByteTokenizer:
    """UTF-8 bytes as tokens: 256 of them, nothing to train."""

    vocab_size = 256
    state = "bytes"
    json: str | None = None  # what another program loads; nothing is needed for bytes

    def example(self, file: str, special: bool) -> tuple[str, str]:
        """An import and an expression with the ids of `sys.argv[1]`, for the program beside an exported model."""
        return "", "list(sys.argv[1].encode())"

    def encode(self, text: str) -> Ids:
        """Token numbers (N,) uint8 of a text."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def encode_batch(self, texts: list[str], max_length: int) -> list[Ids]:
        """Token numbers of each text, cut to `max_length`."""
        return [self.encode(text)[:max_length] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers; bytes that are not UTF-8 become the replacement character."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of token numbers as they come, a piece as soon as its characters are whole."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            if number < self.vocab_size and (text := decoder.decode(bytes([number]))):  # a network may have more
                yield text
        if text := decoder.decode(b"", final=True):
            yield text


class SubwordTokenizer:
    """A tokenizer of Hugging Face's `tokenizers`.

    Args:
        state: the tokenizer as JSON.
    """

    def __init__(self, state: str) -> None:
        from tokenizers import Tokenizer

        self.inner = Tokenizer.from_str(state)
        self.inner.no_padding()
        self.inner.no_truncation()
        self.vocab_size: int = max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def state(self) -> str:
        """The tokenizer as JSON."""
        text: str = self.inner.to_str()
        return text

    @property
    def json(self) -> str:
        """The same, for other programs."""
        return self.state

    def example(self, file: str, special: bool) -> tuple[str, str]:
        """An import and an expression with the ids of `sys.argv[1]`, for the program beside an exported model.

        Args:
            file: name of the file that holds `json`.
            special: whether a classifier's special tokens are added.
        """
        options = "" if special else ", add_special_tokens=False"
        ids = f'Tokenizer.from_file("{file}").encode(sys.argv[1]{options}).ids'
        return "from tokenizers import Tokenizer", ids

    def encode(self, text: str) -> Ids:
        """Token numbers (N,) int64 of a text, without special tokens."""
        return np.asarray(self.inner.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_batch(self, texts: list[str], max_length: int) -> list[Ids]:
        """Token numbers of each text, with the special tokens of a classifier, cut to `max_length` with them."""
        self.inner.enable_truncation(max_length)
        try:
            encoded = self.inner.encode_batch_fast(texts)
        finally:
            self.inner.no_truncation()
        return [np.asarray(one.ids, dtype=np.int64) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token numbers."""
        text: str = self.inner.decode(list(ids), skip_special_tokens=False)
        return text

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of token numbers as they come, a piece as soon as its characters are whole."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=False)
        seen, sent = [], 0
        for number in ids:
            seen.append(number)
            if text := decoder.step(self.inner, number):
                sent += len(text)
                yield text
        if rest := self.decode(seen)[sent:]:  # the end may lie within a character
            yield rest


Tokenizer = ByteTokenizer | SubwordTokenizer


def restore_tokenizer(state: str) -> Tokenizer:
    """The tokenizer of a checkpoint."""
    return ByteTokenizer() if state == ByteTokenizer.state else SubwordTokenizer(state)


def train_bpe(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) on bytes, so that any text can be told and comes back unchanged.

    Args:
        texts: the text to train on, in pieces of any size.
        vocab_size: number of tokens at most, 256 bytes among them.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=sys.stderr.isatty()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())


def train_words(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Lower-case words and punctuation marks that occur at least twice; all others are one token, `[UNK]`.

    Args:
        texts: the texts to train on.
        vocab_size: number of tokens at most.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.trainers import WordLevelTrainer

    tokenizer = Tokenizer(WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    trainer = WordLevelTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=[UNKNOWN], show_progress=sys.stderr.isatty()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())


def pretrained_tokenizer(name: str) -> str:
    """The state of a pretrained model's own tokenizer.

    Args:
        name: hub name or folder of the model.

    Raises:
        InputError: there is none, or it has no fast version.
    """
    try:
        loaded = load_from_hub(transformers("AutoTokenizer"), name)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not getattr(loaded, "is_fast", False):
        raise InputError(f"the tokenizer of {name} has no fast version, which this project needs")
    state: str = loaded.backend_tokenizer.to_str()
    return state
