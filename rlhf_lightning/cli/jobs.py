"""Which job is which: a sweep that was killed goes on where it stopped, and no job is computed twice.

A job is known by a digest of its composed configuration, without the folders it writes to. The digest lies in the
job's folder as ``job.json`` from before its first step. The same configuration, met again in any sweep of
``paths.sweeps``, is recognised: finished, it is not run again; half done, it goes on in the folder that it began in.
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

#: Folders of jobs by digest, by the folder of sweeps they were looked for in; kept up to date by this process.
_KNOWN: dict[Path, dict[str, list[Path]]] = {}


@dataclass(frozen=True)
class Place:
    """Where a job is run, or was."""

    folder: Path
    result: Result | None = None  #: of a job that is finished


def find(cfg: DictConfig, own: Path, sweep: Path) -> Place:
    """The folder of a job of a sweep.

    Args:
        cfg: of the job, checked.
        own: the folder that its number in the sweep gives it.
        sweep: the sweep's folder.

    Returns:
        The newest finished job of this configuration; else the half-done one that got furthest last; else its own
        folder, or one beside it where another configuration was there first. With ``rerun`` never another sweep's.
    """
    identity = digest(cfg)
    if cfg.rerun:
        return Place(_unused(own))
    same = [own, *_known(Path(cfg.paths.sweeps), sweep).get(identity, [])]
    same = [folder for folder in dict.fromkeys(same) if _digest_of(folder) == identity]
    finished = [(folder, result) for folder in same if (result := _done(folder)) is not None]
    if finished:
        return Place(*max(finished, key=lambda found: _age(found[0] / "result.json")))
    from rlhf_lightning.cli.build import last_checkpoint  # imports Lightning

    begun = [(checkpoint, folder) for folder in same if (checkpoint := last_checkpoint([folder / "checkpoints"]))]
    if begun:
        return Place(max(begun, key=lambda found: _age(found[0]))[1])
    return Place(_free(own, identity))


@contextmanager
def claimed(place: Place, cfg: DictConfig, overrides: list[str]) -> Iterator[Place]:
    """Hold the folder of a job while it runs; it may have been finished while this process waited for it."""
    if place.result is not None:
        yield place
        return
    with held(place.folder, wait=True):
        result = None if cfg.rerun else _done(place.folder)
        if result is None:
            note(place.folder, command="train", digest=digest(cfg), overrides=overrides, method=method_name())
        yield Place(place.folder, result)


def link(own: Path, place: Path) -> None:
    """Let the folder of a job's number lead to where the job is, so that the sweep's folder shows all its jobs."""
    if own == place or own.is_symlink() or (own / JOB).exists():
        return
    if own.is_dir():  # Hydra has made it, with nothing but its own record of the configuration
        shutil.rmtree(own)
    own.parent.mkdir(parents=True, exist_ok=True)
    own.symlink_to(os.path.relpath(place, own.parent), target_is_directory=True)


def remember(cfg: DictConfig, sweep: Path, folder: Path) -> None:
    """Let later jobs of this process find one that has just run."""
    _known(Path(cfg.paths.sweeps), sweep).setdefault(digest(cfg), []).append(folder)


def _known(sweeps: Path, sweep: Path) -> dict[str, list[Path]]:
    """Folders of all jobs below ``paths.sweeps`` and in this sweep, by digest; looked for once a process."""
    key = sweep.absolute()
    if key not in _KNOWN:
        files = {*sweeps.absolute().glob(f"*/*/{JOB}"), *key.glob(f"*/{JOB}")}
        found: dict[str, list[Path]] = {}
        for folder in sorted({file.parent.resolve() for file in files}):
            if (identity := _digest_of(folder)) is not None:
                found.setdefault(identity, []).append(folder)
        _KNOWN[key] = found
    return _KNOWN[key]


def _free(own: Path, identity: str) -> Path:
    """The job's own folder, unless it is another configuration's."""
    return own if _digest_of(own) in (None, identity) else own.with_name(f"{own.name}_{identity[:8]}")


def _unused(own: Path) -> Path:
    """The job's own folder, or the first numbered one beside it that no job has used."""
    candidates = (own.with_name(f"{own.name}_{number}") for number in itertools.count(1))
    return own if not (own / JOB).exists() else next(folder for folder in candidates if not folder.exists())


def _digest_of(folder: Path) -> str | None:
    found = read_job(folder).get("digest")
    return None if found is None else str(found)


def _done(folder: Path) -> Result | None:
    result = Result.read(folder)
    return result if result is not None and result.status == "done" else None


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
