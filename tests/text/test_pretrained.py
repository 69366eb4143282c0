import ast
import importlib.util
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch

from src import ROOT
from src.engine.system.errors import InputError
from src.engine.training.optim.groups import decay_groups
from src.text import hub
from src.text.labelled_text import LabelledTextDataModule
from src.text.language_model import LanguageModel
from src.text.pretrained import PretrainedClassifier, PretrainedLM
from src.text.text_classifier import TextClassifier
from src.text.tokenizer import pretrained_tokenizer
from tests.conftest import write
from tests.text.helpers import WORDS, tiny_pretrained

KINDS = ("bert", "roberta", "gpt2")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_pretrained(kind, folder)
    return folder


def inputs(count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(4, 12, (2, count), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, count, dtype=torch.bool)
    mask[1, 4:] = False
    return tokens, mask


@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_changes_a_logit(models: Path, kind: str) -> None:
    net = PretrainedClassifier(str(models / kind), num_classes=3).eval()
    tokens, mask = inputs()
    logits = net(tokens, mask)
    assert logits.shape == (2, 3)
    assert torch.allclose(net(tokens[1:, :4], mask[1:, :4])[0], logits[1], atol=1e-5)
    other = torch.where(mask, tokens, 5)
    assert torch.allclose(net(other, mask), logits, atol=1e-5)


def other_model(kind: str, folder: Path) -> str:
    """A tiny random model of another architecture, without a tokenizer; gives its folder."""
    import transformers

    size = {"vocab_size": 60, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    configs = {
        "xlnet": lambda: transformers.XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=32),
        "fnet": lambda: transformers.FNetConfig(**size, max_position_embeddings=40),
        "bart": lambda: transformers.BartConfig(
            vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40,
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
        ),
        "openai-gpt": lambda: transformers.OpenAIGPTConfig(
            vocab_size=60, n_positions=40, n_embd=16, n_layer=2, n_head=2
        ),
        "mamba": lambda: transformers.MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4),
        "codegen": lambda: transformers.CodeGenConfig(
            vocab_size=60, n_positions=40, n_ctx=40, n_embd=16, n_layer=1, n_head=4, rotary_dim=2
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    config = configs[kind]()
    auto = "CausalLM" if kind in ("openai-gpt", "mamba", "codegen") else "SequenceClassification"
    getattr(transformers, f"AutoModelFor{auto}").from_config(config).save_pretrained(folder / kind)
    return str(folder / kind)


@pytest.mark.parametrize("kind", ["xlnet", "fnet"])
def test_a_model_whose_logits_depend_on_padding_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="depend on the padding after a text: give another model"):
        PretrainedClassifier(other_model(kind, tmp_path))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_adversarial_training_moves_what_an_encoder_sees(kind: str, tmp_path: Path) -> None:
    net = PretrainedClassifier(other_model(kind, tmp_path), num_classes=3)
    tokens, mask = inputs()
    tokens[0, -1] = tokens[1, 3] = net.model.config.eos_token_id
    plain, moved = (TextClassifier(net, adversarial=size).train() for size in (0.0, 5.0))
    losses = []
    for task in (plain, moved):
        torch.manual_seed(0)
        losses.append(task.step((tokens, mask, torch.tensor([0, 2])))[0].item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize("kind", ["openai-gpt", "mamba", "codegen"])
def test_a_model_without_a_usual_cache_generates_from_the_whole_context(kind: str, tmp_path: Path) -> None:
    task = LanguageModel(PretrainedLM(other_model(kind, tmp_path)).eval())
    ways = [list(task.generate(torch.tensor([5, 9, 20]), 8, temperature=0, use_cache=one)) for one in (True, False)]
    assert ways[0] == ways[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"freeze_body": True}, {"lora_rank": 2}])
