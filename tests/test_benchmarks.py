"""Each benchmark measures, prints a table and keeps its values."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.cli.config import import_class, load_config
from tests.recipes import RECIPES

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    import gpu
    import gpu_parts
    import recipes
    import reference
    import run
    from ablation import changes
    from run import ALL, BENCHMARKS
    from table import Row, alternate, has_domain, parse, show

# What a row of each benchmark begins with.
ROWS = {
    "reference": "reference",
    "start": "start",
    "overhead": "training",
    "gpt2": "training: GPT",
    "data_path": "batches",
    "generation": "generation",
    "growth": "growth",
    "memory": "memory: a run",
    "text_memory": "memory: training",
    "ablation": "",
    "serving": "serving",
    "search": "search",
    "sharing": "sharing",
    "table_start": "table of texts",
    "biology": "drugs",
    "audio": "spoken words",
    "recipes": "mnist_fast",
}


# Of run.py, a benchmark, and the commands that it starts, how many levels are forked. Two measure a start, and the
# memory of a whole process, which a fork has from its parent.
LEVELS = {"start": "1", "memory": "2"}


def benchmark(*words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FORK": next((LEVELS[one] for one in words if one in LEVELS), "3")}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=env, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_kept(results: Path, printed: str) -> dict[str, Any]:
    """The rows of a file of results, each of which was printed."""
    kept = json.loads(results.read_text())
    assert kept["machine"]["torch"] == torch.__version__
    for what, row in kept["rows"].items():
        assert what.split(":")[0].split(",")[0] in printed
        assert all(value > 0 for value in row["ours"])
        assert row["ratio"] == [a / b for a, b in zip(row["ours"], row["theirs"], strict=False)]
    rows: dict[str, Any] = kept["rows"]
    return rows


class Watched(torch.nn.Linear):
    """A network that keeps whether each of its batches was computed in mixed precision."""

    def __init__(self, seen: list[bool]) -> None:
        super().__init__(28, 10)
        self.seen = seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.is_autocast_enabled("cpu"))
        return super().forward(x[:, 0, 0])


@pytest.mark.parametrize(
    ("capabilities", "precision"), [({"avx512_bf16": True}, "bf16-mixed"), ({"avx512_bf16": False}, "32-true")]
)
def test_the_reference_takes_the_precision_of_the_cpu_and_ends_in_time(
    capabilities: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []
    clock = count(0.0, 0.5)  # of a slow machine
    monkeypatch.setattr(reference, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(reference, "build", lambda: Watched(seen))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    reference.main()
    printed = capsys.readouterr().out
    assert f"precision {precision}: this CPU has " in printed
    assert set(seen) == {precision == "bf16-mixed", False}  # float32 too
    assert [f"{one}: 60 s here means" in printed for one in ("bf16-mixed", "32-true")] == [True in seen, True]
    assert len(seen) < 65  # of nine times so many
    assert next(clock) <= 20


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_scaled_seconds_compare_runs_of_one_precision(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(batches: int, precision: str, seconds: float) -> float:
        asked.append(precision)
        return 2.0 * reference.REFERENCE[precision]

    def train(command: list[str], **_: Any) -> None:
        (root,) = (word.partition("=")[2] for word in command if word.startswith("--trainer.default_root_dir"))
        folder = Path(root) / "name" / "version_0"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text('{"test/acc": 0.99, "train_seconds": 10.0}')

    results = tmp_path / "results.json"
    monkeypatch.setattr(recipes, "measure", measure)
    monkeypatch.setattr(recipes, "choose_precision", lambda _: (precision, "as the test says"))
    monkeypatch.setattr(subprocess, "run", train)
    monkeypatch.setattr(sys, "argv", ["recipes.py", "--quick", "--results", str(results)])
    recipes.main()
    assert set(asked) == {precision}
    assert json.loads(results.read_text())["rows"]["mnist_fast: train_seconds, scaled"]["ours"] == [20.0]


def test_a_file_of_results_holds_one_machine_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    for name in ("one", "two"):
        show([Row(name, "s", [1.0])], path)
    results = json.loads(path.read_text())
    assert list(results["rows"]) == ["one", "two"]
    path.write_text(json.dumps({**results, "machine": {**results["machine"], "cores": 1000}}))
    assert "another machine" not in capsys.readouterr().out
    other = path.read_text()
    kept = [tmp_path / "results_1.json", tmp_path / "results_2.json"]
    kept[0].write_text("of an earlier time")
    show([Row("three", "s", [1.0])], path)
    assert f"they are now in {kept[1]}" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["rows"]) == ["three"]
    assert [one.read_text() for one in kept] == ["of an earlier time", other]


def test_ctrl_c_ends_a_benchmark_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/start.py"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    parse("What it measures.")
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "start.py: stopped by Ctrl-C\n"
    sys.excepthook(ValueError, ValueError("what is wrong"), None)
    assert "ValueError: what is wrong" in capsys.readouterr().err


def test_the_first_pair_does_not_count_unless_it_is_all() -> None:
    for pairs, counted in ((1, ([0], [1])), (2, ([2, 4], [3, 5]))):
        take = iter(range(10)).__next__
        assert alternate(take, take, pairs) == counted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--pairs 0", "--pairs 0 is too small: give at least 1"),
        ("--data_dir nowhere", "--data_dir nowhere: no such folder"),
        (f"--results {ROOT}/benchmarks/table.py", "benchmarks/table.py has no results"),
        ("--qick", "unrecognized arguments: --qick"),
    ],
)
def test_a_benchmark_says_what_it_cannot_do_before_it_measures(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("measures"))
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_an_ablation_undoes_is_in_the_code() -> None:
    for change in changes():
        for name in change.values:
            resolve_name(name)  # an AttributeError where it is not
        words = ["fit", f"--config=configs/{change.recipe}.yaml", *change.words, "--print_config"]
        with pytest.raises(SystemExit) as stop:
            StarterCLI(words, time.perf_counter())
        assert not stop.value.code


def test_run_knows_every_benchmark() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert (
        scripts - {"run", "table", "training", "figures", "requests_of_strangers", "gpu", "gpu_parts"}
        == ALL.keys()
        == ROWS.keys()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_runs_into_the_table_of_all(name: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    printed = benchmark("run.py", "--quick", "--only", name, "--results", str(results))
    rows = check_kept(results, printed)
    assert any(what.startswith(ROWS[name]) for what in rows)
    assert f"{name} ..." in printed.splitlines()
    if name == "memory":
        assert max(rows["memory: a run on MNIST, without the import"]["ours"]) <= 500


SMALL = SimpleNamespace(quick=True, data_dir=None, pairs=1, device="cpu", accelerator="cpu", values=None)
HAS = [name for name, (_, _, domain) in gpu.PARTS.items() if has_domain(domain)]


@pytest.mark.slow
@pytest.mark.parametrize("part", HAS)
def test_each_part_for_a_gpu_runs_on_a_cpu_with_tiny_sizes(part: str) -> None:
    values = gpu.PARTS[part][0](SMALL)
    assert values
    assert json.loads(json.dumps(values)) is not None


def run_gpu(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            gpu.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_without_a_gpu_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_gpu(monkeypatch) == 2
    assert (
        capsys.readouterr().err == "error: this machine has no NVIDIA GPU that torch can use: --cpu tries the script\n"
    )


@pytest.mark.slow
def test_a_part_for_a_gpu_that_fails_is_reported_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "part.py"
    fails, slow, quick = HAS[:3]
    code = f"""
