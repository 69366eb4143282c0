"""A checkpoint that was tampered with runs nothing: it is one line that names what is wrong."""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src.engine.data.loading import Batches, ResumableLoader
from src.engine.deploy.inference import Inference
from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.trust import Trust, checked_class
from src.engine.system.errors import InputError
from tests.conftest import Run, one_line, program
from tests.spies import Payload

Train = Callable[..., Run]
Checkpoint = dict[str, Any]
Change = Callable[[Checkpoint], object]

# The folder in place of MARKER, and a module that makes it when it is imported.
MARKER = "MARKER"
MODULE = "imports_do_this"
# Events of the interpreter that only an attack causes while a checkpoint is refused.
ACTIONS = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
ACTIONS |= {"socket.getaddrinfo", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree", "os.symlink"}
seen: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if seen is not None and (event in ACTIONS or (event == "open" and "w" in str(arguments[1]))):
        seen.append(f"{event} {arguments}")


sys.addaudithook(_watch)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """No recipe, so that data, optimizer and schedule are those of the checkpoint."""
    return ("--trust=tests.toy",)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file or folder that an attack would create."""
    path = tmp_path / "marker"
    (tmp_path / f"{MODULE}.py").write_text(f"import os\nos.mkdir({str(path)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    assert not path.exists()
    assert MODULE not in sys.modules


def put(key: str, value: Any) -> Change:
    def change(checkpoint: Checkpoint) -> None:
        *parents, leaf = key.split("/")
        for name in parents:
            checkpoint = checkpoint[name]
        checkpoint[leaf] = value

    return change


def net(class_path: Any, **init_args: Any) -> Change:
    return put("hyper_parameters/net", {"class_path": class_path, "init_args": init_args})


def loss(value: Any) -> Change:
    return put("hyper_parameters/loss", value)


def config(key: str, class_path: str, **init_args: Any) -> Change:
    return put("config", yaml.safe_dump({key: {"class_path": class_path, "init_args": init_args}}))


def nested(depth: int, width: int = 1) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] * width
    return value


SHELL = {"cmd": "mkdir MARKER", "mode": "r", "buffering": -1}
LITERAL = "{class_path: os.mkdir, init_args: {path: x}}"
LIGHTNING = "lightning.pytorch"
FOREIGN = "a class that is not of this project"
TEXT = "which is not allowed there"
LOOKED_UP: dict[str, tuple[Change, str]] = {
    # Functions, and classes that only call what they are given.
    "a function that returns a module": (net("torch.fx.symbolic_trace", root="os.popen", concrete_args=SHELL), FOREIGN),
    "torch.hub": (net("torch.hub.load", repo_or_dir="a/b", model="c"), FOREIGN),
    "torch.jit": (net("torch.jit.load", f="MARKER"), FOREIGN),
    "a network of torchvision": (net("torchvision.models.get_model", name="resnet18"), FOREIGN),
    "functools.partial": (net("functools.partial", func="os.mkdir", path="MARKER"), FOREIGN),
    "a process": (net("subprocess.Popen", args=["mkdir", "MARKER"]), FOREIGN),
    "a transform": (net("torchvision.transforms.v2.Lambda", lambd="os.mkdir"), FOREIGN),
    "a loss that is a function": (loss({"class_path": "subprocess.getoutput"}), "model.loss is subprocess"),
    "data that are a function": (config("data", "os.mkdir", path="MARKER"), "data is os.mkdir"),
    "an optimizer that is a function": (config("optimizer", "os.abort"), "optimizer is os.abort"),
    # Parts of the Trainer.
    "a callback": (net(f"{LIGHTNING}.callbacks.LambdaCallback", on_test_start="os.abort"), FOREIGN),
    "a logger": (net(f"{LIGHTNING}.loggers.CSVLogger", save_dir="MARKER"), FOREIGN),
    "a profiler": (net(f"{LIGHTNING}.profilers.SimpleProfiler", dirpath="MARKER"), FOREIGN),
    "a plugin": (net(f"{LIGHTNING}.plugins.TorchCheckpointIO"), FOREIGN),
    "a strategy": (net(f"{LIGHTNING}.strategies.DDPStrategy", ddp_comm_state="os.abort"), FOREIGN),
    "a command line": (net(f"{LIGHTNING}.cli.LightningCLI"), FOREIGN),
    # Modules that do something when they are imported.
    "the module of a network": (net(f"{MODULE}.Net"), FOREIGN),
    "the module of the model": (put("hyper_parameters/_class_path", f"{MODULE}.Net"), FOREIGN),
    "the module of the data": (config("data", f"{MODULE}.Data"), FOREIGN),
    "the module of a schedule": (config("lr_scheduler", f"{MODULE}.Schedule"), FOREIGN),
    "a module inside this project": (net(f"src.{MODULE}.Net"), FOREIGN),
    # Names that lead from an allowed module to something else.
    "a function of torch.nn": (net("torch.nn.functional.relu", input=1), FOREIGN),
    "a module of torch.nn": (net("torch.nn.init", tensor=1), FOREIGN),
    "a module behind torch.nn": (net("torch.nn.modules.os.system", command="mkdir MARKER"), FOREIGN),
    "an attribute of a class": (net("torch.nn.Module.__class__"), FOREIGN),
    "a class of another kind": (net("torch.optim.SGD"), "not a Module"),
    "a class of the engine": (net("src.engine.deploy.inference.Inference", given="best", trust=[MODULE]), FOREIGN),
    "data of the engine": (config("data", "src.engine.deploy.inputs.PreparedInputs", inputs=["/etc"]), FOREIGN),
    "a command": (net("src.train.main"), FOREIGN),
    # Odd spellings of a class.
    "a list in place of a path": (net(["os"]), "which is not a class"),
    "a statement in place of a path": (net("os; import os"), "which is not a class"),
    "a path without a module": (net("Linear"), FOREIGN),
    "_class_path in place of class_path": (loss({"_class_path": "os.abort"}), "a single value"),
    "__class__ in place of class_path": (loss({"__class__": "os.abort"}), "a single value"),
    "arguments that are a list": (loss({"class_path": "torch.nn.ReLU", "init_args": [1]}), "not names and values"),
    "an argument that is not there": (loss({"class_path": "torch.nn.ReLU", "init_args": {"nope": 1}}), "nope"),
    # Texts that would be looked up, or read as YAML.
    "the name of a class": (loss(f"{MODULE}.Loss"), TEXT),
    "the name of a class without its module": (loss("CrossEntropyLoss"), TEXT),
    "YAML for a class": (loss(LITERAL), TEXT),
    "YAML for any value": (net("torch.nn.Linear", in_features=1, out_features=1, device=LITERAL), TEXT),
    "a class for any value": (
        net("torch.nn.Linear", device={"class_path": "tempfile.NamedTemporaryFile"}),
        "only plain",
    ),
    "an activation by its path": (net("torch.nn.TransformerEncoderLayer", d_model=4, activation="os.abort"), TEXT),
    "a schedule's function": (
        config("lr_scheduler", "torch.optim.lr_scheduler.LambdaLR", lr_lambda="time.sleep"),
        TEXT,
    ),
    "a schedule's functions": (
        config("lr_scheduler", "torch.optim.lr_scheduler.LambdaLR", lr_lambda=["os.abort"]),
        TEXT,
    ),
    "an optimizer's parameters": (config("optimizer", "torch.optim.SGD", params="os.abort"), TEXT),
    "a text for a number": (config("optimizer", "torch.optim.SGD", lr="os.abort"), TEXT),
    # Kinds and sizes of values.
    "hyperparameters that are text": (put("hyper_parameters", "x"), "hyper_parameters"),
    "a value that is nested": (net("torch.nn.Linear", device=nested(300)), "levels"),
    "a value that is shared": (net("torch.nn.Linear", device=nested(40, width=2)), "levels"),
    "a list for a number": (put("hyper_parameters/num_classes", nested(200)), "a single value"),
    "a size that fills the memory": (net("tests.toy.ToyNet", num_classes=10**12), "too large"),
    "a configuration that calls": (put("config", f"!!python/object/apply:os.mkdir [{MARKER}]"), "config"),
    "a configuration that is no YAML": (put("config", "a: ["), "config"),
    "a configuration that is nested": (put("config", "[" * 1000), "config"),
    "a configuration that is a number": (put("config", 3), "config"),
    "no weights": (put("state_dict", {}), "state_dict"),
    "weights that are numbers": (put("state_dict", {"a": 1}), "state_dict"),
    "weights without names": (put("state_dict", {1: torch.zeros(1)}), "state_dict"),
}


def _filled(value: Any, marker: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(one, marker) for name, one in value.items()}
    if isinstance(value, list) and len(value) == 2 and value[0] is value[1]:
        return value  # nested
    if isinstance(value, list):
        return [_filled(one, marker) for one in value]
    return value.replace(MARKER, marker) if isinstance(value, str) else value


@pytest.fixture
def tampered(toy_checkpoint: str, tmp_path: Path, marker: Path) -> Callable[[Change], str]:
    def make(change: Change) -> str:
        checkpoint = copy.deepcopy(read_checkpoint(toy_checkpoint))
        change(checkpoint)
        torch.save(_filled(checkpoint, str(marker)), tmp_path / "tampered.ckpt")
        return str(tmp_path / "tampered.ckpt")

    return make


@pytest.mark.parametrize("kind", LOOKED_UP)
def test_what_a_checkpoint_may_not_name_is_one_line_and_does_nothing(
    kind: str, tampered: Callable[[Change], str], train: Train
) -> None:
    global seen
    change, message = LOOKED_UP[kind]
    path = tampered(change)
    commands: list[Callable[[], object]] = [lambda: Inference(path, trust=["tests.toy"])]
    commands += [lambda stage=stage: train(stage, f"--ckpt_path={path}") for stage in ("test", "fit")]  # type: ignore[misc]
    for command in commands:
        seen = []
        try:
            with pytest.raises(InputError, match="not a checkpoint of this project") as caught:
                command()
            done = seen
        finally:
            seen = None
        assert message in str(caught.value)
        assert done == []


# Content that only training uses.
def optimizer_state(name: str, value: Any) -> Change:
    def change(checkpoint: Checkpoint) -> None:
        for state in checkpoint["optimizer_states"][0]["state"].values():
            state[name] = value(state[name])

    return change


USED: dict[str, tuple[Change, str]] = {
    "an optimizer state of another size": (optimizer_state("exp_avg", lambda _: torch.zeros(7)), "exp_avg of (7,)"),
    "a step of no size": (optimizer_state("step", lambda _: torch.zeros(0)), "step of (0,)"),
    "an optimizer state that is a number": (put("optimizer_states", 3), "TypeError"),
    "a schedule that is a number": (put("lr_schedulers", 3), "TypeError"),
    "a schedule with an optimizer": (put("lr_schedulers", [{"optimizer": "x"}]), "AttributeError"),
    "progress that is a number": (put("loops", 3), "AttributeError"),
    "progress that is text": (put("loops/fit_loop", {"state_dict": "x"}), "AttributeError"),
    "callbacks that are a list": (put("callbacks", ["x"]), "AttributeError"),
    "metrics that are numbers": (put("half_epoch", [3]), "TypeError"),
    "a version that is none": (put("pytorch-lightning_version", "x"), "InvalidVersion"),
    "a weight of another layout": (put("state_dict/net.head.bias", torch.zeros(3).to_sparse()), "sparse"),
    "a weight of another size": (put("state_dict/net.head.bias", torch.zeros(1).expand(10**12)), "does not fit"),
    "a loss out of range": (
        loss({"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 5.0}}),
        "label_smoothing must be",
    ),
    "a network that cannot be built": (net("tests.toy.ToyNet", num_classes=-3), "negative dimension"),
    "a network out of memory": (net("tests.toy.ToyNet", num_classes=10**9), "allocate"),
    "a million processes": (config("data", "tests.toy.ToyData", num_workers=10**6), "num_workers 1000000 is too many"),
}


@pytest.mark.parametrize("kind", USED)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_checkpoint_with_odd_content_is_one_line(
    kind: str, tampered: Callable[[Change], str], error_of: Callable[..., str]
) -> None:
    change, message = USED[kind]
    line = error_of("fit", f"--ckpt_path={tampered(change)}", "--max_epochs=9", "--quiet", "--accelerator=cpu")
    assert message in line


@pytest.mark.slow
def test_a_fused_optimizer_takes_a_state_with_its_own_strides(tampered: Callable[[Change], str], train: Train) -> None:
    one_value = optimizer_state("exp_avg", lambda value: torch.zeros(1).expand(value.shape))
    assert train("fit", f"--ckpt_path={tampered(one_value)}", "--max_epochs=6").metrics["val/acc"] > 0.9


def test_a_position_outside_of_the_epoch_is_refused() -> None:
    loader = ResumableLoader(range(8), sampler=Batches(8, 2, None), batch_size=None)
    with pytest.raises(InputError, match="at batch 5 of an epoch, which has 4 batches"):
        loader.load_state_dict({"epoch": 0, "given": 5})


@pytest.mark.slow
@pytest.mark.parametrize(("score", "place"), [(2.0, "."), (-1.0, "logs/other")], ids=["tested", "deleted"])
def test_files_that_a_callback_remembers_are_neither_tested_nor_deleted(
    tampered: Callable[[Change], str], train: Train, tmp_path: Path, score: float, place: str
) -> None:
    victim = tmp_path / place / "victim.ckpt"
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.touch()

    def change(checkpoint: Checkpoint) -> None:
        key = next(key for key in checkpoint["callbacks"] if key.startswith("ModelCheckpoint"))
        values = {"kth_value": torch.tensor(score), "best_model_score": torch.tensor(score)}
        known = {**values, "best_k_models": {str(victim): torch.tensor(score)}, "dirpath": str(tmp_path / "logs")}
        known |= dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), str(victim))
        checkpoint["callbacks"][key] |= known

    folder = f"--checkpoint.dirpath={tmp_path / 'logs'}"
    run = train(f"--ckpt_path={tampered(change)}", "--max_epochs=6", folder)
    assert run.cli.trainer.checkpoint_callback.best_model_path == str(tmp_path / "logs" / "best.ckpt")  # type: ignore[union-attr]
    assert victim.exists()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("src.predict", (__file__, "--output=x.csv")),
        ("src.serve", ("--port=8765",)),
        ("src.export", ("--format=onnx", "--output=x.onnx")),
        ("src.generate", ()),
        ("src.train", ("validate",)),
        ("src.train", ("predict",)),
    ],
)
def test_every_command_refuses_the_same(
    module: str, words: tuple[str, ...], tampered: Callable[[Change], str], tmp_path: Path
) -> None:
    path = tampered(LOOKED_UP["a function that returns a module"][0])
    line = one_line(program(*words, f"--ckpt_path={path}", "--trust=tests.toy", module=module, cwd=tmp_path))
    assert FOREIGN in line
    assert line.endswith("add --trust torch.fx")


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_callbacks_profilers_and_loggers_of_a_checkpoint_are_not_built(
    tampered: Callable[[Change], str], train: Train
) -> None:
    def part(name: str, **init_args: Any) -> dict[str, Any]:
        return {"class_path": f"{LIGHTNING}.{name}", "init_args": init_args}

    trainer = {
        "callbacks": [part("callbacks.LambdaCallback", on_test_start="os.abort")],
        "profiler": part("profilers.SimpleProfiler", dirpath=MARKER),
        "logger": part("loggers.CSVLogger", save_dir=MARKER),
        "strategy": part("strategies.DDPStrategy", ddp_comm_state={"class_path": "os.abort"}),
        "plugins": [{"class_path": f"{MODULE}.Plugin"}],
        "default_root_dir": MARKER,
    }
    tree = {"data": {"class_path": "tests.toy.ToyData"}, "trainer": trainer, "checkpoint": {"dirpath": MARKER}}
    assert train("test", f"--ckpt_path={tampered(put('config', yaml.safe_dump(tree)))}").metrics["test/acc"] > 0.9


def test_a_class_is_the_one_of_the_list_whatever_module_its_path_names(
    tampered: Callable[[Change], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "CrossEntropyLoss", Payload, raising=False)
    path = tampered(loss({"class_path": "torch.nn.functional.CrossEntropyLoss"}))
    assert type(Inference(path, trust=["tests.toy"]).task.loss) is torch.nn.CrossEntropyLoss


def test_classes_of_other_packages_need_the_users_word(toy_checkpoint: str) -> None:
    with pytest.raises(InputError, match=r"model.net is tests.toy.ToyNet, .* add --trust tests.toy"):
        Inference(toy_checkpoint)
    assert Inference(toy_checkpoint, trust=["tests.toy"]).labels == ["left", "middle", "right"]


def test_a_class_that_is_trusted_and_missing_is_not_asked_for_again() -> None:
    with pytest.raises(
        InputError, match=r"^model\.net is gone\.Net, which is not there: install its package"
    ) as caught:
        checked_class("gone.Net", (torch.nn.Module,), Trust(("gone",)), "model.net")
    assert "--trust" not in str(caught.value)
