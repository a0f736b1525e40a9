"""Every detail of "The N Implementation Details of RLHF with PPO", and every switch of PPO-max, is an option.

Numbers of the details are those of the blog post; detail 12 (prompts end at a sentence boundary) is a property of the
data, not an option. M are the switches of MOSS-RLHF's code (arXiv:2307.04964). The rows of
``DETAILS`` name the option, the values that a user sets, and the test of what it does. That the option exists under
this name, composes and reaches the run is tested here for every row; so is that the test of the row exists.
"""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning import compose
from rlhf_lightning.cli.build import make
from rlhf_lightning.credit.whitening import whiten
from rlhf_lightning.data.packing import pack
from rlhf_lightning.methods import PPO, KLPenalty
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.scorer import ScalarHead
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.types import Example, RolloutBatch, RolloutOptions, Sampling
from tests.helpers.critics import ppo_of

HERE = "tests.methods.test_ppo_details"
PPO_TESTS, SHAPING, TEMPORAL = "tests.methods.test_ppo", "tests.methods.test_shaping", "tests.credit.test_temporal"
ONLINE = "tests.trajectory.test_online_critic"


@dataclass(frozen=True)
class Detail:
    """A detail, the overrides that make it (none: always so), and where its behaviour is tested."""

    number: str
    what: str
    overrides: tuple[str, ...]
    test: str


