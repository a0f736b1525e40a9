"""The inputs of token-level losses from plain numbers; their leaves are logits or log-probs that gradients reach."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.ops.top_k import logits_top
from rlhf_lightning.types import JudgedPair, Ragged, TopTokens
from tests.helpers.loss_inputs import ragged
from tests.helpers.reference_token import Response, Row


class Policy:
    """Logits of several responses, one row a token, and what a method would hand to a loss from them."""

    def __init__(self, responses: list[Response], mean_length: float | None = None) -> None:
        positions = [position for response in responses for position in response]
        self.logits = torch.tensor([p.logits for p in positions], dtype=torch.float64, requires_grad=True)
        self.target = torch.tensor([p.target for p in positions])
        self.sequence = torch.tensor([i for i, response in enumerate(responses) for _ in response])
        self.count, self.mean_length = len(responses), mean_length

    @property
    def log_probs(self) -> Ragged:
        token = self.logits.log_softmax(-1).gather(1, self.target[:, None])[:, 0]
        return Ragged(token, self.sequence, self.count, self.mean_length)

    def top(self, width: int, where: Tensor | None = None) -> TopTokens:
        """The most likely tokens at the positions of some responses; None: of all."""
        keep = torch.ones_like(self.target, dtype=torch.bool) if where is None else where[self.sequence]
        top = logits_top(self.logits[keep], self.target[keep], width=width)
        return TopTokens(top.logit, top.token, top.target_logit, self.target[keep], self.sequence[keep], self.count)


def judged(rows: list[Row], lengths: tuple[float, float] | None = None) -> JudgedPair:
    """Log-probs of both contexts; ``lengths``: of each over the optimiser step."""
    behind, alone = lengths or (None, None)
    return JudgedPair(
        ragged([row[0] for row in rows], mean_length=behind), ragged([row[1] for row in rows], mean_length=alone)
    )
