"""Errors of the user are reported in a sentence, whoever raised them; a bug stays a bug."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status
from lightning.pytorch import Trainer
from safetensors import safe_open

from rlhf_lightning.checkpoint_files import read_checkpoint
from rlhf_lightning.cli.errors import EXIT_FAILED, EXIT_USER, describe, exit_code, is_message
from rlhf_lightning.cli.progress import Progress
from rlhf_lightning.rollout.probe import check


def full_disk(folder: Path) -> None:
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def full_disk_of_a_checkpoint(folder: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, "/dev/full")


def read_only(folder: Path) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder / "config.yaml"))


def forbidden(folder: Path) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder / "config.yaml"))


def below_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "file" / "run").mkdir()


def over_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "file").mkdir(exist_ok=True)


def a_folder_for_a_file(folder: Path) -> None:
    folder.read_text()


def nothing_there(folder: Path) -> None:
    (folder / "rows.jsonl").read_text()


def long_name(folder: Path) -> None:
    (folder / ("x" * 300)).write_text("")


def cut_off_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    safe_open(folder / "model.safetensors", "pt")


def other_weights(folder: Path) -> None:
    torch.nn.Linear(2, 2).load_state_dict(torch.nn.Linear(3, 2).state_dict())


def with_status(status: int) -> Callable[[Path], None]:
    http: Any = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])  # the hub's own client
    request = http.Request("GET", "https://huggingface.co/api/models/a/b")
    return lambda folder: hf_raise_for_status(http.Response(status, request=request))


def missing_package(folder: Path) -> None:
    import a_package_that_nobody_has  # type: ignore[import-not-found]  # noqa: F401


def no_such_accelerator(folder: Path) -> None:
    Trainer(accelerator="abacus", logger=False, enable_checkpointing=False)


def another_engine(folder: Path) -> None:
    check({"mean": 1.0, "max": 2.0}, SimpleNamespace(name="vllm", max_gap=0.1))  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "full disk": (full_disk, "the disk is full", EXIT_FAILED),
    "full disk, of torch": (full_disk_of_a_checkpoint, "the disk is full", EXIT_FAILED),
    "read-only": (read_only, "config.yaml may not be read or written here", EXIT_USER),
    "forbidden": (forbidden, "config.yaml may not be read or written here", EXIT_USER),
    "below a file": (below_a_file, "is a file, or below one, where a folder is wanted", EXIT_USER),
    "over a file": (over_a_file, "file is there already, most likely a file where a folder is wanted", EXIT_USER),
    "folder for a file": (a_folder_for_a_file, "is a folder, where a file is wanted", EXIT_USER),
    "nothing there": (nothing_there, "there is no file or folder", EXIT_USER),
    "long name": (long_name, "is too long for this disk", EXIT_USER),
    "cut off weights": (cut_off_weights, "a file of weights is damaged", EXIT_USER),
    "other weights": (other_weights, "the weights are of another model", EXIT_USER),
    "401": (with_status(401), "hf auth login", EXIT_USER),
    "403": (with_status(403), "hf auth login", EXIT_USER),
    "500": (with_status(500), "a server refused or failed", EXIT_USER),
    "missing package": (missing_package, "pip install a_package_that_nobody_has", EXIT_USER),
    "another engine": (another_engine, "the log-probs of rollout=vllm differ from the trainer's", EXIT_FAILED),
    "accelerator": (no_such_accelerator, "trainer, strategy: ", EXIT_USER),
}


@pytest.mark.parametrize("name", CASES)
def test_a_failure_has_its_sentence(name: str, tmp_path: Path) -> None:
    fail, sentence, code = CASES[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011  the kinds differ, which is the point
        fail(tmp_path)
    assert sentence in describe(caught.value)
    assert is_message(caught.value)
    assert exit_code(caught.value) == code


@pytest.mark.parametrize("bug", [lambda: {}["key"], lambda: [][1], lambda: torch.zeros(2) @ torch.zeros(3)])
def test_a_bug_stays_one(bug: Callable[[], Any]) -> None:
    with pytest.raises((LookupError, RuntimeError)) as caught:
        bug()
    assert not is_message(caught.value)
    assert exit_code(caught.value) == EXIT_FAILED


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    file.write_bytes(content)
    for read in (read_checkpoint, Progress.read):
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read as a checkpoint"):
            read(file)


@pytest.mark.parametrize("saved", [{"model": {}}, [1, 2], {"state_dict": {}}])
def test_another_programs_checkpoint_is_named(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint that rlhf train wrote"):
        read_checkpoint(tmp_path / "other.ckpt")
