"""Checkpoint files, read: those that are damaged or another program's are named."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

#: What every checkpoint of training has.
_KEYS = frozenset({"state_dict", "global_step", "loops"})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file of training; its tensors stay on disk until they are looked at.

    Args:
        path: a file.

    Raises:
        ValueError: it is damaged, or no checkpoint of training.
    """
    with reading(path):
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(saved, dict) or not saved.keys() >= _KEYS:
        raise ValueError(
            f"{path} is no checkpoint that rlhf train wrote: weights of other programs are read with model=hub "
            "model.name=<their folder>"
        )
    return saved


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file that torch cannot read as a checkpoint.

    Raises:
        ValueError: the block failed to.
    """
    try:
        yield
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, cut off, or another program's ({reason}). Choose "
            "another one with ckpt_path=..., or remove it"
        ) from error
