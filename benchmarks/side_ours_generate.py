"""This project's engines drawing responses to the same prompts: transformers, or vLLM where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from drawing import rounds
from worker import Clock

from rlhf_lightning.models.decoding import generation
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.rollout import TransformersEngine, VLLMEngine
from rlhf_lightning.types import Sampling


def run(settings: dict[str, Any], prompts: list[list[int]], clock: Clock) -> list[float]:
    """Draw a group for every prompt, round after round; return the new tokens of each round."""
    policy = ModelBuilder(Pretrained(settings["model"]), reference="none")().policy.to(settings["device"])
    engine = _engine(settings)
    if not settings.get("refill", True):
        generation._POOL = 1  # batches one after another
    engine.sync(policy, 0)

    def draw(number: int, tokens: int) -> list[int]:
        sampling = Sampling(max_new_tokens=tokens, ignore_eos=settings.get("ignore_eos", True))
        seeds = [number * len(prompts) + row for row in range(len(prompts))]
        groups = engine.generate(prompts, sampling, n=settings["group"], seeds=seeds)
        return [len(sample.ids) for group in groups for sample in group]

    with torch.no_grad():
        counts = rounds(settings, clock, draw)
    engine.close()
    return counts


def _engine(settings: dict[str, Any]) -> Any:
    if settings["engine"] == "vllm":
        vllm = {"dtype": settings["dtype"] or "float32", "enforce_eager": settings["device"] == "cpu"}
        return VLLMEngine(max_new_tokens=settings["response_tokens"], vllm=vllm)
    size = settings.get("batch_size", 256)
    return TransformersEngine(max_new_tokens=settings["response_tokens"], batch_size=size, dtype=settings["dtype"])
