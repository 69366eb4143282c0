"""Make one file of a sharded checkpoint: `python -m src.consolidate --help`."""

import argparse
from pathlib import Path

from src.checkpoint import damage, is_sharded, write_checkpoint
from src.command import command_parser, new_output, parse_words, run_command
from src.errors import InputError
from src.sharded import read_whole


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser("src.consolidate", str(__doc__))
    parser.add_argument("--ckpt_path", required=True, help="folder that a run with FSDP2 saved")
    parser.add_argument("--output", required=True, help="file to write, such as whole.ckpt")
    return parser


def consolidate(args: list[str]) -> None:
    """Read all shards in this process and write what a single process would have written.

    Raises:
        InputError: there are no shards, or the file cannot be written.
    """
    options = parse_words(parser(), args)
    folder = Path(options.ckpt_path).expanduser()
    if not is_sharded(folder):
        raise InputError(f"--ckpt_path {options.ckpt_path} is not a sharded checkpoint: give a folder of shards")
    if problem := damage(folder):
        raise InputError(f"--ckpt_path {options.ckpt_path} is damaged ({problem}); give another one")
    write_checkpoint(read_whole(folder), new_output(options.output))
    print(f"written to {options.output}")


if __name__ == "__main__":
    run_command(consolidate)
