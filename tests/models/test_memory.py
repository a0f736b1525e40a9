"""The line before step 1: counts that are right, and a peak that is near what a process really needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.memory import ModelSummary, _trial_batch, bytes_text, count_text, describe
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.earlier import Earlier
from rlhf_lightning.models.sources import TinyRandom

#: Trains a small but real model for three steps; says what was predicted and what the process came to need.
JOB = """
import json, resource, sys, torch
from dataclasses import replace
from rlhf_lightning.models import Lora, ModelBuilder, TinyRandom, describe
from tests.models.pairs import pairs
options = json.loads(sys.argv[1])
def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {"now": int(fields["VmRSS"].split()[0]) * 1024, "peak": int(fields["VmHWM"].split()[0]) * 1024}
adapter = Lora(r=8, seed=0) if options["lora"] else None
tiny = ModelBuilder(TinyRandom(), adapter, options["reference"])()   # imports, thread pools, allocator
tiny.policy(pairs()).sum().sum().backward()
source = TinyRandom(hidden_size=256, layers=6, heads=8, kv_heads=4, intermediate_size=768, config={"vocab_size": 16000},
    gradient_checkpointing=options["checkpointing"])
batch = pairs(groups=8, longest=120, vocabulary=16000)
open("/proc/self/clear_refs", "w").write("5")
start = resident()["now"]
models = ModelBuilder(source, adapter, options["reference"])()
summary = describe(models, tokens=len(batch.ids))
optimizer = torch.optim.AdamW([p for p in models.policy.parameters() if p.requires_grad], foreach=False)
models.policy.train()
for _ in range(3):
    (models.policy(batch).sum() * torch.arange(16)).mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
print(json.dumps({"predicted": summary.peak, "measured": resident()["peak"] - start}))
"""


def _measure(**options):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", JOB, json.dumps(options)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("\n")[-2])


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's resettable peak")
@pytest.mark.parametrize(
    "options",
    [
        {"lora": False, "reference": "frozen", "checkpointing": False},
        {"lora": False, "reference": "none", "checkpointing": True},
        {"lora": True, "reference": "adapter_off", "checkpointing": False},
    ],
    ids=["full", "checkpointing", "lora"],
)
def test_predicted_peak_is_near_the_measured_one(options):
    prediction = _measure(**options)
    assert 0.6 < prediction["predicted"] / prediction["measured"] < 1.6, prediction


def test_counts_and_sizes():
    models = ModelBuilder(TinyRandom(), None, "frozen")()
    numbers = sum(p.numel() for p in models.policy.parameters())
    summary = describe(models, tokens=100, optimizer_numbers=2)
    assert (summary.parameters, summary.trainable, summary.dtype) == (numbers, numbers, "float32")
    assert summary.weights == summary.reference == summary.gradients == 4 * numbers
    assert summary.optimizer == 8 * numbers
    assert summary.head == 3 * 100 * 260 * 4


def test_adapter_counts_only_what_is_trained():
    full = describe(ModelBuilder(TinyRandom(), None, "none")(), tokens=100)
    lora = describe(ModelBuilder(TinyRandom(), Lora(r=4, seed=0), "adapter_off")(), tokens=100)
    adapter = 4 * sum(
        layers * (inner + outer) for layers, inner, outer in ((4, 64, 64), (4, 64, 32), (4, 64, 128), (2, 128, 64))
    )  # q o | k v | gate up | down, in two layers
    assert lora.parameters == full.parameters + adapter
    assert lora.trainable == adapter
    assert lora.gradients == 4 * adapter
    assert lora.reference == 0


def _earlier(adapter, reference, *roles, parent=None):
    """Bytes of policies of earlier rounds, and the bytes of the policy's weights and of what it trains."""
    earlier = Earlier(frozenset(roles), parent, "previous_round" if reference == "frozen" else None)
    summary = describe(ModelBuilder(TinyRandom(), adapter, reference, earlier=earlier)(), tokens=100, trial=False)
    return summary.earlier, summary.weights, summary.gradients