def test_what_is_trained_is_what_was_asked_for(models: Path, kind: str, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    task = TextClassifier(PretrainedClassifier(str(models / kind), num_classes=3, **options), head_lr=0.1)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(task.parameter_groups(), lr=0.01)
    assert any(group["lr"] == 0.1 for group in optimizer.param_groups)
    before = {name: value.clone() for name, value in task.net.named_parameters()}
    tokens, mask = inputs()
    targets = torch.tensor([0, 2])
    first, _ = task.step((tokens, mask, targets))
    for _ in range(20):
        loss, _ = task.step((tokens, mask, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first.item()
    changed = {name for name, value in task.net.named_parameters() if not torch.equal(value, before[name])}
    heads = ("classifier", "score", "pooler")  # a masked language model has no pooler: it is new too
    assert any(part in name for name in changed for part in heads)
    if options:
        allowed = heads if "freeze_body" in options else (*heads, "lora_")
        assert all(any(part in name for part in allowed) for name in changed)
        assert "lora_rank" not in options or any("lora_" in name for name in changed)
    else:
        assert any("embeddings" in name or "wte" in name for name in changed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"freeze_body": True}, {"lora_rank": 2}])
def test_adversarial_training_moves_what_the_body_sees(models: Path, kind: str, options: dict[str, int]) -> None:
    losses = []
    for length in (0.0, 0.1):
        torch.manual_seed(0)
        net = PretrainedClassifier(str(models / kind), num_classes=3, dropout=0.0, **options)  # type: ignore[arg-type]
        task = TextClassifier(net, adversarial=length)
        losses.append(task.step((*inputs(), torch.tensor([0, 2])))[0])
    assert losses[1] > losses[0] + 1e-5
    losses[1].backward()
    trained = [parameter for parameter in task.net.parameters() if parameter.requires_grad]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_it_begins_in_training_mode(models: Path, options: dict[str, int]) -> None:
    for net in (PretrainedClassifier(str(models / "bert"), **options), PretrainedLM(str(models / "gpt2"), **options)):  # type: ignore[arg-type]
        assert all(module.training for module in net.modules())


def test_a_frozen_body_keeps_its_dropout_still(models: Path) -> None:
    net = PretrainedClassifier(str(models / "bert"), freeze_body=True)
    assert not net.model.base_model.training
    net.train()
    assert not net.model.base_model.training
    assert net.model.classifier.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_a_network_is_rebuilt_without_its_folder(models: Path, kind: str, options: dict[str, int]) -> None:
    net = PretrainedClassifier(str(models / kind), num_classes=3, **options).eval()  # type: ignore[arg-type]
    again = PretrainedClassifier("gone", num_classes=3, **options, **net.rebuild).eval()  # type: ignore[arg-type]
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(*inputs()), net(*inputs()))


def test_a_head_of_another_size_is_replaced(models: Path, tmp_path: Path) -> None:
    PretrainedClassifier(str(models / "bert"), num_classes=5).model.save_pretrained(tmp_path / "five")
    assert PretrainedClassifier(str(tmp_path / "five"), num_classes=3)(*inputs()).shape == (2, 3)


def test_weights_that_do_not_belong_to_the_configuration_are_refused(models: Path, tmp_path: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    for kind, changed in (("prefix", "wrapped.{}"), ("size", "{}")):
        folder = tmp_path / kind
        shutil.copytree(models / "bert", folder)
        weights = load_file(folder / "model.safetensors")
        if kind == "size":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 3}))
        weights = {changed.format(name): value for name, value in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"weights of .* are missing or have other shapes, such as bert\.\w+"):
            PretrainedClassifier(str(folder))
    base = transformers.AutoModel.from_pretrained(models / "gpt2")
    base.config.tie_word_embeddings = False
    base.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"^1 of \d+ weights of .*headless are missing .*, such as lm_head.weight"):
        PretrainedLM(str(tmp_path / "headless"))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_is_refused_as_a_language_model(models: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=r"sees the tokens it has to predict: give a language model, such as"):
        PretrainedLM(str(models / kind))


