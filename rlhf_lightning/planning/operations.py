r"""Floating-point operations of an optimiser step and of drawing, counted from shapes.

A product of a token with N weights takes 2 N operations forwards, and backwards 2 N for the gradient of its input and
2 N for that of the weights: 6 N a trained token (arXiv:2001.08361, section 2.1). Frozen weights have no gradient: 4 N.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.planning.job import Job


@dataclass(frozen=True)
class Operations:
    """Operations of an optimiser step, all processes together."""

    training: float  #: forward and backward passes of all trained models
    reference: float
    scoring: float  #: passes over a rollout before it is trained on
    prefill: float  #: prompts of responses that are drawn
    decoding: float

    @property
    def total(self) -> float:
        """Operations of all parts."""
        return self.training + self.reference + self.scoring + self.prefill + self.decoding


def operations_of(job: Job) -> Operations:
    """Operations of an optimiser step; a rollout's are divided by the steps that learn from it."""
    draws = job.draws
    if draws is None:
        return Operations(training(job), forward(job) if job.reference != "none" else 0.0, 0.0, 0.0, 0.0)
    per_step = 1 / draws.epochs
    shape = job.shape
    prompts = 2.0 * shape.matrices * job.groups * job.prompt
    tokens = job.groups * draws.responses * job.response
    scores = 4.0 * shape.layers * shape.heads * shape.head_width * tokens * (job.prompt + job.response / 2)
    return Operations(
        training=training(job),
        reference=forward(job) * (job.reference != "none") * per_step,
        scoring=forward(job) * draws.scoring * per_step,
        prefill=(prompts + job.groups * attention(job, responses=0)) * per_step,
        decoding=(2.0 * (shape.matrices + shape.head) * tokens + scores) * per_step,
    )


def forward(job: Job) -> float:
    """Operations of one pass without gradients: 2 N a token, the head for scored tokens alone, and attention."""
    shape = job.shape
    layers = 2.0 * (shape.matrices + shape.adapter) * job.tokens + job.groups * attention(job, job.responses)
    return layers + 2.0 * shape.head * job.response_tokens


def attention(job: Job, responses: int) -> float:
    r"""Operations of a group's attention in all layers: two products of 2 d operations a pair of tokens and head.

    Pairs are causal: :math:`P^2/2` of the prompt, which is computed once, and :math:`R P + R^2/2` of each response.
    """
    pairs = job.prompt**2 / 2 + responses * (job.response * job.prompt + job.response**2 / 2)
    return 4.0 * job.shape.layers * job.shape.heads * job.shape.head_width * pairs


def training(job: Job) -> float:
    """Operations of the forward and backward passes of a step.

    The blockwise head computes its logits again in the backward pass; checkpointing computes every layer again
    (arXiv:2205.05198, section 5). Attention's backward pass is twice its forward pass.
    """
    shape = job.shape
    trained = 3 if not shape.adapter else 2  # frozen weights have no gradient of their own
    again = 1 if job.checkpointing else 0
    base = 2.0 * shape.matrices * job.tokens * (trained + again)
    adapter = 2.0 * shape.adapter * job.tokens * (3 + again)
    scores = job.groups * attention(job, job.responses) * (3 + again)
    head = 2.0 * shape.head * job.response_tokens * (trained + 1)
    critic = 2.0 * shape.matrices * job.tokens * (3 + again) + scores if job.critic else 0.0
    return base + adapter + scores + head + critic
