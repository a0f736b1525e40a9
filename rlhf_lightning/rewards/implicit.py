"""The implicit reward of a model that was trained with DPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rlhf_lightning.models.adapter_folders import adapter_base
from rlhf_lightning.models.adapter_start import starts_as_base
from rlhf_lightning.models.sources import Dtype
from rlhf_lightning.options import Count, Positive
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.log_prob import LogProbReward
from rlhf_lightning.types import SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ImplicitReward:
    r"""What a DPO model has learned to prefer, in the units of its reward.

    .. math:: r(x, y) = \beta\,\big[\log\pi(y \mid x) - \log\pi_{ref}(y \mid x)\big]

    The reward that DPO fits is this one up to a number for each prompt, so responses to one prompt can be compared and
    those to different prompts cannot.

    Source: "Direct Preference Optimization", arXiv:2305.18290, equation 5 without its last term.

    Args:
        tokenizer: of whoever made the token ids; None: the model's own.
        path: folder (a run's ``export/last``) or hub id of the trained language model, or of its adapter.
        reference: folder or hub id of what it was trained from; None: the base that an adapter's folder names, unless
            the run that wrote it noted that its adapter started elsewhere.
        beta: that of the training.
        reduction: of each log-probability over the response's tokens: ``sum``, or ``mean`` for models of losses that
            average.
        name: what its numbers are logged under.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch, prompts and responses.
        max_length: longest prompt with a response, in tokens; of a longer prompt the beginning is left out.

    Raises:
        ValueError: no reference, and ``path`` is no folder of an adapter, or of one that did not start as its base.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str,
        reference: str | None = None,
        beta: Positive = 0.1,
        reduction: Literal["sum", "mean"] = "sum",
        name: str = "implicit",
        dtype: Dtype = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
        max_length: Count | None = None,
    ) -> None:
        if reference is None and not starts_as_base(path):
            raise ValueError(
                f"reward=implicit: the adapter in {path} did not start at zero, so it need not have been trained from "
                f"the base that it names: set reward.reference={adapter_base(path)} if its run had no adapter.path "
                "(adapter.init=pissa and the like begin as that base), else reward.reference=<the adapter in that "
                "adapter.path>"
            )
        reference = reference if reference is not None else adapter_base(path)
        if reference is None:
            raise ValueError(
                f"reward=implicit: {path} names no base model, so say what it was trained from: reward.reference=..."
            )

        def log_prob(model: str) -> LogProbReward:
            return LogProbReward(
                tokenizer if tokenizer is not None else own,
                path=model,
                reduction=reduction,
                dtype=dtype,
                device=device,
                max_tokens=max_tokens,
                max_length=max_length,
            )

        own: PreTrainedTokenizerBase | None = None
        self.name, self.beta = name, beta
        self.policy_log_prob = log_prob(path)
        own = self.own = self.policy_log_prob.own
        self.reference_log_prob = log_prob(reference)

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        both = zip(self.policy_log_prob(groups), self.reference_log_prob(groups), strict=True)
        return [[self._reward(a, b) for a, b in zip(*rows, strict=True)] for rows in both]

    def _reward(self, policy: float | None, reference: float | None) -> float | None:
        return None if policy is None or reference is None else self.beta * (policy - reference)
