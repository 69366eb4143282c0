"""The command line: LightningCLI with recipes, short flags, run folders and one-line errors."""

import argparse
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from src import ROOT, config
from src.callbacks.compilation import Compilation, cannot_compile, is_of_compiler
from src.callbacks.finite_loss import FiniteLoss, NotFiniteError
from src.callbacks.last_checkpoint import LastCheckpoint
from src.callbacks.optimizer_overrides import OptimizerOverrides
from src.callbacks.progress_bar import PacedProgressBar
from src.callbacks.run_record import RunRecord
from src.callbacks.step_seeds import StepSeeds
from src.checkpoint import (
    UnwritableError,
    WholeCheckpointIO,
    check_batches,
    check_fit,
    check_unfinished,
    model_arguments,
    read_checkpoint,
    refuse_shards,
    run_configuration,
)
from src.data.loading import check_batch_size
from src.errors import InputError, cause_of, report
from src.explain import explain
from src.hardware import check_accelerator, check_strategy, choose_precision
from src.interruption import Interrupted, Interruption
from src.models.hyperparameters import rebuild_arguments
from src.optim.configure import configure_optimizers
from src.runs import (
    WORKER_SECONDS,
    agreed,
    checkpoint_of,
    checkpoints_of,
    claim_folder,
    clock_is_behind,
    good_checkpoint,
    is_finished,
    join_attempt,
    lock_run,
    mark_job,
    newest_run,
    run_of,
    run_to_continue,
    runs_of,
)

# Settings of one call, which a saved configuration must not repeat.
CALL_ONLY = ("config", "ckpt_path", "run", "compile", "debug")


