"""A judge that is not asked to write: its rating is the mean of the digits that it might say next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.sharding import unsharded
from rlhf_lightning.models.sources import Dtype
from rlhf_lightning.options import Count, value_object
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.rewards.asking import conversation_ids
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.graders.templates import Context
from rlhf_lightning.rewards.judge_options import DigitOptions
from rlhf_lightning.rewards.log_prob import language_model, response_log_probs
from rlhf_lightning.rewards.questions import QuestionReward
from rlhf_lightning.rewards.texts import chosen_device
from rlhf_lightning.types import Example, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@former_arguments("rlhf_lightning.rewards.ExpectedRating")
class ExpectedRating(QuestionReward):
    r"""Expected digit of a judge's verdict, from one forward pass a response.

    .. math:: R(y) = \frac{\sum_d d\,p(d)}{\sum_d p(d)}

    where p(d) is the judge's probability that the digit d follows the question and the opening of its verdict,
    ``Score:``. Nothing is sampled, so equal responses have equal scores and hardly any others do: a small judge whose
    sampled ratings are ties or noise still orders responses by it.

    Counted: ``unread``, share of the responses at which the digits have less than ``least_mass`` of the probability and
    that get no score; ``mass``, the mean of that probability; ``rating/<digit>``, share of the scored responses whose
    most likely digit it is.

    Source: the additive scale is that of "Self-Rewarding Language Models", arXiv:2401.10020, whose judge writes its
    reasons and then a digit; the mean over the digits' probabilities in place of a sample is that of "G-Eval: NLG
    Evaluation using GPT-4 with Better Human Alignment", arXiv:2303.16634.

    Args:
        tokenizer: the policy's.
        path: folder or hub id of the language model that judges; None: the policy that is trained, as it is then.
        question: as of :class:`RatingJudge`, a template or a name of ``rewards.questions``.
        opening: how the verdict begins; the digit follows it behind a space.
        rating: what a rating is; the options of ``DigitOptions`` by name.
        system: of the conversation with the judge; None: no such message.
        dtype: of the weights of ``path``.
        device: of ``path``; ``auto`` takes CUDA where there is some.
        max_tokens: of a batch.
        name: what the scores are logged under.

    Raises:
        ValueError: no range of digits, a broken template, or an opening that the tokenizer joins with the digit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str | None = None,
        question: str = "additive_score",
        opening: str = "Score:",
        rating: DigitOptions | Mapping[str, Any] | None = None,
        system: str | None = None,
        dtype: Dtype = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
        name: str = "expected_rating",
    ) -> None:
        super().__init__(tokenizer, name, question)
        self.rating = value_object(DigitOptions, rating, DigitOptions.node)
        self.policy: Any = None  #: set by the training loop
        self.max_tokens, self._system, self._opening = max_tokens, system, opening
        self._reader, self._model = self.texts.model_tokenizer, None
        self._device = chosen_device(device)
        if path is not None:
            self._reader, self._model = language_model(path, dtype, self._device)
        self._digits = digit_ids(self._reader, opening, self.rating.low, self.rating.high)
        self._ratings: Counter[int] = Counter()

    @torch.no_grad()
    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`; a collective call where the policy judges.

        Raises:
            ValueError: nobody to ask, or the data lacks what the question shows.
        """
        examples = [self._example(group, ids) for group in groups for ids in group.responses]
        table = torch.tensor(self._log_probs(examples), dtype=torch.float64).view(len(examples), len(self._digits))
        rating, mass = expected_digit(table, self.rating.low)
        read = mass >= self.rating.least_mass
        self._ratings.update((table.argmax(1)[read] + self.rating.low).tolist())
        self.count(responses=len(examples), unread=int((~read).sum()), mass=float(mass.sum()))
        if self.rating.scaled:
            rating = (rating - self.rating.low) / (self.rating.high - self.rating.low)
        scores = iter([value if kept else None for value, kept in zip(rating.tolist(), read.tolist(), strict=True)])
        return [[next(scores) for _ in group.samples] for group in groups]

    def metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        ratings, self._ratings = self._ratings, Counter()
        total = sum(ratings.values())
        return super().metrics() | {f"rating/{digit}": count / total for digit, count in sorted(ratings.items())}

    def _example(self, group: SampleGroup, ids: list[int]) -> Example:
        """The question about a response with the verdict's opening, and every digit as a response to it."""
        columns = {**group.columns, "prompt": self.prompt(group)}
        text = self.rendered(Context({"output_text": self.texts.text(ids)}, columns, group.row))
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = conversation_ids(self._reader, [*system, {"role": "user", "content": text}])
        return Example([*asked, *_ids(self._reader, self._opening)], self._digits)

    def _log_probs(self, examples: list[Example]) -> list[list[float]]:
        if self._model is not None:
            return response_log_probs(self._model, examples, self._device, max_tokens=self.max_tokens)
        actor: Actor | None = getattr(self.policy, "policy", None)
        if actor is None:
            raise ValueError(
                f"reward {self.name!r} needs a judge: set reward.path=..., or use it as the reward of "
                "on-policy training, where the policy judges"
            )
        with ExitStack() as stack:
            stack.enter_context(unsharded(actor))
            stack.enter_context(evaluating(actor))
            return response_log_probs(actor, examples, next(actor.parameters()).device, max_tokens=self.max_tokens)


def expected_digit(log_prob: Tensor, low: int) -> tuple[Tensor, Tensor]:
    """Mean digit and total probability of the digits by rows of log-probs, ``[n, digits]``; ``low`` is the first."""
    digits = torch.arange(low, low + log_prob.shape[1], dtype=log_prob.dtype)
    return log_prob.softmax(1) @ digits, log_prob.logsumexp(1).exp()


def digit_ids(tokenizer: PreTrainedTokenizerBase, opening: str, low: int, high: int) -> list[list[int]]:
    """Tokens of each digit behind an opening and a space.

    Raises:
        ValueError: the tokenizer has other tokens for the opening where a digit follows it.
    """
    before = _ids(tokenizer, opening)
    ids_by_digit = []
    for digit in range(low, high + 1):
        whole = _ids(tokenizer, f"{opening} {digit}")
        if whole[: len(before)] != before or len(whole) == len(before):
            raise ValueError(
                f"reward.opening={opening!r}: this tokenizer joins its end with the digit behind it; end it otherwise, "
                "such as with a colon"
            )
        ids_by_digit.append(whole[len(before) :])
    return ids_by_digit


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])
