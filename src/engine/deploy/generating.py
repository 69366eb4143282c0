"""Generate text with a trained language model: `python -m src.generate --help`."""

import argparse
import io
import sys
from typing import Any

from src.engine.cli.command import add_checkpoint, command_parser, data_options, parse_words
from src.engine.system.errors import InputError


def generate(args: list[str]) -> None:
    """Print the prompt and its continuation.

    Raises:
        InputError: an option, the checkpoint or the prompt cannot be used.
    """
    options = _parse(args)
    import torch  # lazy import: keeps --help fast

    from src.engine.deploy.inference import Inference

    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise InputError(f"--seed {options.seed} is out of range: give 0 or more, below 2**63")
    inference = Inference(options.ckpt_path, "generate", data_options(options), options.trust)
    task: Any = inference.task
    tokenizer = getattr(inference.data, "tokenizer", None)
    if tokenizer is None:
        raise InputError(f"--ckpt_path {options.ckpt_path} has no tokenizer: give a checkpoint of a language model")
    try:
        prompt = torch.from_numpy(tokenizer.encode(options.prompt).astype("int64"))
    except UnicodeEncodeError as error:
        raise InputError("--prompt is not UTF-8") from error
    if not len(prompt):
        raise InputError(f"--prompt {options.prompt!r} has no token in this model's tokenizer: give other words")
    limit = getattr(getattr(task, "net", None), "block_size", None)
    if limit and len(prompt) > limit:
        used = f"the last {limit // 2} are used"
        print(f"--prompt has {len(prompt)} tokens, the model takes {limit}: {used}", file=sys.stderr)
    seed = options.seed
    if seed is None:
        seed = torch.seed() % 2**32
        print(f"--seed {seed}", file=sys.stderr)  # so that the user can generate the same text again
    generator = torch.Generator().manual_seed(seed)
    limits = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    try:
        ids = task.generate(prompt, options.max_new_tokens, **limits, generator=generator)
    except ValueError as error:
        raise InputError(str(error)) from error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may not support every character
    print(options.prompt, end="", flush=True)
    for text in tokenizer.stream(ids, prompt.tolist()):
        print(text, end="", flush=True)
    print()


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser(
        "src.generate", "Continue a text with a trained language model. Its tokenizer comes from the checkpoint."
    )
    add_checkpoint(parser)
    parser.add_argument("--prompt", default="\n", help="beginning of the text; default: a line break")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens to generate; default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token; default: %(default)s")
    parser.add_argument("--top_k", type=int, help="sample from this many likeliest tokens; default: all")
    parser.add_argument(
        "--top_p", type=float, help="sample from the likeliest tokens with this total probability; default: 1"
    )
    parser.add_argument("--seed", type=int, help="random seed, to repeat a text; default: a new one each time")
    return parse_words(parser, args, also="data.")
