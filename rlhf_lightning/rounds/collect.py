"""Draw responses to prompts and score them: each process its share, then every process has all scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons.experience import numbers
from rlhf_lightning.lessons.tokens import IntArray
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.rewards.base import Reward, Scores, StepReward, WinMatrix, introduce, metrics_of, score_groups
from rlhf_lightning.rewards.win_matrix import check_compares, compared
from rlhf_lightning.rounds.exchange import Facts, announced
from rlhf_lightning.rounds.processes import Clock, gathered, interleaved
from rlhf_lightning.rounds.roles import assign_roles
from rlhf_lightning.types import (
    Draw,
    Example,
    PromptForm,
    RolloutOptions,
    Sample,
    SampleGroup,
    Sampling,
    ScoredGroup,
    Trained,
)

if TYPE_CHECKING:
    from rlhf_lightning.data.batches.plan import ProcessShare
    from rlhf_lightning.rollout.base import RolloutEngine


#: A prompt's samples that were scored as one group: scores, terms by name, steps, wins.
_Panel = tuple[SampleGroup, list[float | None], dict[str, list[float | None]], list[list[float]], WinMatrix]


@dataclass
class Collector:
    """An engine and a reward, asked together.

    Attributes:
        engine: draws; it holds the policy's weights.
        reward: scores; None: every response has 0.
        options: how the method uses samples.
        process_share: part of every step that is this process's.
        clock: seconds by phase: ``generate``, ``reward``.
        responses: the data's own groups, by row; for draws of the data.
        validating: draw for validation, with the number of samples and the temperature that the options give for it.
        form: of the prompts.
    """

    engine: RolloutEngine
    reward: Reward | None
    options: RolloutOptions
    process_share: ProcessShare
    clock: Clock
    responses: Mapping[str, Example] = field(default_factory=dict)
    validating: bool = False
    form: PromptForm = field(default_factory=PromptForm)

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Draws for each prompt."""
        return self.options.validation_draws if self.validating else self.options.draws

    def sampling(self, draw: Draw) -> Sampling:
        """Options that the samples of a draw are drawn with."""
        options, greedy = self.options, draw.temperature == 0
        return Sampling(
            max_new_tokens=self.engine.max_new_tokens,
            temperature=draw.temperature,
            top_p=1.0 if greedy else options.top_p,
            top_k=0 if greedy else options.top_k,
            min_new_tokens=self.engine.min_new_tokens,
            ignore_eos=options.ignore_eos,
            source=draw.source,
            mix=draw.mix,
            form=self.form,
            guided=draw.source == "policy" and not self.validating,
        )

    @property
    def reward_name(self) -> str:
        """Name of the reward, ``none`` without one."""
        return "none" if self.reward is None else self.reward.name

    @property
    def identity(self) -> tuple[Any, ...]:
        """Everything that determines samples and scores, apart from prompts and weights."""
        wins = ("wins",) if self.options.needs_wins else ()
        return self.sampling(self.draws[0]), self.options, self.reward_name, self.engine.name, *wins

    def draw(
        self,
        examples: Examples,
        rows: IntArray,
        positions: Sequence[int],
        seeds: Sequence[int],
        *,
        module: Trained | None = None,
        recorded: Mapping[int, ScoredGroup] | None = None,
        facts: Facts = lambda group: {},
    ) -> list[ScoredGroup]:
        """Samples and scores of some prompts; a collective call.

        Args:
            examples: the data set.
            rows: of the data set.
            positions: of the prompts in the stream.
            seeds: of their random streams.
            module: the module that is trained, for a reward that asks the policy itself.
            recorded: groups that an earlier, killed process drew, by position.
            facts: what the lesson reads of the tokens and texts of a group.

        Returns:
            One entry a prompt, in order; tokens and columns are with the process that drew them.
        """
        by_position = dict(recorded or {})
        missing = [at for at, position in enumerate(positions) if position not in by_position]
        local_indices = missing[self.process_share.rank :: self.process_share.world_size]
        if missing:
            groups = [group_of(examples, int(rows[at])) for at in local_indices]
            local_groups = self.sample_and_score(
                [positions[at] for at in local_indices], groups, [seeds[at] for at in local_indices], module
            )
            by_position |= {one.position: one for one in interleaved(announced(local_groups, facts))}
        return [by_position[position] for position in positions]

    def sample_and_score(
        self, positions: list[int], groups: list[SampleGroup], seeds: list[int], module: Trained | None
    ) -> list[ScoredGroup]:
        """Samples and scores of this process's prompts; a collective call where weights are shared.

        Args:
            positions: of the prompts in the stream.
            groups: the prompts, without samples.
            seeds: of their random streams.
            module: the module that is trained, for a reward that asks the policy itself.
        """
        with self.clock.phase("generate"):
            drawn = [self._drawn(number, groups, seeds) for number in range(len(self.draws))]
        self._introduce(module)
        with self.clock.phase("reward"):
            parts = [drawn] if self.options.compared else [[samples] for samples in drawn]
            panels_by_part = [self._panel(groups, part, steps=not number) for number, part in enumerate(parts)]
        draw = [number for number, one in enumerate(self.draws) for _ in range(one.n)]
        whole = [panels[0] if len(panels) == 1 else _joined(panels) for panels in zip(*panels_by_part, strict=True)]
        return [
            ScoredGroup(position, group, score, terms, by_step, draw, wins)
            for position, (group, score, terms, by_step, wins) in zip(positions, whole, strict=True)
        ]

    def _introduce(self, module: Trained | None) -> None:
        """Give the reward the models that it asks, as they are now."""
        introduce(self.reward, module)
        assign_roles(self.reward, module)

    def judged(self, pairs: Examples, module: Trained) -> dict[str, float]:
        """Accuracy of the reward on pairs whose first response is better; a collective call.

        Args:
            pairs: of the data; their columns are shown to the reward as those of prompts are.
            module: the module that is trained.

        Returns:
            ``judge/accuracy``, ties counting half, where any pair has two scores; ``judge/unscored``: the others.
        """
        if self.reward is None:
            return {}
        self._introduce(module)
        local_rows = range(self.process_share.rank, len(pairs), self.process_share.world_size)
        with self.clock.phase("reward"):
            scores, _ = score_groups(self.reward, [_pair_of(pairs, row) for row in local_rows])
        self.metrics()  # counts of these pairs are no part of the round
        better, worse = zip(*(row for share in gathered(scores) for row in share), strict=True)
        wins = outcomes(torch.tensor(numbers(better)), torch.tensor(numbers(worse)))
        decided = wins[~wins.isnan()]
        accuracy = {"judge/accuracy": float(decided.mean())} if len(decided) else {}
        return {**accuracy, "judge/unscored": 1 - len(decided) / len(wins)}

    def _drawn(self, number: int, groups: Sequence[SampleGroup], seeds: Sequence[int]) -> list[list[Sample]]:
        """The samples of a draw for each prompt; each draw but the first has random streams of its own."""
        draw = self.draws[number]
        if draw.source == "data":
            return [[Sample(self.responses[group.row].responses[0], [], "stop")] for group in groups]
        streams = list(seeds) if not number else [stream_seed("draw", seed, number) for seed in seeds]
        prompts = [group.prompt for group in groups]
        samples = self.engine.generate(prompts, self.sampling(draw), n=draw.n, seeds=streams)
        return [[self._cut(sample) for sample in row] for row in samples]

    def _panel(
        self, groups: Sequence[SampleGroup], drawn: Sequence[list[list[Sample]]], *, steps: bool
    ) -> list[_Panel]:
        """Some draws of each prompt, scored as one group.

        It is called without any prompt too: where the policy itself scores, every process has to take part.

        Args:
            groups: the prompts.
            drawn: by draw, the samples of each prompt.
            steps: whether steps are scored too.
        """
        filled = [
            replace(group, samples=[sample for samples in row for sample in samples])
            for group, *row in zip(groups, *drawn, strict=True)
        ]
        total, terms, wins = self._rewards(filled)
        by_step = self._steps(filled) if steps else []
        return [
            (
                group,
                total[at],
                {name: values[at] for name, values in terms.items()},
                by_step[at] if by_step else [],
                wins[at] if wins else [],
            )
            for at, group in enumerate(filled)
        ]

    def _rewards(self, groups: list[SampleGroup]) -> tuple[Scores, dict[str, Scores], list[WinMatrix]]:
        if self.reward is None:
            return [[0.0] * len(group.samples) for group in groups], {}, []
        if not self.options.needs_wins:
            return *score_groups(self.reward, groups), []
        total, wins = compared(self.reward, groups)
        return total, {self.reward.name: total}, wins

    def _steps(self, groups: list[SampleGroup]) -> list[list[list[float]]]:
        return (self.reward.step_reward(groups) or []) if isinstance(self.reward, StepReward) else []

    def _cut(self, sample: Sample) -> Sample:
        """A sample up to the token that ends responses by this method's rule."""
        token, start = self.options.truncate_after, self.options.truncate_from
        if token is None or token not in sample.ids[start:]:
            return sample
        end = sample.ids.index(token, start) + 1
        return replace(sample, ids=sample.ids[:end], log_probs=sample.log_probs[:end], finish="stop")

    def metrics(self) -> dict[str, float]:
        """Counts of the reward since the last call, the mean over processes; a collective call.

        A process whose reward has no count of a name (no failures, no rows with gold answers) is left out of its mean,
        and every process returns the same names.
        """
        shares = gathered(metrics_of(self.reward))
        names = dict.fromkeys(name for share in shares for name in share)
        return {name: fmean(share[name] for share in shares if name in share) for name in names}


