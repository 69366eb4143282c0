"""Pretrained Hugging Face transformers for text classification and text generation."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.text.hub import load_from_hub, transformers_class

# Settings that make `transformers` load code or weights from the hub or a folder.
NOT_REBUILT = re.compile(
    "name_or_path|auto_map|quantization_config|backbone|_implementation|task_specific_params|^num_labels$"
)


class _Pretrained(nn.Module):
    """Base class: loads weights from the hub, a folder or a checkpoint; freezes the body; adds LoRA."""

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
            raise ValueError(f"lora_rank {lora_rank} is out of range: give at least 1, or 0 for no LoRA")
        if freeze_body and lora_rank:
            raise ValueError("freeze_body and lora_rank cannot be combined: give one of them")
        if not pretrained and config is None:
            raise ValueError("pretrained is missing: give the hub name or the folder of a model")
        self.pretrained = pretrained
        self.config = config
        self.freeze_body = freeze_body
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        auto = transformers_class(self.auto_class)
        dtype = torch.get_default_dtype()  # not that of the file: small steps would be lost in bfloat16
        if config is None:
            model, info = load_from_hub(auto, pretrained, output_loading_info=True, dtype=dtype, **options)
            if getattr(model, "_hf_peft_config_loaded", False):
                raise ValueError(f"{pretrained} is an adapter: merge it into its model (peft's merge_and_unload) first")
            if getattr(model, "hf_quantizer", None) is not None:
                raise ValueError(f"{pretrained} is quantized, its checkpoints would not load: give one that is not")
            # A random layer between body and head, as after masked language modelling, is trained as well. Kept in the
            # configuration: a checkpoint trains the same layers.
            model.config.has_new_pooler = _check_weights(model, info, pretrained, self.peft_task)
            head = model.get_output_embeddings()
            if head is not None and head.weight is not model.get_input_embeddings().weight:
                model.config.tie_word_embeddings = False  # transformers ties no weights that differ
        else:
            try:
                known = transformers_class("AutoConfig").for_model(**_without(config, NOT_REBUILT))
                model = auto.from_config(known, trust_remote_code=False, dtype=dtype)
            except Exception as error:  # many types: missing packages, unknown names, sizes
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"config fits no model of transformers: {reason}") from error
        # With this, a checkpoint can rebuild the network without the files of the pretrained model.
        plain = json.loads(json.dumps(model.config.to_dict()))  # to_json_string would write infinity as a dict
        self.rebuild = {"config": _without(plain, NOT_REBUILT)}
        pad = getattr(model.config, "pad_token_id", None)
        if pad is None or pad < 0:  # after it: some embeddings would have padding
            model.config.pad_token_id = _end_token(model) or 0
        if freeze_body:
            for name, parameter in model.base_model.named_parameters():
                parameter.requires_grad_(getattr(model.config, "has_new_pooler", False) and "pooler." in name)
        self.model: Any = _with_lora(model, lora_rank, lora_alpha, self.peft_task) if lora_rank else model
        self.block_size: int | None = _max_length(model)
        self.vocab_size: int | None = getattr(model.config, "vocab_size", None)
        self.train()  # from_pretrained returns evaluation mode, and Lightning does not change it

    @property
    def head(self) -> nn.ModuleList:
        """The layers that turn features into logits."""
        model: Any = self.model.base_model.model if self.lora_rank else self.model
        return nn.ModuleList(child for name, child in model.named_children() if name != model.base_model_prefix)

    @property
    def embedding(self) -> nn.Module:
        body = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
        return body.get_input_embeddings()

    def train(self, mode: bool = True) -> "_Pretrained":
        super().train(mode)
        if self.freeze_body:  # no dropout in layers that are not trained
            self.model.base_model.eval()
        return self

    def write_huggingface(
        self,
        path: Path,
        labels: list[str],
        tokenizer: Any,
        max_length: int | None = None,
        independent: bool = False,
    ) -> tuple[Callable[..., Tensor], list[str]]:
        """Write a folder that `transformers` can load.

        Args:
            path: the folder.
            labels: names of the classes, or an empty list.
            tokenizer: tokenizer of the data; a `SubwordTokenizer` is written too.
            max_length: number of tokens at which the example program cuts a text, as in training.
            independent: a text may have several of the labels.

        Returns:
            The model loaded from the folder, tokens (B, T) int64 and mask (B, T) bool -> logits; and the five lines of
            an example program that uses the folder.
        """
        model: Any = self.model.merge_and_unload() if self.lora_rank else self.model
        if labels:
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {label: number for number, label in enumerate(labels)}
        model.config.problem_type = "multi_label_classification" if independent else None
        model.save_pretrained(path)
        inner = getattr(tokenizer, "inner", None)
        if inner is not None:
            special = {
                name: inner.id_to_token(number)
                for name in ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token")
                if isinstance(number := getattr(model.config, f"{name}_id", None), int)
            }
            transformers_class("PreTrainedTokenizerFast")(
                tokenizer_object=inner,
                model_max_length=self.block_size or 10**9,
                model_input_names=["input_ids", "attention_mask"],
                **{name: token for name, token in special.items() if token is not None},
            ).save_pretrained(path)
        cut = "" if max_length is None else f", truncation=True, max_length={max_length}"
        if not isinstance(self, PretrainedClassifier):
            cut += ", add_special_tokens=False"  # as in training
        answer = "print(model.config.id2label[logits.argmax().item()])" if labels else "print(logits.shape)"
        if independent:
            answer = "print(dict(zip(model.config.id2label.values(), logits.sigmoid().tolist())))"
        lines = [
            f"import sys; from transformers import {self.auto_class}, AutoTokenizer",
            f'inputs = AutoTokenizer.from_pretrained("{path.name}")(sys.argv[1], return_tensors="pt"{cut})',
            f'model = {self.auto_class}.from_pretrained("{path.name}")',
            "logits = model(**inputs).logits[0]",
            answer,
        ]
        count: dict[str, Any] = {"num_classes": self.num_classes} if isinstance(self, PretrainedClassifier) else {}
        return type(self)(str(path), **count).eval(), lines

    def _check_length(self, length: int, option: str) -> None:
        if self.block_size is not None and length > self.block_size:
            limit = f"which takes {self.block_size}: give --data.{option} {self.block_size} or less"
            raise ValueError(f"{length} tokens do not fit {self.pretrained}, {limit}")


class PretrainedClassifier(_Pretrained):
    """A pretrained model for classification, such as BERT, RoBERTa or GPT-2, with a new head for your classes.

    A model that has a head for as many classes keeps it: its classes may be in another order than yours.

    Args:
        pretrained: hub name, or folder with `config.json` and the weights, of any model that
            `AutoModelForSequenceClassification` can load.
        num_classes: number of logits.
        freeze_body: train the head only.
        lora_rank: rank of the matrices that LoRA (Hu et al. 2021) trains instead of the body's weights; 0: no LoRA.
        lora_alpha: scale of LoRA, which is divided by the rank.
        dropout: probability in every dropout layer, in [0, 1). Default: as in the pretrained model.
        config: the model's configuration, saved in checkpoints; if given, `pretrained` is not read.

    Shapes:
        tokens (B, T) int64, mask (B, T) bool, true for tokens -> (B, num_classes) float logits.

    Raises:
        ValueError: `transformers` is not installed, the model cannot be loaded, or texts are longer than it allows.
    """

    auto_class = "AutoModelForSequenceClassification"
    peft_task = "SEQ_CLS"

    def __init__(
        self,
        pretrained: str = "",
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
        if config is None and not self._ignores_padding():
            raise ValueError(f"the logits of {pretrained} depend on the padding after a text: give another model")
        self.num_classes = num_classes
        self.dropout = dropout
        for module in self.model.modules() if dropout is not None else ():
            names = ["p"] if isinstance(module, nn.Dropout) else [name for name in vars(module) if "dropout" in name]
            for name in names:  # some models store it as a number
                if isinstance(value := getattr(module, name), float | int) and not isinstance(value, bool):
                    setattr(module, name, dropout)

    @torch.no_grad()
    def _ignores_padding(self) -> bool:
        """Whether a text alone has the same logits as with padding."""
        self.eval()
        device = self.model.device
        tokens = torch.tensor([[2, 3, 4, _end_token(self.model) or 5]], device=device)  # some models look for the end
        padded = F.pad(tokens, (0, 3))
        alone = self(tokens, torch.ones_like(tokens, dtype=torch.bool))
        beside = self(padded, torch.arange(padded.shape[1], device=device)[None] < tokens.shape[1])
        self.train()
        return bool((alone - beside).abs().max() <= 1e-3 * alone.abs().max())

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        self._check_length(tokens.shape[1], "max_length")
        # Some models find the end of a text by the padding token.
        tokens = tokens.masked_fill(~mask, self.model.config.pad_token_id)
        return self.model(input_ids=tokens, attention_mask=mask.long()).logits  # (B, num_classes)


class PretrainedLM(_Pretrained):
    """A pretrained language model, such as GPT-2.

    Args:
        pretrained: hub name, or folder with `config.json` and the weights, of any model that `AutoModelForCausalLM` can
            load.
        freeze_body: train the output layer only.
        lora_rank: rank of the matrices that LoRA (Hu et al. 2021) trains instead of the weights; 0: no LoRA.
        lora_alpha: scale of LoRA, which is divided by the rank.
        config: the model's configuration, saved in checkpoints; if given, `pretrained` is not read.

    Shapes:
        (B, T) int64 tokens -> (B, T, vocab_size) float logits for the next token.

    Raises:
        ValueError: `transformers` is not installed, the model cannot be loaded, it sees later tokens, as BERT does, or
            contexts are longer than it allows.
    """

    auto_class = "AutoModelForCausalLM"
    peft_task = "CAUSAL_LM"

    def __init__(
        self,
        pretrained: str = "",
        freeze_body: bool = False,
        lora_rank: int = 0,
        lora_alpha: int = 16,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(pretrained, config, freeze_body, lora_rank, lora_alpha)
        if config is None and not self._hides_later_tokens():
            raise ValueError(f"{pretrained} sees the tokens it has to predict: give a language model, such as GPT-2")
        if freeze_body:
            self.model.get_output_embeddings().requires_grad_(True)  # it may share the weights of the embedding
        body = self.model.get_base_model() if lora_rank else self.model
        names = ("cache", "past_key_values")  # the second in older versions of transformers
        self.cache_name = next((name for name in names if name in inspect.signature(body.forward).parameters), None)

    @torch.no_grad()
    def _hides_later_tokens(self) -> bool:
        """Whether logits do not depend on later tokens: `transformers` also loads BERT and the like as such a model."""
        self.eval()
        tokens = torch.tensor([[2, 3, 4], [2, 3, 5]], device=self.embedding.weight.device)  # type: ignore[arg-type]
        first, second = self.model(input_ids=tokens).logits[:, :2]
        self.train()
        return bool((first - second).abs().max() <= 1e-4 * first.abs().max())

    def new_cache(self) -> Any:
        """An empty cache for `forward`; None if the model has none of this kind, as GPT-1 and Mamba."""
        cache = transformers_class("DynamicCache")(config=self.model.config)
        try:
            cache.get_seq_length()
        except ValueError:  # without attention
            return None
        return cache if self.cache_name else None

    def forward(self, tokens: Tensor, cache: Any = None) -> Tensor:
        """Logits for the next token at each position; with a cache, `tokens` are only those not yet processed."""
        start = 0 if cache is None else cache.get_seq_length()
        self._check_length(start + tokens.shape[1], "block_size")
        given = {} if cache is None or self.cache_name is None else {self.cache_name: cache}
        return self.model(input_ids=tokens, use_cache=bool(given), **given).logits  # (B, T, vocab_size)


def _with_lora(model: nn.Module, rank: int, alpha: int, task: str) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise ValueError("LoRA needs the package peft: install it with pip install -e '.[pretrained]'") from error
    body: Any = model
    targets = None if body.config.model_type in KNOWN else "all-linear"  # None: peft's default for the architecture
    # GPT-2's layers are stored transposed.
    transposed = any(type(layer).__name__ == "Conv1D" for layer in body.modules())
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type=task, fan_in_fan_out=transposed)
    if task == "SEQ_CLS":  # all of the head is new, peft knows only some of the names
        layers = (name for name, layer in body.named_children() if any(True for _ in layer.parameters()))
        lora.modules_to_save = [name for name in layers if name != body.base_model_prefix]
        lora.modules_to_save += ["pooler"] if getattr(body.config, "has_new_pooler", False) else []
    return get_peft_model(body, lora)


def _end_token(model: Any) -> int | None:
    end: int | list[int] | None = getattr(model.config, "eos_token_id", None)
    return end[0] if isinstance(end, list) else end


def _check_weights(model: Any, info: dict[str, Any], name: str, task: str) -> bool:
    """Whether a model has a random pooler; raises ValueError if other weights than those of the head are random."""
    names = {one for one, _ in model.named_parameters()}
    random = names & {*info["missing_keys"], *(one[0] for one in info["mismatched_keys"])}
    body = f"{model.base_model_prefix}." if task == "SEQ_CLS" else ""
    if lost := sorted(one for one in random if one.startswith(body) and ".pooler." not in one):
        what = f"{len(lost)} of {len(names)} weights of {name} are missing or have other shapes, such as {lost[0]}"
        raise ValueError(f"{what}: give a model whose config.json and weights belong together")
    return any(".pooler." in one for one in random)


def _without(config: Any, names: re.Pattern[str]) -> Any:
    """A configuration without these settings, at any depth."""
    if isinstance(config, dict):
        return {name: _without(value, names) for name, value in config.items() if not names.search(str(name))}
    return [_without(one, names) for one in config] if isinstance(config, list) else config


def _max_length(model: Any) -> int | None:
    """Maximum number of tokens of a model, or None without a limit."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:
        return None
    # RoBERTa and similar models number positions from the ID of the padding token + 1.
    tables = [table for name, table in model.named_modules() if name.endswith("position_embeddings")]
    padding = getattr(tables[0], "padding_idx", None) if tables else None
    return positions if padding is None else positions - padding - 1