import sys, time
part, path = sys.argv[sys.argv.index("--part") + 1], sys.argv[-1]
if part == "{fails}":
    sys.exit("oh")
open(path, "w").write('{{"speed": 1}}')
if part == "{slow}":
    time.sleep(600)
"""
    script.write_text(code)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setitem(gpu.PARTS, slow, (gpu_parts.memory, 3, gpu.PARTS[slow][2]))
    assert run_gpu(monkeypatch, "--only", fails, slow, quick) == 1
    parts = json.loads(capfd.readouterr().out.splitlines()[-1])["parts"]
    assert parts[fails]["failed"] == "exit code 1, see above"
    assert parts[slow]["failed"] == "stopped after 3 s"
    assert parts[quick]["speed"] == 1


@pytest.mark.slow
def test_a_part_that_is_stopped_keeps_its_values_and_ends_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, started = tmp_path / "part.py", tmp_path / "started"
    code = f"""
import subprocess, sys
from pathlib import Path
sys.path[:0] = ["{ROOT}/benchmarks", "{ROOT}"]
import gpu, gpu_parts, kill
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
popen = subprocess.Popen
subprocess.Popen = lambda *_, **__: popen(sleep, start_new_session=True)
def part(options):
    gpu_parts.keep(options, {{"speed": 1}})
    with kill.start([], Path()) as run:
        Path("{started}").write_text(f"{{run.pid}}\\n")
        run.wait()