class StarterCLI(LightningCLI):
    """One parser for all stages, and a run folder for every run.

    Args:
        args: the command line without the program's name.
        started: `time.perf_counter()` when the program started, for `total_seconds`.

    Raises:
        InputError: something on the command line or in a configuration cannot work.
    """

    def __init__(self, args: list[str], started: float) -> None:
        self.started = started
        self.stage: str | None = None
        self.checkpoint: dict[str, Any] | None = None
        self.saved: config.Tree = {}  # the configuration of the run that wrote the checkpoint
        self.run_folder: Path | None = None  # of the run that this one goes on with
        self.evaluated: Path | None = None  # folder of the run whose checkpoint is tested
        self.lock: Any = None
        self.interruption = Interruption()
        self.record: RunRecord | None = None
        self.compilation: Compilation | None = None
        self.given: set[str] = set()  # dotted names of all that is not left at its default
        self.data: Any = None  # the DataModule, where it had to be built before the model
        super().__init__(
            args=args,
            run=False,
            seed_everything_default=42,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": "python -m src.train",
                "usage": "python -m src.train [fit|validate|test|predict] [--config FILE ...] [--option VALUE ...]",
                "description": "Without a word: fit, then test the best checkpoint. README.md shows what one can do.",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, help="Folder of the runs in logs/; by default the recipe's name")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Checkpoint to load; for fit, to continue from: a path, `last` for the newest unfinished run of the"
            " recipe, or `auto` for that or else a new run; else a path, or `best` (the default) or `last` of the"
            " newest run",
        )
        parser.add_argument("--run", type=str | None, help="Folder of the run that is meant, in place of the newest")
        parser.add_argument(
            "--save_every_n_steps", type=int, default=0, help="Save last.ckpt inside of an epoch too; 0 does not"
        )
        parser.add_argument("--save_every_n_minutes", type=float, default=10.0, help="The same by time; 0 does not")
        parser.add_argument(
            "--retries",
            type=int,
            default=0,
            help="How often a run whose loss becomes NaN or infinite goes on from last.ckpt at half the learning rate",
        )
        parser.add_argument("--compile", action="store_true", help="Compile the network before it is used")
        parser.add_argument("--debug", action="store_true", help="Show the traceback of every error")
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        parser.add_argument("--lr_scheduler_interval", choices=["step", "epoch"], default="step")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": "val/loss", "checkpoint.enable_version_counter": False})
        for name in config.SHORT_FLAGS:
            action = parser._option_string_actions[f"--trainer.{name}"]
            action.option_strings = [f"--{name}", *action.option_strings]
            parser._option_string_actions[f"--{name}"] = action
        fast_dev_run = parser._option_string_actions["--fast_dev_run"]
        fast_dev_run.nargs, fast_dev_run.const = "?", "true"

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.stage, files, options = config.split_command_line(list(args or []))
        loaded = [config.load_config(file) for file in files]
        dropped: list[str] = []
        ckpt_path, loaded, options = self._choose_checkpoint(loaded, options)
        if ckpt_path:
            self.checkpoint = read_checkpoint(ckpt_path)
            self.saved = run_configuration(self.checkpoint)
        tree, name, overlays = config.choose_recipe(loaded, self.saved)
        name = self.run_folder.parent.name if self.run_folder else name
        if self.checkpoint is not None:
            keys = self.saved.keys() & {"optimizer", "lr_scheduler", "lr_scheduler_interval"}
            own = {key: self.saved[key] for key in keys}
            tree = config.merge(tree, own | {"model": model_arguments(self.checkpoint)}, "", [])
        for overlay in overlays:
            tree = config.merge(tree, overlay, "", dropped)
        tree, options = config.take_classes(config.resolve_names(tree), options, dropped)
        if not tree["model"]:
            raise InputError("--model: a run needs a model; name one, as in --model ImageClassifier")
        self.given = config.given_names(tree, options)
        words = [flag if value is None else f"{flag}={value}" for flag, value in options]
        try:
            self.config = parser.parse_args([f"--config={yaml.safe_dump(tree)}", *words])
        except argparse.ArgumentError as error:
            raise InputError(explain(str(error), parser, tree, options, files)) from error
        finally:
            if any(flag == "--print_config" for flag, _ in options):
                print(*dropped, sep="\n", end="\n" if dropped else "", file=sys.stderr)
        self.config.name = self.config.name or name
        if self.config.optimizer is None and self.config.lr_scheduler is not None:
            dropped.append("lr_scheduler dropped: without an optimizer the model's own configure_optimizers is used")
            self.config.lr_scheduler = None
        for line in dropped:
            rank_zero_info(line)

    def _choose_checkpoint(
        self, loaded: list[tuple[Path, config.Tree]], options: list[config.Option]
    ) -> tuple[str | None, list[tuple[Path, config.Tree]], list[config.Option]]:
        """The checkpoint that is meant, if any; and configurations and options, which for a run that goes on are only
        what it is to change."""
        given = dict(options)
        paths = [*(tree.get("ckpt_path") for _, tree in loaded), given.get("--ckpt_path")]
        path = next((path for path in reversed(paths) if path), None)
        run = given.get("--run")
        roots = [tree.get("trainer", {}).get("default_root_dir") for _, tree in loaded]
        roots += [given.get("--trainer.default_root_dir")]
        root = next((Path(root) for root in reversed(roots) if root), None)
        if self.stage not in (None, "fit"):
            found = self._checkpoint_to_evaluate(path, root, loaded, given)
            return found, loaded, [*options, ("--ckpt_path", found)] if found else options
        if not (run or path in ("last", "auto")):
            return path, loaded, options
        automatic = path == "auto"
        folder = Path(run).expanduser().absolute() if run else None
        if folder is None:
            name = given.get("--name") or config.choose_recipe(loaded, {})[1]
            parent = runs_of(root or ROOT / "logs", name)
            is_first = getattr(rank_zero_only, "rank", 0) == 0
            newest = agreed(str((is_first and run_to_continue(parent, automatic)) or ""))
            folder = Path(newest) if newest else None
        options = [option for option in options if option[0] not in ("--ckpt_path", "--run")]
        loaded = [(file, {key: value for key, value in tree.items() if key != "ckpt_path"}) for file, tree in loaded]
        if folder is None:
            if not automatic:
                raise InputError(
                    f"--ckpt_path last: no unfinished run with a checkpoint in {parent} that is not in use; leave it"
                    " out to train afresh, or give a checkpoint's path"
                )
            return None, loaded, options
        _check_run(folder, run)
        if path in (None, "last", "auto"):
            checkpoint, lines = good_checkpoint(folder)
            for line in lines:
                rank_zero_info(line)
            path = str(checkpoint)
        rank_zero_info(f"Going on with run {_relative(folder)} from {Path(path).name}")
        self.run_folder = folder
        overlays = [(file, tree) for file, tree in loaded if not config.is_recipe(tree)]
        return path, overlays, [*options, ("--ckpt_path", path)]

    def _checkpoint_to_evaluate(
        self,
        path: str | None,
        root: Path | None,
        loaded: list[tuple[Path, config.Tree]],
        given: dict[str, str | None],
    ) -> str | None:
        """The checkpoint that is meant, and in `evaluated` the run that it is of."""
        if path not in (None, "best", "last"):
            self.evaluated = None if root else run_of(Path(path))
            return path
        run = given.get("--run")
        if path is None and any(flag.endswith("help") or flag == "--print_config" for flag in given):
            return None
        if path is run is None and given.keys() & {"--fast_dev_run", "--trainer.fast_dev_run"}:
            rank_zero_info(f"No --ckpt_path given: {self.stage} --fast_dev_run uses the untrained model")
            return None
        if run:
            folder = Path(run).expanduser().absolute()
        else:
            is_named = any(config.is_recipe(tree) for _, tree in loaded)
            name = given.get("--name") or (config.choose_recipe(loaded, {})[1] if is_named else None)
            folder = Path(agreed(str(newest_run(root or ROOT / "logs", name))))
        _check_run(folder, run)
        checkpoint = checkpoint_of(folder, path or "best")
        rank_zero_info(f"{self.stage} of run {_relative(folder)}, {checkpoint.name}")
        self.evaluated = folder
        return str(checkpoint)

    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        check_accelerator(trainer.accelerator)
        check_strategy(trainer.strategy)
        if trainer.accumulate_grad_batches < 1:
            raise InputError(f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: give at least 1")
        if trainer.precision is None and not _has_precision_plugin(trainer.plugins):
            trainer.precision, reason = choose_precision(trainer.accelerator)
            rank_zero_info(f"Precision {trainer.precision}: {reason}")
        if trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
            # What stays in float32 uses TensorFloat-32 where the GPU has it: faster, as precise as training needs.
            torch.set_float32_matmul_precision("high")
        self._fit_model_and_data()

    def _fit_model_and_data(self) -> None:
        """Give data the tokenizer of a pretrained network, and a network the sizes that follow from the data.

        What is given by the user, a recipe or a checkpoint is left alone.
        """
        if self.config.data is None:
            return
        data: Any = self.config.data.get("init_args", {})
        model: dict[str, Any] = {"model": self.config.model.get("init_args", {})}
        if isinstance(net := model["model"].get("net"), Namespace) and "init_args" in net:
            model = {"model.net": net.init_args, **model}
        pretrained = model.get("model.net", {}).get("pretrained")
        if pretrained and "tokenizer" in data and "data.tokenizer" not in self.given:
            data["tokenizer"] = pretrained
        elif pretrained and data.get("tokenizer", pretrained) != pretrained:
            rank_zero_info(f"The tokenizer is {data['tokenizer']}, as given, and not that of {pretrained}")
        if not hasattr(config.import_class(self.config.data.class_path), "network_arguments"):
            return
        alone: Any = Namespace(data=self.config.data)  # type: ignore[no-untyped-call]
        self.data = self.parser.instantiate(alone).data
        if self.checkpoint is not None and (state := self.checkpoint.get(type(self.data).__qualname__)):
            self.data.load_state_dict(state)  # its tokenizer and its labels, before new ones are made
        for name, value in self.data.network_arguments().items():
            key = next((key for key, arguments in model.items() if name in arguments), None)
            if key is not None and f"{key}.{name}" not in self.given:
                model[key][name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the configuration, with a run folder of its own."""
        self.datamodule = self.data or self.datamodule
        saved = self.config.clone()
        for key in CALL_ONLY:
            saved.pop(key, None)
        text = f"# lightning=={lightning.__version__}\n" + self.parser.dump(saved, skip_unset=False)
        tree = yaml.safe_load(text)
        # The checkpoint then rebuilds the model by itself, whatever its class records.
        arguments = {"_class_path": tree["model"]["class_path"], **deepcopy(tree["model"].get("init_args", {}))}
        for name, value in arguments.items():
            if isinstance(value, dict) and "class_path" in value:
                value["init_args"] = {
                    **value.get("init_args", {}),
                    **rebuild_arguments(getattr(self.model, name, None)),
                }
        arguments["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        self.model.save_hyperparameters(arguments)
        options = {**self.config_init.trainer, **kwargs}
        callbacks: list[Callback] = options.pop("callbacks") or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        if self.checkpoint is not None:
            check_fit(self.checkpoint, self.model, tree["model"])
            if self.stage in (None, "fit"):
                if self.run_folder is None or is_finished(self.run_folder):  # else its test may be left to do
                    check_unfinished(self.checkpoint, options["max_epochs"], options["max_steps"])
                check_batches(self.checkpoint, self.saved, tree)
                if self.saved:
                    callbacks.append(OptimizerOverrides(self.saved, tree))
        purge_step = (self.checkpoint or {}).get("global_step") if self.run_folder else None
        processes = len((self.checkpoint or {}).get("half_epoch", ())) if self.stage in (None, "fit") else 0
        self.checkpoint = None
        if tree["optimizer"]:
            spec = (tree["optimizer"], tree["lr_scheduler"], tree["lr_scheduler_interval"])
            self.model.configure_optimizers = partial(configure_optimizers, self.model, *spec)
        if self.config.compile:
            self.compilation = Compilation()
            callbacks.append(self.compilation)
        if options["logger"] is False:  # this one refuses to work without a logger
            callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
        if options["enable_progress_bar"] is not False and not any(isinstance(bar, ProgressBar) for bar in callbacks):
            callbacks.append(PacedProgressBar())
        callbacks.append(StepSeeds())
        callbacks.append(FiniteLoss())
        plugins = options.pop("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, WholeCheckpointIO()]
        if not options["fast_dev_run"]:
            root = Path(options["default_root_dir"] or ROOT / "logs")
            if self.evaluated is not None:
                folder = claim_folder(self.evaluated, str(self.stage))
            else:
                folder = self.run_folder or claim_folder(runs_of(root, self.config.name))
            if getattr(rank_zero_only, "rank", 0) == 0:
                self.lock = lock_run(folder, WORKER_SECONDS if self.run_folder else 0)
                mark_job(folder)
                if self.run_folder and (seconds := clock_is_behind(folder)):
                    rank_zero_info(
                        f"The clock is {seconds:.0f} s behind what this run has logged: it was set back; nothing is"
                        " lost, but TensorBoard may show the curves in the wrong order"
                    )
            self.record = RunRecord(folder, text)
            callbacks.append(self.record)
            if options["enable_checkpointing"] is not False:
                callbacks += self._checkpoints(folder)
            options["default_root_dir"] = folder
            if options["logger"] is None or options["logger"] is True:
                # What was logged behind the checkpoint is logged once more, and must not stand there twice.
                options["logger"] = TensorBoardLogger(
                    folder.parents[1],
                    folder.parent.name,
                    folder.name,
                    default_hp_metric=False,
                    purge_step=purge_step,
                )
        try:
            trainer = Trainer(**options, callbacks=callbacks, plugins=plugins)
            check_batch_size(getattr(self.datamodule, "batch_size", 0), trainer.world_size)
            if self.config.ckpt_path and not isinstance(trainer.strategy, ModelParallelStrategy):
                refuse_shards(self.config.ckpt_path)
            if processes not in (0, trainer.world_size):
                rank_zero_info(
                    f"{processes} processes wrote the checkpoint, {trainer.world_size} go on: with the same samples in"
                    " each batch, but no longer the same bit by bit"
                )
            return trainer
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            self._drop_empty_folder()
            if raised_by_library(error):
                raise InputError(str(error)) from error
            raise

    def _checkpoints(self, folder: Path) -> list[Callback]:
        """`best.ckpt`, as configured, and `last.ckpt`."""
        # Outside of training nothing is saved, and Lightning warns when the folder is not the checkpoint's own.
        trains = self.stage in (None, "fit") or self.config.ckpt_path is None
        checkpoints = str(folder / "checkpoints" if trains else Path(self.config.ckpt_path).absolute().parent)
        best: ModelCheckpoint = self.config_init.checkpoint
        best.dirpath = best.dirpath or checkpoints
        best.filename = best.filename or ("best" if best.save_top_k in (0, 1) else "best-{epoch}-{step}")
        every = (self.config.save_every_n_steps, self.config.save_every_n_minutes)
        return [best, LastCheckpoint(Path(checkpoints), self.interruption, *every)]

    def _drop_empty_folder(self) -> None:
        if self.record is not None:
            with suppress(OSError):  # something is in it, or this process never had one
                if {path.name for path in self.record.folder.iterdir()} <= {".lock", ".job"}:
                    shutil.rmtree(self.record.folder)

    def run(self) -> None:
        """Run the stage asked for, then print what came out."""
        self.interruption.install()
        try:
            join_attempt(self.trainer.strategy.root_device)
            self._run_stage()
        except BaseException:
            self._drop_empty_folder()
            raise
        finally:
            if self.lock is not None:
                self.lock.release()

    def stop_processes(self) -> None:
        """End the processes that Lightning has started beside this one."""
        for process in getattr(self.trainer.strategy.launcher, "procs", []):
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()

    def retry_after(self, error: NotFiniteError, args: list[str]) -> list[str]:
        """The command line that goes on from the last checkpoint at half the learning rate.

        Raises:
            NotFiniteError: there is none, or no more retries; the message says which checkpoint is good.
        """
        optimizer = self.config.get("optimizer")
        folder = self.record.folder if self.record else None
        if folder is None or not any(checkpoints_of(folder)):
            raise NotFiniteError(f"{error}; there is no checkpoint of this run yet") from error
        if not self.config.retries or not optimizer:
            raise NotFiniteError(f"{error}. The last good checkpoint is {good_checkpoint(folder)[0]}") from error
        lr = optimizer.init_args.lr / 2
        left = self.config.retries - 1
        rank_zero_info(f"{error}. Trying again at half of that from {good_checkpoint(folder)[0]}, {left} retries left")
        return [*args, "--run", str(folder), "--optimizer.lr", str(lr), "--retries", str(left)]

    def _run_stage(self) -> None:
        given = {"ckpt_path": self.config.ckpt_path, "weights_only": True}
        common = {"model": self.model, "datamodule": self.datamodule}
        seconds = {}
        if self.stage in (None, "fit"):
            start = time.perf_counter()
            self.trainer.fit(**common, **given)
            seconds["train_seconds"] = time.perf_counter() - start
            if self.compilation is not None:
                seconds["compile_seconds"] = self.compilation.seconds
                seconds["train_seconds"] -= self.compilation.seconds
        if self.stage is None:
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(**common, ckpt_path=best or None, weights_only=True, verbose=False)
        elif self.stage == "predict":
            self.trainer.predict(**common, **given)
            rank_zero_info("These predictions are not kept: python -m src.predict writes a table of one's own files")
        elif self.stage != "fit":
            getattr(self.trainer, self.stage)(**common, **given, verbose=False)
        if self.trainer.is_global_zero:
            seconds["total_seconds"] = time.perf_counter() - self.started
            if self.record is not None:
                tested = {} if self.stage in (None, "fit") else {"checkpoint": self.config.ckpt_path}
                self.record.write(**seconds, **tested)
            self.print_summary()

    def print_summary(self) -> None:
        """One short table: the metrics of the last stage, the run folder, the best checkpoint, what to type next."""
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(overflow="fold")
        wanted = {None: "test/", "fit": "val/", "validate": "val/"}.get(self.stage, "test/")
        for name, value in sorted(self.trainer.callback_metrics.items()):
            if name.startswith(wanted):
                table.add_row(name, f"{value.item():.4f}")
        if self.record is not None:
            folder = self.record.folder
            table.add_row("run folder", _relative(folder))
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            if best:
                table.add_row("best checkpoint", _relative(Path(best)))
            tensorboard = Path(sys.executable).with_name("tensorboard")
            command = "tensorboard" if shutil.which("tensorboard") == str(tensorboard) else _relative(tensorboard)
            table.add_row("see it", f"{command} --logdir {_relative(folder.parents[1])}")
        # Paths are for copying, so in a pipe or a log file they are not folded to the usual 80 columns.
        Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _has_precision_plugin(plugins: Any) -> bool:
    given = plugins if isinstance(plugins, list) else [plugins]
    classes = [config.import_class(plugin.class_path) for plugin in given if isinstance(plugin, Namespace)]
    return any(isinstance(cls, type) and issubclass(cls, Precision) for cls in classes)


def _check_run(folder: Path, given: str | None) -> None:
    """Raise InputError where there is no such run."""
    if not folder.is_dir():
        raise InputError(f"--run {given}: no such folder; give one such as logs/default/version_0")


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def raised_by_library(error: BaseException) -> bool:
    """Whether Lightning itself raised an error, and not a class it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("lightning.")


def run(started: float) -> None:
    """Build and run what `sys.argv` asks for; what the user can mend is one line and exit code 2."""
    args = sys.argv[1:]
    cli: StarterCLI | None = None
    threading.excepthook = _leave_to_main
    try:
        words = args
        while True:
            cli = StarterCLI(words, started)
            if (folder := cli.run_folder or cli.evaluated) is not None:
                sys.argv += ["--run", str(folder)]  # for processes that Lightning starts with the same words
            try:
                cli.run()
                break
            except NotFiniteError as error:
                words = cli.retry_after(error, args)
    except Interrupted as stop:
        _leave(cli, stop)
    except Exception as error:
        cause = cause_of(error)
        refused = MisconfigurationException | ModuleNotFoundError | ValueError | RuntimeError
        mendable = isinstance(cause, InputError) or (isinstance(cause, refused) and raised_by_library(cause))
        if "--compile" in args and is_of_compiler(cause):
            cause, mendable = cannot_compile(cause), True
        if (fault := fault_of_machine(cause, cli.record.folder if cli and cli.record else None)) is not None:
            cause, mendable = InputError("; ".join(filter(None, (fault, _how_to_go_on(cli))))), True
        if "--debug" in args or not mendable:
            raise
        report(cause, getattr(rank_zero_only, "rank", 0))


def fault_of_machine(error: BaseException, folder: Path | None) -> str | None:
    """What went wrong around a run with this folder, in the user's words, or None where nothing that is known did."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and folder is not None and not folder.is_dir():
        return f"run folder {folder} is gone, deleted or renamed while the run was going"
    if isinstance(error, UnwritableError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the run folder'} cannot be written ({error.strerror}): make room"
    if isinstance(error, RuntimeError) and (found := re.search(r"DataLoader worker \(pid.*", text)):
        return f"a process that loads data has died, often for lack of memory: {found[0]} Give fewer --data.num_workers"
    if isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset|refused)|Broken pipe|gloo", text):
        return f"another process of this run has ended ({text[:120]})"
    return None


def _leave_to_main(args: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets a full disk first, and the main thread then raises the same."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _how_to_go_on(cli: StarterCLI | None) -> str:
    """The command that goes on with a run, where it has saved something."""
    if cli is None or cli.record is None or not any(checkpoints_of(cli.record.folder)):
        return ""
    return f"go on with: python -m src.train --ckpt_path last --run {_relative(cli.record.folder)}"


def _leave(cli: StarterCLI | None, stop: Interrupted) -> NoReturn:
    """End a run that was told to stop, with the command that goes on with it."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        os._exit(0)  # the first process says how the run ended; Lightning would kill it for another code of this one
    print(f"{stop}", file=sys.stderr)
    if cli is not None:
        cli.stop_processes()
        if command := _how_to_go_on(cli):
            print(command, file=sys.stderr)
    sys.stderr.flush()
    sys.exit(128 + stop.signum)
