"""transformers' own ``generate`` drawing responses, each prompt as often as its group is large."""

from __future__ import annotations

from typing import Any

import torch
from drawing import rounds
from transformers import AutoModelForCausalLM
from worker import Clock


def run(settings: dict[str, Any], prompts: list[list[int]], clock: Clock) -> list[float]:
    """Draw; return the new tokens of each round. Prompts must have one length, so nothing is padded."""
    dtype = getattr(torch, settings["dtype"] or "float32")
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()
    ids = torch.tensor(prompts).repeat_interleave(settings["group"], dim=0)

    def draw(_number: int, tokens: int) -> list[int]:
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                repetition_penalty=1.0, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0,
            )  # fmt: skip
        return [out.shape[1] - ids.shape[1]] * len(out)

    return rounds(settings, clock, draw)
