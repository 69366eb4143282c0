"""Finds the checkpoint and the run that a command line refers to."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from src import ROOT
from src.engine.cli import config
from src.engine.cli.class_names import resolve_names
from src.engine.runs import runs
from src.engine.runs.checkpoint import PATHS, configurations, own_configuration
from src.engine.system.classes import Tree, with_present_paths
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks

Loaded = list[tuple[Path, Tree]]


@dataclass
class ResolvedCheckpoint:
    """A checkpoint, and the configurations that still apply.

    Args:
        loaded: configurations; for a continued run only the overlays.
        path: the checkpoint, if any.
        run_folder: folder of the run to continue.
        evaluated: folder of the run whose checkpoint is evaluated.
        own_run: the user's run folder that holds the checkpoint; None if only a path was given.
    """

    loaded: Loaded
    path: str | None = None
    run_folder: Path | None = None
    evaluated: Path | None = None
    own_run: Path | None = None


def resolve_checkpoint(stage: str | None, loaded: Loaded, options: list[config.Option]) -> ResolvedCheckpoint:
    """Find the checkpoint for `--ckpt_path` and `--run`. Raises InputError if run or checkpoint is missing."""
    given = dict(options)
    for flag in ("--ckpt_path", "--run"):
        if given.get(flag) == "":
            raise InputError(f"{flag} is empty: give a path, or leave it out")
    path = _given("ckpt_path", _settings(loaded) if _names_recipe(loaded) else [tree for _, tree in loaded], options)
    if stage in (None, "fit") and not (path or given.get("--run") or _names_recipe(loaded)):
        recipe = next(iter(_settings([])), {})
        if path := recipe.get("ckpt_path"):
            loaded = [(ROOT / "configs" / "default.yaml", recipe), *loaded]
    settings = _settings(loaded)
    root = _given("trainer.default_root_dir", settings, options)
    run = given.get("--run")
    for use_copies in hooks("use_copies"):
        path, run, root = use_copies(path, run, root)
    root = Path(root) if root else None
    folder = Path(run).expanduser().absolute() if run else None
    if folder and not folder.is_dir():
        raise InputError(f"--run {folder}: no such folder; give one such as logs/default/version_0")
    if stage not in (None, "fit"):
        return _to_evaluate(stage, path, folder, root, loaded, options)
    if folder or path in ("last", "auto"):
        return _to_continue(path, folder, root, loaded, options)
    return ResolvedCheckpoint(loaded, path)


def read_configuration(
    checkpoint: dict[str, Any], resolved: ResolvedCheckpoint, options: list[config.Option]
) -> tuple[Tree, Tree, list[str]]:
    """Configuration of the run, configuration of the model, and names of the settings skipped because they are paths.

    The user's own runs (`--run`, `best`, `last`) give their whole configuration. From other checkpoints the part
    `trust` reads the settings that it allows; without this part they give weights only, unless they are in `logs/`.
    Raises InputError if the checkpoint names a class that is not allowed, or is not of this project.
    """
    own = own_configuration(checkpoint, resolved.own_run)
    if checked_configuration := hooks("checked_configuration"):
        found: tuple[Tree, Tree, list[str]] = checked_configuration[0](checkpoint, own, resolved, options)
        return found
    own = own or own_configuration(checkpoint, runs.find_checkpoint(str(resolved.path))[1])
    return own, own.get("model") or {}, []


def _to_continue(
    path: str | None, folder: Path | None, root: Path | None, loaded: Loaded, options: list[config.Option]
) -> ResolvedCheckpoint:
    if folder is None:
        name = _given("name", _settings(loaded), options) or config.choose_recipe(loaded, {})[1]
        parent = runs.runs_of(root or ROOT / "logs", name)
        is_first = getattr(rank_zero_only, "rank", 0) == 0
        unfinished = runs.runs_to_continue(parent, path == "auto") if is_first else iter(())
        newest = runs.from_first_process(str(next((one for one in unfinished if _suits(one, loaded, options)), "")))
        if not newest and path == "auto":
            return ResolvedCheckpoint(loaded)
        if not newest:
            way = "for one of another recipe give its --config, or --run FOLDER; for a new run leave --ckpt_path out"
            raise InputError(f"--ckpt_path last: {parent} has no unfinished run with a checkpoint, not in use; {way}")
        folder = Path(newest)
    elif _others(folder, loaded, options):
        recipes = [one for one in loaded if config.is_recipe(one[1])]
        if others := _others(folder, recipes, []):
            rank_zero_info(f"{runs.relative(folder)} has {others}: it is continued with its own settings")
    if path in (None, "last", "auto"):
        checkpoint, lines = runs.good_checkpoint(folder)
        for line in lines:
            rank_zero_info(line)
        path = str(checkpoint)
    rank_zero_info(f"Continuing run {runs.relative(folder)} from {Path(path).name}")
    overlays = [(file, tree) for file, tree in loaded if not config.is_recipe(tree)]
    own_run = folder if Path(path).expanduser().absolute().parent.parent == folder else None
    return ResolvedCheckpoint(overlays, path, run_folder=folder, own_run=own_run)


def _names_recipe(loaded: Loaded) -> bool:
    return any(config.is_recipe(tree) for _, tree in loaded)


def _settings(loaded: Loaded) -> list[Tree]:
    """The settings of a new run, lowest priority first; of the default recipe if none is given."""
    try:
        recipe, _, overlays = config.choose_recipe(loaded, {})
    except InputError:  # the continued run may not need this recipe
        return [tree for _, tree in loaded]
    return [recipe, *overlays]


def _given(key: str, trees: list[Tree], options: list[config.Option]) -> Any:
    """The value of a setting, from an option or else from the last tree that has it."""
    values = (dict(options).get(f"--{key}"), *(config.setting(tree, key) for tree in reversed(trees)))
    return next(filter(None, values), None)


def _suits(folder: Path, loaded: Loaded, options: list[config.Option]) -> bool:
    """Whether a run has the network and the data of the command line; if not, print one line."""
    if others := _others(folder, loaded, options):
        run = shlex.quote(runs.relative(folder))
        way = "" if others.startswith("settings") else f": give --run {run} to continue it"
        rank_zero_info(f"{run} has {others}, so it is not continued{way}")
    return not others


def _others(folder: Path, loaded: Loaded, options: list[config.Option]) -> str:
    """The network and data of a run that are not those of the command line, as text."""
    try:
        saved = yaml.safe_load(configurations(folder)[-1])
    except (OSError, LookupError, ValueError, yaml.YAMLError):
        return ""
    if not isinstance(saved, dict):
        return ""
    saved = with_present_paths(saved)
    tree, _, overlays = config.choose_recipe(loaded, saved)
    for overlay in overlays:
        tree = config.merge(tree, overlay, "", [])
    try:
        tree = resolve_names(tree)
    except InputError as error:
        if _names_recipe(loaded):
            raise
        return f"settings that no longer work ({error})"
    tree, left = config.merge_class_options(tree, options, [])
    for flag, value in left:
        key = flag.removeprefix("--").replace(".init_args", "")
        if key.startswith("data.") and PATHS.search(key.rpartition(".")[2]):
            tree = config.merge(tree, config.nest(key, value), "", [])
    return config.other_parts(saved, tree)


def _to_evaluate(
    stage: str, path: str | None, folder: Path | None, root: Path | None, loaded: Loaded, options: list[config.Option]
) -> ResolvedCheckpoint:
    given, trees = dict(options), [tree for _, tree in loaded]
    if path not in (None, "best", "last"):
        if folder and (own := folder / "checkpoints" / path).exists():  # named by an error
            path = str(own)
        if folder and Path(path).expanduser().absolute().parent.parent != folder:
            raise InputError(f"--run {folder} has no checkpoint {path}: leave --run out")
        is_elsewhere = _given("trainer.default_root_dir", trees, options)
        evaluated = None if is_elsewhere else folder or runs.run_of(Path(path))
        return ResolvedCheckpoint(loaded, path, evaluated=evaluated, own_run=folder)
    if path is None and any(flag.endswith("help") or flag in ("-h", "--print_config") for flag in given):
        return ResolvedCheckpoint(loaded)
    tries = (given.get(flag, "false") for flag in ("--fast_dev_run", "--trainer.fast_dev_run"))
    if path is None and folder is None and any(str(one).lower() not in ("false", "0") for one in tries):
        rank_zero_info(f"No --ckpt_path given: {stage} --fast_dev_run uses the untrained model")
        return ResolvedCheckpoint(loaded)
    if folder is None:
        name = _given("name", trees, options)
        name = name or (config.choose_recipe(loaded, {})[1] if _names_recipe(loaded) else None)
        folder = Path(runs.from_first_process(str(runs.newest_run(root or ROOT / "logs", name))))
    checkpoint = runs.checkpoint_of(folder, path or "best")
    rank_zero_info(f"{stage} of run {runs.relative(folder)}, {checkpoint.name}")
    return ResolvedCheckpoint(loaded, str(checkpoint), evaluated=folder, own_run=folder)
