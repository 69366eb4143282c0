"""A pretrained network that a checkpoint rebuilds is the one that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from src.text.pretrained import PretrainedClassifier, PretrainedLM
from tests.text.helpers import tiny_pretrained

transformers = pytest.importorskip("transformers")


def rebuilt(net: Any) -> Any:
    """The network that a checkpoint makes from the configuration it keeps, as JSON would keep it."""
    other = type(net)("gone", **json.loads(json.dumps(net.rebuild)))
    other.load_state_dict(net.state_dict())
    return other.eval()


def test_texts_of_another_library_in_a_configuration_are_left_out(tmp_path: Path) -> None:
    tiny_pretrained("bert", tmp_path)
    path = tmp_path / "bert" / "config.json"
    tasks = {"task_specific_params": {"summarization": {"prefix": "summarize: "}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | tasks))
    net = PretrainedClassifier(str(tmp_path / "bert"))
    assert "summarize" not in json.dumps(net.rebuild)
    assert rebuilt(net).model.config.vocab_size == net.model.config.vocab_size


def test_weights_that_differ_are_not_tied_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_pretrained("gpt2", tmp_path)
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    model.save_pretrained(tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "model.safetensors"
    head = torch.randn(model.transformer.wte.weight.shape, generator=torch.Generator().manual_seed(0))
    save_file(load_file(path) | {"lm_head.weight": head}, path, {"format": "pt"})
    net = PretrainedLM(str(tmp_path / "gpt2")).eval()
    tokens = torch.tensor([[4, 5, 6]])
    assert torch.equal(rebuilt(net)(tokens), net(tokens))
    assert not torch.equal(net.embedding.weight, net.head[0].weight)


@pytest.mark.parametrize("kind", ["llama", "mamba2"])
def test_a_configuration_is_kept_as_it_is(kind: str, tmp_path: Path) -> None:
    configs = {
        "llama": lambda: transformers.LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        ),
        "mamba2": lambda: transformers.Mamba2Config(
            vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1
        ),
    }
    transformers.AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(tmp_path / kind)
    net = PretrainedLM(str(tmp_path / kind))
    assert rebuilt(net).embedding.padding_idx == net.embedding.padding_idx


def test_dropout_replaces_numbers_that_are_whole_too(tmp_path: Path) -> None:
    folder = tiny_pretrained("bert", tmp_path)
    config = Path(folder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_dropout_prob": 0}))
    net = PretrainedClassifier(folder, num_classes=2, dropout=0.3)
    assert {one.p for one in net.modules() if isinstance(one, nn.Dropout)} == {0.3}
