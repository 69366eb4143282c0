"""LightningCLI with recipes, short flags, run folders and one-line errors."""

import argparse
import shutil
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from src.engine.cli import config
from src.engine.cli.class_names import refuse_missing, refuse_nulls, resolve_names
from src.engine.cli.resolved_checkpoint import read_configuration, resolve_checkpoint
from src.engine.cli.saved_config import checked_settings, dump, plain_settings
from src.engine.cli.summary import BestCheckpoint, print_summary
from src.engine.cli.usage import TEXTS
from src.engine.data.loading import announce, check_batch_size_of
from src.engine.runs import checkpoint as checkpoints
from src.engine.runs.last_checkpoint import LastCheckpoint
from src.engine.runs.run_record import RunRecord, is_finished
from src.engine.runs.runs import WORKER_SECONDS, check_root, claim_folder, claim_run, lock_run
from src.engine.system.classes import Tree, as_list, import_class, short, walk
from src.engine.system.errors import InputError, cause_of, constructor_errors, raised_by_lightning
from src.engine.system.hardware import check_accelerator, check_strategy, choose_precision, tune_hardware
from src.engine.system.hooks import hooks
from src.engine.system.interruption import Interruption
from src.engine.system.quiet import hide_information
from src.engine.training import checks, default_callbacks
from src.engine.training.early_stopping import follow, followers, watched
from src.engine.training.hyperparameters import keep_sources, store_arguments
from src.engine.training.optim.configure import check_replaced, configure_optimizers

