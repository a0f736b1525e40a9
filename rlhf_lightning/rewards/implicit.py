"""The implicit reward of a language model against another one: of a DPO model, or of one round against another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.models.adapters.folders import adapter_base
from rlhf_lightning.models.adapters.start import starts_as_base
from rlhf_lightning.models.sources import Dtype
from rlhf_lightning.options import Count, Positive
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.log_prob import LogProbReward, response_log_probs
from rlhf_lightning.rewards.texts import Texts
from rlhf_lightning.types import Ragged, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Models that stand in the place of a path and that only a run with rounds has.
ROLES = ("policy", "initial", "round_start", "previous_round")

_LogProbs = Callable[[Sequence[SampleGroup]], Scores]


def implicit_rewards(
    policy: Ragged, reference: Ragged, *, beta: float = 1.0, reduction: Literal["sum", "mean"] = "sum"
) -> Float[Tensor, " responses"]:
    """Beta times the log-ratio of two models on each response, from log-probs of the same tokens, in nats.

    Token by token in at least float32 and added up in float64: a sum of a thousand tokens in half precision would
    drown the difference of two models.
    """
    ratio = policy.log_ratio(reference)
    return beta * (ratio.sum() if reduction == "sum" else ratio.mean())


class ImplicitReward:
    r"""Implicit reward of a DPO model, in the units of its reward.

    .. math:: r(x, y) = \beta\,\big[\log\pi(y \mid x) - \log\pi_{ref}(y \mid x)\big]

    The reward that DPO fits is this one up to a number for each prompt, so responses to one prompt can be compared and
    those to different prompts cannot.

    In the place of a path may stand one of :data:`ROLES`. DICE scores samples of the policy that a round starts with
    by ``path="round_start"``, ``reference="previous_round"``: what the round before has learned; in the first round
    ``rounds.parent`` plays the latter. Such a model is not loaded; the loop over rounds gives it (:meth:`assign`)
    before each call, and the weights are exactly those that the role names.

    Source: "Direct Preference Optimization", arXiv:2305.18290, equation 5 without its last term; over rounds
    "Bootstrapping Language Models with DPO Implicit Rewards" (DICE), arXiv:2406.09760.

    Args:
        tokenizer: of whoever made the token ids; None: the model's own.
        path: folder (a run's ``export/last``) or hub id of the trained language model, or of its adapter; or a role.
        reference: folder or hub id of what it was trained from, or a role; None: the base that an adapter's folder
            names, unless the run that wrote it noted that its adapter started elsewhere.
        beta: that of the training.
        reduction: of each log-probability over the response's tokens: ``sum``, or ``mean`` for models of losses that
            average.
        name: what its numbers are logged under.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch, prompts and responses.
        max_length: longest prompt with a response, in tokens; of a longer prompt the beginning is left out.

    Raises:
        ValueError: a role is compared with itself; no reference, and ``path`` is no folder of an adapter, or of one
            that did not start as its base; a role without a reference or without a tokenizer.
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
        reference = _reference_of(path) if reference is None else reference
        if path == reference and path in ROLES:
            raise ValueError(
                f"reward=implicit compares {path} with itself, which scores every response 0: let reward.path and "
                "reward.reference name two models"
            )
        self.name, self.beta, self._reduction = name, beta, reduction
        self._max_tokens, self._max_length = max_tokens, max_length
        self.roles = frozenset({path, reference}) & frozenset(ROLES)  #: models that are to be assigned
        self._tokenizer = tokenizer
        if self.roles and tokenizer is None:
            raise ValueError(
                f"reward=implicit with {', '.join(sorted(self.roles))} reads the policy's tokens: give it tokenizer=..."
            )
        self._assigned: dict[str, _LogProbs] = {}

        def log_prob(model: str) -> LogProbReward | None:
            if model in ROLES:
                return None
            return LogProbReward(
                tokenizer if tokenizer is not None else model_tokenizer,
                path=model,
                reduction=reduction,
                dtype=dtype,
                device=device,
                max_tokens=max_tokens,
                max_length=max_length,
            )

        model_tokenizer: PreTrainedTokenizerBase | None = None
        self._policy, self._reference = path, reference
        self.policy_log_prob = log_prob(path)
        model_tokenizer = self.model_tokenizer = (
            tokenizer if self.policy_log_prob is None else self.policy_log_prob.model_tokenizer
        )
        self.reference_log_prob = log_prob(reference)

    def assign(self, role: str, model: Callable[[], AbstractContextManager[Any]], device: torch.device) -> None:
        """Give a model that a role names; again where another model plays it in the next round.

        Args:
            role: one of :data:`ROLES`.
            model: opens what computes packed batches of the policy's tokens, in evaluation mode; opened also where
                there is nothing to score, since a process may have to take part in gathering weights.
            device: of the model.
        """
        assert self._tokenizer is not None
        texts = Texts(self._tokenizer)

        def log_probs(groups: Sequence[SampleGroup]) -> Scores:
            examples = [texts.example(group.prompt, group.responses, self._max_length) for group in groups]
            with torch.no_grad(), model() as opened:
                log_probs_of_rows = response_log_probs(
                    opened, examples, device, reduction=self._reduction, max_tokens=self._max_tokens
                )
            return [[*row] for row in log_probs_of_rows]

        self._assigned[role] = log_probs

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`.

        Raises:
            ValueError: a role that nobody has assigned a model to.
        """
        policy = self._log_probs(self.policy_log_prob, self._policy)
        reference = self._log_probs(self.reference_log_prob, self._reference)
        both = zip(policy(groups), reference(groups), strict=True)
        return [[self._reward(a, b) for a, b in zip(*rows, strict=True)] for rows in both]

    def _log_probs(self, loaded: LogProbReward | None, model: str) -> _LogProbs:
        if loaded is not None:
            return loaded
        if model not in self._assigned:
            raise ValueError(
                f"reward {self.name!r} compares with {model}, a model that only a run with rounds has: give the folder "
                "of one (reward.path, reward.reference), or choose rounds=..."
            )
        return self._assigned[model]

    def _reward(self, policy: float | None, reference: float | None) -> float | None:
        return None if policy is None or reference is None else self.beta * (policy - reference)


def _reference_of(path: str) -> str:
    """Default reference of a model: the base of an adapter.

    Raises:
        ValueError: there is none, or the adapter did not start as its base.
    """
    if path in ROLES:
        raise ValueError(f"reward=implicit: reward.path={path} needs a model to compare with: set reward.reference=...")
    if not starts_as_base(path):
        raise ValueError(
            f"reward=implicit: the adapter in {path} did not start at zero, so it need not have been trained from "
            f"the base that it names: set reward.reference={adapter_base(path)} if its run had no adapter.path "
            "(adapter.init=pissa and the like begin as that base), else reward.reference=<the adapter in that "
            "adapter.path>"
        )
    base = adapter_base(path)
    if base is None:
        raise ValueError(
            f"reward=implicit: {path} names no base model, so say what it was trained from: reward.reference=..."
        )
    return base