DETAILS = [
    Detail(
        "1",
        "reward and value see prompt and response",
        (),
        "tests.models.test_critic.test_all_kinds_start_with_the_same_values_and_log_probs",
    ),
    Detail(
        "2",
        "padding is a token of its own, never EOS",
        ("model=smollm2", "model.pad_token='<|endoftext|>'"),
        "tests.models.test_sources.test_padding_with_eos_is_refused",
    ),
    Detail(
        "3",
        "positions count from the prompt's first token",
        ("model.backend=padded",),
        f"{HERE}.test_positions_do_not_depend_on_padding",
    ),
    Detail(
        "4",
        "fixed length, no EOS, no top-k",
        ("method.rollout.ignore_eos=true", "method.rollout.top_k=0", "method.rollout.top_p=1.0"),
        f"{HERE}.test_generation_to_the_full_length",
    ),
    Detail(
        "5",
        "learning rate falls linearly to 0",
        ("scheduler=linear", "scheduler.warmup=0.0"),
        f"{HERE}.test_the_learning_rate_falls_to_zero",
    ),
    Detail(
        "6",
        "every process draws other samples",
        ("seed=3",),
        f"{HERE}.test_streams_of_samples_differ",
    ),
    Detail(
        "7",
        "score at the last token only",
        (),
        "tests.credit.test_token_rewards.test_without_kl_only_the_last_token_has_a_reward",
    ),
    Detail(
        "8",
        "reward head N(0, 1/sqrt(d+1)), bias 0",
        (),
        f"{HERE}.test_the_reward_heads_deviation",
    ),
    Detail(
        "9",
        "rewards normalised on reference samples",
        ("method.shaping.scale=ref", "method.shaping.center=true"),
        f"{SHAPING}.test_ref_scale_stays_what_the_first_samples_say",
    ),
    Detail(
        "10",
        "logits divided by the temperature in scoring too",
        ("method.rollout.temperature=0.7",),
        f"{HERE}.test_scores_are_taken_at_the_temperature",
    ),
    Detail(
        "11",
        "value head starts at zero",
        ("method.critic.head=zeros",),
        "tests.models.test_critic.test_values_start_at_zero_by_default",
    ),
    Detail(
        "13",
        "dropout off",
        ("model.dropout=false",),
        f"{HERE}.test_dropout_is_off",
    ),
    Detail(
        "14",
        "cut at the first full stop from token 16, without one -1",
        (
            "method.rollout.truncate_after=13",
            "method.rollout.truncate_from=16",
            "method.shaping.missing_eos=replace",
        ),
        f"{SHAPING}.test_responses_without_an_end",
    ),
    Detail(
        "15",
        "no discount",
        ("method.advantage.gamma=1.0",),
        f"{TEMPORAL}.test_golden",
    ),
    Detail(
        "16",
        "rollout, minibatches, micro-batches",
        (
            "method.rollout.minibatches=2",
            "method.rollout.inner_epochs=4",
            "trainer.accumulate_grad_batches=2",
        ),
        f"{ONLINE}.test_8x1_is_4x2_is_two_processes",
    ),
    Detail(
        "17",
        "KL penalty at every token",
        ("method.kl.place=reward", "method.kl.coef=0.15"),
        "tests.credit.test_token_rewards.test_published_example",
    ),
    Detail(
        "18",
        "whitened rewards and advantages",
        (
            "method.advantage.whiten_rewards=true",
            "method.advantage.unbiased=false",
            "method.whiten_advantages=minibatch",
            "method.whiten_unbiased=false",
        ),
        f"{HERE}.test_advantages_are_whitened_over_the_step",
    ),
    Detail(
        "19",
        "clipped value loss",
        ("method.value_clip=0.2",),
        f"{PPO_TESTS}.test_value_loss_by_hand",
    ),
    Detail(
        "20",
        "adaptive KL",
        ("method.kl.controller=adaptive", "method.kl.target=6.0", "method.kl.horizon=10000"),
        f"{HERE}.test_golden_of_the_adaptive_controller",
    ),
    Detail(
        "extra",
        "Adam's epsilon as in TensorFlow",
        ("optimizer=adam_tf",),
        "tests.methods.test_adam_tf.test_two_steps_by_hand",
    ),
    Detail(
        "N+",
        "EOS trick",
        ("method.shaping.missing_eos=replace", "method.shaping.missing_eos_penalty=1.0"),
        f"{SHAPING}.test_responses_without_an_end",
    ),
    Detail(
        "N+",
        "value net from the reward model",
        (
            "method.critic.kind=separate",
            "+method.critic.source._target_=rlhf_lightning.models.TinyRandom",
        ),
        "tests.models.test_critic.test_a_critic_starts_from_a_reward_model_and_its_head",
    ),
    Detail(
        "M",
        "token-level KL penalty",
        ("method.kl.place=reward", "method.kl.estimator=k1"),
        "tests.credit.test_token_rewards.test_two_responses_by_hand",
    ),
    Detail(
        "M",
        "reward normalised and clipped",
        ("method.shaping.scale=running", "method.shaping.center=true", "method.shaping.clip=10.0"),
        f"{SHAPING}.test_clip_and_scale_in_either_order",
    ),
    Detail(
        "M",
        "advantages clipped",
        ("method.whiten_advantages=rollout", "method.advantage_clip=0.5"),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "M",
        "value loss clipped",
        ("method.value_clip=0.2",),
        f"{PPO_TESTS}.test_value_loss_by_hand",
    ),
    Detail(
        "M",
        "critic trained before the policy",
        ("method.critic_warmup=10",),
        f"{PPO_TESTS}.test_in_the_warm_up_the_policy_stands_still",
    ),
    Detail(
        "M",
        "generalised advantages",
        ("method.advantage.lam=0.95",),
        f"{TEMPORAL}.test_equals_the_scan_and_the_plain_loop",
    ),
    Detail(
        "M",
        "clipped surrogate",
        ("method.loss.eps_low=0.2", "method.loss.eps_high=0.2"),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "M",
        "gradients clipped by their norm",
        ("trainer.gradient_clip_val=1.0",),
        f"{HERE}.test_gradients_are_clipped",
    ),
    Detail(
        "M",
        "pretraining text mixed in",
        ("method.ptx_coef=0.1",),
        f"{PPO_TESTS}.test_pretraining_text_adds_its_mean_negative_log_likelihood",
    ),
    Detail(
        "M",
        "entropy bonus",
        ("method.entropy_coef=0.01",),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "verl",
        "dual clip",
        ("method.loss.dual_clip=3.0",),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "ColossalChat",
        "batches of a high ratio skipped",
        ("method.max_ratio=20.0",),
        f"{PPO_TESTS}.test_a_micro_batch_far_off_policy_trains_the_critic_alone",
    ),
    Detail(
        "TRL",
        "missing EOS subtracts",
        ("method.shaping.missing_eos=subtract",),
        f"{SHAPING}.test_responses_without_an_end",
    ),
    Detail(
        "TRL",
        "early stop of the inner epochs",
        ("method.target_kl=0.1",),
        f"{PPO_TESTS}.test_inner_epochs_stop_early",
    ),
    Detail(
        "InstructGPT",
        "average of the weights",
        ("+callbacks@callbacks.ema=ema", "callbacks.ema.decay=0.992"),
        "tests.callbacks.test_guards.test_average_is_what_is_validated_and_exported",
    ),
]


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose("train", ["method=ppo", "model=tiny_random"])


