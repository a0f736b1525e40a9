"""Log-probs the plain way: one row at a time, transformers' own logits, a loop over the loss_mask tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.types import Example


def one_row_at_a_time(model: PreTrainedModel, examples: list[Example], temperature: float = 1.0) -> Tensor:
    """Log-prob of every loss_mask token, in the order of a packed batch."""
    out = []
    for example in examples:
        prompts = [example.prompt, *example.more_prompts]
        for index, response in enumerate(example.responses):
            if not response:
                continue
            prompt = prompts[index] if example.more_prompts else example.prompt
            ids = torch.tensor([prompt + response])
            logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
            log_p = logits.log_softmax(-1)
            loss_mask = example.loss_mask[index] if example.loss_mask else [True] * len(response)
            for offset, counted in enumerate(loss_mask):
                position = len(prompt) + offset
                if counted:
                    out.append(log_p[position - 1, ids[0, position]])
    return torch.stack(out)
