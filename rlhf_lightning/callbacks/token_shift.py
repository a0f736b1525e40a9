"""Share of an aligned model's tokens that its base would have chosen, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from rlhf_lightning.options import Count
from rlhf_lightning.types import Example, PackedBatch

#: Ranks of a token under the base by name: first, up to third, all others.
KINDS = ("unshifted", "marginal", "shifted")
_MARGINAL = 3


class TokenShift(Callback):
    """Logs the rank under the base of each token of the aligned model's greedy responses.

    At each validation, the policy responds greedily to the first distinct prompts, and the reference (the policy before
    training, or a teacher) ranks every token in its context: rank 1 is ``unshifted``, ranks 2 and 3 are ``marginal``,
    others ``shifted``. Logged over all positions and in each bucket of positions:

    * ``val/token_shift/<kind>`` and ``val/token_shift/<kind>/<from>_<to>``: share of the tokens;
    * ``val/token_shift/<kind>_error``: standard error of the share, over the responses;
    * ``val/token_shift/tokens``: number of tokens.

    Source: "The Unlocking Spell on Base LLMs", arXiv:2312.01552, section 2. Differences: buckets are options.

    Args:
        pack: makes a batch of examples; ``rlhf_lightning.data.pack``.
        prompts: number of prompts; every process draws all of them.
        max_new_tokens: maximum length of a response in tokens.
        batch_size: responses decoded together.
        buckets: positions, from 0, at which a bucket begins.

    Raises:
        ValueError: the buckets do not begin at 0 or do not increase.
    """

    needs_reference = (
        "evaluation=token_shift ranks a policy's tokens under its reference, but no reference has weights here: set "
        "reference=frozen, adapter_off, or teacher with the base as reference.source"
    )

    def __init__(
        self,
        pack: Callable[[Sequence[Example]], PackedBatch],
        prompts: Count = 64,
        max_new_tokens: Count = 128,
        batch_size: Count = 8,
        buckets: Sequence[int] = (0, 5, 20, 50),
    ) -> None:
        if list(buckets) != sorted({0, *buckets}):
            raise ValueError(f"evaluation.buckets={list(buckets)} must begin with 0 and increase")
        self.pack, self.prompts, self.batch_size = pack, prompts, batch_size
        self.max_new_tokens, self.buckets = max_new_tokens, tuple(buckets)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse a module without a reference model.

        Raises:
            ValueError: the reference has no weights, or the module is no policy.
        """
        reference = pl_module.reference
        if not getattr(pl_module.policy, "needs_vocabulary", True) or reference is None or reference.kind == "cached":
            raise ValueError(self.needs_reference)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw, rank and log."""
        if trainer.sanity_checking:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        prompts = _first_prompts(data.val_examples, self.prompts)
        responses = pl_module.sample(
            prompts,
            temperature=0.0,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            form=data.prompt_form,
        )
        examples = [Example(prompt, [ids]) for prompt, ids in zip(prompts, responses, strict=True)]
        above, response, position = [], [], []
        for start in range(0, len(examples), self.batch_size):
            batch = self.pack(examples[start : start + self.batch_size]).to(pl_module.device)
            top = pl_module.placed_reference()(batch, top_width=_MARGINAL).top
            above.append((top.logit > top.target_logit[:, None]).sum(1).cpu())
            response.append(start + top.sequence.cpu())
            position.append(_positions(top.sequence.cpu()))
        metrics = shares(torch.cat(above), torch.cat(response), torch.cat(position), self.buckets)
        for name, value in metrics.items():
            pl_module.track(f"val/token_shift/{name}", torch.tensor([value], device=pl_module.device))


def shares(
    above: Int[Tensor, " tokens"],
    response: Int[Tensor, " tokens"],
    position: Int[Tensor, " tokens"],
    buckets: Sequence[int],
) -> dict[str, float]:
    r"""Compute the shares of the kinds of tokens, their standard errors, and the shares by bucket.

    The error is that of a ratio of sums over responses: :math:`\sqrt{\sum_i (x_i - p n_i)^2} / \sum_i n_i`.

    Args:
        above: number of tokens that the base prefers to each token, counted up to three.
        response: number of the response that each token belongs to.
        position: position of each token in its response, from 0.
        buckets: first position of each bucket.
    """
    kinds = {"unshifted": above == 0, "marginal": (above > 0) & (above < _MARGINAL), "shifted": above >= _MARGINAL}
    metrics = {"tokens": float(len(above))}
    ends = [*(f"{end - 1}" for end in buckets[1:]), "end"]
    for name, member in kinds.items():
        metrics[name], metrics[f"{name}_error"] = _share(member, response)
        for start, end, last in zip(buckets, [*buckets[1:], math.inf], ends, strict=True):
            inside = (position >= start) & (position < end)
            if inside.any():
                metrics[f"{name}/{start}_{last}"] = float(member[inside].double().mean())
    return metrics


def _share(member: Bool[Tensor, " tokens"], response: Int[Tensor, " tokens"]) -> tuple[float, float]:
    counts, hits = torch.bincount(response).double(), torch.bincount(response, weights=member.double())
    share = float(hits.sum() / counts.sum())
    return share, float((hits - share * counts).square().sum().sqrt() / counts.sum())


def _positions(sequence: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """Position of each token in its response."""
    first = torch.searchsorted(sequence, sequence)
    return torch.arange(len(sequence)) - first


def _first_prompts(examples: Any, count: int) -> list[list[int]]:
    """First distinct prompts of the validation data."""
    prompts: dict[tuple[int, ...], None] = {}
    for group in range(len(examples)):
        prompts.setdefault(tuple(examples[group].prompt))
        if len(prompts) == count:
            break
    return [list(prompt) for prompt in prompts]