@pytest.mark.parametrize(
    ("adapter", "reference", "roles", "parent", "expected"),
    [
        (None, "none", ("initial", "previous_round"), None, lambda weights, trained: 2 * weights),
        (None, "none", ("previous_round",), TinyRandom(seed=1), lambda weights, trained: weights),
        (None, "frozen", ("previous_round",), None, lambda weights, trained: 0),  # the reference plays it
        (Lora(r=4, seed=0), "adapter_off", ("previous_round",), None, lambda weights, trained: trained),
        (Lora(r=4, seed=0), "adapter_off", ("initial",), None, lambda weights, trained: 0),
    ],
    ids=["copies", "parent", "reference", "adapter", "adapter off"],
)
def test_copies_that_rewards_compare_with_count(adapter, reference, roles, parent, expected):
    bytes_, weights, trained = _earlier(adapter, reference, *roles, parent=parent)
    assert bytes_ == expected(weights, trained)


def test_activations_grow_with_tokens_and_shrink_with_checkpointing():
    models = ModelBuilder(TinyRandom(layers=6), None, "none")()
    one, two = (describe(models, tokens=tokens).activations for tokens in (1000, 2000))
    assert two == pytest.approx(2 * one, rel=0.1)
    less = describe(ModelBuilder(TinyRandom(layers=6, gradient_checkpointing=True), None, "none")(), tokens=1000)
    assert less.activations < one / 3


def test_the_extrapolation_is_right_for_the_activations_of_a_real_batch():
    models, tokens = ModelBuilder(TinyRandom(), None, "none")(), 400
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in models.policy.parameters()}
    held = []

    def pack(tensor):
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            kept[address] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        models.policy(_trial_batch(tokens))
    assert describe(models, tokens=tokens).activations == pytest.approx(sum(kept.values()), rel=0.05)


def test_it_leaves_no_trace():
    models = ModelBuilder(TinyRandom(gradient_checkpointing=True, dropout=True), Lora(r=4, seed=0), "frozen")()
    models.policy.train()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    describe(models, tokens=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in models.policy.parameters())
    assert models.policy.training
    assert all(layer.gradient_checkpointing for layer in models.policy.base.model.layers)


def test_autocast_needs_room_for_half_precision_weights():
    models = ModelBuilder(TinyRandom(), None, "none")()
    full, mixed = (describe(models, tokens=1, precision=p).activations for p in ("32-true", "bf16-mixed"))
    matrices = sum(p.numel() for name, p in models.policy.named_parameters() if "proj" in name)
    assert mixed - full > 1.5 * matrices


def test_quantised_weights_are_counted_as_what_they_stand_for():
    pytest.importorskip("bitsandbytes")
    lora = Lora(r=4, quantize="nf4", seed=0)
    models = ModelBuilder(TinyRandom(), lora, "adapter_off")()
    plain = describe(ModelBuilder(TinyRandom(), Lora(r=4, seed=0), "adapter_off")(), tokens=10)
    summary = describe(models, tokens=10)
    assert summary.parameters == plain.parameters
    assert summary.weights < 0.6 * plain.weights
    assert summary.dtype == "4-bit"


def test_the_line():
    summary = ModelSummary(134_515_008, 4_884_480, "float32", 2**29, 0, 0, 2**24, 2**25, 3 * 2**30, 48 * 2**20)
    assert str(summary) == (
        "135M parameters, 4.88M trainable (3.63 %), float32; predicted peak of a step's tensors 3.59 GiB: "
        "weights 512 MiB, gradients 16 MiB, optimizer 32 MiB, activations 3 GiB, head 48 MiB"
    )
    of_process = replace(summary, resident=2**30)
    assert of_process.process == 2**30 + 2**24 + 2**25 + 3 * 2**30 + 48 * 2**20
    assert str(of_process) == f"{summary}; of the process 4.09 GiB, which holds 1 GiB by now"


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (12_345, "12.3k"), (1.5e9, "1.5B"), (7_000_000, "7M")])
def test_counts_in_words(number, text):
    assert count_text(number) == text


@pytest.mark.parametrize(("number", "text"), [(10, "10 B"), (1536, "1.5 KiB"), (2**31, "2 GiB")])
def test_bytes_in_words(number, text):
    assert bytes_text(number) == text
