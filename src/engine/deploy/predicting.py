"""Predict on files of one's own with a trained classifier: `python -m src.predict --help`."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from src.engine.cli.command import add_checkpoint, check_minimum, command_parser, new_output, parse_words
from src.engine.system.errors import InputError

SOME_FAILED = 3  # exit code


def predict(args: list[str]) -> int:
    """Write the table that the command line asks for; gives the exit code.

    Raises:
        InputError: an option, the checkpoint, or every input cannot be used.
    """
    options = _parse(args)
    from lightning.pytorch import Trainer  # lazy import: keeps --help fast

    from src.engine.deploy.inference import Inference
    from src.engine.deploy.inputs import InputsDataModule, images_of, texts_of
    from src.engine.deploy.prediction_table import PredictionTable
    from src.engine.system.hardware import check_accelerator, check_strategy, choose_precision
    from src.engine.system.quiet import silence_known_warnings

    silence_known_warnings()
    check_accelerator(options.accelerator)
    check_strategy(options.strategy)
    inference = Inference(options.ckpt_path, trust=options.trust)
    if options.labels:
        inference.name_classes(options.labels)
    if inference.kind == "prompt":
        raise InputError(f"--ckpt_path {options.ckpt_path} is a language model: give it to src.generate")
    column = options.text_column or getattr(inference.data, "text_column", "text")
    inputs = (
        partial(images_of, options.inputs) if inference.kind == "image" else partial(texts_of, options.inputs, column)
    )
    precision: Any
    precision, reason = choose_precision(options.accelerator, options.precision)
    labels = inference.labels or [str(number) for number in range(inference.task.num_classes)]
    table = PredictionTable(new_output(options.output), labels, _count(inference.kind, inputs))
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
    if trainer.is_global_zero:
        print(f"{inference.path}, {len(labels)} classes, precision {precision} ({reason})", file=sys.stderr)
    data = InputsDataModule(inputs, inference.prepare, options.batch_size, options.num_workers)
    trainer.predict(inference, data, return_predictions=False)
    if not trainer.is_global_zero:
        return 0
    print(f"{table.rows:,} inputs to {options.output}", file=sys.stderr)
    if table.notes:
        print(f"{table.notes:,} were dark ink on a light ground and were inverted: column note", file=sys.stderr)
    if not table.errors:
        return 0
    print(f"{table.errors:,} of {table.rows:,} inputs could not be used: column error", file=sys.stderr)
    print(*(f"  {line}" for line in table.first_errors), sep="\n", file=sys.stderr)
    return SOME_FAILED


def _count(kind: str, inputs: Any) -> int | None:
    """How many inputs there are, where that is soon said."""
    return sum(1 for _ in inputs()) if kind == "image" else None


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.predict", "Predict on images or texts with a trained classifier, into a table.")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="images, or folders of them; or texts: tables (.csv, .tsv, .jsonl, .parquet), or files with one a line",
    )
    parser.add_argument("--output", help="the table to write: .csv, .jsonl or .parquet")
    add_checkpoint(parser)
    parser.add_argument("--text_column", help="column of the texts in tables (that of the run's own data)")
    parser.add_argument("--labels", nargs="+", help="texts, one a class, for a model of images and texts")
    parser.add_argument("--batch_size", type=int, default=64, help="inputs a batch of each process (%(default)s)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read, where that takes long (0)")
    parser.add_argument("--accelerator", default="auto", help="as of src.train (%(default)s)")
    parser.add_argument("--devices", default="auto", help="as of src.train (%(default)s)")
    parser.add_argument("--strategy", default="auto", help="as of src.train (%(default)s)")
    parser.add_argument("--precision", help="as of src.train (what the hardware has)")
    options = parse_words(parser, args)
    if not options.inputs:
        raise InputError("no inputs given: give images, folders of images, or files of texts")
    if not options.output:
        raise InputError("--output is missing: give the table to write, such as --output predictions.csv")
    check_minimum(options, batch_size=1, num_workers=0)
    if not any(Path(given).expanduser().exists() for given in options.inputs):
        raise InputError(
            f"{options.inputs[0]}: no such file or folder; give images, folders of images, or files of texts"
        )
    return options
