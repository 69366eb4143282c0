"""Write a trained model in a format that others load: `python -m src.export --help`."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from src.engine.cli.command import (
    add_checkpoint,
    command_parser,
    data_options,
    new_output,
    parse_words,
    require,
)
from src.engine.system.errors import InputError

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "huggingface": "", "checkpoint": ".ckpt"}
LIMIT = 1e-4  # largest difference of a logit in float32 from the checkpoint's
SAMPLES = 64  # validation samples that are compared
BESIDE = 4 * 2**20  # bytes for the graph, the tokenizer and the example
QUANTIZED = 2.25  # sizes of the weights that are on disk at once: in float32, prepared, and in 8 bits


def export(args: list[str]) -> None:
    """Write the file that the command line asks for, and what is needed beside it, when it has been compared.

    Raises:
        InputError: an option or the checkpoint cannot be used, or the file does not compute what the checkpoint does.
    """
    options, output = _parse(args)
    if options.format == "checkpoint":
        consolidate(options.ckpt_path, output)
        return
    from src.engine.deploy.formats import (
        Exported,
        Float32,
        huggingface_folder,
        onnx_file,
        quantized_file,
        safetensors_file,
        torch_file,
    )
    from src.engine.deploy.inference import Inference
    from src.engine.runs.checkpoint import size_of

    inference = Inference(options.ckpt_path, "forward", data_options(options), options.trust)
    print(f"{inference.path} as {options.format}", file=sys.stderr)
    reference = Float32(inference)
    # Asked before: on a full disk some writers end the process, or say it in words of their own.
    weights = size_of([*reference.net.parameters(), *reference.net.buffers()])
    need, free = weights * (QUANTIZED if options.quantize else 1) + BESIDE, shutil.disk_usage(output.parent).free
    if free < need:
        raise InputError(
            f"--output {options.output} needs about {need / 2**20:.1f} MB and {free / 2**20:.1f} MB are free:"
            " make room, or give another"
        )
    writers: dict[str, Callable[[Float32, Path], Exported]] = {
        "onnx": onnx_file,
        "torch": torch_file,
        "safetensors": safetensors_file,
        "huggingface": huggingface_folder,
    }
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
            path = Path(folder) / output.name
            exported = writers[options.format](reference, path)
            samples = reference.samples(SAMPLES)
            difference = exported.largest_difference(samples)
            count = sum(len(targets) for _, targets in samples)
            print(f"largest difference {difference:.1e} over {count} validation samples, limit {LIMIT:.0e}")
            if not difference <= LIMIT:
                raise InputError(
                    f"--format {options.format}: logits differ from the checkpoint's by {difference:.1e}, more than"
                    f" {LIMIT:.0e}: nothing was written"
                )
            if options.quantize:
                before = exported.accuracy()
                exported = quantized_file(reference, path)
                print(f"accuracy on the validation part {before:.2%} before and {exported.accuracy():.2%} in int8")
            exported.write_beside(path)
            found = sorted(Path(folder).iterdir())
            if there := [path.name for path in found if (output.parent / path.name).exists()]:
                raise InputError(f"{output.parent / there[0]} is there already: give another --output")
            for path in found:
                path.rename(output.parent / path.name)
    except OSError as error:
        raise InputError(f"--output {options.output} cannot be written ({error.strerror or error})") from error
    for path in found:
        print(f"written {output.parent / path.name}")


def consolidate(given: str, output: Path) -> None:
    """Write a sharded checkpoint as the one file that a single process would have written.

    Raises:
        InputError: there are no shards, or the file cannot be written.
    """
    from src.engine.runs.checkpoint import damage, is_sharded, write_checkpoint
    from src.engine.runs.runs import find_checkpoint
    from src.engine.runs.sharded import read_whole

    folder = find_checkpoint(given)
    if not is_sharded(folder):
        raise InputError(f"--ckpt_path {given} is not a sharded checkpoint: give a folder of shards")
    if problem := damage(folder):
        raise InputError(f"--ckpt_path {given} is damaged ({problem}); give another one")
    write_checkpoint(read_whole(folder), output)
    print(f"written {output}")


def _parse(args: list[str]) -> tuple[argparse.Namespace, Path]:
    parser = command_parser("src.export", "Write a trained model in a format that others load.")
    add_checkpoint(parser)
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="onnx, for onnxruntime; torch, for torch.export.load; safetensors, the weights; huggingface, a folder for"
        " transformers; checkpoint, one file of a sharded checkpoint",
    )
    parser.add_argument("--output", help="file to write, or folder for huggingface")
    parser.add_argument("--quantize", choices=["int8"], help="make the ONNX file smaller and less exact")
    parser.add_argument(
        "--data.NAME", action="append", dest="_", metavar="VALUE", help="the data to compare on, as of src.train"
    )
    options = parse_words(parser, args, also="data.")
    if options.format is None:
        raise InputError(f"--format is missing: give {', '.join(FORMATS)}")
    suffix = FORMATS[options.format]
    if not options.output:
        raise InputError(f"--output is missing: give a name such as model{suffix}")
    if suffix and Path(options.output).suffix != suffix:
        raise InputError(f"--output {options.output}: give a name that ends in {suffix} for --format {options.format}")
    output = new_output(options.output)
    if options.quantize and options.format != "onnx":
        raise InputError(f"--quantize {options.quantize}: only --format onnx can be, not {options.format}")
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
    require("src.export", "deploy", *needed.get(options.format, ()))
    return options, output
