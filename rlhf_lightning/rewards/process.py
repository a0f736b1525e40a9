"""A process reward model's verdicts on the steps of a solution, as one reward."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.conversations import Rendered
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.loading.vocabulary import align_with_tokenizer
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import Dtype, Pretrained
from rlhf_lightning.options import Count
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.texts import Texts, batches, chosen_device
from rlhf_lightning.types import Example, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: One number out of the probabilities that the steps are right.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "min": torch.min,
    "product": torch.prod,
    "last": lambda steps: steps[-1],
}


class ProcessReward:
    r"""Probability that the steps of a solution are right, as a process reward model states it, in [0, 1].

    The solution's text is cut into steps, the separator is put behind each, and :math:`\sigma` of the model's logit is
    read at its last token, as ``method=process_reward`` was trained. An empty solution is one empty step.

    Source: "Let's Verify Step by Step", arXiv:2305.20050, takes the product of the steps; "Math-Shepherd",
    arXiv:2312.08935, the smallest; the reward models of RLHFlow the mean, which is the default here.

    Args:
        tokenizer: of whoever made the token ids; None: the model's own.
        path: folder (a run's ``export/last``) or hub id of a sequence-classification model of one output, or of an
            adapter for one.
        name: what its numbers are logged under.
        spec: ``step_separator``, which is put behind every step.
        step_end: text with which a step ends, where that is not the separator; it stays a part of the step.
        aggregate: ``mean``, ``min``, ``product`` or ``last`` of the steps' probabilities.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch.

    Raises:
        ValueError: an unknown aggregate, or the folder holds no reward model of one output.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str,
        name: str = "process",
        spec: DataSpec | None = None,
        step_end: str | None = None,
        aggregate: Literal["mean", "min", "product", "last"] = "mean",
        dtype: Dtype = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
    ) -> None:
        if aggregate not in AGGREGATES:
            raise ValueError(f"reward.aggregate={aggregate!r} is none of {', '.join(AGGREGATES)}")
        self.name, self.aggregate, self.max_tokens = name, aggregate, max_tokens
        self.spec, self.step_end = spec or DataSpec(), step_end
        self.device = chosen_device(device)
        source = Pretrained(path, dtype=dtype)
        self.model_tokenizer = source.tokenizer()
        model: Any = source.load()
        outputs = 0 if (head := getattr(model, "saved_head", None)) is None else len(head.weight)
        if outputs != 1:
            raise ValueError(
                f"reward.path={path} holds a model of {outputs} rewards, and a process reward model has one: export a "
                "run of method=process_reward"
            )
        align_with_tokenizer(model, self.model_tokenizer)
        keep_float32_buffers(model)
        self.model = Scorer(model).to(self.device).eval().requires_grad_(False)
        self.texts = Texts(self.model_tokenizer, tokenizer)
        self.encoder = Encoder(self.model_tokenizer, self.spec, None)

    @torch.no_grad()
    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return [[self._aggregated(steps) for steps in group] for group in self.steps(groups)]

    @torch.no_grad()
    def steps(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]]:
        """The probability of every step of every response."""
        solutions = [self._solution(group.prompt, response) for group in groups for response in group.responses]
        probabilities: list[list[float]] = [[] for _ in solutions]
        for rows in batches(solutions, self.max_tokens):
            batch = pack([solutions[row] for row in rows]).to(self.device)
            right = torch.sigmoid(self.model.normalized(self.model(batch, at="scored")))
            for number, row in enumerate(rows):
                probabilities[row] = right[batch.sequence == number].tolist()
        values = iter(probabilities)
        return [[next(values) for _ in group.samples] for group in groups]

    def step_reward(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]]:
        """The probability of every step at the token of the response that ends it.

        A step ends at the token with which its last character is there, the separator behind it not counted; two
        steps that end within one token leave the later one's number there.

        Returns:
            For each response one number a token, nan at tokens that end no step.
        """
        probabilities = self.steps(groups)
        return [
            [self._placed(response, steps) for response, steps in zip(group.responses, rows, strict=True)]
            for group, rows in zip(groups, probabilities, strict=True)
        ]

    def _placed(self, response: list[int], steps: list[float]) -> list[float]:
        placed = [math.nan] * len(response)
        text, position = self.texts.text(response), 0
        for step, value in zip(self._cut(text), steps, strict=True):
            position = text.index(step, position) + len(step)
            # The number of characters grows with the number of tokens, so the place is found by halves.
            at = bisect.bisect_left(
                range(1, len(response) + 1), position, key=lambda count: len(self.texts.text(response[:count]))
            )
            placed[min(at, len(response) - 1)] = value
        return placed

    def _solution(self, prompt: Sequence[int], response: list[int]) -> Example:
        """A solution whose scored tokens are the last ones of its steps, tokenised as the data of a training run is."""
        steps = [(step + self.spec.step_separator, True) for step in self._cut(self.texts.text(response))]
        # The prompt's tokens are known already; a text without any would lose its first token to the prompt.
        (made,) = self.encoder.encode([Rendered("?", [steps], [True], templated=True)])
        ids, ends = made.responses[0], {end - 1 for end in made.ends[0] if end > 0}
        asked = self.texts.asked(self.texts.content(prompt)) if self.texts.renders else [*prompt]
        if not ids:  # nothing but separators that are no tokens
            return Example(asked or [self.texts.beginning], [[self.texts.eos]])
        return Example(asked or [self.texts.beginning], [ids], [[at in ends for at in range(len(ids))]])

    def _cut(self, text: str) -> list[str]:
        """The steps of a text, without the separator and the space around it."""
        end = self.step_end if self.step_end is not None else self.spec.step_separator
        kept = self.step_end or ""
        *pieces, rest = text.split(end)
        steps = [piece + kept for piece in pieces] + [rest]
        return [step.strip() for step in steps if step.strip()] or [""]

    def _aggregated(self, steps: list[float]) -> float:
        return float(AGGREGATES[self.aggregate](torch.tensor(steps, dtype=torch.float64)))
