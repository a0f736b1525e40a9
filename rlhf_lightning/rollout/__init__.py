"""Engines that draw responses from the policy, behind one protocol. Names are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.rollout.base import RolloutEngine as RolloutEngine
    from rlhf_lightning.rollout.openai import ChatClient as ChatClient
    from rlhf_lightning.rollout.openai import OpenAIEngine as OpenAIEngine
    from rlhf_lightning.rollout.transformers import TransformersEngine as TransformersEngine
    from rlhf_lightning.rollout.vllm import VLLMEngine as VLLMEngine
    from rlhf_lightning.rollout.vllm_server import VLLMServerEngine as VLLMServerEngine

_HOME = {
    "ChatClient": "openai",
    "OpenAIEngine": "openai",
    "RolloutEngine": "base",
    "TransformersEngine": "transformers",
    "VLLMEngine": "vllm",
    "VLLMServerEngine": "vllm_server",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
