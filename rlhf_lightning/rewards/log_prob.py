"""The log-probability of a response under a language model as its reward: what imitation learning prefers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.loading.vocabulary import align_with_tokenizer
from rlhf_lightning.models.sources import Dtype, Pretrained
from rlhf_lightning.options import Count
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.texts import Texts, batches, chosen_device
from rlhf_lightning.types import Example, Ragged, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LogProbReward:
    r"""Log-probability of a response, in nats: :math:`\log p(a \mid q)`, summed or averaged over its tokens.

    Source: the imitation baseline of "A General Language Assistant as a Laboratory for Alignment", arXiv:2112.00861: a
    model that was fine-tuned on good responses alone (``method=imitation``) ranks responses by it, or by the empirical
    mutual information :math:`\log p(a \mid q) - \log p(a)`, which does not pay for text that is likely after any
    question.

    Args:
        tokenizer: of whoever made the token ids; None: the model's own. Texts are rendered again where they differ
            (:class:`~rlhf_lightning.rewards.texts.Texts`).
        path: folder (a run's ``export/last``) or hub id of a language model, or of an adapter for one.
        name: what its numbers are logged under.
        reduction: ``sum`` over the response's tokens, its EOS among them, or their ``mean``.
        mutual_information: take off the log-probability of the response after an empty question: the chat template
            around no text, or BOS alone where there is no template.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch, prompts and responses; a longer group is a batch of its own.
        max_length: longest prompt with a response, in tokens; of a longer prompt the beginning is left out. None: no
            limit.

    Raises:
        ValueError: an unknown reduction, or the folder holds a reward model.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str,
        name: str = "log_prob",
        reduction: Literal["sum", "mean"] = "sum",
        mutual_information: bool = False,
        dtype: Dtype = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
        max_length: Count | None = None,
    ) -> None:
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reward.reduction={reduction!r} is neither sum nor mean")
        self.name, self.reduction, self.mutual_information = name, reduction, mutual_information
        self.max_tokens, self.max_length = max_tokens, max_length
        self.device = chosen_device(device)
        self.model_tokenizer, self.model = language_model(path, dtype, self.device)
        self.texts = Texts(self.model_tokenizer, tokenizer)

    @torch.no_grad()
    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        prompts, responses = self.texts.translated(groups)
        pairs = list(zip(prompts, responses, strict=True))
        scores = self._scores([self.texts.example(prompt, group, self.max_length) for prompt, group in pairs])
        if not self.mutual_information:
            return [[*group] for group in scores]
        nothing = self.texts.asked("")
        alone = self._scores([self.texts.example(nothing, group, self.max_length) for group in responses])
        return [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(scores, alone, strict=True)]

    def _scores(self, groups: list[Example]) -> list[list[float]]:
        return response_log_probs(self.model, groups, self.device, reduction=self.reduction, max_tokens=self.max_tokens)


def response_log_probs(
    model: Actor,
    groups: Sequence[Example],
    device: torch.device,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    max_tokens: int = 16_384,
) -> list[list[float]]:
    """Log-probs of the responses to each prompt under a language model, in nats, added up in float64.

    Args:
        model: a language model; evaluation mode and gradients are the caller's matter.
        groups: prompts with their responses.
        device: of the model.
        reduction: over the tokens of a response.
        max_tokens: of a batch, prompts and responses; a longer group is a batch of its own.
    """
    scores: list[list[float]] = [[] for _ in groups]
    for rows in batches(groups, max_tokens):
        batch = pack([groups[row] for row in rows])
        policy: Ragged = model(batch.to(device))
        # In float64, since mutual information and implicit rewards are small differences of large sums.
        exact = Ragged(policy.token.cpu().double(), policy.sequence.cpu(), policy.count)
        sums = (exact.sum() if reduction == "sum" else exact.mean()).reshape(len(rows), -1).tolist()
        for row, values in zip(rows, sums, strict=True):
            scores[row] = values[: len(groups[row].responses)]
    return scores


def language_model(path: str, dtype: Dtype, device: torch.device) -> tuple[PreTrainedTokenizerBase, Actor]:
    """A folder's tokenizer, and its language model on a device, without gradients.

    Raises:
        ValueError: the folder holds a reward model.
    """
    source = Pretrained(path, dtype=dtype)
    tokenizer, model = source.tokenizer(), source.load()
    align_with_tokenizer(model, tokenizer)
    keep_float32_buffers(model)
    return tokenizer, Actor(model).to(device).eval().requires_grad_(False)
