"""One rollout from prompts to a round of training: draw, filter, score, learn, log, write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from rlhf_lightning.data.batches.plan import Plan
from rlhf_lightning.lessons.base import Lesson, Round
from rlhf_lightning.lessons.experience import numbers
from rlhf_lightning.rewards import why_unscored
from rlhf_lightning.rollout.probe import check
from rlhf_lightning.rounds.collect import Collector
from rlhf_lightning.rounds.exchange import Fetch, announced, collected, dealt
from rlhf_lightning.rounds.live import LivePolicy
from rlhf_lightning.rounds.probing import measured
from rlhf_lightning.rounds.processes import gathered
from rlhf_lightning.rounds.prompts import PromptSource
from rlhf_lightning.rounds.record import Drawn, Rollouts, key_of
from rlhf_lightning.rounds.shared import SharedRound, SharedRounds, computation
from rlhf_lightning.types import ScoredGroup

log = logging.getLogger(__name__)


class EmptyRolloutError(RuntimeError):
    """A rollout without a response to learn from; the weights are those before it."""


class Producer:
    """Makes rounds of training out of rollouts.

    Args:
        prompts: of the rollouts.
        collector: engine and reward.
        lesson: makes a round out of samples and scores.
        live: the policy, which the engine holds already.
        plan_of: returns how the first inner epoch deals out a round's groups.
        record: where rollouts are written, and read after a kill; None: nowhere.
        identity: everything else that determines samples and scores.
        shared: rounds of other runs; the policy must be that of the run's start, unless nothing is drawn from it
            (``fixed``). None: none.
    """

    def __init__(
        self,
        prompts: PromptSource,
        collector: Collector,
        lesson: Lesson,
        live: LivePolicy,
        plan_of: Callable[[Round], Plan],
        record: Rollouts | None = None,
        identity: str = "",
        shared: SharedRounds | None = None,
    ) -> None:
        self.prompts, self.collector, self.lesson, self.live = prompts, collector, lesson, live
        self.plan_of, self.record, self.identity, self.shared = plan_of, record, identity, shared
        self.process_share, self.clock = collector.process_share, collector.clock
        self._empty = 0  # consecutive rollouts before this one that had nothing to learn from

    def __call__(self, number: int, cursor: int) -> Round:
        """The next round; rollouts that have nothing to learn from are skipped. A collective call.

        Args:
            number: of its rollout.
            cursor: position of its first prompt in the stream.

        Raises:
            EmptyRolloutError: ``max_empty`` of them in a row had nothing to learn from.
        """
        while True:
            produced, cursor = self._rollout(number, cursor)
            if produced is not None:
                return produced
            number += 1

    def _rollout(self, number: int, cursor: int) -> tuple[Round | None, int]:
        """A rollout as a round, or None where it is skipped; and the position of the next prompt."""
        key = self._key(cursor, self.live.digest())
        with self._claimed(cursor, key) as shared:
            recorded = self._recorded(number, key, shared)
            drawn, groups, cursor = self._drawn(number, cursor, recorded.groups)
            counts = self.collector.metrics()  # of groups that were not read; a collective call
            counts = counts if recorded.counts is None else recorded.counts
            self._keep(shared, drawn, counts)
        with self.clock.phase(self.lesson.phase):
            learned = self.lesson.begin(number, cursor, groups, Fetch(self.live.module.device))
        if not learned.examples.slot_tokens.any():
            self._write(number, key, drawn, {}, counts)
            self._skip(number, groups, counts)
            return None, cursor
        with self.clock.phase("score"):
            if self.lesson.needs:
                plan = self.plan_of(learned)
                for part in learned.parts:
                    part.tokens |= self._scores(part, plan, shared)
            probed = self._probe(learned)
        with self.clock.phase(self.lesson.phase):
            logged = self.lesson.learn(learned, groups)
        learned.metrics = self._metrics(drawn, counts | probed | logged)
        self._write(number, key, drawn, self.lesson.columns(learned, groups), counts)
        if self.record is not None and not self.process_share.rank:
            self.record.write_groups(number, self.lesson.rows(learned, groups))
        return learned, cursor

    # Rounds that runs share

    @contextmanager
    def _claimed(self, cursor: int, key: str) -> Iterator[SharedRound | None]:
        """The round as other runs have it; None where none is shared. A collective call.

        Args:
            cursor: position of its first prompt.
            key: of the run's own round.
        """
        if self.shared is None or self.record is None:
            yield None
            return
        if self.shared.fixed:
            key, weights = self._key(cursor, ""), self.live.start_fingerprint()
        else:
            weights = self.live.fingerprint()
        if self.process_share.rank:  # the first process reads and writes for all
            yield None
            return
        with self.shared.claimed(key_of(key, weights, self.prompts.examples.content()), self.record) as shared:
            yield shared

    def _keep(self, shared: SharedRound | None, drawn: Sequence[ScoredGroup], counts: Mapping[str, float]) -> None:
        """Write a round for other runs where none has; a collective call."""
        if self.shared is None or self.record is None or not gathered(shared is not None and shared.lacks_samples)[0]:
            return
        with collected(drawn) as whole:
            if shared is not None:
                shared.keep(whole, counts)

    def _scores(self, part: Round, plan: Plan, shared: SharedRound | None) -> dict[str, Tensor]:
        """Numbers of every token that the lesson needs; those of the run's start may be from another run."""
        store = self.shared
        if store is None or store.reference is None or self.lesson.needs != {"reference_log_probs"}:
            return self.live.scores(part, plan, self.lesson.scores)
        number = computation(part, plan, store.reference, self.lesson.temperature, self.process_share.world_size)
        log_probs = gathered(None if shared is None else shared.log_probs(number))[0]
        if log_probs is None:
            log_probs = self.live.scores(part, plan, self.lesson.scores)
            if shared is not None:
                shared.keep_log_probs(number, log_probs)
        return log_probs

    # Drawing

    def _key(self, cursor: int, weights: str) -> str:
        """Digest of everything that a rollout's samples and scores are a function of.

        Args:
            cursor: position of its first prompt.
            weights: digest of the policy's; empty where nothing is drawn from it.
        """
        return key_of(
            self.prompts.ids(cursor),
            cursor,
            self.prompts.stream.seed,
            (*self.collector.identity, self.identity),
            weights,
        )

    def _drawn(
        self, number: int, start: int, recorded: Mapping[int, ScoredGroup]
    ) -> tuple[list[ScoredGroup], list[ScoredGroup], int]:
        """Every group that was drawn, those that a round is made of, and the position after the last prompt."""
        size = self.prompts.size
        drawn, cursor = self._draw(start, size, recorded), start + size
        teaches = self.lesson.informative(number, drawn)
        for _ in range(self.lesson.options.max_refills):
            missing = size - sum(teaches)
            if missing <= 0:
                break
            drawn, cursor = drawn + self._draw(cursor, missing, recorded), cursor + missing
            teaches = self.lesson.informative(number, drawn)
        informative = [group for group, teaching in zip(drawn, teaches, strict=True) if teaching][:size]
        left_out = [group for group, teaching in zip(drawn, teaches, strict=True) if not teaching]
        return drawn, informative + left_out[: size - len(informative)], cursor

    def _draw(self, start: int, count: int, recorded: Mapping[int, ScoredGroup]) -> list[ScoredGroup]:
        stream = self.prompts.stream
        return self.collector.draw(
            self.prompts.examples,
            stream.take(start, count),
            range(start, start + count),
            stream.seeds(start, count),
            module=self.live.module,
            recorded=recorded,
            facts=self.lesson.facts,
        )

    def _skip(self, number: int, groups: Sequence[ScoredGroup], counts: Mapping[str, float]) -> None:
        """Move on from a rollout that has nothing to learn from.

        Raises:
            EmptyRolloutError: there were too many of them in a row.
        """
        self._empty += 1
        why = self.lesson.why_empty(groups)
        if why is None:
            why = f"the reward {self.collector.reward_name!r} scored no response{why_unscored(counts)}"
        most = self.lesson.options.max_empty
        if self._empty < most:
            log.warning("rollout %d has nothing to learn from and is skipped: %s", number, why)
            return
        first = number + 1 - self._empty
        if self.record is not None and not self.process_share.rank:
            self.record.set_aside(range(first, number + 1))
        which = f"rollouts {first} to {number} have" if self._empty > 1 else f"rollout {number} has"
        raise EmptyRolloutError(
            f"{which} nothing to learn from: {why}. As many in a row as "
            f"{self.lesson.options.node}.max_empty={most} end the run"
        )

    def _probe(self, learned: Round) -> dict[str, float]:
        """Gap between the engine's log-probs and the trainer's; raises above the engine's bound."""
        gaps = measured(
            learned,
            self.live.module.policy,
            temperature=self.lesson.options.temperature,
            score_temperature=self.lesson.temperature,
            rank=self.process_share.rank,
            forward=self.live.forward,
        )
        if gaps:
            check(gaps, self.collector.engine)
        return {f"mismatch/{name}_gap": value for name, value in gaps.items()}

    # Logs and files

    def _metrics(self, drawn: Sequence[ScoredGroup], more: Mapping[str, float]) -> dict[str, float]:
        """The numbers of a rollout, as they are logged."""
        seconds = self.clock.pop()
        logged = summary(drawn, self.lesson.score_name) | {f"time/{name}": value for name, value in seconds.items()}
        if seconds.get("generate"):
            tokens = sum(len(sample.ids) for entry in drawn for sample in entry.group.samples)
            logged["throughput/generated_tokens_per_second"] = tokens / seconds["generate"]
        logged |= {"rollout/skipped": float(self._empty), **more}
        return {f"train/{name}": value for name, value in logged.items()}

    def _write(
        self,
        number: int,
        key: str,
        drawn: Sequence[ScoredGroup],
        columns: Mapping[int, Sequence[Mapping[str, object]]],
        counts: Mapping[str, float],
    ) -> None:
        """Write the rollout's file; a collective call."""
        if self.record is None:
            return
        with collected(drawn) as whole:
            if not self.process_share.rank:
                self.record.write(number, key, whole, columns, counts)

    def _recorded(self, number: int, key: str, shared: SharedRound | None) -> Drawn:
        """Groups that an earlier, killed process or another run drew; each process has a share. A collective call."""
        local_rows = Drawn()
        if self.record is not None and not self.process_share.rank:
            local_rows = self.record.read(number, key, self.prompts.examples)
            if count := len(local_rows.groups):
                log.info("rollout %d was drawn before the run was interrupted; its %d prompts are read", number, count)
            elif shared is not None:
                local_rows = shared.read(self.prompts.examples)
        local_groups = dealt(local_rows.groups)
        shares = announced(local_groups, self.lesson.facts)
        return Drawn({one.position: one for share in shares for one in share}, gathered(local_rows.counts)[0])


