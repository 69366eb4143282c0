"""What the tests of texts share."""

from pathlib import Path

import torch

from src.text.tokenizer import train_bpe

WORDS = "the cat sat on the mat and a dog ran over the hill to see the cat"


def tiny_pretrained(kind: str, folder: Path) -> str:
    """A random BERT, RoBERTa or GPT-2 with its tokenizer, saved as the hub's models are; gives its folder."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from tokenizers.trainers import WordLevelTrainer

    path = str(folder / kind)
    if kind == "gpt2":
        inner = train_bpe([WORDS] * 20, 300).inner
        options = {"eos_token": "!"}
    else:
        inner = Tokenizer(WordLevel(unk_token="[UNK]"))
        inner.pre_tokenizer = Whitespace()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        inner.train_from_iterator([WORDS], WordLevelTrainer(special_tokens=special, show_progress=False))
        inner.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **options).save_pretrained(path)
    torch.manual_seed(0)
    size = {"vocab_size": inner.get_vocab_size(), "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 40}
    if kind == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**size))
    elif kind == "roberta":
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**size, pad_token_id=0))
    else:
        shape = {"vocab_size": inner.get_vocab_size(), "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 40}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(path)
    return path
