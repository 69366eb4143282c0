"""Export a trained model for other programs: `python -m src.export --help`."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from src.engine.cli.command import add_checkpoint, command_parser, data_options, new_output, parse_words, require
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "huggingface": ""}
FORMATS |= {name: suffix for name, suffix, _ in hooks("EXPORT_FORMAT")}
LIMIT = 1e-4  # maximum difference of a float32 output from the checkpoint's
SAMPLES = 64  # number of validation samples to compare
MAX_OUTPUTS = 2**27  # numbers to compare: logits of large language models would fill the memory
EXTRA_BYTES = 4 * 2**20  # for graph, tokenizer and example
QUANTIZE_FACTOR = 2.25  # copies of the weights on disk at the same time: float32, preprocessed, and 8 bits (a quarter)


def export(args: list[str]) -> None:
    """Export as the command line says; nothing is written if the results differ from the checkpoint's.

    Raises:
        InputError: an option or the checkpoint cannot be used, or the results differ.
    """
    options, output = _parse(args)
    for (name, _, _), export_checkpoint in zip(hooks("EXPORT_FORMAT"), hooks("export_checkpoint"), strict=True):
        if options.format == name:
            from src.engine.runs.runs import find_checkpoint  # lazy import: keeps --help fast
            from src.engine.system.addresses import local_name

            export_checkpoint(find_checkpoint(local_name(options.ckpt_path))[0], output)
            return
    from src.engine.deploy import formats
    from src.engine.deploy.inference import Inference
    from src.engine.runs.checkpoint import size_of

    inference = Inference(options.ckpt_path, "forward", data_options(options), options.trust)
    if options.quantize and not hasattr(inference.task, "num_classes"):
        raise InputError("--quantize int8 compares accuracies: it is for classifiers only; leave it out")
    print(f"Exporting {inference.path} as {options.format}", file=sys.stderr)
    reference = formats.Reference(inference)
    # Checked early: on a full disk some writers end the process or raise unclear errors.
    weights = size_of([*reference.net.parameters(), *reference.net.buffers()])
    need = weights * (QUANTIZE_FACTOR if options.quantize else 1) + EXTRA_BYTES
    free = shutil.disk_usage(output.parent).free
    if free < need:
        raise InputError(
            f"--output {options.output} needs about {need / 2**20:.1f} MB and {free / 2**20:.1f} MB are free:"
            " free some space, or give another --output"
        )
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
            path = Path(folder) / output.name
            with formats.exporting(reference):
                runtime, lines = formats.WRITERS[options.format](reference, path)
            samples = reference.samples(max(2, min(SAMPLES, MAX_OUTPUTS // reference.outputs)))
            difference = formats.largest_difference(reference, runtime, samples)
            count = sum(len(targets) for _, targets in samples)
            print(f"largest difference {difference:.1e} over {count} validation samples, limit {LIMIT:.0e}")
            if not difference <= LIMIT:
                raise InputError(
                    f"--format {options.format}: outputs differ from the checkpoint's by {difference:.1e}, more than"
                    f" {LIMIT:.0e}; nothing was written"
                )
            if options.quantize:
                before = formats.accuracy(reference, runtime)
                with formats.exporting(reference):
                    runtime, lines = formats.quantized_file(reference, path)
                after = formats.accuracy(reference, runtime)
                print(f"accuracy on the validation part {before:.2%} in float32 and {after:.2%} in int8")
            tokenizer = getattr(reference.tokenizer, "json", None)
            if tokenizer is not None and not path.is_dir():  # a folder of a model has its own
                path.with_name(f"{path.name}.tokenizer.json").write_text(tokenizer, encoding="utf-8")
            path.with_name(f"{path.name}.example.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
            written = sorted(Path(folder).iterdir())
            if existing := [path.name for path in written if os.path.lexists(output.parent / path.name)]:
                raise InputError(f"{output.parent / existing[0]} already exists: give another --output")
            for path in written:
                path.rename(output.parent / path.name)
    except OSError as error:
        raise InputError(f"--output {options.output} cannot be written ({error.strerror or error})") from error
    for path in written:
        print(f"written {output.parent / path.name}")


def _parse(args: list[str]) -> tuple[argparse.Namespace, Path]:
    parser = command_parser("src.export", "Export a trained model for other programs.")
    add_checkpoint(parser)
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="onnx: for onnxruntime; torch: for torch.export.load; safetensors: the weights; huggingface: a folder for"
        " transformers" + "".join(f"; {text}" for *_, text in hooks("EXPORT_FORMAT")),
    )
    parser.add_argument("--output", help="file to write, or folder for huggingface")
    parser.add_argument("--quantize", choices=["int8"], help="write ONNX in 8 bits: smaller and less accurate")
    options = parse_words(parser, args, also="data.")
    if options.format is None:
        raise InputError(f"--format is missing: give {', '.join(FORMATS)}")
    suffix = FORMATS[options.format]
    if not options.output:
        raise InputError(f"--output is missing: give a name such as model{suffix}")
    if suffix and Path(options.output).suffix != suffix:
        raise InputError(f"--output {options.output}: give a name that ends in {suffix} for --format {options.format}")
    output = new_output("--output", options.output)
    if options.quantize and options.format != "onnx":
        raise InputError(f"--quantize {options.quantize}: only for --format onnx, not {options.format}")
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
    require("src.export", "deploy", *needed.get(options.format, ()))
    return options, output
