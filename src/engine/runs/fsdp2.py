"""Shards weights, gradients and optimizer state across all devices."""

import inspect
import io
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint as recompute

from src.engine.runs.checkpoint import save_plain, size_of, system_error, unwritable
from src.engine.runs.sharded import REST, SafePlanner, SafeReader, read_index, replace_folder, write_checksums
from src.engine.system.errors import InputError, UnwritableError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallel (Zhao et al. 2023), applied to each block of a network.

    Blocks are the members of a `ModuleList`, such as a transformer's layers. A checkpoint is a folder with one shard
    per process; `python -m src.export --format checkpoint` converts it to one file.

    Args:
        activation_checkpointing: recompute a block's activations in the backward pass instead of storing them (Chen et
            al. 2016).
        gather_dtype: dtype in which weights are gathered; float32 if the network has batch norm. Gradients are always
            reduced in float32.
    """

    def __init__(
        self,
        activation_checkpointing: bool = False,
        gather_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__(tensor_parallel_size=1)
        self.activation_checkpointing = activation_checkpointing
        self.gather_dtype: torch.dtype = getattr(torch, gather_dtype)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def connect(self, model: Any) -> None:
        super().connect(model)
        model.configure_model = partial(self._shard, model)

    def _shard(self, model: LightningModule) -> None:
        root = root_of(model)
        if isinstance(root, FSDPModule):
            return
        for name, parameter in model.named_parameters():
            if not parameter.ndim:
                raise InputError(f"FSDP2 cannot shard {name}, which is a single number: give another --strategy")
            parameter.data = parameter.data.contiguous()  # FSDP2 cannot shard channels-last parameters
        dtype = self.gather_dtype
        if dtype != torch.float32 and any(isinstance(module, BATCH_NORMS) for module in model.modules()):
            rank_zero_info("Weights are gathered in float32: batch norm needs weights and statistics of the same dtype")
            dtype = torch.float32
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        mesh = self.device_mesh["data_parallel"]
        for block in blocks_of(model):
            if self.activation_checkpointing:
                block.forward = partial(recompute, block.forward, use_reentrant=False)
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(root, mesh=mesh, mp_policy=policy)
        for name in _methods(root) if root is not model else ():
            register_fsdp_forward_method(root, name)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        # Also check what shards hold besides tensors, whose copies would take much memory here.
        shards = {name: _without_tensors(checkpoint.get(name)) for name in ("state_dict", "optimizer_states")}
        save_plain({**checkpoint, **shards}, io.BytesIO())
        path = Path(self.broadcast(filepath))
        new = path.with_name(f".{path.name}-new")
        if self.global_rank == 0:
            path.parent.mkdir(exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)  # left by a run that was killed while writing
        self.barrier()
        need = size_of(checkpoint)
        problem: BaseException | None = None
        try:
            super().save_checkpoint(checkpoint, new, storage_options)
            if self.global_rank == 0:
                write_checksums(new)
        except CheckpointException as error:  # raised in every process if one cannot write
            problem = next(iter(error.failures.values()))[0]
            if not isinstance(problem, OSError | RuntimeError):
                raise
        except (OSError, RuntimeError) as error:
            # Some files are written by the first process only, which reports its error to the others.
            if self.global_rank != 0 or system_error(error) is None:
                raise
            problem = error
        message = self.broadcast(None if problem is None else str(unwritable(path, need, problem)))
        if message is not None:
            if self.global_rank == 0:
                shutil.rmtree(new, ignore_errors=True)
            raise UnwritableError(message) from problem
        if self.global_rank == 0:
            replace_folder(new, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return super().load_checkpoint(path, weights_only=True)
        assert self.model is not None
        read_index(path)  # torch would wrap its InputError
        state: dict[str, Any] = {"state_dict": get_model_state_dict(self.model)}
        trains = self.lightning_module is not None and self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        optimizers = dict(enumerate(self.optimizers)) if trains else {}
        for number, optimizer in optimizers.items():
            state[f"optimizer_{number}"] = get_optimizer_state_dict(self.model, optimizer)
        load(state, storage_reader=SafeReader(path), planner=SafePlanner())
        set_model_state_dict(self.model, state["state_dict"])
        for number, optimizer in optimizers.items():
            set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{number}"])
        return torch.load(path / REST, map_location="cpu", weights_only=True)


def _without_tensors(value: Any) -> Any:
    """What a tree holds besides tensors, also in the attributes of a state dict."""
    if type(value) in (dict, OrderedDict):
        return [{name: _without_tensors(one) for name, one in value.items()}, getattr(value, "__dict__", None)]
    if type(value) in (list, tuple):
        return [_without_tensors(one) for one in value]
    return None if isinstance(value, torch.Tensor) else value


def root_of(model: LightningModule) -> nn.Module:
    """The network if it has all weights (steps may call it or its methods directly), else the LightningModule."""
    net = getattr(model, "net", None)
    is_callable = isinstance(net, nn.Module) and not isinstance(net, nn.ModuleList | nn.ModuleDict)
    has_all = is_callable and {*net.parameters()} == {*model.parameters()}  # type: ignore[union-attr]
    return net if has_all else model  # type: ignore[return-value]


def _methods(module: nn.Module) -> set[str]:
    """Names of the methods that the class of a module adds to those of all modules."""
    classes = type(module).__mro__
    own = [one for one in classes[: classes.index(nn.Module)] if not one.__module__.startswith("torch.")]
    names = {name for cls in own for name, one in vars(cls).items() if inspect.isfunction(one)}
    return {name for name in names if not name.startswith("_") and not hasattr(nn.Module, name)}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost ModuleLists."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found
