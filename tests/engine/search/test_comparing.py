"""Runs are compared, and listed by a metric."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from src.engine.runs.run_record import RunRecord
from src.engine.search import comparing
from src.engine.search.comparing import compare, read_run
from src.engine.system.classes import flat
from src.engine.system.errors import InputError
from src.engine.system.metric_names import shown
from tests.conftest import Run, program

Train = Callable[..., Run]


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and runs of this test go to its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparing, "ROOT", tmp_path)


def past(name: str, settings: str = "seed_everything: 1", **metrics: Any) -> str:
    """A run folder with these metrics; finished if they say so."""
    folder = Path("logs", name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings)
    (folder / "metrics.json").write_text(json.dumps({key.replace("__", "/"): value for key, value in metrics.items()}))
    return str(folder)


def rows(shown: str) -> dict[str, list[str]]:
    cells = [re.split(r"  +", line.strip()) for line in shown.splitlines() if "  " in line.strip()]
    return {name: values for name, *values in cells}


@pytest.mark.slow
def test_settings_results_and_curves_of_two_runs_are_shown(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    first = train("--max_epochs=2", "--optimizer.lr=0.0123456")
    second = train("--max_epochs=2", "--optimizer.lr=0.0123457", "--model.net.width=4")
    given = [str(run.folder) for run in (first, second)]
    assert compare(given) == 0
    shown = capsys.readouterr().out
    table = rows(shown)
    assert table["optimizer.lr"] == ["0.0123456", "0.0123457"]
    assert table["model.net.width"] == ["8", "4"]
    assert "model.net.dropout" not in table
    assert table["test/loss"] == [f"{run.metrics['test/loss']:.4f}" for run in (first, second)]
    assert "unfinished" not in shown
    path = Path(re.findall(r"^curves: (.*)$", shown, re.MULTILINE)[0])
    assert path == Path("logs/compare_0.png").absolute()
    picture = Image.open(path).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(maxcolors=2**24)}  # type: ignore[union-attr]
    assert {(31, 119, 180), (255, 127, 14)} <= colours  # a colour for each run
    # A second picture does not replace the first.
    before = path.read_bytes()
    compare(given)
    assert path.read_bytes() == before
    assert Path("logs/compare_1.png").stat().st_size


@pytest.mark.slow
def test_a_separate_process_compares(tmp_path: Path) -> None:
    given = [
        past(f"a/version_{number}", f"seed_everything: {number}", val__acc=number / 4, total_seconds=1.0)
        for number in (1, 2)
    ]
    done = program(*given, cwd=tmp_path, module="src.compare", REAL_INTERPRETER="1")
    assert done.returncode == 0, done.stderr[-3000:]
    table = rows(done.stdout)
    assert (table["seed_everything"], table["val/acc"]) == (["1", "2"], ["0.2500", "0.5000"])


def test_a_continued_run_has_the_settings_that_it_was_continued_with(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = past("a/version_0", "data: {batch_size: 1}"), past("a/version_1", "data: {batch_size: 2}")
    for number, size in ((2, 5), (10, 7)):
        (Path(second) / f"config.resume-{number}.yaml").write_text(f"data: {{batch_size: {size}}}")
    compare([first, second])
    assert rows(capsys.readouterr().out)["data.batch_size"] == ["1", "7"]


@pytest.mark.slow
def test_a_run_that_goes_back_to_its_first_settings_has_those(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = partial(RunRecord, tmp_path / "version_0", is_new=True)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda one: one), is_global_zero=True)
    trainer.state = SimpleNamespace(fn=TrainerFn.FITTING)
    (tmp_path / "version_0").mkdir()
    for size in (1, 2, 2, 1):
        record(f"data: {{batch_size: {size}}}").setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert read_run(tmp_path / "version_0").settings == {"data.batch_size": 1}
    assert len(list((tmp_path / "version_0").glob("config*.yaml"))) == 3


def test_arguments_of_each_callback_are_compared() -> None:
    stop = {"class_path": "lightning.EarlyStopping", "init_args": {"patience": 3, "monitor": "val/acc"}}
    tree = {"trainer": {"callbacks": [stop, {"class_path": "Timer"}], "max_epochs": 3}, "data": None}
    assert flat(tree) == {
        "trainer.callbacks": "EarlyStopping, Timer",
        "trainer.callbacks.EarlyStopping.patience": 3,
        "trainer.callbacks.EarlyStopping.monitor": "val/acc",
        "trainer.max_epochs": 3,
        "data": None,
    }


def test_the_curves_of_a_metric_share_a_plot_and_test_values_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    given = [past(f"a/version_{number}") for number in range(2)]
    for folder in given:
        with SummaryWriter(folder) as writer:
            for name in (
                "train/acc_epoch",
                "valid_acc",
                "train_acc",
                "train/loss_step",
                "train/loss",
                "test/acc",
                "epoch",
            ):
                for step in range(3):
                    writer.add_scalar(name, step, step)
    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    compare(given)
    plots = {axes.get_title(): len(axes.get_lines()) for axes in drawn[0].axes}
    assert plots == {"acc": 4, "acc_epoch": 2, "loss": 2}


def test_unfinished_and_broken_runs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    good = past("a/version_2", val__acc=0.5, total_seconds=1.0, best_epoch=3)
    better = past("b/trials/version_10", val__acc=0.75, total_seconds=1.0, best_epoch=4)
    going = past("a/version_10", val__acc=0.25)
    past("a/version_3", val__acc=None, total_seconds=1.0)
    past("a/version_4", val__loss=0.1, total_seconds=1.0)
    Path(past("a/version_5"), "metrics.json").unlink()
    Path(past("a/version_6"), "metrics.json").write_text('{"val/acc": 0.9')
    Path(past("a/version_7"), "config.yaml").unlink()
    past("a/version_8", "a: [")
    Path(good, "csv/version_0").mkdir(parents=True)  # of a logger: not a run
    assert compare(["--best", "val/acc"]) == 0
    listed = capsys.readouterr().out.splitlines()
    found = [re.split(r"  +", line.strip()) for line in listed if re.match(r" +0\.", line)]
    assert found == [["0.7500", "4", better], ["0.5000", "3", good], ["0.2500", going, "unfinished"]]
    named = [line for line in listed if line.startswith("logs")]
    for line, start in zip(
        named,
        (
            "logs/a/version_3 has val/acc None",
            "logs/a/version_4 has no val/acc",
            "logs/a/version_5 is unfinished: it has no metrics yet",
            "logs/a/version_6 is broken: metrics.json cannot be read (",
            "logs/a/version_7 is broken: it has no config.yaml",
            "logs/a/version_8 is broken: config.yaml cannot be read (",
        ),
        strict=True,
    ):
        assert line.startswith(start)
    compare([good, going])
    assert "logs/a/version_10 is unfinished: its metrics are those of its last validation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "settings", "words", "first"),
    [
        ("val/loss", "a: 1", (), "0.1000"),
        ("val/acc", "a: 1", (), "0.9000"),
        ("val_mape", "a: 1", (), "0.1000"),
        ("val/acc", "checkpoint: {monitor: val/acc, mode: min}", (), "0.1000"),
        ("val/odd", "checkpoint: {monitor: val/odd, mode: max}", (), "0.9000"),
        ("val/odd", "a: 1", ("--mode=max",), "0.9000"),
        ("val/loss", "a: 1", ("--mode", "max"), "0.9000"),
    ],
)
def test_the_best_run_comes_first(
    metric: str, settings: str, words: tuple[str, ...], first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, value in enumerate((0.5, 0.1, 0.9)):
        past(f"a/version_{number}", settings, **{metric: value, "total_seconds": 1.0})
    compare([*(f"logs/a/version_{number}" for number in range(3)), "--best", metric, *words])
    one_by_one = capsys.readouterr().out
    compare(["logs/a", "--best", metric, *words])
    shown = capsys.readouterr().out
    assert shown == one_by_one
    values = re.findall(r"^ +(0\.\d{4})", shown, re.MULTILINE)
    assert values[0] == first
    assert values == sorted(values, reverse=first == "0.9000")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "nothing to compare: give at least two run folders, or --best"),
        (["logs/a/version_0"], "only one run to compare: give at least two"),
        (["logs/a/version_0", "logs/a/version_9"], "logs/a/version_9: no such folder; give one such as"),
        (["logs/a/version_0", "logs/a"], "logs/a is broken: it has no config.yaml: give a run folder"),
        (["logs/a/version_0", "logs/a/version_1", "--output", "logs/a.png"], "logs/a.png already exists"),
        (["logs/a/version_0", "logs/a/version_1", "--output", "logs/a"], "logs/a.png already exists"),
        (["logs/a/version_0", "logs/a/version_1", "--output", "logs/a/"], "logs/a.png already exists"),
        (["logs/a/version_0", "logs/a/version_1", "--output", "no/a.png"], "no/a.png: there is no folder"),
        (
            ["logs/a/version_0", "logs/a/version_1", "--output", "a.doc"],
            "--output .*a.doc: Format 'doc' is not supported",
        ),
        (["logs/a/version_0", "logs/a/version_1", "--mode", "min"], "--mode min needs --best"),
        (["--best", "val/acc", "--output", "x.png"], "--output x.png: --best draws no picture"),
        (["--best", "val/ac"], "--best val/ac: no run has it, did you mean val/acc?"),
        (["--best", "val/odd"], "--best val/odd: is the lowest or the highest value the best"),
        (["--best", "val/acc", "logs/empty"], "logs/empty: no run in it; train one first"),
        (["--best", "val/acc", "nowhere"], "nowhere: no such folder"),
        (["--bset", "val/acc"], "--bset: no such option, did you mean --best?"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], expected: str) -> None:
    for number in range(2):
        folder = past(f"a/version_{number}", val__acc=0.5, val__odd=0.5, total_seconds=1.0)
        with SummaryWriter(folder) as writer:
            writer.add_scalar("val/acc", 1, 1)
    Path("logs/empty").mkdir()
    Path("logs/a.png").touch()
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError, match=expected) as error:
        compare(words)
    assert "\n" not in str(error.value)
    assert sorted(Path().rglob("*")) == before


NUMBERS = [
    (0.5, "0.5000"),
    (0.0, "0.0000"),
    (3.2e-6, "3.2e-06"),
    (-2e-4, "-0.0002"),
    (12345.67, "12345.7"),
    (-2e9, "-2e+09"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_small_and_large_metrics_keep_their_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_results_that_differ_in_later_digits_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    compare([past("a", val__loss=0.012341, val__acc=1.0), past("b", val__loss=0.012349, val__acc=1.0)])
    shown = capsys.readouterr().out
    assert rows(shown)["val/loss"] == ["0.0123", "0.0123"]
    assert "val/acc" not in shown
    compare([past("c", val__acc=1.0), past("d", val__acc=1.0)])
    assert "(no result differs)" in capsys.readouterr().out
