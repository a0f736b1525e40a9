"""Training of the base model: maximum likelihood of responses of every style."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from rlhf_lightning.world import grammar
from rlhf_lightning.world.gold import judge
from rlhf_lightning.world.grammar import Prompt
from rlhf_lightning.world.tokenizer import encode, end

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IGNORED = -100
#: Share of the training data that follows a context or a critic's remark.
_CONTEXT_SHARE, _JUDGMENT_SHARE = 0.2, 0.15


def train_base(model: PreTrainedModel, *, steps: int, batch_size: int, lr: float, seed: int) -> float:
    """Train in place: AdamW, a tenth of warm-up, a cosine to zero.

    Args:
        model: untrained model.
        steps: optimiser steps.
        batch_size: responses per step.
        lr: peak learning rate.
        seed: seed of the training data.

    Returns:
        Mean loss of the last tenth of the steps, in nats per token.
    """
    learner: Any = model
    optimizer = torch.optim.AdamW(learner.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
    losses = []
    learner.train()
    for ids, labels in _batches(steps, batch_size, np.random.default_rng(seed)):
        logits = learner(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    learner.eval()
    return float(np.mean(losses[-max(steps // 10, 1) :]))


def _share(step: int, steps: int) -> float:
    warmup = max(steps // 10, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def _batches(steps: int, size: int, draw: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids, and labels on the responses and their ends; an attention mask is not needed on the right."""
    asked = grammar.prompts()
    for _ in range(steps):
        pairs = [_reading(asked[int(draw.integers(len(asked)))], draw) for _ in range(size)]
        longest = max(len(before) + len(after) for before, after in pairs)
        ids = torch.zeros(size, longest, dtype=torch.long)
        labels = torch.full((size, longest), _IGNORED)
        for row, (before, after) in enumerate(pairs):
            ids[row, : len(before) + len(after)] = torch.tensor(before + after)
            labels[row, len(before) : len(before) + len(after)] = torch.tensor(after)
        yield ids, labels


def _reading(prompt: Prompt, draw: np.random.Generator) -> tuple[list[int], list[int]]:
    """Draw a training text: the part before the response, and the response."""
    kind = draw.random()
    if kind < _CONTEXT_SHARE:
        good = draw.random() < 0.5
        words = grammar.response(prompt, grammar.GOOD if good else grammar.BAD, draw)
        before = f"{grammar.GOOD_CONTEXT if good else grammar.BAD_CONTEXT} {prompt.text}"
    else:
        words = grammar.response(prompt, grammar.MIXED, draw)
        judged = kind < _CONTEXT_SHARE + _JUDGMENT_SHARE
        before = f"{prompt.text} {judgment(prompt, words, draw)}" if judged else prompt.text
    return encode(before), [*encode(" ".join(words)), end()]


def judgment(prompt: Prompt, words: Sequence[str], draw: np.random.Generator) -> str:
    """Draw a critic's remark on a response: one of its faults by the word that marks it, or praise."""
    parsed = judge(prompt, words).parsed
    faults = sorted(parsed.faults.items()) if parsed is not None else []
    if not faults:
        return grammar.PRAISE
    name, positions = faults[int(draw.integers(len(faults)))]
    return grammar.JUDGMENTS[name].format(words[positions[0]])
