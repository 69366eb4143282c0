"""Imports what the commands need, once, in the process that is forked for each of them."""

import importlib
import os
import warnings
from contextlib import suppress

from src import ROOT

os.environ["OMP_NUM_THREADS"] = "1"  # no thread pool, which would not survive a fork
LIBRARIES = ("matplotlib.pyplot", "torch.utils.tensorboard", "torch._dynamo", "rich.progress")
# Not the commands themselves, in src/: each is run as __main__.
MODULES = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / "src").glob("*/**/*.py"))]

with warnings.catch_warnings(action="ignore"):
    for name in (*LIBRARIES, *(".".join(parts).removesuffix(".__init__") for parts in MODULES)):
        with suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