gpu.PARTS["{HAS[0]}"] = (part, 1, "")
gpu.main()
"""
    script.write_text(code)

    class Limited(subprocess.Popen[bytes]):
        """A process whose limit is over once it has started another one."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout != 1.0:
                return super().wait(timeout)
            while self.poll() is None and not (started.exists() and started.read_text().endswith("\n")):
                time.sleep(0.05)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Limited)
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "GRACE", 600.0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu"])
    values = gpu.run_part(HAS[0], 1.0)
    assert (values["failed"], values["speed"]) == ("stopped after 1 s", 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_what_a_part_has_measured_is_kept_pair_by_pair(tmp_path: Path) -> None:
    options = SimpleNamespace(pairs=3, values=tmp_path / "values.json")
    ours = iter([9.0, 4.0, 6.0])  # ends before the last pair
    with pytest.raises(StopIteration):
        gpu_parts.alternate(options, ours.__next__, lambda: 2.0, "plain loop")
    kept = json.loads(options.values.read_text())
    assert kept == {"ours": 5.0, "plain loop": 2.0, "ratio": 2.5, "ratios": [2.0, 3.0]}


if has_domain("vision"):  # not skipped without it

    def test_a_run_that_was_not_killed_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
        run = SimpleNamespace(poll=lambda: 0)
        for name, value in (("start", nullcontext(run)), ("finish", None), ("kill_at_random", False)):
            monkeypatch.setattr(f"kill.{name}", lambda *_, value=value: value)
        with pytest.raises(RuntimeError, match="had ended before it was killed"):
            gpu_parts.resume(SMALL)


MEASURED = {
    "images": ("src.vision.mnist.MNISTDataModule", {"source": "sample"}),
    "resident": ("src.vision.mnist.MNISTDataModule", {"source": "sample", "device_resident": True}),
    "gpt": ("src.text.corpus.TextDataModule", {"source": "python_reference", "block_size": 64, "batch_size": 4}),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", [name for name in MEASURED if name in HAS])
def test_a_speed_is_that_of_as_many_steps_as_the_plain_loop_has(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments = MEASURED[part]
    data = import_class(name)(**arguments)
    given: list[str] = []

    def train(_: Any, *words: str, prepare: Any) -> tuple[None, dict[str, float]]:
        given.extend(words)
        prepare(data)
        return None, {"speed/samples_per_second": 1.0, "speed/tokens_per_second": 1.0}

    monkeypatch.setattr(gpu_parts, "train", train)
    gpu.PARTS[part][0](SMALL)
    for argument, value in arguments.items():  # what the test prepares is what the part trains on
        assert f"--data.{argument}={str(value).lower()}" in given or f"--data.{argument}={value}" in given
    assert ("--data.device_resident=true" in given) == (part == "resident")
    # The second of two log steps in one epoch of whole batches; the first one is a warm-up.
    assert "--trainer.log_every_n_steps=3" in given
    loader = data.train_dataloader()
    assert len(loader) == 6
    assert len({len(targets) for _, targets in loader}) == 1


def test_no_recipe_downloads_what_has_a_source_that_needs_no_download() -> None:
    for path in {load_config(recipe)[1]["data"]["class_path"] for recipe in RECIPES}:
        name = path.rpartition(".")[2]
        hints = [get_type_hints(cls.__init__) for cls in import_class(path).__mro__ if "__init__" in vars(cls)]
        choices = next((get_args(hint["source"]) for hint in hints if "source" in hint), ())
        assert ("auto" in choices) == (name in gpu_parts.SOURCES)
        assert name not in gpu_parts.SOURCES or gpu_parts.SOURCES[name] in choices