@pytest.mark.parametrize("detail", DETAILS, ids=lambda d: f"{d.number}: {d.what}")
def test_every_detail_is_an_option_with_a_test(detail: Detail, composed: DictConfig) -> None:
    """A renamed option, a value out of its range, or a test that is gone fails here."""
    cfg = composed.copy()
    OmegaConf.set_struct(cfg, True)
    own = [override.split("=") for override in detail.overrides if override.startswith("method.")]
    for name, value in own:
        OmegaConf.update(cfg, name, yaml.safe_load(value))
    others = [override for override in detail.overrides if not override.startswith("method.")]
    if others:
        compose("train", ["method=ppo", *others])
    module = make(cfg.method)(models=lambda *_: None)
    assert isinstance(module, PPO)
    where, _, name = detail.test.rpartition(".")
    assert callable(getattr(importlib.import_module(where), name))


def test_the_options_reach_the_method(composed: DictConfig) -> None:
    """All of them at once, the last where several set one option."""
    cfg = composed.copy()
    for override in (o for detail in DETAILS for o in detail.overrides if o.startswith("method.")):
        name, _, value = override.partition("=")
        OmegaConf.update(cfg, name, yaml.safe_load(value))
    module: Any = make(cfg.method)(models=lambda *_: None)
    assert (module.max_ratio, module.advantage_clip, module.ptx_coef, module.critic_warmup) == (20.0, 0.5, 0.1, 10)
    assert (module.rollout.truncate_after, module.rollout.truncate_from, module.rollout.inner_epochs) == (13, 16, 4)
    assert module.assignment.shaping.missing_eos == "subtract"
    assert (module.kl.controller, module.target_kl, module.entropy_coef) == ("adaptive", 0.1, 0.01)


@pytest.mark.parametrize(("kl", "expected"), [(3.0, 0.148464), (6.0, 0.15), (7.2, 0.151536), (40.0, 0.151536)])
def test_golden_of_the_adaptive_controller(kl: float, expected: float) -> None:
    """beta 0.15, target 6, horizon 10000, 512 responses; the error is held to a fifth on either side."""
    penalty = KLPenalty("reward", "k1", 0.15, controller="adaptive", target=6.0, horizon=10_000)
    penalty.update(kl, 512)
    assert float(penalty.coef) == pytest.approx(expected, abs=1e-9)


def test_positions_do_not_depend_on_padding() -> None:
    """The log-probs of a short prompt are the same alone and beside a longer one."""
    actor = Actor(TinyRandom().load(), backend="padded")
    short, long = Example([5, 9], [[4, 2]]), Example([6, 1, 1, 9, 30, 7], [[12, 8, 3, 2]])
    alone, beside = actor(pack([short])).token, actor(pack([short, long])).token
    torch.testing.assert_close(beside[:2], alone)


