"""A mixture of attributes: ratings of frozen heads, weighted by a gate on the prompt (ArmoRM's second stage)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.models.scorers.scorer import ReadAt, Scorer
from rlhf_lightning.options import Seed
from rlhf_lightning.types import PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class GatedScorer(Scorer):
    r"""One reward out of several ratings: :math:`R(x, y) = \sum_k g_k(x)\,(r_k(x, y) - \lambda_k r_v(x, y))`.

    Trunk and rating heads are those of the first stage and are frozen; only the gate learns. It is an MLP on the hidden
    state of the prompt's last token, with a softmax over attributes and one factor for all of them, which is trained
    too. Source: "Interpretable Preferences via Multi-Objective Reward Modeling and Mixture-of-Experts",
    arXiv:2406.12845; defaults are those of the authors' code (RLHFlow/RLHF-Reward-Modeling). That code measures the
    penalties and yet trains its gate on ratings without them; their released model applies them, as is done here from
    the first step.

    Args:
        model: a model that brings a head of several outputs: the export of ``method=attribute_regression``.
        backend: see ``Backbone``.
        layers: widths of the gate's hidden layers.
        dropout: behind each of them.
        temperature: divides the gate's logits.
        scale: what the gate's weights add up to at the start; it is trained.
        seed: of the gate's weights.
        head: further options of ``Scorer``; ``outputs`` must be that of the first stage.

    Raises:
        ValueError: the weights bring no head of several outputs.
    """

    linear: ClassVar[bool] = False
    penalty: Tensor  #: lambda of every attribute, [attributes]; see ``set_verbosity``
    verbosity: Tensor  #: index of the rating that stands for verbosity; -1: nothing is taken off

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        backend: Any = "auto",
        layers: Sequence[int] = (1024, 1024, 1024),
        dropout: float = 0.2,
        temperature: float = 10.0,
        scale: float = 1.0,
        seed: Seed | None = None,
        **head: Any,
    ) -> None:
        saved = getattr(cast("Any", model), "saved_head", None)
        if saved is None or len(saved.weight) < 2:
            raise ValueError(
                "method=armorm weighs several ratings, and the weights bring no head with several outputs: set "
                "model.name to the export of a run of method=attribute_regression"
            )
        super().__init__(model, backend=backend, outputs=len(saved.weight), bias=saved.bias is not None, **head)
        self.requires_grad_(False)
        size = self.head.weight.shape[1]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.gate = _mlp([size, *layers, super().outputs], dropout)
        self.temperature = temperature
        self.scale = nn.Parameter(torch.full((1,), float(scale)))
        self.register_buffer("verbosity", torch.tensor(-1))
        self.register_buffer("penalty", torch.zeros(super().outputs))

    @property
    def outputs(self) -> int:
        """One reward comes out, whatever the number of attributes."""
        return 1

    def set_verbosity(self, attribute: int, penalty: Float[Tensor, " attributes"]) -> None:
        """Take a share of one rating off all of them, so that the reward no longer follows verbosity.

        Args:
            attribute: index of the rating that stands for verbosity.
            penalty: lambda of every attribute; of its own, which the authors set to 1, nothing then remains.
        """
        self.verbosity.fill_(attribute)
        self.penalty.copy_(penalty)

    def ratings(self, batch: PackedBatch) -> tuple[Float[Tensor, "responses attributes"], Tensor]:
        """Ratings of the first stage without their penalty, and the prompts' states, both without gradients."""
        count = len(batch.response_span)
        every = torch.arange(count, device=batch.ids.device)
        prompt = batch.prompt_span[batch.parent, 1] - 1
        with torch.no_grad():
            source = torch.cat([batch.last.clamp(min=0), prompt.clamp(min=0)])
            hidden = self.hidden(batch, source, torch.cat([every, every]))
            return self.head(hidden[:count]), hidden[count:].float()

    def gates(self, prompt: Float[Tensor, "responses d"]) -> Float[Tensor, "responses attributes"]:
        """Weight of each attribute, summing to ``scale``."""
        return torch.softmax(self.gate(prompt) / self.temperature, dim=-1) * self.scale

    def forward(  # type: ignore[override]
        self, batch: PackedBatch, at: ReadAt = "last", *, adapter: bool = True, log_probs: bool = False
    ) -> Float[Tensor, " responses"]:
        """The reward of every response; 0 for an empty slot.

        Raises:
            ValueError: anything but one reward a response is asked for.
        """
        if at != "last" or log_probs:
            raise ValueError("a gated reward is read at the response's last token, and has no likelihood term")
        with self.adapter_switched(adapter):
            ratings, prompt = self.ratings(batch)
        with torch.autocast(batch.ids.device.type, enabled=False):
            ratings = ratings - self.penalty * ratings[:, self.verbosity, None]
            reward = (self.gates(prompt) * ratings).sum(-1)
        return reward.masked_fill(~batch.present, 0.0)


def _mlp(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, width in pairwise(sizes[:-1]):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
