"""Imports all modules that the commands need, once, in the process that is forked for each command."""

import importlib
import os
import warnings
from contextlib import suppress

from src import ROOT

os.environ["OMP_NUM_THREADS"] = "1"  # a thread pool would not survive a fork
LIBRARIES = ("matplotlib.pyplot", "torch.utils.tensorboard", "torch._dynamo", "rich.progress")
# What searches, tables and exports import late.
LIBRARIES += ("optuna.importance", "optuna.visualization", "pyarrow.csv", "pyarrow.parquet", "tokenizers")
LIBRARIES += ("onnxruntime", "onnxscript", "torch.onnx._internal.exporter")
# Without the commands in src/*.py, which run as __main__.
MODULES = [path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / "src").glob("*/**/*.py"))]

with warnings.catch_warnings(action="ignore"):
    for name in (*LIBRARIES, *(".".join(parts).removesuffix(".__init__") for parts in MODULES)):
        with suppress(ImportError):  # optional packages may be missing
            importlib.import_module(name)
