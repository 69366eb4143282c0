"""Tokenizers: bytes, byte-pair encoding, words, and those of pretrained models."""

import codecs
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from src.engine.data.loading import announce
from src.engine.system.classes import nearest
from src.engine.system.errors import InputError, SampleError
from src.text.hub import load_from_hub, transformers_class

Ids = npt.NDArray[Any]

UNKNOWN = "[UNK]"


class ByteTokenizer:
    """The 256 UTF-8 bytes as tokens; needs no training."""

    vocab_size = 256
    state = "bytes"
    json: str | None = None  # file for other programs; not needed for bytes

    def example(self, file: str, special: bool, max_length: int | None = None) -> tuple[str, str]:
        """The first statements, such as an import, and an expression for the token IDs of `sys.argv[1]`.

        Args:
            file: name of the file with `json`.
            special: whether to add special tokens, as classifiers need them.
            max_length: number of tokens at which a text is cut, as in training.
        """
        return "", f"list(sys.argv[1].encode()){'' if max_length is None else f'[:{max_length}]'}"

    def encode(self, text: str) -> Ids:
        """Token IDs (N,) uint8 of a text."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def encode_batch(self, texts: list[str], max_length: int) -> list[Ids]:
        """Token IDs of each text, cut to `max_length`."""
        return [self.encode(text)[:max_length] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token IDs; bytes that are not UTF-8 become the replacement character."""
        return "".join(self.stream(ids))

    def stream(self, ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
        """Decode token IDs one by one; yields text as soon as its characters are complete.

        Args:
            ids: the token IDs.
            before: those of the text before, which decides in other tokenizers whether a blank comes first.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            if number < self.vocab_size and (text := decoder.decode(bytes([number]))):  # the network may have more
                yield text
        if text := decoder.decode(b"", final=True):
            yield text


class SubwordTokenizer:
    """A tokenizer of Hugging Face's library `tokenizers`.

    Args:
        state: the tokenizer as JSON.
    """

    def __init__(self, state: str) -> None:
        from tokenizers import Tokenizer

        self.inner = Tokenizer.from_str(state)
        self.inner.no_padding()
        self.inner.no_truncation()
        self.vocab_size: int = max(self.inner.get_vocab(with_added_tokens=True).values()) + 1
        self.state: str = self.inner.to_str()
        self.json = self.state

    def example(self, file: str, special: bool, max_length: int | None = None) -> tuple[str, str]:
        """See `ByteTokenizer`."""
        first = f'from tokenizers import Tokenizer; tokenizer = Tokenizer.from_file("{file}")'
        first += "" if max_length is None else f"; tokenizer.enable_truncation({max_length})"
        return first, f"tokenizer.encode(sys.argv[1]{'' if special else ', add_special_tokens=False'}).ids"

    def encode(self, text: str) -> Ids:
        """Token IDs (N,) int64 of a text, without special tokens."""
        with _readable():
            return np.asarray(self.inner.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_batch(self, texts: list[str], max_length: int) -> list[Ids]:
        """Token IDs of each text with special tokens, cut to `max_length` in total."""
        self.inner.enable_truncation(max_length)
        try:
            with _readable():
                encoded = self.inner.encode_batch_fast(texts)
        finally:
            self.inner.no_truncation()
        return [np.asarray(one.ids, dtype=np.int64) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token IDs."""
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def stream(self, ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
        """See `ByteTokenizer`."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(ids=list(before), skip_special_tokens=False)
        seen, sent = [*before], len(self.decode(before))
        for number in ids:
            seen.append(number)
            try:
                text = decoder.step(self.inner, number)
            except Exception:  # raised by tokenizers, where bytes that are no character change the text before them
                text, decoder = self.decode(seen)[sent:], DecodeStream(ids=list(seen), skip_special_tokens=False)
            if text:
                sent += len(text)
                yield text
        if rest := self.decode(seen)[sent:]:  # the last tokens may end within a character
            yield rest


@contextmanager
def _readable() -> Iterator[None]:
    """Turn the error of a tokenizer without a token for unknown characters into a SampleError."""
    try:
        yield
    except Exception as error:  # tokenizers has no class of its own
        raise SampleError(
            f"the tokenizer cannot read this text ({error}): give one with a token for unknown characters"
        ) from error


Tokenizer = ByteTokenizer | SubwordTokenizer


def restore_tokenizer(state: str) -> Tokenizer:
    """The tokenizer with a state saved in a checkpoint.

    Raises:
        InputError: the state is not that of a tokenizer.
    """
    if state == ByteTokenizer.state:
        return ByteTokenizer()
    try:
        return SubwordTokenizer(state)
    except Exception as error:  # `tokenizers` raises Exception itself
        raise InputError(f"the tokenizer cannot be read ({' '.join(str(error).split())[:100]})") from error


def train_bpe(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) on bytes, which encodes any text without loss.

    Args:
        texts: the training text, in pieces of any size.
        vocab_size: maximum number of tokens, including the 256 bytes.
    """
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size, min_frequency=0, show_progress=sys.stderr.isatty())
    return SubwordTokenizer(tokenizer.to_str())


def train_words(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Lower-case words and punctuation marks that occur at least twice; all others become the token `[UNK]`.

    Arguments as of `train_bpe`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=[UNKNOWN])
    trainer.show_progress = sys.stderr.isatty()
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())


def pretrained_tokenizer(name: str) -> SubwordTokenizer:
    """The tokenizer of a pretrained model, by hub name or folder.

    Raises:
        InputError: it cannot be loaded, or is not one of the library `tokenizers` (a "fast" one).
    """
    try:
        loaded = load_from_hub(transformers_class("AutoTokenizer"), name)
    except ValueError as error:
        raise InputError(f"tokenizer {name}: {error}{nearest(name, ('bytes', 'bpe', 'words'))}") from error
    is_fast = getattr(loaded, "is_fast", False)
    # Without its files, transformers makes a tokenizer of special tokens only.
    if not is_fast or len(set(loaded.get_vocab()) - set(loaded.all_special_tokens)) < 2:
        raise InputError(f"{name} has no tokenizer that can be used: add tokenizer.json, or give another model")
    return SubwordTokenizer(loaded.backend_tokenizer.to_str())


def check_tokens(tokenizer: Tokenizer, ids: Sequence[Ids], name: str) -> None:
    """Check that a tokenizer knows the training texts, by the token IDs of some of them; `name` is for messages.

    Raises:
        InputError: it has fewer than two different tokens for them, other than special ones such as `[UNK]`.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return
    inner = tokenizer.inner
    special = [number for number, token in inner.get_added_tokens_decoder().items() if token.special]
    model = json.loads(tokenizer.state)["model"]
    unknown = inner.token_to_id(token) if (token := model.get("unk_token")) else model.get("unk_id")
    found = np.concatenate(ids)
    known = np.setdiff1d(found, [*special, -1 if unknown is None else unknown])
    if len(known) < 2:
        count = f"{len(known)} different tokens for the training texts, not counting special ones such as {UNKNOWN}"
        raise InputError(f"the tokenizer {name} has {count}: it does not fit them, give another, or more texts")
    if unknown is not None and (share := (found == unknown).mean()) > 0.5:
        announce(f"The tokenizer {name} does not know {share:.0%} of the tokens of the training texts")
