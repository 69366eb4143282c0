"""Predict on your own files with a trained classifier: `python -m src.predict --help`."""

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from src.engine.cli.command import add_checkpoint, check_minimum, command_parser, new_output, parse_words
from src.engine.system.errors import InputError

SOME_FAILED = 3  # exit code if some inputs cannot be used


def predict(args: list[str]) -> int:
    """Write a table of predictions; returns the exit code.

    Raises:
        InputError: an option, the checkpoint or the table cannot be used, or no input exists.
    """
    options = _parse(args)
    from lightning.pytorch import Trainer  # lazy import: keeps --help fast

    from src.engine.data.images import skipped_line
    from src.engine.deploy.inference import Inference
    from src.engine.deploy.inputs import InputsDataModule, find_images, read_texts
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
        raise InputError(f"--ckpt_path {options.ckpt_path} is a language model: use src.generate")
    column = options.text_column or getattr(inference.data, "text_column", "text")
    is_image = inference.kind == "image"
    inputs = partial(find_images, options.inputs) if is_image else partial(read_texts, options.inputs, column)
    precision: Any
    precision, reason = choose_precision(options.accelerator, options.precision)
    labels = inference.labels or [str(number) for number in range(inference.task.num_classes)]
    # Texts are not counted: they would have to be read twice.
    skipped: Counter[str] = Counter()
    total = sum(1 for _ in find_images(options.inputs, skipped)) if is_image else None
    table = PredictionTable(new_output(options.output), labels, total)
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
        if skipped:
            print(skipped_line(skipped), file=sys.stderr)
    ranges = getattr(inference.data, "value_ranges", None)
    data = InputsDataModule(inputs, inference.prepare, options.batch_size, options.num_workers, ranges)
    trainer.predict(inference, data, return_predictions=False)
    if not trainer.is_global_zero:
        return 0
    print(f"{table.rows:,} inputs written to {options.output}", file=sys.stderr)
    if table.notes:
        print(f"{table.notes:,} inputs have a note: see column note", file=sys.stderr)
    if not table.errors:
        return 0
    print(f"{table.errors:,} of {table.rows:,} inputs could not be used: see column error", file=sys.stderr)
    print(*(f"  {line}" for line in table.first_errors), sep="\n", file=sys.stderr)
    return SOME_FAILED


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.predict", "Predict on images or texts with a trained classifier; write a table.")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="images or folders of images; or texts: tables (.csv, .tsv, .jsonl, .parquet), or files with one text per"
        " line",
    )
    parser.add_argument("--output", help="the table to write: .csv, .jsonl or .parquet")
    add_checkpoint(parser)
    parser.add_argument("--text_column", help="column of the texts in tables; default: as in the run")
    parser.add_argument("--labels", nargs="+", help="one text per class, for a model of images and texts")
    parser.add_argument("--batch_size", type=int, default=64, help="inputs per batch and process; default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read inputs; default: 0")
    parser.add_argument("--accelerator", default="auto", help="as in src.train; default: %(default)s")
    parser.add_argument("--devices", default="auto", help="as in src.train; default: %(default)s")
    parser.add_argument("--strategy", default="auto", help="as in src.train; default: %(default)s")
    parser.add_argument("--precision", help="as in src.train; default: the best of the hardware")
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
