"""Buffers that stay in float32 when a model is cast."""

from __future__ import annotations

import torch
from torch import nn

from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from tests.models.pairs import pairs


def test_casting_keeps_rotary_frequencies():
    cast = ModelBuilder(TinyRandom(), None, "frozen")()
    cast.policy.to(torch.bfloat16)
    cast.reference.to(dtype=torch.bfloat16)
    for model in (cast.policy.base, cast.reference.actor.base):
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert model.dtype == torch.bfloat16
    loaded = ModelBuilder(TinyRandom(dtype="bfloat16"), None, "none")().policy
    assert torch.equal(cast.policy(pairs()).token, loaded(pairs()).token)
    keep_float32_buffers(cast.policy)  # again: no effect
    assert type(cast.policy.base.model.rotary_emb).__mro__.count(nn.Module) == 1
