"""A device that the host can read only by waiting: CPU tensors behind another device's name, and a count of the waits.

Within :class:`Waits` tensors can be made on or moved to :data:`DEVICE`, and every operation on them runs on the CPU.
What would make the host of a real accelerator wait for it is counted: reading numbers, results whose size depends on
them, and copies that are not asked to be ``non_blocking``. One thread computes; autocast is not available.

A process that has such a device keeps it, and torch then takes it for the machine's accelerator. So a test that uses
it is marked :func:`pretends`, which runs it in a forked process.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.helpers.jobs import forked

NAME = "fakegpu"


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Asked for where autocast is switched off."""
        return [torch.bfloat16]


#: The device by torch's name for one that is not its own; with :func:`pretends` it is called :data:`NAME`.
DEVICE = torch.device("privateuseone", 0)


def pretends(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process of its own that has the device."""

    def with_device(*args: Any, **kwargs: Any) -> None:
        _setup_privateuseone_for_python_backend(NAME, _Backend())
        test(*args, **kwargs)

    @functools.wraps(test)
    def in_a_process(*args: Any, **kwargs: Any) -> None:
        assert forked(with_device, *args, **kwargs) == 0, "its error is in what was printed"

    return in_a_process


aten = torch.ops.aten
#: Operations whose result the host has to know, or at least its size.
_READ = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class OnDevice(Tensor):
    """A tensor that says it is on the device; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=DEVICE)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:  # which torch refuses to do for classes of others
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of Waits")


class Waits(TorchDispatchMode):
    """Runs the device and counts, by reason and line of the code, how often the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE): a tensor of the host, then a copy
        self._threads = torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._threads.__exit__(*raised)
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        reads = any(isinstance(each, OnDevice) for each in tree_leaves((args, kwargs)))
        if reason := _reason(func, args, kwargs, reads, target):
            self.seen[f"{reason} {_line()}"] += 1
        inner_args, inner = tree_map_only(OnDevice, lambda each: each.held, (args, kwargs))
        if target == NAME:
            inner["device"] = torch.device("cpu")
        out = func(*inner_args, **inner)
        if target == "cpu" or not (reads or target == NAME):
            return out
        out = tree_map_only(Tensor, OnDevice, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if reads else out


def _reason(func: Any, args: Any, kwargs: Any, reads: bool, target: str | None) -> str:
    blocks = not kwargs.get("non_blocking")
    if func is aten._to_copy.default:
        if reads and target == "cpu":
            return "copies to the host"
        return "copies to the device, blocking," if not reads and target == NAME and blocks else ""
    if func is aten.copy_.default and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        return "copies, blocking," if blocks and not any(args[2:]) else ""
    if not reads:
        return ""
    if func in _INDEXED and any(each is not None and each.dtype == torch.bool for each in args[1]):
        return f"{func} by booleans"
    sized = func is not aten.repeat_interleave.Tensor or kwargs.get("output_size") is not None
    return str(func) if func in _READ or not sized else ""


def _line() -> str:
    """The innermost line of the code that is neither torch's nor this file's."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    return f"in {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"


class FakeAccelerator(Accelerator):
    """Lightning's view of the device."""

    def setup_device(self, device: torch.device) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def on_device() -> SingleDeviceStrategy:
    """A strategy that trains on the device."""
    return SingleDeviceStrategy(DEVICE, accelerator=FakeAccelerator())


class WaitsOfSteps(L.Callback):
    """The waits of each optimiser step, from one batch's start to the next one's."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self.steps = waits, []

    def on_train_batch_start(self, *_: Any) -> None:
        self._note()

    def on_train_end(self, *_: Any) -> None:
        self._note()
        del self.steps[0]  # what came before the first step

    def _note(self) -> None:
        self.steps.append(Counter(self.waits.seen))
        self.waits.seen.clear()