def check_parts(engine: RolloutEngine, reward: Reward | None, options: RolloutOptions) -> None:
    """Refuse draws from a source that the engine does not have, and a reward that cannot compare where it has to.

    Raises:
        ValueError: there is one; the message names the option.
    """
    if options.needs_wins:
        check_compares(reward)
    for number, draw in enumerate(options.draws):
        if draw.source != "data" and draw.source not in engine.sources:
            raise ValueError(
                f"rounds.draws.{number}: rollout={engine.name} cannot draw from source={draw.source}, only from "
                f"{', '.join(sorted(engine.sources))}: choose rollout=transformers, or another source"
            )


def _joined(panels: Sequence[_Panel]) -> _Panel:
    """Several panels of one prompt as one; no step of the later ones ends."""
    group = replace(panels[0][0], samples=[sample for panel in panels for sample in panel[0].samples])
    names = panels[0][2]
    steps = list(panels[0][3])
    if steps:
        steps += [[math.nan] * len(sample.ids) for sample in group.samples[len(steps) :]]
    terms = {name: [value for panel in panels for value in panel[2][name]] for name in names}
    return group, [score for panel in panels for score in panel[1]], terms, steps, []


def _pair_of(examples: Examples, row: int) -> SampleGroup:
    """A prompt with the responses of the data, which no engine drew."""
    samples = [Sample(ids, [], "stop") for ids in examples[row].responses]
    return replace(group_of(examples, row), samples=samples)


def group_of(examples: Examples, row: int) -> SampleGroup:
    """A prompt without samples."""
    start, end = examples.bounds[row, :2].tolist()
    columns = examples.columns_of(row)
    return SampleGroup(examples.tokens[start:end].tolist(), [], columns, examples.row(row), row)