def test_all_of_a_new_head_is_trained_with_lora(tmp_path: Path) -> None:
    import transformers

    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 40}
    config = transformers.BartConfig(vocab_size=20, **size, **heads, pad_token_id=1, eos_token_id=2)
    transformers.BartForSequenceClassification(config).save_pretrained(tmp_path / "bart")
    net = PretrainedClassifier(str(tmp_path / "bart"), num_classes=3, lora_rank=2)
    tokens = torch.randint(4, 12, (2, 5))
    tokens[:, -1] = 2  # this head reads the end of the text
    net(tokens, torch.ones(2, 5, dtype=torch.bool)).sum().backward()
    trained = [
        name.partition("classification_head.")[2] for name, value in net.named_parameters() if value.grad is not None
    ]
    layers = {name.removeprefix("modules_to_save.default.") for name in trained if name}
    assert layers == {f"{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}


def test_a_task_built_in_python_says_how_it_is_rebuilt(models: Path) -> None:
    net = PretrainedClassifier(str(models / "bert"), num_classes=3)
    arguments = TextClassifier(net).hparams["net"]["init_args"]
    assert arguments["config"] == net.rebuild["config"]
    assert arguments["num_classes"] == 3


def test_dropout_may_be_set(models: Path) -> None:
    net = PretrainedClassifier(str(models / "bert"), dropout=0.0).train()
    assert torch.equal(net(*inputs()), net(*inputs()))


def test_dropout_that_is_a_number_may_be_set_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**size, num_attention_heads=2, num_key_value_heads=2)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "llama")
    net = PretrainedClassifier(str(tmp_path / "llama"), dropout=0.5).train()
    assert net.model.model.layers[0].self_attn.attention_dropout == 0.5
    assert not torch.equal(net(*inputs()), net(*inputs()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_trained_in_float32(models: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "gpt2", dtype=dtype)
    model.save_pretrained(tmp_path / "half")
    assert str(dtype).removeprefix("torch.") in (tmp_path / "half" / "config.json").read_text()
    net = PretrainedLM(str(tmp_path / "half"))
    rebuilt = PretrainedLM(**net.rebuild)
    assert {p.dtype for one in (net, rebuilt) for p in one.parameters()} == {torch.float32}


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"freeze_body": True}])
def test_a_pretrained_language_model_generates_with_its_cache(models: Path, options: dict[str, int]) -> None:
    task = LanguageModel(PretrainedLM(str(models / "gpt2"), **options))  # type: ignore[arg-type]
    prompt = torch.tensor([1, 2, 3])
    cached = list(task.generate(prompt, 60, temperature=0))
    assert cached == list(task.generate(prompt, 60, temperature=0, use_cache=False))
    assert any(p.requires_grad for p in task.net.parameters())
    assert decay_groups(task.net)


def test_its_own_tokenizer_comes_with_it(models: Path) -> None:
    bert = pretrained_tokenizer(str(models / "bert"))
    (ids,) = bert.encode_batch(["the cat"], 8)
    assert (ids[0], ids[-1], len(ids)) == (2, 3, 4)  # [CLS] and [SEP]
    gpt2 = pretrained_tokenizer(str(models / "gpt2"))
    assert gpt2.decode(gpt2.encode(WORDS).tolist()) == WORDS


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",), ("special_tokens_map.json",)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_a_tokenizer_is_an_error(kind: str, left: tuple[str, ...], tmp_path: Path) -> None:
    folder = Path(tiny_pretrained(kind, tmp_path))
    for name in left:
        (folder / name).touch(exist_ok=True)
        if not (folder / name).stat().st_size:
            (folder / name).write_text("{}")
    for file in folder.glob("*token*"):
        if file.name not in left:
            file.unlink()
    with pytest.raises(InputError, match=f"{folder} has no tokenizer"):
        pretrained_tokenizer(str(folder))
    table = write(tmp_path / "own.csv", "text,label\n" + "the cat,1\na dog,2\n" * 9)
    with pytest.raises(InputError, match=f"{folder} has no tokenizer"):
        LabelledTextDataModule(table, tokenizer=str(folder)).setup("fit")


