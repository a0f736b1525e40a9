"""Folders of runs, where a model, an adapter or a reward is asked for: what the run exported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Export = Literal["last", "best"]
_WEIGHTS = ("config.json", "adapter_config.json")


def exported(run: str | Path, option: str, export: Export = "last") -> Path:
    """The folder that holds what a run exported; of a folder that is such an export, itself.

    Args:
        run: folder of a run.
        option: that named it, for messages.
        export: of the run's end, or of its best validation.

    Raises:
        ValueError: there is no such folder, or the run has not exported that.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{option}={run}: there is no such folder")
    for candidate in (folder, folder / "export" / export):
        if any((candidate / name).is_file() for name in _WEIGHTS):
            return candidate
    raise ValueError(f"{option}={run}: the run has no export/{export}; rlhf export run={run} writes export/last")


def exported_adapter(run: str | Path, export: Export = "last") -> str:
    """The folder of the adapter that a run exported.

    Raises:
        ValueError: as :func:`exported`, or the run exported whole weights.
    """
    folder = exported(run, "adapter.run", export)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"adapter.run={run}: {folder} holds whole weights and no adapter: choose model=run model.run={run}"
        )
    return str(folder)
