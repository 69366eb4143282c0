"""Predict on your own files with a trained model: `python -m src.predict --help`."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from src.engine.cli.command import add_checkpoint, check_minimum, command_parser, data_options, new_output, parse_words
from src.engine.system.addresses import local_name
from src.engine.system.errors import InputError

SOME_FAILED = 3  # exit code if some inputs cannot be used


def predict(args: list[str]) -> int:
    """Write a table of predictions, and with `--truth` print the metrics; returns the exit code.

    Raises:
        InputError: an option, the checkpoint or the table cannot be used, or no input exists.
    """
    options = _parse(args)
    from lightning.pytorch import Trainer  # lazy import: keeps --help fast

    from src.engine.data.files import skipped_line
    from src.engine.data.images import reader
    from src.engine.data.loading import ResumableLoader, whole_batches
    from src.engine.deploy.inference import Inference
    from src.engine.deploy.inputs import PreparedInputs
    from src.engine.deploy.prediction_table import PredictionTable
    from src.engine.deploy.prepare import prepare_inputs, prepare_targets
    from src.engine.system.errors import GUIDE
    from src.engine.system.hardware import check_accelerator, check_strategy, choose_precision
    from src.engine.system.quiet import silence_known_warnings
    from src.engine.training.deferred_metrics import DeferredMetrics

    silence_known_warnings()
    check_accelerator(options.accelerator)
    check_strategy(options.strategy)
    inference = Inference(options.ckpt_path, data=data_options(options), trust=options.trust)
    name = type(inference.task).__name__
    finds_boxes, compares = getattr(inference.task, "finds_boxes", False), hasattr(inference.task, "name_classes")
    inference.name_classes(options.labels, "--labels")
    if options.truth and compares:
        raise InputError(f"--truth: {name} compares images with texts: leave it out")
    if options.truth and finds_boxes:
        raise InputError("--truth: boxes are scored only by python -m src.train test: leave --truth out")
    if options.pictures and not finds_boxes:
        raise InputError(f"--pictures: {name} finds no boxes to draw: leave it out")
    if inference.kind == "prompt":
        raise InputError(f"--ckpt_path {options.ckpt_path} is a language model, which only continues texts")
    precision: Any
    precision, reason = choose_precision(options.accelerator, options.precision)
    skipped: Counter[str] = Counter()
    inputs, total = partial(_named, _inputs(options, inference), options.addresses, options.reasons), None
    if inference.kind in ("image", "file"):  # listed first, to count them
        found = list(inputs(skipped=skipped))
        inputs, total = partial(iter, found), len(found)
    table = PredictionTable(new_output("--output", options.output), total, options.pictures)
    if options.truth:
        inference.is_scored = True
        if not isinstance(getattr(inference.task, "metrics", None), DeferredMetrics):
            raise InputError(f"--truth: {name} has no metrics: make it a subclass of Task; {GUIDE}")
    targets = partial(prepare_targets, inference.data) if options.truth else None
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=precision,
        callbacks=[table],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if trainer.world_size > 1:  # the other processes may start after a run has written a newer one
        sys.argv += ["--ckpt_path", str(inference.path)]
    if trainer.is_global_zero:
        names = f", {len(inference.labels)} labels" if inference.labels else ""
        print(f"{inference.path}{names}, precision {precision} ({reason})", file=sys.stderr)
        if skipped:
            print(skipped_line(skipped, "images" if inference.kind == "image" else "inputs"), file=sys.stderr)
    prepare = partial(prepare_inputs, inference.data)  # without the weights, which workers may not be able to take
    share = trainer.global_rank, trainer.world_size
    prepared = PreparedInputs(inputs, prepare, targets, options.batch_size, *share, read=reader(inference.data))
    loader = ResumableLoader(prepared, **whole_batches(options.num_workers))
    trainer.predict(inference, loader, return_predictions=False)
    if not trainer.is_global_zero:
        return 0
    print(f"{table.rows:,} inputs written to {options.output}", file=sys.stderr)
    for name, value in inference.scores.items():
        print(f"{name.removeprefix('test/')} {value:.5g}")
    if table.notes:
        print(f"{table.notes:,} inputs have a note: see column note", file=sys.stderr)
    if not table.errors:
        return 0
    print(f"{table.errors:,} of {table.rows:,} inputs could not be used: see column error", file=sys.stderr)
    print(*(f"  {line}" for line in table.first_errors), sep="\n", file=sys.stderr)
    return SOME_FAILED


def _inputs(options: argparse.Namespace, inference: Any) -> Callable[..., Iterator[Any]]:
    """Returns a new iterator over the inputs at each call."""
    from src.engine.data.files import IMG_EXTENSIONS
    from src.engine.deploy.inputs import find_images, read_table_rows, read_texts

    if inference.kind in ("image", "file"):
        if options.truth and options.truth != "folder" and not Path(options.truth).is_dir():
            masks = "a folder of masks with the names of the images, or " if inference.kind == "image" else ""
            raise InputError(f"--truth {options.truth}: give {masks}the word folder: each file's folder is its class")
        suffixes = tuple(inference.data.file_suffixes) if inference.kind == "file" else IMG_EXTENSIONS
        return partial(find_images, options.inputs, options.truth, suffixes=suffixes, labels=inference.labels)
    truth = options.truth.split(",") if options.truth else []
    if set(truth) == set(inference.labels):
        truth = inference.labels  # the targets are in this order
    text_column = options.text_column or getattr(inference.data, "text_column", "text")
    columns = [text_column] if inference.kind == "text" else list(inference.data.columns)
    if inputs := set(truth) & set(columns):
        raise InputError(f"--truth {inputs.pop()}: this column is an input of the model; give another")
    if inference.kind == "text":
        return partial(read_texts, options.inputs, text_column, truth, getattr(inference.data, "readers", None))
    return partial(read_table_rows, options.inputs, inference.data, truth)


def _copied(given: str, addresses: dict[str, str], reasons: dict[str, str]) -> str:
    """The path of an input; notes the address of a copy, or why there is none."""
    try:
        path = local_name(given)
    except InputError as error:
        reasons[given] = str(error)
        return given
    if path != given:
        addresses[path] = given
    return path


def _named(
    inputs: Callable[..., Iterator[Any]], addresses: dict[str, str], reasons: dict[str, str], **options: Any
) -> Iterator[Any]:
    """Inputs with the names that were given: of copies, their addresses."""
    for one in inputs(**options):
        path = next((path for path in addresses if one.name.startswith(path)), "")
        name = addresses[path].rstrip("/") + one.name[len(path) :] if path else one.name
        yield one._replace(name=name, error=reasons.get(one.name, one.error))


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.predict", "Predict on images, texts or tables with a trained model; write a table.")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="images or folders of images; tables (.csv, .tsv, .jsonl, .parquet); or files with one text per line",
    )
    parser.add_argument("--output", help="the table to write: .csv, .jsonl or .parquet")
    add_checkpoint(parser)
    parser.add_argument("--text_column", help="column of the texts in tables; default: as in the run")
    parser.add_argument(
        "--truth",
        help="also print metrics; true values: a column of the tables (several: a,b), a folder of masks, or the word"
        " folder, if each image's folder is its class",
    )
    parser.add_argument(
        "--pictures", action="store_true", help="also write the images with the boxes found in them, beside the table"
    )
    parser.add_argument("--labels", nargs="+", help="one text per class, for a model of images and texts")
    parser.add_argument("--batch_size", type=int, default=64, help="inputs per batch and process; default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read inputs; default: 0")
    parser.add_argument("--accelerator", default="auto", help="as in src.train; default: %(default)s")
    parser.add_argument("--devices", default="1", help="as in src.train; default: %(default)s")
    parser.add_argument("--strategy", default="auto", help="as in src.train; default: %(default)s")
    parser.add_argument("--precision", help="as in src.train; default: the best that the hardware supports")
    options = parse_words(parser, args, also="data.")
    if not options.inputs:
        raise InputError("no inputs given: give images, folders of images, tables or files of texts")
    if not options.output:
        raise InputError("--output is missing: give the table to write, such as --output predictions.csv")
    check_minimum(options, batch_size=1, num_workers=0)
    for given in options.inputs if options.num_workers or options.devices != "1" else ():
        if Path(given).is_fifo() or given.startswith(("/dev/stdin", "/dev/fd/", "/proc/")):
            raise InputError(f"{given}: only one process can read it: leave out --num_workers and --devices")
    options.addresses, options.reasons = {}, {}
    options.inputs = [_copied(given, options.addresses, options.reasons) for given in options.inputs]
    # Not pathlib, which raises errors for a text in place of a path, and for names such as ~$reviews.csv.
    if not any(os.path.exists(os.path.expanduser(given)) for given in options.inputs):
        reason = f"{options.inputs[0]}: no such file or folder; give images, folders of them, tables or files of texts"
        raise InputError(next(iter(options.reasons.values()), reason))
    return options
