"""Every detail of "The N Implementation Details of RLHF with PPO", and every switch of PPO-max, is an option.

The table is tests/helpers/ppo_details.py: detail, option, test. That the option exists under this name, has an allowed
value and reaches the method is tested here for every row, and that the row's test exists.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.credit.whitening import whiten
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.methods import PPO, KLPenalty
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.scorers.scorer import ScalarHead
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.types import Example, RolloutBatch, RolloutOptions, Sampling
from tests.helpers.critics import ppo_of
from tests.helpers.ppo_details import DETAILS, Detail
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import gpt2_like


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose("train", ["method=ppo", "model=tiny_random"])


@pytest.mark.parametrize("detail", DETAILS, ids=lambda d: f"{d.number}: {d.what}")
def test_every_detail_is_an_option_with_a_test(detail: Detail, composed: DictConfig) -> None:
    """A renamed option, a value out of its range, or a test that is gone fails here."""
    cfg = composed.copy()
    OmegaConf.set_struct(cfg, True)
    options = [override.split("=") for override in detail.overrides if override.startswith("method.")]
    for name, value in options:
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
    assert (module.policy_loss.max_ratio, module.advantage_clip) == (20.0, 0.5)
    assert (module.ptx_coef, module.value_loss.critic_warmup) == (0.1, 10)
    assert (module.rollout.truncate_after, module.rollout.truncate_from, module.rollout.inner_epochs) == (13, 16, 4)
    assert module.assignment.shaping.missing_eos == "subtract"
    assert module.kl.controller == "adaptive"
    assert (module.policy_loss.target_kl, module.policy_loss.entropy_coef) == (0.1, 0.01)


@pytest.mark.parametrize("name", ["openai_2019", "n_plus", "instructgpt_ptx", "ppo_max", "trlx"])
def test_recipes_compose(name: str) -> None:
    needed = ["method.critic.source.name=x"] if name in ("n_plus", "instructgpt_ptx", "ppo_max") else []
    module: Any = make(compose("train", [f"experiment=ppo/{name}", *needed]).method)(models=lambda *_: None)
    expected = {
        "openai_2019": (0.15, 4, 0.0, "minibatch"),
        "n_plus": (0.05, 4, 0.0, "minibatch"),
        "instructgpt_ptx": (0.02, 1, 0.5, "minibatch"),
        "ppo_max": (0.02, 1, 0.0, "rollout"),
        "trlx": (0.001, 4, 0.0, "rollout"),
    }
    settings = float(module.kl.coef), module.rollout.inner_epochs, module.ptx_coef, module.whiten
    assert settings == expected[name]


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
    alone, packed = actor(pack([short])).token, actor(pack([short, long])).token
    torch.testing.assert_close(packed[:2], alone)


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


def test_prompts_are_whole_sentences() -> None:
    """An excerpt as the recipe's data options make a prompt of it: behind its first full stop, at most 64 tokens."""
    spec = make(
        compose(
            "train",
            ["experiment=ppo/openai_2019", "data=json", "data.source.path=x", "data.spec.cache=false"],
        ).data.spec
    )
    whole = ["The night was long.", "He slept well."]
    excerpt = f"of the house. {' '.join(whole)} In the morning he went out again and did not come back. Nobody knew"
    tokenized = tokenize(Rows({"prompt": excerpt}, {"prompt": "and nothing ends"}), gpt2_like(), spec, "prompt")
    assert gpt2_like().decode(tokenized.examples[0].prompt) == " ".join(whole)
    assert tokenized.report.excluded == {"no boundary": 1}
    tokenized.report.enforce(spec)  # left out, as in the code


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
    module = ppo_of(credit={"whiten": "minibatch", "whiten_unbiased": unbiased})
    rows = [Example([5, 9], [[4, 2, 7]]), Example([6], [[12, 8]])]
    whole: Any = pack(rows, kind="prompt")
    whole.advantage = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.0])
    moments = (float(whole.advantage.mean()), float(whole.advantage.std(unbiased=False)))
    part: Any = pack(rows[1:], kind="prompt", totals=whole.totals)
    part.advantage, part.advantage_moments = whole.advantage[3:], moments
    torch.testing.assert_close(module.advantages(part).token, whiten(whole.advantage, unbiased=unbiased)[3:])
