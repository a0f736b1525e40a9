"""On-policy data: prompts in, rollouts of the policy out, under ``Trainer``, Fabric or a plain loop."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_lightning.data.loader import ListLoader
from rlhf_lightning.data.module import AlignmentDataModule, Place
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollout.probe import check
from rlhf_lightning.rounds.collect import Collector
from rlhf_lightning.rounds.experience import Experience, IntArray, Scored, exact_totals, numbers
from rlhf_lightning.rounds.loader import RolloutLoader
from rlhf_lightning.rounds.probing import measured
from rlhf_lightning.rounds.processes import Clock, gathered
from rlhf_lightning.rounds.prompts import PromptStream
from rlhf_lightning.rounds.record import Rollouts, checksum, key_of
from rlhf_lightning.rounds.validation import ValidationLoader
from rlhf_lightning.types import Credit, Episodes, Ragged, RolloutOptions

if TYPE_CHECKING:
    from rlhf_lightning.data.checks import Report
    from rlhf_lightning.data.examples import Examples
    from rlhf_lightning.rollout.base import RolloutEngine

log = logging.getLogger(__name__)


class OnlineData(L.LightningDataModule):
    """Rollouts of the policy that is trained, as batches.

    When the training loader runs dry, it draws responses to the next prompts, scores them, has the module assign
    credit, and yields the inner epochs' micro-batches. Every process draws and scores its share; then each holds the
    whole rollout, so every statistic is that of the whole rollout without further communication.

    With a ``Trainer`` the module is the trainer's; elsewhere it is given by :meth:`attach`.

    Args:
        prompts: data of kind ``prompt``; its ``batch_size`` counts the prompts of an optimiser step.
        engine: draws.
        reward: scores; None: nothing does, every response counts 0.
        options: how the method uses rollouts.
        folder: of the rollouts' files, and where a killed run finds them; None: none are written.

    Raises:
        ValueError: the prompts' steps are counted in tokens.
    """

    def __init__(
        self,
        prompts: AlignmentDataModule,
        engine: RolloutEngine,
        reward: Reward | None,
        options: RolloutOptions,
        folder: str | Path | None = None,
    ) -> None:
        self.prompts = prompts
        super().__init__()
        if prompts.batching.batch_size is None:
            raise ValueError(
                "data.max_tokens cuts steps by tokens, and responses that are not drawn yet have none: set "
                "data.batch_size (prompts of an optimiser step) and data.max_tokens=null; "
                "trainer.accumulate_grad_batches makes micro-batches smaller"
            )
        self.engine, self.reward, self.options = engine, reward, options
        self.folder = None if folder is None else Path(folder)
        self.clock = Clock()
        self.metrics: dict[str, float] = {}  #: of the last rollout
        self._module: Any = None
        self._context: Callable[[], AbstractContextManager[Any]] = nullcontext

    # What the commands ask of data

    @property
    def trainer(self) -> Any:
        """Whose processes and accumulation count."""
        return self.prompts.trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self.prompts.trainer = trainer

    @property
    def reports(self) -> dict[str, Report]:
        """By role: what happened to every row."""
        return self.prompts.reports

    @property
    def validation(self) -> Any:
        """Where validation prompts are from."""
        return self.prompts.validation

    @property
    def train_examples(self) -> Examples | None:
        """Prompts of the training data."""
        return self.prompts.train_examples

    @property
    def val_examples(self) -> Examples | None:
        """Prompts of the validation data."""
        return self.prompts.val_examples

    @property
    def place(self) -> Place:
        """This process's share."""
        trainer = self.trainer
        if trainer is None:
            return self.prompts.place
        return Place(trainer.accumulate_grad_batches, trainer.global_rank, trainer.world_size)

    def attach(self, module: Any, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """Say whose policy is rolled out, where there is no ``Trainer``.

        Args:
            module: with its models loaded.
            context: around forward passes, such as ``fabric.autocast``.
        """
        self._module, self._context = module, context

    @property
    def module(self) -> Any:
        """What is trained."""
        module = self._module if self._module is not None else getattr(self.trainer, "lightning_module", None)
        if module is None:
            raise RuntimeError("no module to roll out: call attach(module) first, or pass the data to Trainer.fit")
        return module

    def setup(self, stage: str | None = None) -> None:
        """Read and check the prompts; no weights are needed.

        Args:
            stage: ``fit``, ``validate``, ...; None means everything.
        """
        self.prompts.setup(stage)
        if stage in (None, "fit"):
            self.train_dataloader()  # impossible sizes are an error here, before weights load

    def summaries(self) -> list[str]:
        """What was read, and what a rollout is: a few lines for people."""
        lines = self.prompts.summaries()
        if self.train_examples is None:
            return lines
        loader, options = self.train_dataloader(), self.options
        samples = f"{options.group_size} samples" if options.group_size > 1 else "1 sample"
        passes = f"{options.inner_epochs} passes" if options.inner_epochs > 1 else "1 pass"
        steps = f"{options.minibatches} steps" if options.minibatches > 1 else "1 step"
        text = (
            f"rollouts: {loader.rollouts} an epoch, each of {loader.size} prompts with {samples} of at most "
            f"{self.engine.max_new_tokens} tokens ({self.engine.name}), for {passes} of {steps}; "
            f"reward: {self.reward_name}"
        )
        return [*lines, text]

    @property
    def reward_name(self) -> str:
        """Of what scores."""
        return "none" if self.reward is None else self.reward.name

    # Loaders

    @property
    def stream(self) -> PromptStream:
        """The order of the prompts."""
        batching = self.prompts.batching
        return PromptStream(len(self._examples), batching.seed, batching.shuffle)

    @property
    def _examples(self) -> Examples:
        if self.train_examples is None:
            raise RuntimeError("call setup() first: the prompts have not been read")
        return self.train_examples

    def train_dataloader(self) -> RolloutLoader:
        """This process's training batches."""
        batching = self.prompts.batching
        assert batching.batch_size is not None
        return RolloutLoader(
            self.rollout,
            prompts=len(self._examples),
            batch_size=batching.batch_size,
            options=self.options,
            place=self.place,
            seed=batching.seed,
            padded=batching.padded,
            group_tokens=int(self._examples.lengths.max()) + self.options.kept * self.engine.max_new_tokens,
        )

    def val_dataloader(self) -> ValidationLoader | list[ValidationLoader]:
        """This process's validation batches, drawn when they are asked for; an empty list without validation data."""
        listed = self.prompts.val_dataloader()
        if not isinstance(listed, ListLoader):
            return []
        return ValidationLoader(listed.batches.listed, self._collector(True), self._sync, lambda: self.module)

    # A rollout

    def rollout(self, loader: RolloutLoader) -> Experience:
        """The loader's next rollout; a collective call.

        Args:
            loader: whose number, place in the stream and plan count.
        """
        with torch.no_grad():
            return self._rollout(loader)

    def _rollout(self, loader: RolloutLoader) -> Experience:
        self._sync()
        key = self._key(loader)
        drawn, kept, cursor = self._drawn(loader, key)
        options = self.options
        experience = Experience.of(loader.number, cursor, kept, options.kept, mask_truncated=options.mask_truncated)
        self._check(experience)
        with self.clock.phase("score"):
            experience.tokens |= self._scores(experience, loader)
            probed = self._probe(experience)
        with self.clock.phase("credit"):
            credit: Credit = self.module.credit(self.episodes(experience, kept))
            experience.tokens |= {name: values.token.float() for name, values in credit.tokens.items()}
        self._report(drawn, probed | credit.metrics)
        self._write(loader.number, key, drawn, kept, experience)
        return experience

    def _sync(self) -> None:
        with self.clock.phase("sync"):
            self.engine.sync(self.module.policy, self._version)

    @property
    def _version(self) -> int:
        return 0 if self.trainer is None else int(self.trainer.global_step)

    def _key(self, loader: RolloutLoader) -> str:
        """What the rollout's samples and scores are a function of."""
        rows = self.stream.take(loader.cursor, loader.size)
        examples = self._examples
        ids = [examples.tokens[start:end].tobytes() for start, end in examples.bounds[rows, :2].tolist()]
        weights = checksum(self.module.trained_parameters(), _sum_over_processes)
        options = (self._collector().sampling, self.options, self.reward_name, self.engine.name)
        return key_of(ids, loader.cursor, self.stream.seed, options, weights)

    def _collector(self, validating: bool = False) -> Collector:
        clock = Clock() if validating else self.clock
        return Collector(self.engine, self.reward, self.options, self.place, clock, validating)

    def _drawn(self, loader: RolloutLoader, key: str) -> tuple[list[Scored], list[Scored], int]:
        """Every group that was drawn, those that are trained on, and the place after the last prompt."""
        known = self._known(loader.number, key)
        drawn = self._draw(loader.cursor, loader.size, known)
        kept, cursor = list(drawn), loader.cursor + loader.size
        if not self.options.dynamic_filter:
            return drawn, kept, cursor
        kept = [scored for scored in drawn if scored.informative]
        for _ in range(self.options.max_refills):
            missing = loader.size - len(kept)
            if not missing:
                break
            more = self._draw(cursor, missing, known)
            drawn, cursor = drawn + more, cursor + missing
            kept += [scored for scored in more if scored.informative]
        left_out = [scored for scored in drawn if not scored.informative]
        return drawn, kept + left_out[: loader.size - len(kept)], cursor

    def _draw(self, start: int, count: int, known: dict[int, Scored]) -> list[Scored]:
        stream = self.stream
        return self._collector().draw(
            self._examples,
            stream.take(start, count),
            range(start, start + count),
            stream.seeds(start, count),
            module=self.module,
            known=known,
        )

    def _check(self, experience: Experience) -> None:
        """Raise where nothing is left to learn from."""
        if experience.lengths.any():
            return
        unscored = bool(experience.score.isnan().all())
        why = (
            f"the reward {self.reward_name!r} scored no response"
            if unscored
            else "every response was cut off, and method.rollout.mask_truncated=true: raise rollout.max_new_tokens"
        )
        raise RuntimeError(f"rollout {experience.number} has nothing to learn from: {why}")

    def _scores(self, experience: Experience, loader: RolloutLoader) -> dict[str, Tensor]:
        """What the module computes of every response token, on the micro-batches of the first inner epoch.

        So the first steps' own forward passes repeat these, and their ratios are exactly 1.
        """
        if not self.module.scored:
            return {}
        plan, place = loader.plan_of(experience, 0), self.place
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
        policy, options = self.module.policy, self.options
        found = measured(
            experience, policy, temperature=options.temperature, rank=self.place.rank, forward=self._forward
        )
        if found:
            check(found, self.engine)
        return {f"mismatch/{name}_gap": value for name, value in found.items()}

    @contextmanager
    def _forward(self) -> Iterator[None]:
        """How a step computes, without gradients and without dropout."""
        trainer = self.trainer
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_evaluating(self.module))
            stack.enter_context(self._context() if trainer is None else trainer.precision_plugin.forward_context())
            yield

    def episodes(self, experience: Experience, kept: Sequence[Scored]) -> Episodes:
        """What credit assignment sees of a rollout."""
        slots = experience.slots
        names = sorted({name for scored in kept for name in scored.terms})
        terms = {
            name: torch.tensor([numbers(scored.terms[name][:slots]) for scored in kept]).flatten() for name in names
        }
        baseline = None
        if self.options.greedy_baseline:
            baseline = torch.tensor(numbers([scored.baseline for scored in kept]))
        return Episodes(
            torch.repeat_interleave(torch.arange(len(kept)), slots),
            experience.score,
            experience.truncated,
            torch.from_numpy(experience.lengths),
            {name: experience.ragged(values) for name, values in experience.tokens.items()},
            terms,
            baseline,
            self._step_reward(experience, kept),
        )

    def _step_reward(self, experience: Experience, kept: Sequence[Scored]) -> Ragged | None:
        if not kept or not kept[0].steps:
            return None
        slots, lengths = experience.slots, experience.lengths.tolist()
        rows = [row for scored in kept for row in scored.steps[:slots]]
        used = [row for row, length in zip(rows, lengths, strict=True) if length]
        return experience.ragged(torch.tensor([x for row in used for x in row], dtype=torch.float32))

    # What a rollout says

    def _report(self, drawn: Sequence[Scored], more: dict[str, float]) -> None:
        """Log the numbers of a rollout."""
        score = torch.tensor([numbers(scored.score) for scored in drawn]).flatten()
        found = {f"reward/{name}": value for name, value in _spread(score[~score.isnan()]).items()}
        found["reward/unscored"] = float(score.isnan().float().mean())
        for name in drawn[0].terms:
            values = torch.tensor([numbers(scored.terms[name]) for scored in drawn]).flatten()
            found[f"reward/{name}"] = float(values[~values.isnan()].mean())
        samples = [sample for scored in drawn for sample in scored.group.samples]
        lengths = torch.tensor([float(len(sample.ids)) for sample in samples])
        found |= {
            "response/length": float(lengths.mean()),
            "response/max_length": float(lengths.max()),
            "response/truncated": sum(sample.finish == "length" for sample in samples) / len(samples),
            "group/zero_std": sum(not scored.informative for scored in drawn) / len(drawn),
        }
        seconds = self.clock.pop()
        found |= {f"time/{name}": value for name, value in seconds.items()}
        if seconds.get("generate"):
            found["throughput/generated_tokens_per_second"] = float(lengths.sum()) / seconds["generate"]
        found |= self._collector().metrics() | more
        self.metrics = {f"train/{name}": value for name, value in found.items()}
        if self.trainer is not None:
            for name, value in self.metrics.items():
                self.module.track(name, torch.tensor(value, device=self.module.device))

    def _record(self) -> Rollouts | None:
        if self.folder is None:
            return None
        return Rollouts(self.folder, functools.partial(self.module.tokenizer.decode, skip_special_tokens=False))

    def _write(
        self, number: int, key: str, drawn: Sequence[Scored], kept: Sequence[Scored], experience: Experience
    ) -> None:
        record = self._record()
        if record is None or self.place.rank:
            return
        mean = (
            experience.ragged(experience.tokens["advantage"])
            .mean()
            .masked_fill(torch.from_numpy(experience.lengths == 0), torch.nan)
        )
        rows = mean.reshape(len(kept), -1).tolist()
        record.write(number, key, drawn, {scored.place: row for scored, row in zip(kept, rows, strict=True)})

    def _known(self, number: int, key: str) -> dict[int, Scored]:
        """What an earlier, killed process drew and scored; the same on every process."""
        record = self._record()
        mine = record.read(number, key, self._examples) if record is not None and not self.place.rank else {}
        known = gathered(mine)[0]
        if known:
            log.info("rollout %d was drawn before the run was interrupted; its %d prompts are read", number, len(known))
        return known

    def teardown(self, stage: str) -> None:
        """Let the engine go."""
        if stage == "fit":
            self.engine.close()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _sum_over_processes(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def _spread(values: Tensor) -> dict[str, float]:
    """Mean, deviation (biased) and extremes; nothing of nothing."""
    if not len(values):
        return {}
    return {
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)),
        "min": float(values.min()),
        "max": float(values.max()),
    }
