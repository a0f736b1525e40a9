"""The builder: options of its own and of the source, and combinations that it refuses."""

from __future__ import annotations

import pytest

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import AdapterDisabled, ReferenceKind
from rlhf_lightning.models.sources import TinyRandom


class RecordingSource:
    """A source whose weights nobody may load."""

    name = "recording"

    def tokenizer(self):
        raise AssertionError("the tokenizer was read")

    def load(self, quantization=None):
        raise AssertionError("weights were loaded")


def test_impossible_combinations_are_refused_before_anything_loads():
    with pytest.raises(ValueError, match="adapter_off needs an adapter: adapter=lora"):
        ModelBuilder(RecordingSource(), None, "adapter_off")
    with pytest.raises(ValueError, match=r"reference='frosen'.*frozen, adapter_off, cached, teacher, none"):
        ModelBuilder(RecordingSource(), None, "frosen")
    with pytest.raises(ValueError, match="adapter_off needs an adapter"):
        AdapterDisabled(Actor(TinyRandom().load()))


def test_an_empty_adapter_is_none():
    assert ModelBuilder(TinyRandom(), {}, "none").adapter is None  # what adapter=none composes to
    assert ModelBuilder(TinyRandom(), None, "cached").reference is ReferenceKind.CACHED


def test_options_come_from_the_source_and_can_be_overridden():
    source = TinyRandom(backend="padded", gradient_checkpointing=True)
    assert ModelBuilder(source, None, "none")().policy.backend == "padded"
    builder = ModelBuilder(source, None, "none", backend="packed", gradient_checkpointing=False)
    assert builder().policy.backend == "packed"
    assert not builder.gradient_checkpointing
