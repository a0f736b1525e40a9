"""Recognition of jobs: a killed sweep resumes where it stopped, and no job is computed twice.

A job is known by a digest of its composed configuration, without the folders it writes to. The digest lies in the
job's folder as ``job.json`` from before its first step. The same configuration, met again in any sweep of
``paths.sweeps``, is recognised: finished, it is not run again; half done, it is resumed in its first folder.
While a job runs its process holds the folder's lock, which dies with the process, so a second one waits instead of
writing over it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from rlhf_lightning.cli.folder import JOB, held, note, read_job
from rlhf_lightning.cli.identity import digest, method_name
from rlhf_lightning.cli.results import Result

#: Folders of jobs by digest, by the searched folder of sweeps; kept up to date by this process.
_FOLDERS_BY_DIGEST: dict[Path, dict[str, list[Path]]] = {}


@dataclass(frozen=True)
class JobFolder:
    """Folder of a job, and its result if it is finished."""

    folder: Path
    result: Result | None = None  #: of a job that is finished


def find(cfg: DictConfig, numbered: Path, sweep: Path) -> JobFolder:
    """Find the folder of a job of a sweep.

    Args:
        cfg: checked configuration of the job.
        numbered: the folder named by the job's number in the sweep.
        sweep: the sweep's folder.

    Returns:
        The newest finished job with this configuration; else the half-done one with the latest checkpoint; else the
        numbered folder, or one next to it if another configuration used it first. With ``rerun``, a new folder.
    """
    identity = digest(cfg)
    if cfg.rerun:
        return JobFolder(_unused(numbered))
    same = [numbered, *_folders_by_digest(Path(cfg.paths.sweeps), sweep).get(identity, [])]
    same = [folder for folder in dict.fromkeys(same) if _digest_of(folder) == identity]
    finished = [(folder, result) for folder in same if (result := _done(folder)) is not None]
    if finished:
        return JobFolder(*max(finished, key=lambda entry: _age(entry[0] / "result.json")))
    from rlhf_lightning.cli.build import last_checkpoint  # imports Lightning

    begun = [(checkpoint, folder) for folder in same if (checkpoint := last_checkpoint([folder / "checkpoints"]))]
    if begun:
        return JobFolder(max(begun, key=lambda entry: _age(entry[0]))[1])
    return JobFolder(_free(numbered, identity))


@contextmanager
def claimed(job: JobFolder, cfg: DictConfig, overrides: list[str]) -> Iterator[JobFolder]:
    """Hold the folder of a job while it runs; it may have been finished while this process waited for it."""
    if job.result is not None:
        yield job
        return
    with held(job.folder, wait=True):
        result = None if cfg.rerun else _done(job.folder)
        if result is None:
            note(job.folder, command="train", digest=digest(cfg), overrides=overrides, method=method_name())
        yield JobFolder(job.folder, result)


def link(numbered: Path, folder: Path) -> None:
    """Link the numbered folder to the job's folder, so that the sweep's folder shows all its jobs."""
    if numbered == folder or numbered.is_symlink() or (numbered / JOB).exists():
        return
    if numbered.is_dir():  # Hydra has made it, with nothing but its own record of the configuration
        shutil.rmtree(numbered)
    numbered.parent.mkdir(parents=True, exist_ok=True)
    numbered.symlink_to(os.path.relpath(folder, numbered.parent), target_is_directory=True)


def remember(cfg: DictConfig, sweep: Path, folder: Path) -> None:
    """Let later jobs of this process find one that has just run."""
    _folders_by_digest(Path(cfg.paths.sweeps), sweep).setdefault(digest(cfg), []).append(folder)


def _folders_by_digest(sweeps: Path, sweep: Path) -> dict[str, list[Path]]:
    """Folders of all jobs below ``paths.sweeps`` and in this sweep, by digest; searched once per process."""
    key = sweep.absolute()
    if key not in _FOLDERS_BY_DIGEST:
        files = {*sweeps.absolute().glob(f"*/*/{JOB}"), *key.glob(f"*/{JOB}")}
        by_digest: dict[str, list[Path]] = {}
        for folder in sorted({file.parent.resolve() for file in files}):
            if (identity := _digest_of(folder)) is not None:
                by_digest.setdefault(identity, []).append(folder)
        _FOLDERS_BY_DIGEST[key] = by_digest
    return _FOLDERS_BY_DIGEST[key]


def _free(numbered: Path, identity: str) -> Path:
    """Return the numbered folder, unless another configuration has it."""
    return (
        numbered if _digest_of(numbered) in (None, identity) else numbered.with_name(f"{numbered.name}_{identity[:8]}")
    )


def _unused(numbered: Path) -> Path:
    """Return the numbered folder, or the first unused one next to it."""
    candidates = (numbered.with_name(f"{numbered.name}_{number}") for number in itertools.count(1))
    return numbered if not (numbered / JOB).exists() else next(folder for folder in candidates if not folder.exists())


def _digest_of(folder: Path) -> str | None:
    recorded = read_job(folder).get("digest")
    return None if recorded is None else str(recorded)


def _done(folder: Path) -> Result | None:
    result = Result.read(folder)
    return result if result is not None and result.status == "done" else None


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
