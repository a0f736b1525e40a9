"""Waits of the host for the device in an optimiser step, counted on a device that only pretends (``fake_device``)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from rlhf_lightning.callbacks import ImplicitRewards, LogRatios, NonFiniteStop, ResponseStatistics, StepSeed, Throughput
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.losses import bradley_terry, dpo, kto, sft
from rlhf_lightning.methods import Preference, RewardModel, Supervised, Unpaired
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.types import Example, RolloutOptions, Sampling
from tests.helpers.critics import ppo_of
from tests.helpers.fake_device import DEVICE, Waits, WaitsOfSteps, on_device, pretends
from tests.helpers.jobs import Memory
from tests.helpers.online import builder, module_of, online
from tests.helpers.training import examples, trainer

#: What no step can do without: the guard decides before the weights move, and the step's metrics are fetched together.
GUARD_AND_METRICS = 2
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def pairs() -> list[Example]:
    return examples(8)


def demonstrations() -> list[Example]:
    return examples(8, responses=1)


def labelled() -> list[Example]:
    return [
        replace(row, margin=None, numbers={"desirable": [number % 2.0]}) for number, row in enumerate(demonstrations())
    ]


def offline(method, loss, rows, kind: str, **options):
    return method(builder(), loss, ADAMW), AlignmentDataModule(rows, kind=kind, batch_size=4, **options)


def on_policy(make, group_size: int):
    module = make(options=RolloutOptions(group_size=group_size, minibatches=2))
    return module, online(module, None, count=8)


#: Method -> what makes it and its data, and the waits of a step.
METHODS = {
    "dpo": (lambda: offline(Preference, dpo, pairs(), "preference"), GUARD_AND_METRICS),
    "sft": (lambda: offline(Supervised, sft, demonstrations(), "supervised"), GUARD_AND_METRICS),
    # two losses by label, whose number of responses only the loss sees
    "kto": (lambda: offline(Unpaired, kto, labelled(), "unpaired", mismatched=True), GUARD_AND_METRICS + 2),
    # statistics of the scores
    "bradley_terry": (lambda: offline(RewardModel, bradley_terry, pairs(), "preference"), GUARD_AND_METRICS + 1),
    # the highest ratios
    "grpo": (lambda: on_policy(module_of, 3), GUARD_AND_METRICS + 1),
    "ppo": (lambda: on_policy(ppo_of, 1), GUARD_AND_METRICS + 1),
}


@pytest.mark.parametrize("name", METHODS)
@pretends
def test_a_step_waits_for_the_device_no_more_often_than_it_must(name, tmp_path):
    make, allowed = METHODS[name]
    module, data = make()
    waits = Waits()
    steps = WaitsOfSteps(waits)
    callbacks = [StepSeed(1), NonFiniteStop(), ImplicitRewards(), LogRatios(), ResponseStatistics(), Throughput()]
    options = {"strategy": on_device(), "accelerator": "auto", "logger": Memory(), "limit_val_batches": 0}
    with waits:
        trainer(tmp_path, [*callbacks, steps], gradient_clip_val=1.0, use_distributed_sampler=False, **options).fit(
            module, datamodule=data
        )
    assert len(steps.steps) >= 2
    last = steps.steps[-1]
    assert sum(last.values()) == allowed, dict(last)


@pytest.mark.parametrize(("prompts", "of_transformers"), [([[5, 6], [8, 9]], 0), ([[5, 6, 7], [8, 9]], 1)])
@pretends
def test_a_drawn_token_is_not_waited_for(prompts, of_transformers):
    """Only with padding, where transformers reads the mask at every token; beside it, whether rows have ended."""

    def waits_for(tokens: int) -> int:
        with Waits() as waits, torch.no_grad():
            engine = TransformersEngine()
            engine.sync(builder()().policy.eval().to(DEVICE), 0)
            waits.seen.clear()
            engine.generate(prompts, Sampling(max_new_tokens=tokens, ignore_eos=True), n=2, seeds=[1, 2])
        return sum(waits.seen.values())

    looks = 2  # for ended rows, every eighth token
    assert waits_for(24) - waits_for(8) == looks + 16 * of_transformers


@pretends
def test_the_count_sees_what_waits():
    """Each way to wait once, so that a test that counts none cannot have been blind."""
    with Waits() as waits:
        numbers = torch.arange(4.0).to(DEVICE, non_blocking=True)
        assert not waits.seen
        float(numbers[1]), numbers.tolist(), numbers[numbers > 1], (numbers > 1).nonzero(), bool(numbers[0] > 0)
        torch.tensor(1.0, device=DEVICE), numbers.repeat_interleave(numbers.long())
        numbers[numbers > 2] = 0.0
    reasons = Counter(reason.split(" in ")[0].removeprefix("aten.") for reason in waits.seen.elements())
    assert reasons == {
        "_local_scalar_dense.default": 2,
        "copies to the host": 1,
        "index.Tensor by booleans": 1,
        "nonzero.default": 1,
        "copies to the device, blocking,": 1,
        "repeat_interleave.Tensor": 1,
        "index_put_.default by booleans": 1,
    }
