"""A tampered checkpoint of texts loads no other tokenizer, network or code."""

import builtins
import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from src.engine.deploy.inference import Inference
from src.engine.runs.checkpoint import read_checkpoint
from src.engine.system.errors import InputError
from src.text import pretrained as networks
from tests.conftest import fit
from tests.text.helpers import tiny_pretrained

STATE = "LabelledTextDataModule"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would be loaded from elsewhere, or ask the user, fails the test."""

    def refuse(*given: object, **_: object) -> None:
        pytest.fail(f"loads {given}")

    monkeypatch.setattr(networks, "load_from_hub", refuse)
    monkeypatch.setattr("src.text.tokenizer.load_from_hub", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", refuse)
    monkeypatch.setattr(builtins, "input", refuse)


def tampered(checkpoint: str, folder: Path, place: str, **values: Any) -> str:
    changed = copy.deepcopy(read_checkpoint(checkpoint))
    found = changed
    for name in place.split("/") if place else ():
        found = found[name]
    found.update(values)
    torch.save(changed, folder / "tampered.ckpt")
    return str(folder / "tampered.ckpt")


@pytest.mark.parametrize("state", ["", "garbage", 3, None, ["a"], "{}", "/etc/passwd", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none_is_one_line(state: object, sentiments: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a checkpoint of this project: the tokenizer cannot be read"):
        Inference(tampered(sentiments, tmp_path, STATE, tokenizer=state))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({STATE: None}, "it has no tokenizer"),
        ({STATE: 3}, "TypeError"),
        ({STATE: {"tokenizer": "bytes"}}, "KeyError 'labels'"),
        ({STATE: {"tokenizer": "bytes", "labels": [["a"], ["b"]]}}, "its labels are neither texts nor numbers"),
        ({STATE: {"tokenizer": "bytes", "labels": ["a", "b"]}}, "vocab_size 256 of the data does not fit"),
    ],
)
def test_data_of_another_state_are_one_line(
    values: dict[str, Any], message: str, sentiments: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"not a checkpoint of this project: {message}"):
        Inference(tampered(sentiments, tmp_path, "", **values))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    rows = [f"the {animal} sat on the mat,{animal}" for _ in range(20) for animal in ("cat", "dog")]
    (folder / "own.csv").write_text("\n".join(["text,label", *rows]))
    words = (f"--model.net.pretrained={tiny_pretrained('bert', folder)}", f"--data.path={folder / 'own.csv'}")
    return fit(
        folder, "--config=configs/text/sentiment_pretrained.yaml", *words, "--data.max_length=16", "--max_epochs=1"
    )


KERNEL = "kernels-community/flash-attn"
REMOTE = {"AutoModelForSequenceClassification": "evil/repo--modeling.Net"}


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": REMOTE},
        *({name: KERNEL} for name in ("attn_implementation", "_attn_implementation", "experts_implementation")),
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"backbone": "evil/repo", "use_pretrained_backbone": True},
        {"_name_or_path": "evil/repo"},
        {"num_labels": 10**9},
    ],
)
def test_settings_that_would_load_code_are_left_out(config: dict[str, Any], bert: str, tmp_path: Path) -> None:
    net = Inference(tampered(bert, tmp_path, "hyper_parameters/net/init_args/config", **config)).task.net
    assert not config.keys() & net.rebuild["config"].keys()
    assert net.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip", "auto_map": REMOTE}, "config fits no model of transformers"),
        ({"model_type": "../../evil"}, "Unrecognized model identifier"),
        ({"hidden_act": "os.system"}, "os.system"),
        ({"vocab_size": "x"}, "vocab_size"),
        ({"to_dict": "x"}, "not callable"),
        ({"x": {"class_path": "os.abort"}}, "only plain values"),
        ({"x": ["{class_path: os.abort}"]}, "not allowed there"),
    ],
)
def test_a_configuration_of_another_model_is_one_line(
    config: dict[str, Any], message: str, bert: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        Inference(tampered(bert, tmp_path, "hyper_parameters/net/init_args/config", **config))


def test_a_hub_name_is_not_looked_up(bert: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pretrained is missing"):
        Inference(tampered(bert, tmp_path, "hyper_parameters/net/init_args", pretrained="gpt2", config=None))
