"""One rollout from prompts to advantages: draw, filter, score, assign credit, log, write."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_lightning.models.roles import evaluating
from rlhf_lightning.rewards import why_unscored
from rlhf_lightning.rollout.probe import check
from rlhf_lightning.rounds.collect import Collector
from rlhf_lightning.rounds.experience import Experience, IntArray, Scored, exact_totals, numbers
from rlhf_lightning.rounds.loader import RolloutLoader
from rlhf_lightning.rounds.probing import measured
from rlhf_lightning.rounds.processes import gathered
from rlhf_lightning.rounds.record import Drawn, Rollouts, checksum, key_of
from rlhf_lightning.types import Credit, Episodes, Ragged

if TYPE_CHECKING:
    from rlhf_lightning.rounds.online import OnlineData

log = logging.getLogger(__name__)


class EmptyRolloutError(RuntimeError):
    """A rollout without a response to learn from; the weights are those before it."""


class Producer:
    """Makes the rollouts of a loader.

    Args:
        data: engine, reward, options, prompts, and the module whose policy is rolled out.
        loader: whose number, place in the stream and plan count.
    """

    def __init__(self, data: OnlineData, loader: RolloutLoader) -> None:
        self.data, self.loader = data, loader
        self.module, self.options, self.place, self.clock = data.module, data.options, data.place, data.clock
        self.collector: Collector = data.collector()
        self.number, self.cursor = loader.number, loader.cursor  # of the rollout that is drawn
        self._empty = 0  # rollouts before it that had nothing to learn from

    @torch.no_grad()
    def __call__(self) -> Experience:
        """The loader's next rollout; those that have nothing to learn from are skipped. A collective call.

        Raises:
            EmptyRolloutError: ``max_empty`` of them in a row had nothing to learn from.
        """
        self.data.sync()
        while (experience := self._rollout()) is None:
            pass
        return experience

    def _rollout(self) -> Experience | None:
        """The next rollout, or None where it is skipped."""
        options, key = self.options, self._key()
        known = self._known(key)
        drawn, kept, cursor = self._drawn(known.groups)
        counts = self.collector.metrics()  # of what was not read; a collective call
        counts = counts if known.counts is None else known.counts
        experience = Experience.of(self.number, cursor, kept, options.kept, mask_truncated=options.mask_truncated)
        if not experience.lengths.any():
            self._write(key, drawn, {}, counts)
            self._skip(experience, counts)
            return None
        with self.clock.phase("score"):
            experience.tokens |= self._scores(experience)
            probed = self._probe(experience)
        with self.clock.phase("credit"):
            credit: Credit = self.module.credit(self.episodes(experience, kept))
            experience.tokens |= {name: values.token.float() for name, values in credit.tokens.items()}
        experience.metrics = self._metrics(drawn, counts | probed | credit.metrics)
        self._write(key, drawn, _advantages(experience, kept), counts)
        return experience

    # Drawing

    def _key(self) -> str:
        """What the rollout's samples and scores are a function of."""
        data = self.data
        rows, examples = data.stream.take(self.cursor, self.loader.size), data.examples
        ids = [examples.tokens[start:end].tobytes() for start, end in examples.bounds[rows, :2].tolist()]
        for part in self.module.modules():
            if hasattr(part, "reshard"):  # FSDP2: a forward pass without gradients leaves weights gathered
                part.reshard()
        weights = checksum(self.module.trained_parameters(), _sum_over_processes)
        options = (self.collector.sampling, self.options, data.reward_name, data.engine.name, data.identity)
        return key_of(ids, self.cursor, data.stream.seed, options, weights)

    def _drawn(self, known: Mapping[int, Scored]) -> tuple[list[Scored], list[Scored], int]:
        """Every group that was drawn, those that are trained on, and the place after the last prompt."""
        size = self.loader.size
        drawn, cursor = self._draw(self.cursor, size, known), self.cursor + size
        if not self.options.dynamic_filter:
            return drawn, drawn, cursor
        kept = [scored for scored in drawn if scored.informative]
        for _ in range(self.options.max_refills):
            missing = size - len(kept)
            if not missing:
                break
            more = self._draw(cursor, missing, known)
            drawn, cursor = drawn + more, cursor + missing
            kept += [scored for scored in more if scored.informative]
        left_out = [scored for scored in drawn if not scored.informative]
        return drawn, kept + left_out[: size - len(kept)], cursor

    def _draw(self, start: int, count: int, known: Mapping[int, Scored]) -> list[Scored]:
        stream = self.data.stream
        return self.collector.draw(
            self.data.examples,
            stream.take(start, count),
            range(start, start + count),
            stream.seeds(start, count),
            module=self.module,
            known=known,
        )

    def _skip(self, experience: Experience, counts: Mapping[str, float]) -> None:
        """Move on from a rollout that has nothing to learn from.

        Raises:
            EmptyRolloutError: there were too many of them in a row.
        """
        self._empty += 1
        if experience.score.isnan().all():
            why = f"the reward {self.data.reward_name!r} scored no response{why_unscored(counts)}"
        else:
            unscored = " or has no score" if experience.score.isnan().any() else ""
            why = (
                f"every response was cut off{unscored}, and method.rollout.mask_truncated=true: raise "
                "rollout.max_new_tokens"
            )
        if self._empty < self.options.max_empty:
            log.warning("rollout %d has nothing to learn from and is skipped: %s", self.number, why)
            self.number, self.cursor = self.number + 1, experience.cursor
            return
        record, first = self._record(), self.number + 1 - self._empty
        if record is not None and not self.place.rank:
            record.set_aside(range(first, self.number + 1))
        which = f"rollouts {first} to {self.number} have" if self._empty > 1 else f"rollout {self.number} has"
        raise EmptyRolloutError(
            f"{which} nothing to learn from: {why}. As many in a row as method.rollout.max_empty="
            f"{self.options.max_empty} end the run"
        )

    # What the module says of it

    def _scores(self, experience: Experience) -> dict[str, Tensor]:
        """What the module computes of every response token, on the micro-batches of the first inner epoch.

        So the first steps' own forward passes repeat these, and their ratios are exactly 1.
        """
        if not self.module.scored:
            return {}
        plan, place = self.loader.plan_of(experience, 0), self.place
        found: dict[str, list[tuple[IntArray, Tensor]]] = {}
        with self._forward():
            for number in range(place.rank, len(plan.tokens), place.world_size):
                groups = plan.micro_batch(number)
                batch = experience.batch(groups, exact_totals(plan, number // place.micro_batches))
                for name, values in self.module.scores(batch.to(self.module.device)).items():
                    found.setdefault(name, []).append((groups, values.float().cpu()))
        whole: dict[str, list[tuple[IntArray, Tensor]]] = {}
        for share in gathered(found):
            for name, parts in share.items():
                whole.setdefault(name, []).extend(parts)
        return experience.scatter(whole)

    def _probe(self, experience: Experience) -> dict[str, float]:
        """How far the engine's log-probs lie from the trainer's; raises above the engine's bound."""
        temperature = self.options.temperature
        found = measured(
            experience,
            self.module.policy,
            temperature=temperature,
            scored_at=getattr(self.module, "temperature", temperature),
            rank=self.place.rank,
            forward=self._forward,
        )
        if found:
            check(found, self.data.engine)
        return {f"mismatch/{name}_gap": value for name, value in found.items()}

    @contextmanager
    def _forward(self) -> Iterator[None]:
        """How a step computes, without gradients and without dropout."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(self.module))
            stack.enter_context(self.data.forward_context())
            yield

    def episodes(self, experience: Experience, kept: Sequence[Scored]) -> Episodes:
        """What credit assignment sees of a rollout."""
        slots = experience.slots
        terms = {
            name: torch.tensor([numbers(scored.terms[name][:slots]) for scored in kept]).flatten()
            for name in sorted(kept[0].terms)
        }
        greedy = torch.tensor(numbers([scored.baseline for scored in kept])) if self.options.greedy_baseline else None
        return Episodes(
            torch.repeat_interleave(torch.arange(len(kept)), slots),
            experience.score,
            experience.truncated,
            torch.from_numpy(experience.lengths),
            {name: experience.ragged(values) for name, values in experience.tokens.items()},
            terms,
            greedy,
            self._step_reward(experience, kept),
        )

    def _step_reward(self, experience: Experience, kept: Sequence[Scored]) -> Ragged | None:
        if not kept[0].steps:
            return None
        slots, lengths = experience.slots, experience.lengths.tolist()
        rows = [row for scored in kept for row in scored.steps[:slots]]
        used = [row for row, length in zip(rows, lengths, strict=True) if length]
        return experience.ragged(torch.tensor([x for row in used for x in row], dtype=torch.float32))

    # What it says

    def _metrics(self, drawn: Sequence[Scored], more: Mapping[str, float]) -> dict[str, float]:
        """The numbers of a rollout, as they are logged."""
        seconds = self.clock.pop()
        found = summary(drawn) | {f"time/{name}": value for name, value in seconds.items()}
        if seconds.get("generate"):
            tokens = sum(len(sample.ids) for scored in drawn for sample in scored.group.samples)
            found["throughput/generated_tokens_per_second"] = tokens / seconds["generate"]
        found |= {"rollout/skipped": float(self._empty), **more}
        return {f"train/{name}": value for name, value in found.items()}

    def _record(self) -> Rollouts | None:
        folder = self.data.folder
        if folder is None:
            return None
        return Rollouts(folder, functools.partial(self.module.tokenizer.decode, skip_special_tokens=False))

    def _write(
        self,
        key: str,
        drawn: Sequence[Scored],
        advantages: Mapping[int, Sequence[float]],
        counts: Mapping[str, float],
    ) -> None:
        record = self._record()
        if record is not None and not self.place.rank:
            record.write(self.number, key, drawn, advantages, counts)

    def _known(self, key: str) -> Drawn:
        """What an earlier, killed process drew and scored; the same on every process."""
        record, number = self._record(), self.number
        local_rows = Drawn()
        if record is not None and not self.place.rank:
            local_rows = record.read(number, key, self.data.examples)
        known = gathered(local_rows)[0]
        if known.groups:
            count = len(known.groups)
            log.info("rollout %d was drawn before the run was interrupted; its %d prompts are read", number, count)
        return known


def _advantages(experience: Experience, kept: Sequence[Scored]) -> dict[int, list[float]]:
    """Mean advantage of the responses of each group by the place of its prompt, nan where one is not trained on."""
    advantage = experience.ragged(experience.tokens["advantage"]).mean()
    advantage = advantage.masked_fill(torch.from_numpy(experience.lengths == 0), torch.nan)
    rows = advantage.reshape(len(kept), -1).tolist()
    return {scored.place: row for scored, row in zip(kept, rows, strict=True)}


def summary(drawn: Sequence[Scored]) -> dict[str, float]:
    """Rewards and lengths of everything that was drawn, by name."""
    score = torch.tensor([numbers(scored.score) for scored in drawn]).flatten()
    known = score[~score.isnan()]
    found = {"reward/unscored": 1 - len(known) / len(score)}
    if len(known):
        found |= {"reward/mean": float(known.mean()), "reward/std": float(known.std(correction=0))}
        found |= {"reward/min": float(known.min()), "reward/max": float(known.max())}
    for name in drawn[0].terms:
        values = torch.tensor([numbers(scored.terms[name]) for scored in drawn]).flatten()
        if not values.isnan().all():
            found[f"reward/{name}"] = float(values.nanmean())
    samples = [sample for scored in drawn for sample in scored.group.samples]
    lengths = torch.tensor([float(len(sample.ids)) for sample in samples])
    return found | {
        "response/length": float(lengths.mean()),
        "response/max_length": float(lengths.max()),
        "response/truncated": sum(sample.finish == "length" for sample in samples) / len(samples),
        "group/zero_std": sum(not scored.informative for scored in drawn) / len(drawn),
    }


def _sum_over_processes(values: Any) -> Any:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
