"""The gold callback against a world that can be worked out by hand, and against the tiny world itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.callbacks import GoldReward
from rlhf_lightning.callbacks.gold import _correlation
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.world import TinyEvaluator, TinyWorld


class Module:
    """A policy of the tiny world under the callback's eyes."""

    device = torch.device("cpu")

    def __init__(self, actor) -> None:
        self.policy, self.tracked, self.asked = actor, {}, []

    def sample(self, prompts, **options):
        from rlhf_lightning.models.decoding.generation import generate

        self.asked = prompts
        return generate(self.policy, prompts, **options)

    def track(self, name, values):
        self.tracked[name] = values


def evaluated(actor, samples: int = 76) -> Module:
    module = Module(actor)
    GoldReward(TinyEvaluator(), samples=samples).on_validation_epoch_end(SimpleNamespace(sanity_checking=False), module)
    return module


@pytest.fixture(scope="module")
def base():
    return TinyWorld().load()


def test_the_base_is_no_distance_from_itself(base):
    """Breaks when samples are scored behind another prompt, or base and policy change places."""
    tracked = evaluated(Actor(base)).tracked
    assert tracked["val/gold/kl"].abs().max() < 1e-4
    assert tracked["val/gold/calibration"].item() == pytest.approx(0, abs=0.2)  # noise of rounding only
    rewards = tracked["val/gold/reward"]
    assert rewards.mean() == pytest.approx(TinyEvaluator().base_reward(), abs=0.8)
    assert tracked["val/gold/standard_error"].item() == pytest.approx((rewards.var() / 76).sqrt().item())


def test_divergence_is_that_of_the_policy_from_the_base(base):
    """A policy that never says one word: KL is finite that way round only, and agrees with the mean log-ratio."""
    policy = TinyWorld().load()
    with torch.no_grad():
        policy.lm_head.weight *= 1.3  # a sharper policy
    world = TinyEvaluator()
    prompts = world.prompts()
    actor = Actor(policy)
    module = Module(actor)
    responses = module.sample([p for p in prompts for _ in range(16)], max_new_tokens=40, batch_size=608)
    batch = world.batch(prompts, [responses[i : i + 16] for i in range(0, len(responses), 16)])
    exact = world.divergence(actor, batch)
    with torch.no_grad():
        ratio = actor(batch).sum() - Actor(base)(batch).sum()
    assert exact.mean() == pytest.approx(ratio.mean().item(), abs=4 * ratio.std().item() / len(ratio) ** 0.5)
    assert exact.std() < ratio.std()
    assert exact.min() >= 0


def test_every_held_out_prompt_gets_equally_many_responses(base):
    module = evaluated(Actor(base), samples=39)
    prompts = TinyEvaluator().prompts()
    counts = {tuple(p): sum(list(p) == list(asked) for asked in module.asked) for p in prompts}
    assert set(counts.values()) == {2}  # 38 prompts, 39 samples: rounded up


def test_a_reward_model_is_left_alone():
    module = Module(SimpleNamespace(needs_vocabulary=False))
    callback = GoldReward(TinyEvaluator())
    callback.on_validation_epoch_end(SimpleNamespace(sanity_checking=False), module)
    callback.on_train_start(SimpleNamespace(global_step=0, is_global_zero=True, loggers=[None]), module)
    assert module.tracked == {}


def test_correlation_is_within_prompts():
    """By hand: each prompt's rows are in step, the prompts' levels are against each other."""
    x = torch.tensor([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]])
    y = torch.tensor([[20.0, 21.0, 22.0], [0.0, 1.0, 2.0]])
    assert _correlation(x, y) == pytest.approx(1.0)
    assert _correlation(x, -y) == pytest.approx(-1.0)
    assert _correlation(x, torch.zeros_like(y)) == 0
    half = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert _correlation(x, half) == pytest.approx(0.0)


def test_only_the_tiny_worlds_prompts_can_be_judged():
    with pytest.raises(ValueError, match="tiny world's prompts only"):
        TinyEvaluator().scores([1, 2, 3], [4])


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"callbacks\.gold\.samples=0"):
        GoldReward(TinyEvaluator(), samples=0)