def summary(drawn: Sequence[ScoredGroup], score_name: str = "reward") -> dict[str, float]:
    """Scores and lengths of the responses of the first draw, by name.

    Args:
        drawn: all groups that were drawn.
        score_name: name of the scores' metrics.
    """
    first = [entry.of_draw(0) for entry in drawn]
    score = torch.tensor([numbers(entry.score[part]) for entry, part in zip(drawn, first, strict=True)]).flatten()
    present = score[~score.isnan()]
    statistics = {"unscored": 1 - len(present) / len(score)}
    if len(present):
        statistics |= {"mean": float(present.mean()), "std": float(present.std(correction=0))}
        statistics |= {"min": float(present.min()), "max": float(present.max())}
    for name in drawn[0].terms:
        values = torch.tensor(
            [numbers(entry.terms[name][part]) for entry, part in zip(drawn, first, strict=True)]
        ).flatten()
        if not values.isnan().all():
            statistics[name] = float(values.nanmean())
    samples = [sample for entry, part in zip(drawn, first, strict=True) for sample in entry.group.samples[part]]
    lengths = torch.tensor([float(len(sample.ids)) for sample in samples])
    return {f"{score_name}/{name}": value for name, value in statistics.items()} | {
        "response/length": float(lengths.mean()),
        "response/max_length": float(lengths.max()),
        "response/truncated": sum(sample.finish == "length" for sample in samples) / len(samples),
        "group/zero_std": sum(not entry.informative for entry in drawn) / len(drawn),
    }
