"""Draw responses to prompts and score them: each process its share, then every process has all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rlhf_lightning.data.examples import Examples
from rlhf_lightning.rewards.base import Reward, Scores, metrics_of, scored
from rlhf_lightning.rounds.experience import IntArray, Scored
from rlhf_lightning.rounds.processes import Clock, gathered, interleaved
from rlhf_lightning.types import RolloutOptions, Sample, SampleGroup, Sampling

if TYPE_CHECKING:
    from rlhf_lightning.data.module import Place
    from rlhf_lightning.rollout.base import RolloutEngine


@dataclass
class Collector:
    """An engine and a reward, asked together.

    Attributes:
        engine: draws; it holds the policy's weights.
        reward: scores; None: every response has 0.
        options: how the method uses samples.
        place: this process's share.
        clock: where the time went: ``generate``, ``reward``.
        validating: draw for validation: no greedy baseline, the options' own number of samples and temperature.
    """

    engine: RolloutEngine
    reward: Reward | None
    options: RolloutOptions
    place: Place
    clock: Clock
    validating: bool = False

    @property
    def n(self) -> int:
        """Samples a prompt."""
        return self.options.validation_samples if self.validating else self.options.group_size

    @property
    def sampling(self) -> Sampling:
        """How samples are drawn."""
        options = self.options
        temperature = options.validation_temperature if self.validating else None
        return Sampling(
            max_new_tokens=self.engine.max_new_tokens,
            temperature=options.temperature if temperature is None else temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_new_tokens=self.engine.min_new_tokens,
            ignore_eos=options.ignore_eos,
        )

    @property
    def _has_baseline(self) -> bool:
        """Whether a prompt's samples are compared with its greedy response."""
        return self.options.greedy_baseline and not self.validating

    def draw(
        self,
        examples: Examples,
        rows: IntArray,
        places: Sequence[int],
        seeds: Sequence[int],
        *,
        module: Any = None,
        known: Mapping[int, Scored] | None = None,
    ) -> list[Scored]:
        """Samples and scores of some prompts; a collective call.

        Args:
            examples: the data set.
            rows: of the data set.
            places: of the prompts in the stream.
            seeds: of their random streams.
            module: what is trained, for a reward that asks the policy itself.
            known: what an earlier, killed process found at some places, the same on every process.

        Returns:
            One entry a prompt, in order; the same on every process.
        """
        found = dict(known or {})
        missing = [at for at, place in enumerate(places) if place not in found]
        mine = missing[self.place.rank :: self.place.world_size]
        if missing:
            groups = [group_of(examples, int(rows[at])) for at in mine]
            own = self.scored([places[at] for at in mine], groups, [seeds[at] for at in mine], module)
            found |= {one.place: one for one in interleaved(gathered(own))}
        return [found[place] for place in places]

    def scored(self, places: list[int], groups: list[SampleGroup], seeds: list[int], module: Any) -> list[Scored]:
        """Samples and scores of this process's prompts; a collective call where weights are shared.

        Args:
            places: of the prompts in the stream.
            groups: the prompts, without samples.
            seeds: of their random streams.
            module: what is trained, for a reward that asks the policy itself.
        """
        prompts = [group.prompt for group in groups]
        with self.clock.phase("generate"):
            samples = self.engine.generate(prompts, self.sampling, n=self.n, seeds=seeds)
            greedy = self._greedy(prompts, seeds)
        filled = [replace(g, samples=[self._cut(s) for s in own]) for g, own in zip(groups, samples, strict=True)]
        baselines = [replace(g, samples=[self._cut(s) for s in own]) for g, own in zip(groups, greedy, strict=False)]
        if hasattr(self.reward, "policy"):
            self.reward.policy = module  # type: ignore[union-attr]
        with self.clock.phase("reward"):
            total, terms = self._rewards(filled)
            steps = self._steps(filled)
            # Asked also without any prompt: where the policy itself scores, every process has to take part.
            base: Scores = self._rewards(baselines)[0] if self._has_baseline else [[None]] * len(groups)
        return [
            Scored(
                place,
                group,
                total[at],
                {name: values[at] for name, values in terms.items()},
                steps[at] if steps else [],
                base[at][0],
            )
            for at, (place, group) in enumerate(zip(places, filled, strict=True))
        ]

    def _rewards(self, groups: list[SampleGroup]) -> tuple[Scores, dict[str, Scores]]:
        if self.reward is None:
            return [[0.0] * len(group.samples) for group in groups], {}
        return scored(self.reward, groups)

    def _greedy(self, prompts: list[list[int]], seeds: list[int]) -> list[list[Sample]]:
        if not self._has_baseline:
            return []
        sampling = replace(self.sampling, temperature=0.0, top_p=1.0, top_k=0)
        return self.engine.generate(prompts, sampling, n=1, seeds=seeds)

    def _steps(self, groups: list[SampleGroup]) -> list[list[list[float]]]:
        find: Callable[[Sequence[SampleGroup]], list[list[list[float]]] | None] | None
        find = getattr(self.reward, "step_reward", None)
        return (find(groups) if find is not None else None) or []

    def _cut(self, sample: Sample) -> Sample:
        """A sample up to the token that ends responses by this method's rule."""
        token, start = self.options.truncate_after, self.options.truncate_from
        if token is None or token not in sample.ids[start:]:
            return sample
        end = sample.ids.index(token, start) + 1
        return replace(sample, ids=sample.ids[:end], log_probs=sample.log_probs[:end], finish="stop")

    def metrics(self) -> dict[str, float]:
        """What the reward counted since the last call, the mean over processes; a collective call.

        A process whose reward has nothing to say of a name (no failures, no rows with answers) is left out of its mean,
        and every process returns the same names.
        """
        shares = gathered(metrics_of(self.reward))
        names = dict.fromkeys(name for share in shares for name in share)
        return {name: fmean(share[name] for share in shares if name in share) for name in names}


def group_of(examples: Examples, row: int) -> SampleGroup:
    """A prompt that nobody has answered yet."""
    start, end = examples.bounds[row, :2].tolist()
    columns = examples.columns_of(row)
    return SampleGroup(examples.tokens[start:end].tolist(), [], columns, examples.row(row), row)
