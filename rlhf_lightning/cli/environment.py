"""``rlhf env``: versions, processor, accelerators and variables, as Markdown to paste into a report of a fault."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlhf_lightning.cli.console import OUT
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.versions import checkout, versions

#: Variables that change what a run does.
_VARIABLES = re.compile(r"^(RLHF|HF|HYDRA|OMP|MKL|TORCH|PYTORCH|NCCL|GLOO|CUDA|ROCR|HIP|VLLM|TRANSFORMERS|SLURM)_")
#: Their values stay out of what is shown.
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def main(arguments: Sequence[str]) -> int:
    """``rlhf env``.

    Raises:
        ConfigError: it takes no options.
    """
    if arguments:
        raise ConfigError(f"rlhf env takes no options, got {' '.join(arguments)}")
    for section, rows in sections().items():
        OUT.print(f"### {section}\n", markup=False)
        for name, value in rows:
            OUT.print(f"- {name}: {value}", markup=False)
        OUT.print()
    return 0


def sections() -> dict[str, list[tuple[str, str]]]:
    """Title -> rows of name and value."""
    return {
        "Software": [*versions().items(), ("commit", checkout() or "not a checkout"), *_extras()],
        "Machine": [*_machine(), *_accelerators()],
        "Variables": list(_variables(os.environ)) or [("none of ours is set", "-")],
    }


def _extras() -> Iterator[tuple[str, str]]:
    """Installed packages of the extras, by the extra that asks for each."""
    shown = set(versions())
    for line in importlib.metadata.requires("rlhf-lightning") or ():
        match = re.match(r"([\w.-]+)(?:\[[\w,.-]*\])?[^;]*;.*extra == ['\"](\w+)['\"]", line)
        if match is None or match[2] in ("dev", "docs") or match[1] in shown:
            continue
        shown.add(match[1])
        try:
            yield match[1], f"{importlib.metadata.version(match[1])} (extra {match[2]})"
        except importlib.metadata.PackageNotFoundError:
            continue


def _machine() -> Iterator[tuple[str, str]]:
    import torch

    from rlhf_lightning.cli.cpu import emulates_bf16

    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{cores}, of which torch uses {torch.get_num_threads()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    yield "bfloat16 on the processor", "emulated" if emulates_bf16() else "in hardware, or not known"


def _accelerators() -> Iterator[tuple[str, str]]:
    import torch

    if not torch.cuda.is_available():
        accelerator = torch.accelerator.current_accelerator()
        yield "accelerator", "none" if accelerator is None else str(accelerator)
        return
    yield "CUDA of torch", str(torch.version.cuda)
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield f"GPU {number}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB"


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that change what a run does; secrets as set, the home folder as ``~``."""
    home = str(Path.home())
    for name, value in sorted(environment.items()):
        if _VARIABLES.match(name):
            yield name, "(set)" if _SECRET.search(name) else value.replace(home, "~")
