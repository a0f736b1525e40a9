"""Odds that a prompt belongs to a desirable response rather than to an undesirable one: BCO's weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.ops.segments import segment_mean
from rlhf_lightning.types import Example, PackedBatch, UnpairedBatch

#: Of the choice of prompts that the classifier is fitted to.
_SEED = 0


@dataclass
class DensityRatio:
    r"""Underlying distribution matching of BCO (arXiv:2404.04656, section 3.3): a weight for each undesirable response.

    Where thumbs up and thumbs down come from different prompts, a loss on both learns the prompts' difference. So an
    undesirable response counts :math:`p(D|x) / p(U|x)`, from a logistic regression that tells the prompts of both
    labels apart; desirable ones count 1.

    The published code embeds prompts with a model of its own. Here a prompt's features are the mean of its tokens'
    input embeddings in the model at hand, before training. The classifier is then one number a token of the vocabulary,
    whose mean over the prompt is the logit: nothing is computed twice, no row is looked up, and it is kept in the
    checkpoint.

    Args:
        prompts: most prompts of each label to fit to; equally many of both.
        low: smallest weight.
        high: largest weight.
        penalty: of the squared coefficients (of standardised features) against the summed log-loss.

    Raises:
        ValueError: an option is outside its range.
    """

    prompts: int = 1024
    low: float = 0.5
    high: float = 10.0
    penalty: float = 1.0
    token_score: Tensor | None = field(default=None, init=False)  #: [vocabulary]
    intercept: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"density_ratio: 0 < low <= high must hold, not low={self.low} and high={self.high}")
        if self.prompts < 1 or self.penalty <= 0:
            raise ValueError(
                f"density_ratio: prompts={self.prompts} must be at least 1 and penalty={self.penalty} positive"
            )

    def fit(self, examples: Sequence[Example], embedding: Float[Tensor, "vocabulary d"]) -> float:
        """Fit the classifier to a sample of the data; the same on every process.

        Args:
            examples: labelled responses.
            embedding: the model's input embeddings.

        Returns:
            How many of the prompts it was fitted to are put on the right side, 0.5 to 1 where labels say nothing.

        Raises:
            ValueError: all responses have the same label.
        """
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(_SEED)).tolist()
        sides = [list(islice(_prompts(examples, order, label), self.prompts)) for label in (1.0, 0.0)]
        count = min(map(len, sides))
        if not count:
            raise ValueError("density_ratio needs responses of both labels in the training data; set it to null")
        features = torch.stack([_feature(embedding, prompt) for side in sides for prompt in side[:count]])
        label = torch.cat([torch.ones(count), torch.zeros(count)]).to(features)
        coefficients, self.intercept = _logistic_regression(features, label, self.penalty)
        self.token_score = (embedding.double() @ coefficients).float()
        logit = features @ coefficients + self.intercept
        return float(outcomes(logit.where(label > 0.5, -logit), 0.0).mean())

    def __call__(self, batch: UnpairedBatch) -> Float[Tensor, " responses"]:
        """The weight of each response of a batch.

        Raises:
            ValueError: the classifier was not fitted.
        """
        if self.token_score is None:
            raise ValueError("density_ratio was not fitted: train with the data module, which has all prompts")
        self.token_score = self.token_score.to(batch.ids.device)
        ratio = (self._logit(batch) + self.intercept).exp().clamp(self.low, self.high)
        return torch.where(batch.desirable > 0.5, 1.0, ratio)

    def _logit(self, batch: PackedBatch) -> Float[Tensor, " responses"]:
        assert self.token_score is not None
        length = batch.prompt_span[:, 1] - batch.prompt_span[:, 0]
        group = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
        start = torch.cumsum(length, 0) - length
        at = torch.arange(len(group), device=length.device) + (batch.prompt_span[:, 0] - start)[group]
        return segment_mean(self.token_score[batch.ids[at]], group, len(length))[batch.parent]


def _prompts(examples: Sequence[Example], order: Iterable[int], label: float) -> Iterable[list[int]]:
    """Prompts of the responses with a label."""
    for number in order:
        example = examples[number]
        if float(example.numbers["desirable"][0] > 0.5) == label:
            yield example.prompt


def _feature(embedding: Float[Tensor, "vocabulary d"], prompt: list[int]) -> Float[Tensor, " d"]:
    """Mean embedding of a prompt's tokens, in float64."""
    return embedding[torch.tensor(prompt, device=embedding.device)].double().mean(0)


def _logistic_regression(
    features: Float[Tensor, "rows d"], label: Float[Tensor, " rows"], penalty: float
) -> tuple[Float[Tensor, " d"], float]:
    """Coefficients and intercept for the features as they are; fitted by L-BFGS on standardised ones."""
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-12)
    standard = (features - mean) / std
    weight = torch.zeros(features.shape[1] + 1, dtype=features.dtype, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logit = standard @ weight[:-1] + weight[-1]
        loss = F.binary_cross_entropy_with_logits(logit, label, reduction="sum")
        loss = loss + 0.5 * penalty * weight[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = weight.detach()
    coefficients = fitted[:-1] / std
    return coefficients, float(fitted[-1] - coefficients @ mean)
