"""FSDP2 for the Trainer: sharded training with exact, atomic checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from rlhf_lightning.files import recovered, remove, replace, sync, temporary_name, write_atomically
from rlhf_lightning.sharded_state import gathered, put_back, room_for, taken_out

#: Among the shards of a checkpoint: sharded tensors beside weights and optimiser, by their place in it.
_SHARDED = "sharded"


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism over all devices; the module shards itself in ``configure_model``.

    It differs from Lightning's ``ModelParallelStrategy`` in this: all devices shard data by default, several groups
    of processes may each hold the model once, gradients are reduced once an optimiser step instead of once a
    micro-batch, frozen parameters are not saved, optimiser state is saved by parameter name, and checkpoints are
    written aside and renamed.

    Args:
        data_parallel_size: processes that share the batch; ``auto``: all of them.
        replicas: groups of processes that each hold the whole model, in shards (HSDP). With one group a machine,
            weights are gathered within machines and only gradients cross between them. 1: all processes are one group.
        save_distributed_checkpoint: True: a folder to which every process writes its shard, for models whose
            optimiser state no single machine holds. False: one file that any other strategy can load.
        cpu_offload: keep the shards and the optimiser's state in host memory. Without accelerators they are there
            anyway.
        options: further arguments of ``ModelParallelStrategy``.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        replicas: int = 1,
        save_distributed_checkpoint: bool = False,
        cpu_offload: bool = False,
        **options: Any,
    ) -> None:
        if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
            raise ValueError(f"strategy.strategy.replicas={replicas} is no number of groups from 1 on")
        if cpu_offload:  # gradients are in host memory too, and their norm is summed over the processes there
            options = {"process_group_backend": "cpu:gloo,cuda:nccl", **options}
        super().__init__(
            data_parallel_size=data_parallel_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            **options,
        )
        self.cpu_offload, self.replicas = cpu_offload, replicas
        self._data_mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Shard over every process: Lightning's ``auto`` would give them all to tensor parallelism.

        Raises:
            ValueError: the processes cannot be divided into so many groups.
        """
        if self.root_device.type == "cpu":
            self.cpu_offload, self._process_group_backend = False, None
        if self._data_parallel_size == "auto":
            self._data_parallel_size = self.num_nodes * self.num_processes
        if self._data_parallel_size % self.replicas:
            raise ValueError(
                f"strategy.strategy.replicas={self.replicas}: {self._data_parallel_size} processes "
                f"({self.num_nodes} machines x {self.num_processes}) cannot be divided into so many equal groups; "
                "choose the number of machines, or a divisor of the number of processes"
            )
        super().setup_environment()
        self._data_mesh = self.device_mesh["data_parallel"]
        if self.replicas > 1:  # ranks of one machine follow each other, so a group lies within a machine
            shape = self.replicas, self._data_parallel_size // self.replicas
            self._data_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))

    @property
    def data_mesh(self) -> DeviceMesh:
        """The processes that shard the model: one dimension, or groups x processes of a group."""
        assert self._data_mesh is not None, "the processes are not connected yet"
        return self._data_mesh

    def model_to_device(self) -> None:
        """Leave offloaded shards in host memory."""
        if not self.cpu_offload:
            super().model_to_device()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients local until the last micro-batch of a step."""
        modules = [module for module in self._sharded.modules() if isinstance(module, FSDPModule)]
        for module in modules:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                module.set_requires_gradient_sync(True, recurse=False)

    # Checkpoints

    @property
    def _sharded(self) -> nn.Module:
        assert self.model is not None, "the strategy has no model yet"
        return self.model

    @property
    def _options(self) -> StateDictOptions:
        full = not self._save_distributed_checkpoint
        return StateDictOptions(full_state_dict=full, cpu_offload=True, ignore_frozen_params=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trained weights; of the single-file kind only process 0 has any. A collective call."""
        return get_model_state_dict(self._sharded, options=self._options)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Optimiser state by parameter name, which does not depend on how parameters are grouped. A collective call."""
        return get_optimizer_state_dict(self._sharded, _plain(optimizer), options=self._options)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a file or a folder of shards beside the target and rename it when all processes are done."""
        path = Path(self.broadcast(str(filepath)))
        if self._save_distributed_checkpoint:
            self._save_shards(checkpoint, path)
        else:
            whole = gathered(checkpoint, keep=self.is_global_zero)
            if self.is_global_zero:
                write_atomically(path, lambda temporary: torch.save(whole, temporary))
        self.barrier()

    def _save_shards(self, checkpoint: dict[str, Any], path: Path) -> None:
        temporary = temporary_name(path)
        if self.is_global_zero:
            remove(temporary)
            temporary.mkdir(parents=True)
        self.barrier()
        shards = {"state_dict": checkpoint.pop("state_dict")}
        shards |= {f"optimizer_{i}": state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}
        rest, shards[_SHARDED] = taken_out(checkpoint)
        save(shards, checkpoint_id=temporary)
        if self.is_global_zero:
            torch.save(rest, temporary / _METADATA_FILENAME)
            sync(temporary)
            replace(temporary, path)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimiser state into the sharded objects and return the rest."""
        path = recovered(Path(self.broadcast(str(checkpoint_path))))
        if path.is_dir():
            return self._load_shards(path, weights_only)
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True, strict=False)
        _check_keys(self._sharded, checkpoint["state_dict"].keys(), path)
        set_model_state_dict(self._sharded, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            named = _by_name(state, self._sharded, _plain(optimizer))
            set_optimizer_state_dict(self._sharded, _plain(optimizer), named, options=options)
            _forget_others(_plain(optimizer), self._sharded, named["state"].keys())
        rest: dict[str, Any] = checkpoint
        return rest

    def _load_shards(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        options = StateDictOptions(cpu_offload=True, ignore_frozen_params=True, strict=False)
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        state = {"state_dict": get_model_state_dict(self._sharded, options=options)}
        _check_keys(
            self._sharded, {key.removeprefix("state_dict.") for key in saved if key.startswith("state_dict.")}, path
        )
        load(state, checkpoint_id=path)
        set_model_state_dict(self._sharded, state["state_dict"], options=options)
        for i, optimizer in enumerate(self.optimizers):
            optimizer_state = get_optimizer_state_dict(self._sharded, _plain(optimizer), options=options)
            shards: dict[str, Any] = {f"optimizer_{i}": optimizer_state}
            named = shards[f"optimizer_{i}"]["state"]
            for name, fields in list(named.items()):
                if any(f"optimizer_{i}.state.{name}.{field}" not in saved for field in fields):
                    del named[name]
            load(shards, checkpoint_id=path)
            set_optimizer_state_dict(self._sharded, _plain(optimizer), shards[f"optimizer_{i}"], options=options)
            _forget_others(_plain(optimizer), self._sharded, named.keys())
        rest = torch.load(path / _METADATA_FILENAME, weights_only=weights_only)
        if sharded := room_for(rest, self.data_mesh):
            load({_SHARDED: sharded}, checkpoint_id=path)
        whole: dict[str, Any] = put_back(rest, sharded)
        return whole


def _plain(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _forget_others(optimizer: Optimizer, model: nn.Module, saved: Collection[str]) -> None:
    """Drop the state of parameters that had none when it was saved, as no gradient had reached them yet.

    Loading gives every parameter the state of a first step to write the saved one into. Left there, it would count as
    a step that was never taken.
    """
    for name, parameter in model.named_parameters():
        if name not in saved:
            optimizer.state.pop(parameter, None)


def _by_name(state: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Optimiser state by parameter name; another strategy has saved it by position in the parameter groups."""
    if all(isinstance(key, str) for key in state["state"]):
        return state
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def _check_keys(model: nn.Module, saved: Any, path: Path) -> None:
    """Refuse a checkpoint of another model or adapter."""
    module_keys = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True)).keys()
    if different := sorted(set(module_keys) ^ set(saved)):
        raise ValueError(
            f"{path} and this module differ in {len(different)} trained weights, for example {different[0]}: resume "
            "with the model, adapter and method options that wrote it, or set ckpt_path=null to start from scratch"
        )


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2, checkpoints in one file")
StrategyRegistry.register(
    "fsdp2_sharded",
    FSDP2Strategy,
    description="FSDP2, one checkpoint shard a process",
    save_distributed_checkpoint=True,
)
