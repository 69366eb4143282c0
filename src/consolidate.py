"""Make one file of a sharded checkpoint: `python -m src.consolidate --help`."""

import argparse
from pathlib import Path

from src.checkpoint import damage, is_sharded, write_checkpoint
from src.errors import InputError, report
from src.sharded import read_whole


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m src.consolidate", description=__doc__)
    parser.add_argument("--ckpt_path", required=True, help="folder that a run with FSDP2 saved")
    parser.add_argument("--output", required=True, help="file to write, such as whole.ckpt")
    return parser


def main() -> None:
    """Read all shards in this process and write what a single process would have written."""
    options = parser().parse_args()
    try:
        folder, output = Path(options.ckpt_path).expanduser(), Path(options.output).expanduser()
        if not is_sharded(folder):
            raise InputError(f"--ckpt_path {options.ckpt_path} is not a sharded checkpoint: give a folder of shards")
        if problem := damage(folder):
            raise InputError(f"--ckpt_path {options.ckpt_path} is damaged ({problem}); give another one")
        if output.exists():
            raise InputError(f"--output {options.output} is there already: give another name")
        write_checkpoint(read_whole(folder), output.absolute())
    except InputError as error:
        report(error)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
