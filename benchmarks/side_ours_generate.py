"""This project's engines drawing responses to the same prompts: transformers, or vLLM where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from worker import Clock

from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.rollout import TransformersEngine, VLLMEngine
from rlhf_lightning.types import Sampling


def run(settings: dict[str, Any], prompts: list[list[int]], clock: Clock) -> list[float]:
    """Draw a group for every prompt, round after round; return the mean length of the responses."""
    policy = ModelBuilder(Pretrained(settings["model"]), reference="none")().policy.to(settings["device"])
    engine = _engine(settings)
    lengths: list[int] = []
    with torch.no_grad():
        engine.sync(policy, 0)
        sampling = Sampling(max_new_tokens=settings["response_tokens"], ignore_eos=True)
        for number in range(settings["steps"]):
            clock.start()
            seeds = [number * len(prompts) + row for row in range(len(prompts))]
            groups = engine.generate(prompts, sampling, n=settings["group"], seeds=seeds)
            clock.stop(0.0)
            lengths += [len(sample.ids) for group in groups for sample in group]
    engine.close()
    return [sum(lengths) / len(lengths)]


def _engine(settings: dict[str, Any]) -> Any:
    if settings["engine"] == "vllm":
        vllm = {"dtype": settings["dtype"] or "float32", "enforce_eager": settings["device"] == "cpu"}
        return VLLMEngine(max_new_tokens=settings["response_tokens"], vllm=vllm)
    return TransformersEngine(max_new_tokens=settings["response_tokens"], batch_size=256, dtype=settings["dtype"])