OPTIMIZATION = ("optimizer", "lr_scheduler", "lr_scheduler_interval")  # settings that a checkpoint brings


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
        self.checkpoint: dict[str, Any] = {}  # its content, until the model is built
        self.from_path: str | None = None  # the checkpoint, if it is not of the user's own runs
        self.saved: Tree = {}  # the configuration of the run that wrote the checkpoint
        self.saved_model: Tree = {}  # class and arguments of its model
        self.run_folder: Path | None = None  # of the run to continue
        self.evaluated: Path | None = None  # folder of the run whose checkpoint is evaluated
        self.lock: Any = None
        self.interruption = Interruption()
        self.record: RunRecord | None = None
        self.given: set[str] = set()  # dotted names of all settings that are not defaults
        self.loggers: list[Any] = []  # of the configuration, in addition to TensorBoard's
        self.data: Any = None  # the DataModule, if it is built before the model
        try:
            super().__init__(
                args=args,
                run=False,
                seed_everything_default=42,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={**TEXTS, "exit_on_error": False, "allow_abbrev": False},
            )
        except checkpoints.CONTENT_ERRORS as error:
            cause = cause_of(error)
            path: Any = self.from_path  # set while the arguments were parsed
            if path is None or isinstance(cause, InputError):
                raise
            raise InputError(self.blame_checkpoint(cause)) from error

    def blame_checkpoint(self, error: BaseException) -> str:
        """The message for an error that a checkpoint may have caused."""
        path, reason = self.from_path or self.config.ckpt_path, checkpoints.reason_of(error)
        return f"--ckpt_path {path}: {reason}; --debug shows where"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, help="Folder of the runs in logs/; default: the recipe's name")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="Checkpoint: a path, or `best` (default) or `last` of the newest run. For fit, where to continue: a"
            " path, `last` (of the recipe's newest unfinished run) or `auto` (like `last`, else a new run)",
        )
        # The texts are literals: --help reads them from this file.
        parser.add_argument("--run", type=str | None, help="Run folder to use; default: the newest run")
        parser.add_argument(
            "--save_every_n_steps", type=int, default=0, help="Also save last.ckpt every N optimizer steps; 0: never"
        )
        parser.add_argument(
            "--save_every_n_minutes", type=float, default=10.0, help="Also save last.ckpt every N minutes; 0: never"
        )
        for add_arguments in hooks("add_arguments"):
            add_arguments(parser)
        parser.add_argument("--quiet", action="store_true", help="Print only warnings and results")
        parser.add_argument("--debug", action="store_true", help="Show the traceback of every error")
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        parser.add_argument("--lr_scheduler_interval", choices=["step", "epoch"], default="step")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": checks.DEFAULT_MONITOR, "checkpoint.enable_version_counter": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.stage, files, options = config.split_command_line(list(args or []))
        self.flags = [flag for flag, _ in options]
        if "--quiet" in self.flags:
            hide_information()
        loaded = [config.load_config(file) for file in files]
        dropped: list[str] = []
        unused_paths: list[str] = []
        resolved = resolve_checkpoint(self.stage, loaded, options)
        loaded, self.run_folder, self.evaluated = resolved.loaded, resolved.run_folder, resolved.evaluated
        if resolved.path:
            self.checkpoint = checkpoints.read_checkpoint(resolved.path)
            self.from_path = None if resolved.own_run else resolved.path
            self.saved, self.saved_model, unused_paths = read_configuration(self.checkpoint, resolved, options)
        options = [option for option in options if option[0] not in ("--ckpt_path", "--run")]
        tree, name, overlays = config.choose_recipe(loaded, self.saved)
        name = self.run_folder.parent.name if self.run_folder else name
        if self.checkpoint:
            own = {key: self.saved[key] for key in OPTIMIZATION if key in self.saved}
            source = {"model": self.saved_model or None, "data": self.saved.get("data")}
            if self.run_folder is None and (others := config.other_parts(source, tree)):
                rank_zero_info(f"The checkpoint has {others}: its network is used, and the recipe's data")
            tree = config.merge(tree, own | {"model": self.saved_model}, "", [])
            kept = [flag for flag, _ in options if flag.startswith(("--optimizer", "--lr_scheduler"))]
            if kept and not self.saved and self.stage in (None, "fit"):
                announce(f"{kept[0]}: learning rate and other numbers come from the checkpoint's state instead")
        config.check_mode([tree, *overlays], options)
        for overlay in overlays:
            tree = config.merge(tree, overlay, "", dropped)
        tree["ckpt_path"] = resolved.path
        tree, left = config.merge_class_options(resolve_names(tree), options, dropped)
        if not tree["model"]:
            raise InputError("--model: a run needs a model: give the name of its class")
        self.given = {name for name, _ in walk(tree)}
        self.given |= {flag.removeprefix("--").replace(".init_args", "") for flag, _ in left}
        known = {"data.tokenizer", *self.given}  # the tokenizer is saved
        if missing := [name for name in unused_paths if name.startswith("data.") and name not in known]:
            if_own = "if --run, or --ckpt_path best or last, names one of your own runs"
            raise InputError(f"--{missing[0]} is missing: paths are read from a checkpoint only {if_own}")
        prints = ("--print_config", None) in left
        words = [config.full_option(*option) for option in left if option != ("--print_config", None)]
        try:
            self.config = parser.parse_args([f"--config={dump(tree)}", *words])
        except argparse.ArgumentError as error:
            message = str(error)
            for explain in hooks("explain"):
                message = explain(message, parser, tree, options, files)
            raise InputError(message) from error
        finally:
            if "--print_config" in self.flags:
                print(*dropped, sep="\n", end="\n" if dropped else "", file=sys.stderr)
        for key in ("callbacks", "logger", "plugins"):
            self.config.trainer[key] = config.without_repeats(self.config.trainer[key], self.config.checkpoint)
        refuse_nulls(self.config.as_dict())
        if self.config.optimizer is None and self.config.lr_scheduler is not None:
            dropped.append("lr_scheduler dropped: without an optimizer the model's own configure_optimizers is used")
            self.config.lr_scheduler = None
        if prints:
            print(dump(plain_settings(parser, self.config, "checkpoint.monitor" in self.given)), end="")
            sys.exit(0)
        self.config.name = self.config.name or name
        if not self.run_folder:
            rank_zero_info(config.describe_files(loaded, self.saved))
        for line in dropped:
            rank_zero_info(line)

    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        check_accelerator(trainer.accelerator)
        check_strategy(trainer.strategy)
        for check in (checks.check_settings, *hooks("check_settings")):
            check(self.config, self.stage in (None, "fit"))
        if trainer.precision is None and not checks.has_precision_plugin(trainer.plugins):
            trainer.precision, reason = choose_precision(trainer.accelerator)
            rank_zero_info(f"Precision {trainer.precision}: {reason}")
        tune_hardware(trainer.accelerator)
        if trainer.logger and not isinstance(trainer.logger, bool):  # created once the run folder is known
            self.loggers, trainer.logger = as_list(trainer.logger), None
        refuse_missing({"data": self.config.as_dict()["data"]}, self.given)
        self._match_model_and_data()
        refuse_missing(self.config.as_dict(), self.given)

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
        before = config.setting(self.saved, "data.tokenizer")
        is_other = isinstance(before, str) and "data.tokenizer" in self.given and str(data["tokenizer"]) != before
        if self.checkpoint and is_other:
            announce(f"--data.tokenizer {data['tokenizer']} is not used: the checkpoint has its own, {before}")
            data["tokenizer"] = before
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
        if self.checkpoint:
            with checkpoints.checkpoint_errors(self.config.ckpt_path):
                checkpoints.restore_data(self.checkpoint, self.data)  # before new tokenizers and labels are made
        for name, value in self.data.network_arguments().items():
            key = next((key for key, arguments in model.items() if name in arguments), None)
            if key is not None and f"{key}.{name}" not in self.given:
                model[key][name] = value

    def instantiate_classes(self) -> None:
        try:
            with constructor_errors():
                super().instantiate_classes()
        except BaseException:
            self._drop_empty_folder()
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the Trainer, its callbacks and the run folder."""
        self.datamodule = self.data or self.datamodule
        saved = self.config.clone()
        saved.trainer.logger = self.loggers or saved.trainer.logger
        tree = checked_settings(self.parser, saved, "checkpoint.monitor" in self.given)
        store_arguments(self.model, self.datamodule, tree)  # of the configuration, also saved in checkpoints
        options = {**self.config_init.trainer, **kwargs}
        callbacks = options["callbacks"] = as_list(options["callbacks"])
        trains = self.stage in (None, "fit")
        checkpoint, self.checkpoint = self.checkpoint, {}
        if checkpoint:
            checkpoints.check_fit(checkpoint, self.model, self.saved_model, tree["model"])
        if self.run_folder is not None and self.saved:
            keep_sources(tree["model"], self.saved.get("model") or {}, self.saved_model, self.model)
        if checkpoint and trains:
            test_is_left = self.run_folder is not None and not is_finished(self.run_folder)
            checkpoints.check_unfinished(checkpoint, options["max_epochs"], options["max_steps"], test_is_left)
            checkpoints.check_batches(checkpoint, self.saved, tree)
            if self.saved and (overrides := hooks("OptimizerOverrides")):
                callbacks.append(overrides[0](self.saved, tree))
            elif self.saved:
                checks.check_unchanged(self.saved, tree)
        if tree["optimizer"]:
            check_replaced(self.model, short(tree["optimizer"]))
            spec = (self.model, tree["optimizer"], tree["lr_scheduler"], tree["lr_scheduler_interval"])
            self.model.configure_optimizers = partial(configure_optimizers, *spec)
        if tree["optimizer"] or hasattr(self.model, "parameter_groups"):
            callbacks.append(checks.TrainedCheck())
        for more in hooks("callbacks"):
            default_callbacks.add_missing(callbacks, more(self.config, self.stage))
        checks.check_callbacks(callbacks, self.model, trains)
        best = self.best = self.config_init.checkpoint
        default_callbacks.add_default_callbacks(options, self.stage, self.config.quiet, best)
        own = default_callbacks.own_checkpoint(callbacks, checkpoint)
        if own and "checkpoint.monitor" not in self.given:
            self.best = own
            if unused := next((flag for flag in self.flags if flag.startswith("--checkpoint.")), None):
                way = f"give it {unused.partition('.')[2]}, or give --checkpoint.monitor too"
                raise InputError(f"{unused}: a ModelCheckpoint in trainer.callbacks chooses the best checkpoint: {way}")
        if not options["fast_dev_run"]:
            saves = trains and options["enable_checkpointing"] is not False
            default_callbacks.prepare_checkpoints(best, callbacks, self.run_folder is not None, saves)
            self._open_folder(options, tree, checkpoint)
        saved_by = len(checkpoint.get("half_epoch", ())) if trains else 0  # processes
        try:
            trainer = Trainer(**options)
            check_batch_size_of(self.datamodule, trainer.world_size)
            checks.check_clocks(self.config.trainer, trainer.world_size if trains else 1)
            for check in hooks("check_trainer"):
                check(trainer, self.config.ckpt_path)
            if saved_by not in (0, trainer.world_size):
                number = f"written by {saved_by} processes, this run has {trainer.world_size}"
                rank_zero_info(f"The checkpoint was {number}: results are no longer identical")
            return trainer
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            if not raised_by_lightning(error):
                raise
            text = str(error).rstrip(".")
            if "stateful callback" in text:
                text += "; leave out the overlay that adds it again, and give only --trainer.callbacks.NAME VALUE"
            raise InputError(text) from error

    def _open_folder(self, options: dict[str, Any], tree: Tree, checkpoint: dict[str, Any]) -> None:
        """Claim the run folder, and add the callbacks and loggers that write to it."""
        check_root(root := options["default_root_dir"])
        if self.evaluated is not None:
            folder = claim_folder(self.evaluated, stem=str(self.stage))
        else:
            claim = next(iter(hooks("claim_run")), claim_run)
            folder = self.run_folder or claim(root, self.config.name)
        if getattr(rank_zero_only, "rank", 0) == 0:
            self.lock = lock_run(folder, WORKER_SECONDS if self.run_folder else 0)
            for mark in hooks("mark_run"):
                mark(folder)
            for more in hooks("run_callbacks") if self.evaluated is None else ():
                options["callbacks"] += more(folder, root)
        text = f"# lightning=={lightning.__version__}\n{dump(tree)}"
        self.record = RunRecord(folder, text, is_new=self.run_folder is None)
        options["callbacks"].append(self.record)
        if options["enable_checkpointing"] is not False:
            # Evaluation saves nothing, but Lightning warns if the folder is not that of the checkpoint.
            trains = self.stage in (None, "fit") or self.config.ckpt_path is None
            path = folder / "checkpoints" if trains else Path(self.config.ckpt_path).absolute().parent
            every = (self.config.save_every_n_steps, self.config.save_every_n_minutes)
            self.best.dirpath = self.best.dirpath or str(path)
            last = LastCheckpoint(path, self.interruption, *every)
            # First: the Trainer's `checkpoint_callback` is the first of them, and says which checkpoint is tested.
            options["callbacks"][:] = [self.best, *(one for one in options["callbacks"] if one is not self.best)]
            options["callbacks"] += [default_callbacks.ModuleCheckpoints(path), last]
        if "checkpoint.monitor" not in self.given and (choices := hooks("MonitorChoice")):
            # Before EarlyStopping, whose metric it sets.
            options["callbacks"].insert(0, choices[0](self.config_init.checkpoint, checkpoint))
        else:
            follow(followers(options["callbacks"]), *watched(self.best))
        options["default_root_dir"] = folder
        if options["logger"] is not False:
            try:
                purge_step = checkpoints.first_step(checkpoint, self.model) if self.run_folder else None
                options["logger"] = default_callbacks.loggers(self.loggers, folder, purge_step)
            except Exception as error:  # each logger has its own exceptions
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
            for prepare in hooks("before_run"):
                prepare(self.trainer)
            self._run_stage()
        except BaseException:
            self._drop_empty_folder()
            raise
        finally:
            try:
                for finish in hooks("after_run"):
                    finish(self.trainer)
            finally:
                if self.lock is not None:
                    self.lock.release()

    def _run_stage(self) -> None:
        given = {"model": self.model, "datamodule": self.datamodule}
        given |= {"ckpt_path": self.config.ckpt_path, "weights_only": True}
        seconds, best = {}, None
        if self.stage in (None, "fit"):
            start = time.perf_counter()
            self.trainer.fit(**given)
            seconds["train_seconds"] = time.perf_counter() - start
            for extra_seconds in hooks("extra_seconds"):
                extra = extra_seconds(self.trainer)
                seconds = {**seconds, **extra, "train_seconds": seconds["train_seconds"] - sum(extra.values())}
            best = BestCheckpoint(self.trainer)
            if self.stage is None:
                best.test(self.model, self.datamodule)
        elif self.stage == "predict":
            self.trainer.predict(**given)
            callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
            if not any(isinstance(one, BasePredictionWriter) for one in callbacks):
                rank_zero_info("These predictions are not saved")
        else:
            getattr(self.trainer, self.stage)(**given, verbose=False)
        if self.trainer.is_global_zero:
            seconds["total_seconds"] = time.perf_counter() - self.started
            if self.record is not None:
                found = {"checkpoint": self.config.ckpt_path} if best is None else best.metrics
                self.record.close(self.trainer, **seconds, **found)
            print_summary(self.trainer, self.record.folder if self.record else None, best)