def test_generation_to_the_full_length() -> None:
    """Every token ends responses, and with ``ignore_eos`` none does."""
    engine = TransformersEngine(max_new_tokens=5)
    actor = Actor(TinyRandom().load())
    actor.base.generation_config.eos_token_id = list(range(actor.base.config.vocab_size))
    engine.sync(actor, 0)
    for ignored, length, finish in ((False, 1, "stop"), (True, 5, "length")):
        sampling = Sampling(max_new_tokens=5, ignore_eos=ignored)
        drawn = engine.generate([[5, 9]], sampling, n=3, seeds=[1])[0]
        assert {(len(sample.ids), sample.finish) for sample in drawn} == {(length, finish)}


def test_scores_are_taken_at_the_temperature() -> None:
    module = ppo_of(options=RolloutOptions(temperature=0.7, inner_epochs=2))
    module.configure_model()
    batch: Any = pack([Example([5, 9], [[4, 2]]), Example([6, 1], [[12, 8]])], kind="prompt")
    assert isinstance(batch, RolloutBatch)
    expected = module.policy(batch, temperature=0.7).token
    assert torch.equal(module.scores(batch)["old_log_probs"], expected)
    assert (module.policy(batch).token - expected).abs().max() > 0.01


def test_the_learning_rate_falls_to_zero() -> None:
    cfg = compose("train", ["method=ppo", "scheduler=linear", "scheduler.warmup=0.0"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make(cfg.scheduler)(optimizer, total_steps=4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    gaps = [one - other for one, other in itertools.pairwise(rates)]
    assert gaps == pytest.approx([gaps[0]] * 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_streams_of_samples_differ() -> None:
    """Samples are drawn from streams of their prompts, so no two processes share one, and a seed is all there is."""
    from rlhf_lightning.ops.streams import uniforms

    drawn = torch.as_tensor(uniforms([(3, 0), (3, 1), (4, 0), (3, 0)], 5))
    assert torch.equal(drawn[0], drawn[3])
    assert len({tuple(row) for row in drawn.tolist()}) == 3


def test_the_reward_heads_deviation() -> None:
    head = ScalarHead(10_000, init="rsqrt", bias=True, seed=0)
    assert head.weight.std().item() == pytest.approx(10_001**-0.5, rel=0.03)
    assert not head.bias.any()  # type: ignore[union-attr]


def test_dropout_is_off() -> None:
    module = ppo_of(models=None)
    module.configure_model()
    assert all(part.p == 0 for part in module.policy.modules() if isinstance(part, torch.nn.Dropout))
    assert not any(value for part in module.policy.modules() for name, value in vars(part).items() if "dropout" in name)


def test_gradients_are_clipped() -> None:
    trainer = compose("train", ["method=ppo", "trainer.gradient_clip_val=1.0"]).trainer
    assert trainer.gradient_clip_val == 1.0
    assert trainer.get("gradient_clip_algorithm", "norm") == "norm"


@pytest.mark.parametrize("unbiased", [True, False])
def test_advantages_are_whitened_over_the_step(unbiased: bool) -> None:
    """The loader brings the step's moments; a micro-batch of it is whitened by them, as the whole step at once is."""
    module = ppo_of(whiten_advantages="minibatch", whiten_unbiased=unbiased)
    rows = [Example([5, 9], [[4, 2, 7]]), Example([6], [[12, 8]])]
    whole: Any = pack(rows, kind="prompt")
    whole.advantage = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.0])
    moments = (float(whole.advantage.mean()), float(whole.advantage.std(unbiased=False)))
    part: Any = pack(rows[1:], kind="prompt", totals=whole.totals)
    part.advantage, part.advantage_moments = whole.advantage[3:], moments
    torch.testing.assert_close(module.advantages(part).token, whiten(whole.advantage, unbiased=unbiased)[3:])