def test_a_mistyped_folder_fails_at_once(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_problem", lambda: pytest.fail("the hub was asked"))
    monkeypatch.chdir(models)
    for name in (
        f"{models}/brt",
        "./brt",
        f"~/{tmp_path}/bert",
        "some/path/to/bert",
        "bert2/",
        "./bert/config.json",
    ):
        with pytest.raises(ValueError, match=f"{re.escape(name)}: no such folder"):
            PretrainedClassifier(name)


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")  # of transformers

    asked, ends = [], Event()
    monkeypatch.setattr(hub, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: asked.append(1) or ends.wait())
    hub._hub_problem.cache_clear()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no/such is not a folder .*hub \(no answer in 0.1 seconds\)"):
            PretrainedClassifier("no/such")
    ends.set()
    hub._hub_problem.cache_clear()
    assert asked == [1]


def test_too_long_a_text_says_what_fits(models: Path) -> None:
    tokens, mask = torch.full((1, 41), 5), torch.ones(1, 41, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"41 tokens do not fit .*takes 40: give --data.max_length 40"):
        PretrainedClassifier(str(models / "bert"))(tokens, mask)
    PretrainedClassifier(str(models / "roberta"))(tokens[:, :39], mask[:, :39])
    with pytest.raises(ValueError, match="takes 39"):
        PretrainedClassifier(str(models / "roberta"))(tokens, mask)
    with pytest.raises(ValueError, match=r"takes 40: give --data.block_size 40"):
        PretrainedLM(str(models / "gpt2"))(tokens)


def test_what_cannot_be_had_is_one_clear_error(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: pytest.fail("the hub is asked again"))
        with pytest.raises(
            ValueError, match="no/such-model is not a folder and could not be loaded from the Hugging Face"
        ):
            PretrainedClassifier("no/such-model")
    with pytest.raises(ValueError, match=f"the folder {tmp_path} has no model that"):
        PretrainedClassifier(str(tmp_path))
    with pytest.raises(ValueError, match="freeze_body and lora_rank"):
        PretrainedClassifier(str(models / "bert"), freeze_body=True, lora_rank=2)
    with pytest.raises(ValueError, match="lora_rank -1"):
        PretrainedClassifier(str(models / "bert"), lora_rank=-1)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "transformers" else find_spec(n))
    with pytest.raises(
        ValueError, match=r"need the package transformers: install it with pip install -e '\.\[pretrained\]'"
    ):
        PretrainedClassifier(str(models / "bert"))


def outside_of_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_of_functions(child)


def imported_with(*modules: str) -> set[str]:
    """What importing modules of `src` imports, in the end, as dotted names."""
    found, left = set[str](), set(modules)
    while left:
        found |= (names := left)
        left = {name.rpartition(".")[0] for name in names}
        for path in (ROOT / name.replace(".", "/") for name in names if name.split(".")[0] == "src"):
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            for node in outside_of_functions(ast.parse(file.read_bytes() if file.is_file() else "")):
                if isinstance(node, ast.Import):
                    left |= {one.name for one in node.names}
                elif isinstance(node, ast.ImportFrom):
                    left |= {str(node.module), *(f"{node.module}.{one.name}" for one in node.names)}
        left -= found
    return found


def test_transformers_is_imported_only_where_it_is_used() -> None:
    commands = ("src.engine.cli.cli", "src.text.text_classifier", "src.text.labelled_text", "src.text.corpus")
    found = imported_with(*commands)
    assert {"src.text.tokenizer", "src.text.sources", "src.text.hub", "src.engine.data.tables", "torch"} <= found
    assert not {"transformers", "peft", "tokenizers", "pyarrow", "babel"} & {name.split(".")[0] for name in found}


def test_a_package_carries_a_real_model(models: Path) -> None:
    net = PretrainedClassifier(MINILM).eval()
    assert sum(p.numel() for p in net.parameters()) > 22e6
    tokenizer = pretrained_tokenizer(MINILM)
    assert tokenizer.decode(tokenizer.encode("A gripping film").tolist()) == "a gripping film"
    # Its weights are the trained ones: related words lie closer than others.
    table = net.model.bert.embeddings.word_embeddings.weight
    good, great, seven = (table[tokenizer.encode(word)[0]] for word in ("good", "great", "seven"))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(good, great, dim=0) > 2 * cosine(good, seven, dim=0).abs()
