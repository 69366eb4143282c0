"""Detects hardware and chooses settings for it."""

import ctypes
import os
import re
import sys
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from src.engine.system.classes import nearest
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks

# Names in torch of the CPU capabilities that make bfloat16 faster than float32.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_precision(accelerator: Any, given: str | None = None) -> tuple[str, str]:
    """The precision and the reason for it: the given one, else bfloat16 if the hardware supports it, else float32."""
    if given is not None:
        return given, "as given"
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device, has_bf16 = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available()):
        device, has_bf16 = "this CPU", any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS)
    else:
        return "32-true", "the safe choice for this accelerator"
    if has_bf16:
        return "bf16-mixed", f"{device} has bfloat16 arithmetic"
    return "32-true", f"{device} has no bfloat16 arithmetic"


def tune_hardware(accelerator: Any) -> None:
    """Apply settings that make training faster without a relevant change of results."""
    if not torch.cuda.is_available():
        # Set by Lightning; with it, every step of Adam searches for NVIDIA's library.
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    elif accelerator in ("auto", "gpu", "cuda"):
        # Matrix products in float32 use TensorFloat-32 if the GPU has it: faster, and precise enough for training.
        torch.set_float32_matmul_precision("high")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next training step.

    By default it returns large blocks to the system, and a step on a CPU spends up to a fifth of its time on page
    faults. Does nothing with another C library, or if an environment variable MALLOC_... is set.
    """
    is_configured = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform == "linux" and not is_configured and hasattr(c_library := ctypes.CDLL(None), "mallopt"):
        c_library.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the maximum
        c_library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check_accelerator(given: Any) -> None:
    """Raise InputError if this machine does not have the accelerator."""
    if not isinstance(given, str) or given == "auto":
        return
    known = AcceleratorRegistry.available_accelerators()
    _check_name("accelerator", given, {"auto", "gpu", *known})
    present = {name for name in known if AcceleratorRegistry[name]["accelerator"].is_available()}
    present |= {"gpu"} if present & {"cuda", "mps"} else set()
    if given not in present:
        here = f"{', '.join(sorted(present))} ({os.cpu_count()} cores)"
        other = "gpu" if "gpu" in present else "cpu"
        line = f"--accelerator {given}: this machine has none; it has {here}; type --accelerator {other}"
        if sys.platform == "linux" and given in ("gpu", "cuda") and not (torch.version.cuda or torch.version.hip):
            line += "; PyTorch is its CPU build here: for a GPU install the default build (make clean, make train)"
        raise InputError(line)


def check_strategy(given: Any) -> None:
    """Raise InputError if there is no strategy with this name, or if it does not work with this engine."""
    name = given if isinstance(given, str) else str(getattr(given, "class_path", "")).rpartition(".")[2]
    start = str((getattr(given, "init_args", None) or {}).get("start_method", ""))
    if re.search("spawn|fork|notebook", f"{name} {start}"):
        raise InputError(f"--strategy {name}: its processes cannot be stopped, continued or counted together: give ddp")
    if re.search("fsdp(?!2)", name.lower()):
        way = "".join(["give ddp", *hooks("INSTEAD_OF_FSDP")])
        raise InputError(f"--strategy {name} makes all weights vectors, which have no weight decay: {way}")
    _check_name("strategy", given, {"auto", *StrategyRegistry.available_strategies()})


def _check_name(option: str, given: Any, known: set[str]) -> None:
    if isinstance(given, str) and given not in known:
        near = nearest(given, known) or f"; known: {', '.join(sorted(known))}"
        raise InputError(f"--{option} {given}: no such {option}{near}")
