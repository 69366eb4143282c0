"""A tokenizer of words."""

import sys
from collections.abc import Iterable

from src.text.tokenizer import UNKNOWN, SubwordTokenizer


def train_words(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Lower-case words and punctuation marks that occur at least twice; all others become the token `[UNK]`.

    Args:
        texts: the training texts.
        vocab_size: maximum number of tokens.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, min_frequency=2, special_tokens=[UNKNOWN])
    trainer.show_progress = sys.stderr.isatty()
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer(tokenizer.to_str())
