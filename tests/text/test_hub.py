"""Names and folders of pretrained models that cannot be used: what the error says works."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.engine.system.errors import InputError
from src.text import hub, tokenizer
from src.text.pretrained import PretrainedClassifier, PretrainedLM
from src.text.tokenizer import pretrained_tokenizer
from tests.text.helpers import tiny_pretrained

pytest.importorskip("transformers")


def test_a_model_that_needs_code_of_its_own_says_so(tmp_path: Path) -> None:
    own = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    with pytest.raises(ValueError, match=r"needs Python code of its own, which this project never runs") as caught:
        PretrainedClassifier(str(tmp_path))
    assert "trust_remote_code" not in str(caught.value)


def test_a_tokenizer_of_sentencepiece_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find_spec(name))

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file")

    monkeypatch.setattr(hub.transformers_class("AutoTokenizer"), "from_pretrained", fails)
    with pytest.raises(InputError, match="needs the package sentencepiece: pip install sentencepiece"):
        pretrained_tokenizer(str(tmp_path))


def test_an_adapter_says_how_to_make_a_model_of_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = PretrainedClassifier(tiny_pretrained("bert", tmp_path)).model
    peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS")).save_pretrained(str(tmp_path / "adapter"))
    adapter = str(tmp_path / "adapter")
    for load in (PretrainedClassifier, pretrained_tokenizer):
        with pytest.raises((ValueError, InputError), match=rf"{adapter} is an adapter: merge it"):
            load(adapter)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as other programs save it
        shutil.copy(tmp_path / "bert" / name, tmp_path / "adapter" / name)
    assert pretrained_tokenizer(adapter).vocab_size > 10
    shutil.rmtree(tmp_path / "bert")
    with pytest.raises(ValueError, match="is an adapter"):
        PretrainedClassifier(adapter)


def test_a_padding_token_below_zero_is_none(tmp_path: Path) -> None:
    import transformers

    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=20, num_attention_heads=2, num_key_value_heads=2, **size)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "pad_token_id": -1}))
    net = PretrainedLM(str(tmp_path))
    assert net.model.config.pad_token_id >= 0
    assert net(torch.tensor([[1, 2, 3]])).shape == (1, 3, 20)


def test_a_mistyped_kind_of_tokenizer_is_suggested_but_not_in_place_of_a_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "_hub_problem", lambda: "off")
    with pytest.raises(InputError, match=r"^tokenizer byte: .*, did you mean bytes\?"):
        pretrained_tokenizer("byte")
    with pytest.raises(InputError) as caught:
        pretrained_tokenizer("some/model")
    assert "bytes" not in str(caught.value)


def test_a_model_without_a_fast_tokenizer_is_not_given_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "load_from_hub", lambda *_: SimpleNamespace(is_fast=False))
    with pytest.raises(InputError, match=r"has no tokenizer that .* give another model") as caught:
        pretrained_tokenizer("some/model")
    assert not re.search("--data.tokenizer", str(caught.value))
