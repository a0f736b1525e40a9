"""Rounds that jobs with the same start share: samples, scores and reference log-probs, computed once.

A sweep over losses begins every job with the same weights, prompts, engine and reward, so the first round of all is the
same. Where nothing but the run's start draws, as in RSO, so are all later rounds. A folder per round is named by the
digest of everything that it is a function of; in it lie the samples with their scores, in the form of a run's own
files, and the reference's log-probs by the micro-batches that they were computed in. What is read has the bits of what
would have been computed.

The first job that wants a round holds the folder's lock while it draws, and the others wait; the lock dies with its
process. Files appear whole. A folder that cannot be written costs time, never a run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from rlhf_lightning.data.batches.plan import Plan
from rlhf_lightning.data.reference.shards import write_atomically
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons.base import Round
from rlhf_lightning.rounds.record import Drawn, Rollouts, key_of
from rlhf_lightning.types import ScoredGroup

log = logging.getLogger(__name__)

#: Part of every key; raise it when the same weights and options start to give other samples.
VERSION = 1


@dataclass(frozen=True)
class SharedRounds:
    """A folder of rounds that runs share.

    Attributes:
        folder: of all rounds.
        identity: what determines samples and scores, apart from weights, prompts and options of the draws: content of
            the reward's files, tokenizer, versions, precision, processor.
        reference: what determines log-probs of the reference, apart from the policy's start; None: it is another
            model, and they are not shared.
        fixed: responses are drawn from that reference alone, so that later rounds are the same in every run, too.
        patience: seconds to wait for a job that draws the same round; then it is drawn here too, and not kept.
    """

    folder: Path
    identity: str
    reference: str | None
    fixed: bool = False
    patience: float = 3600.0

    @contextmanager
    def claimed(self, key: str, files: Rollouts) -> Iterator[SharedRound | None]:
        """A round, held until the end of the ``with`` block; None where it can be neither read nor written.

        Args:
            key: of everything that the round is a function of, apart from :attr:`identity`.
            files: how samples are written.
        """
        folder = self.folder / key_of(VERSION, self.identity, key)
        lock = FileLock(f"{folder}.lock", timeout=self.patience)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError, Timeout) as error:
            log.warning("the round in %s is not shared (%s); see paths.shared", folder, error)
            yield None
            return
        try:
            yield SharedRound(replace(files, folder=folder), folder.name, self.reference)
        finally:
            lock.release()


@dataclass(frozen=True)
class SharedRound:
    """One round that runs share.

    Attributes:
        files: where its samples lie.
        key: see :class:`SharedRounds`.
        reference: the same.
    """

    files: Rollouts
    key: str
    reference: str | None

    def read(self, examples: Examples) -> Drawn:
        """Groups that another run drew; none where there is no such run."""
        drawn = self.files.read(0, self.key, examples)
        if drawn.groups:
            path, count = self.files.path(0), len(drawn.groups)
            log.info("%-9s samples of %d prompts are another job's: %.1f MB in %s", "shared", count, _size(path), path)
        return drawn

    @property
    def lacks_samples(self) -> bool:
        """Return whether no run has written its samples yet."""
        return not self.files.path(0).exists()

    def keep(self, drawn: Iterable[ScoredGroup], counts: Mapping[str, float]) -> None:
        """Write the groups that were drawn."""
        path = self.files.path(0)
        try:
            self.files.write(0, self.key, drawn, {}, counts)
            log.info("%-9s samples of the start are kept for other jobs: %.1f MB in %s", "shared", _size(path), path)
        except OSError as error:
            log.warning("samples could not be kept in %s (%s); see paths.shared", path.parent, error)

    def log_probs(self, number: str) -> dict[str, Tensor] | None:
        """The reference's log-probs of a round's tokens; None where they are not there.

        Args:
            number: see :func:`computation`.
        """
        path = self._path(number)
        try:
            return load_file(path) if path.exists() else None
        except (OSError, SafetensorError) as error:
            log.warning("%s is damaged (%s), and its log-probs are computed again", path, error)
            return None

    def keep_log_probs(self, number: str, values: Mapping[str, Tensor]) -> None:
        """Write the reference's log-probs of a round's tokens."""
        path = self._path(number)
        try:
            write_atomically(path, save(dict(values)))
        except OSError as error:
            log.warning("log-probs could not be kept in %s (%s); see paths.shared", path, error)

    def _path(self, number: str) -> Path:
        return self.files.folder / f"reference-{number}.safetensors"


def computation(learned: Round, plan: Plan, *parts: object) -> str:
    """A digest of a pass over a round: its tokens, and the micro-batches that they are cut into, whose sizes round.

    Args:
        learned: the round.
        plan: of the pass.
        parts: everything else that its numbers are a function of.
    """
    examples = learned.examples
    digest = hashlib.blake2b(key_of(*parts).encode(), digest_size=16)
    batches = [np.asarray(plan.micro_batch(number), np.int64) for number in range(len(plan.tokens))]
    for array in (examples.tokens, examples.loss_mask, examples.bounds, *batches):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _size(path: Path) -> float:
    return path.stat().st_size / 1e6
