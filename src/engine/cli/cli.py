"""LightningCLI with recipes, short flags, run folders and one-line errors."""

import argparse
import shutil
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from src import ROOT
from src.engine.cli import config
from src.engine.cli.explain import explain, refuse_nulls
from src.engine.cli.resolved_checkpoint import read_configuration, resolve_checkpoint
from src.engine.cli.summary import print_summary
from src.engine.data.loading import check_batch_size
from src.engine.runs.checkpoint import (
    check_batches,
    check_fit,
    check_unfinished,
    is_sharded,
    read_checkpoint,
    refuse_shards,
)
from src.engine.runs.run_record import RunRecord
from src.engine.runs.runs import (
    WORKER_SECONDS,
    claim_folder,
    clock_lag,
    is_finished,
    join_attempt,
    lock_run,
    mark_job,
    relative,
    runs_of,
)
from src.engine.system.classes import Tree, as_list, import_class, short
from src.engine.system.errors import InputError, constructor_errors, raised_by_lightning
from src.engine.system.hardware import check_accelerator, check_strategy, choose_precision, tune_hardware
from src.engine.system.interruption import Interruption
from src.engine.system.quiet import hide_information
from src.engine.training.compilation import Compilation
from src.engine.training.default_callbacks import add_default_callbacks, checkpoint_callbacks, loggers
from src.engine.training.hyperparameters import store_arguments
from src.engine.training.monitor_choice import DEFAULT_MONITOR, MonitorChoice, saved_monitor
from src.engine.training.optim.configure import configure_optimizers
from src.engine.training.optimizer_overrides import OptimizerOverrides

# Options of a single call: not part of a saved configuration.
CALL_ONLY = ("config", "ckpt_path", "trust", "run", "compile", "quiet", "debug")


class StarterCLI(LightningCLI):
    """LightningCLI with one parser for all stages and a run folder for every run.

    Args:
        args: command line without the program name.
        started: `time.perf_counter()` at program start, for `total_seconds`.

    Raises:
        InputError: the command line or a configuration is invalid.
    """

    def __init__(self, args: list[str], started: float) -> None:
        self.started = started
        self.stage: str | None = None
        self.checkpoint: dict[str, Any] | None = None
        self.saved: Tree = {}  # the configuration of the run that wrote the checkpoint
        self.saved_model: Tree = {}  # class and arguments of its model
        self.run_folder: Path | None = None  # of the run to continue
        self.evaluated: Path | None = None  # folder of the run whose checkpoint is evaluated
        self.lock: Any = None
        self.interruption = Interruption()
        self.record: RunRecord | None = None
        self.compilation: Compilation | None = None
        self.given: set[str] = set()  # dotted names of all settings that are not defaults
        self.loggers: list[Any] = []  # of the configuration, in addition to TensorBoard's
        self.data: Any = None  # the DataModule, if it is built before the model
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
                "description": "Without a stage: fit, then test the best checkpoint. See README.md for examples."
                f" Short for --trainer.NAME: {', '.join(f'--{name}' for name in config.SHORT_FLAGS)}.",
                "exit_on_error": False,
                "allow_abbrev": False,
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, help="Folder of the runs in logs/; default: the recipe's name")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Checkpoint: a path, or `best` (default) or `last` of the newest run. For fit, where to continue: a"
            " path, `last` (of the recipe's newest unfinished run) or `auto` (like `last`, else a new run)",
        )
        parser.add_argument("--trust", type=str | None, help="Other module whose classes the checkpoint may use")
        parser.add_argument("--run", type=str | None, help="Run folder to use; default: the newest run")
        parser.add_argument(
            "--save_every_n_steps", type=int, default=0, help="Also save last.ckpt every N optimizer steps; 0: never"
        )
        parser.add_argument(
            "--save_every_n_minutes", type=float, default=10.0, help="Also save last.ckpt every N minutes; 0: never"
        )
        parser.add_argument(
            "--retries",
            type=int,
            default=0,
            help="How often to retry from last.ckpt at half the learning rate when the loss becomes NaN or infinite",
        )
        parser.add_argument("--compile", action="store_true", help="Compile the network with torch.compile")
        parser.add_argument("--quiet", action="store_true", help="Print only warnings and results")
        parser.add_argument("--debug", action="store_true", help="Show the traceback of every error")
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        parser.add_argument("--lr_scheduler_interval", choices=["step", "epoch"], default="step")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": DEFAULT_MONITOR, "checkpoint.enable_version_counter": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.stage, files, options = config.split_command_line(list(args or []))
        loaded = [config.load_config(file) for file in files]
        dropped: list[str] = []
        unused_paths: list[str] = []
        if any(flag == "--quiet" for flag, _ in options):
            hide_information()
        resolved = resolve_checkpoint(self.stage, loaded, options)
        loaded, options = resolved.loaded, resolved.options
        self.run_folder, self.evaluated = resolved.run_folder, resolved.evaluated
        if resolved.path:
            self.checkpoint = read_checkpoint(resolved.path)
            self.saved, self.saved_model, unused_paths = read_configuration(self.checkpoint, resolved)
        options = [option for option in options if option[0] != "--trust"]
        tree, name, overlays = config.choose_recipe(loaded, self.saved)
        name = self.run_folder.parent.name if self.run_folder else name
        if self.checkpoint is not None:
            keys = self.saved.keys() & {"optimizer", "lr_scheduler", "lr_scheduler_interval"}
            own = {key: self.saved[key] for key in keys}
            tree = config.merge(tree, own | {"model": self.saved_model}, "", [])
        for overlay in overlays:
            tree = config.merge(tree, overlay, "", dropped)
        given = options
        tree, options = config.merge_class_options(config.resolve_names(tree), options, dropped)
        options = config.follow_checkpoint(tree, options)
        if not tree["model"]:
            raise InputError("--model: a run needs a model; name one, as in --model ImageClassifier")
        self.given = config.given_names(tree, options)
        sources = [
            name for name in unused_paths if name.startswith("data.") and name != "data.tokenizer"
        ]  # it is saved
        if missing := [name for name in sources if name not in self.given]:
            raise InputError(
                f"--{missing[0]} is missing: paths are read from a checkpoint only if --run, or --ckpt_path best or"
                " last, names one of your own runs"
            )
        words = [config.full_option(flag, value) for flag, value in options]
        try:
            self.config = parser.parse_args([f"--config={yaml.safe_dump(tree)}", *words])
        except argparse.ArgumentError as error:
            raise InputError(explain(str(error), parser, tree, given, files)) from error
        finally:
            if any(flag == "--print_config" for flag, _ in options):
                print(*dropped, sep="\n", end="\n" if dropped else "", file=sys.stderr)
        refuse_nulls(self.config.as_dict())
        self.config.name = self.config.name or name
        if self.config.optimizer is None and self.config.lr_scheduler is not None:
            dropped.append("lr_scheduler dropped: without an optimizer the model's own configure_optimizers is used")
            self.config.lr_scheduler = None
        if not self.run_folder:
            rank_zero_info(config.describe_files(loaded, self.saved))
        for line in dropped:
            rank_zero_info(line)

    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        check_accelerator(trainer.accelerator)
        check_strategy(trainer.strategy)
        if trainer.accumulate_grad_batches < 1:
            raise InputError(f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: give at least 1")
        if self.config.retries < 0:
            raise InputError(f"--retries {self.config.retries}: give at least 0")
        if trainer.precision is None and not _has_precision_plugin(trainer.plugins):
            trainer.precision, reason = choose_precision(trainer.accelerator)
            rank_zero_info(f"Precision {trainer.precision}: {reason}")
        tune_hardware(trainer.accelerator)
        if trainer.logger and not isinstance(trainer.logger, bool):  # created once the run folder is known
            self.loggers, trainer.logger = as_list(trainer.logger), None
        self._match_model_and_data()

    def _match_model_and_data(self) -> None:
        """Give the data a pretrained network's tokenizer, and the network the sizes that depend on the data.

        Settings given by the user, a recipe or a checkpoint are not changed.
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
            rank_zero_info(f"Using the given tokenizer {data['tokenizer']}, not that of {pretrained}")
        if not hasattr(import_class(self.config.data.class_path), "network_arguments"):
            return
        data_only: Any = Namespace(data=self.config.data)  # type: ignore[no-untyped-call]
        with constructor_errors():
            self.data = self.parser.instantiate(data_only).data
        if self.checkpoint is not None and (state := self.checkpoint.get(type(self.data).__qualname__)):
            self.data.load_state_dict(state)  # restore tokenizer and labels before new ones are made
        for name, value in self.data.network_arguments().items():
            key = next((key for key, arguments in model.items() if name in arguments), None)
            if key is not None and f"{key}.{name}" not in self.given:
                model[key][name] = value

    def instantiate_classes(self) -> None:
        with constructor_errors():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer, its callbacks and the run folder."""
        self.datamodule = self.data or self.datamodule
        text, tree = self._describe()
        options = {**self.config_init.trainer, **kwargs}
        callbacks = options["callbacks"] = as_list(options["callbacks"])
        trains = self.stage in (None, "fit")
        checkpoint, self.checkpoint = self.checkpoint, None
        if checkpoint is not None:
            check_fit(checkpoint, self.model, self.saved_model, tree["model"])
        if checkpoint is not None and trains:
            if self.run_folder is None or is_finished(self.run_folder):  # else only the test may be left
                check_unfinished(checkpoint, options["max_epochs"], options["max_steps"])
            check_batches(checkpoint, self.saved, tree)
            if self.saved:
                callbacks.append(OptimizerOverrides(self.saved, tree))
        if tree["optimizer"]:
            if is_overridden("configure_optimizers", self.model) and not hasattr(self.model, "step"):
                name = f"{type(self.model).__name__}.configure_optimizers"
                rank_zero_info(f"{short(tree['optimizer'])} replaces {name}: give --optimizer null to use that")
            spec = (tree["optimizer"], tree["lr_scheduler"], tree["lr_scheduler_interval"])
            self.model.configure_optimizers = partial(configure_optimizers, self.model, *spec)
        if self.config.compile:
            self.compilation = Compilation()
            callbacks.append(self.compilation)
        add_default_callbacks(options, self.stage, self.config.quiet)
        if not options["fast_dev_run"]:
            self._open_folder(options, text, checkpoint or {})
        saved_by = len((checkpoint or {}).get("half_epoch", ())) if trains else 0  # processes
        try:
            trainer = Trainer(**options)
            modules = [sys.modules.get(cls.__module__) for cls in type(self.datamodule).__mro__]
            if any(hasattr(module, "Batches") for module in modules):  # else its batches are those of one process
                check_batch_size(getattr(self.datamodule, "batch_size", 0), trainer.world_size)
            if self.config.ckpt_path and not isinstance(trainer.strategy, ModelParallelStrategy):
                refuse_shards(self.config.ckpt_path)
            if saved_by not in (0, trainer.world_size):
                rank_zero_info(
                    f"The checkpoint was written by {saved_by} processes, this run has {trainer.world_size}: each batch"
                    " has the same samples, but results are no longer identical"
                )
            return trainer
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            self._drop_empty_folder()
            if raised_by_lightning(error):
                raise InputError(str(error)) from error
            raise

    def _describe(self) -> tuple[str, Tree]:
        """The configuration for the run folder, as text and tree; its model part is also saved in checkpoints."""
        saved = self.config.clone()
        for key in CALL_ONLY:
            saved.pop(key, None)
        saved.trainer.logger = self.loggers or saved.trainer.logger
        if "checkpoint.monitor" not in self.given:
            saved.checkpoint.pop("monitor")  # a run that repeats or continues this one chooses it again
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", rf"\s*{config.UNWRITABLE}")
            text = self.parser.dump(saved, skip_unset=False)
        whole: Tree = yaml.safe_load(text)
        tree = config.without_objects(whole)
        text = f"# lightning=={lightning.__version__}\n" + (text if tree == whole else yaml.safe_dump(tree))
        store_arguments(self.model, self.datamodule, tree)
        return text, tree

    def _open_folder(self, options: dict[str, Any], text: str, checkpoint: dict[str, Any]) -> None:
        """Claim the run folder, and add the callbacks and loggers that write to it."""
        root = Path(options["default_root_dir"] or ROOT / "logs")
        if self.evaluated is not None:
            folder = claim_folder(self.evaluated, str(self.stage))
        else:
            folder = self.run_folder or claim_folder(runs_of(root, self.config.name))
        if getattr(rank_zero_only, "rank", 0) == 0:
            self.lock = lock_run(folder, WORKER_SECONDS if self.run_folder else 0)
            mark_job(folder)
            if self.run_folder and (seconds := clock_lag(folder)):
                rank_zero_info(
                    f"The clock is {seconds:.0f} s behind this run's log, so it was set back: nothing is lost, but"
                    " TensorBoard may show the curves in the wrong order"
                )
        self.record = RunRecord(folder, text)
        options["callbacks"].append(self.record)
        if options["enable_checkpointing"] is not False:
            # Evaluation saves nothing, but Lightning warns if the folder is not that of the checkpoint.
            trains = self.stage in (None, "fit") or self.config.ckpt_path is None
            path = folder / "checkpoints" if trains else Path(self.config.ckpt_path).absolute().parent
            every = (self.config.save_every_n_steps, self.config.save_every_n_minutes)
            callbacks = options["callbacks"]
            best, last = checkpoint_callbacks(self.config_init.checkpoint, path, self.interruption, *every)
            has_own = any(isinstance(one, ModelCheckpoint) for one in callbacks)
            if not has_own or self.config.checkpoint != self.parser.get_defaults().checkpoint:
                # First: the Trainer's `checkpoint_callback` is the first of them, and says which checkpoint is tested.
                callbacks.insert(0, best)
            if "checkpoint.monitor" not in self.given:
                callbacks.append(MonitorChoice(best, saved_monitor(checkpoint)))
            callbacks.append(last)
        options["default_root_dir"] = folder
        if options["logger"] is not False:
            try:
                purge_step = checkpoint.get("global_step") if self.run_folder else None
                options["logger"] = loggers(self.loggers, folder, purge_step)
            except Exception as error:  # each logger has its own exceptions
                self._drop_empty_folder()
                raise InputError(f"--trainer.logger cannot be used: {' '.join(str(error).split())[:300]}") from error

    def _drop_empty_folder(self) -> None:
        if self.record is not None:
            with suppress(OSError):  # not empty, or not created by this process
                if {path.name for path in self.record.folder.iterdir()} <= {".lock", ".job"}:
                    shutil.rmtree(self.record.folder)

    def run(self) -> None:
        """Run the stage, then print the results."""
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
        best: str = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if self.stage is None and (reason := self._why_untested()):
            rank_zero_info(f"Not tested: {reason}")
        elif self.stage is None:
            ckpt_path = best
            if best and not is_sharded(Path(best)):
                # As `src.train test` does. Lightning would let callbacks that have trained, such as WeightAveraging,
                # put other weights in place of the checkpoint's.
                weights = read_checkpoint(best)["state_dict"]
                self.model.load_state_dict(weights, strict=self.model.strict_loading)
                rank_zero_info(f"Testing {relative(Path(best))}")
                ckpt_path = ""
            try:
                self.trainer.test(**common, ckpt_path=ckpt_path or None, weights_only=True, verbose=False)
            except TypeError as error:  # test_dataloader returns None
                if not raised_by_lightning(error) or "dataloader" not in str(error):
                    raise
                rank_zero_info(f"Not tested: {error}")
        elif self.stage == "predict":
            self.trainer.predict(**common, **given)
            rank_zero_info("These predictions are not saved; python -m src.predict writes those of your files")
        elif self.stage != "fit":
            getattr(self.trainer, self.stage)(**common, **given, verbose=False)
        if self.trainer.is_global_zero:
            seconds["total_seconds"] = time.perf_counter() - self.started
            if self.record is not None:
                tested = {} if self.stage in (None, "fit") else {"checkpoint": self.config.ckpt_path}
                self.record.close(self.trainer, **seconds, **tested)
            print_summary(self.trainer, self.record.folder if self.record else None, best)

    def _why_untested(self) -> str:
        """What is missing to test after training, if anything."""
        source = self.datamodule or self.model
        for name, instance in (("test_step", self.model), ("test_dataloader", source)):
            if not is_overridden(name, instance):
                return f"{type(instance).__name__} has no method {name}"
        return ""


def _has_precision_plugin(plugins: Any) -> bool:
    classes = [import_class(plugin.class_path) for plugin in as_list(plugins) if isinstance(plugin, Namespace)]
    return any(isinstance(cls, type) and issubclass(cls, Precision) for cls in classes)
