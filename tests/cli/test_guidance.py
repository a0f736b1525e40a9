"""The config group ``guidance``: which jobs may have which, and that a job is another one with it."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.callbacks import PolicySamples
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.generate import Responder
from rlhf_lightning.cli.guidance import check_credit, check_texts, guide_samples, make_guidance
from rlhf_lightning.cli.identity import digest
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.rollouts import guided, make_rollouts
from rlhf_lightning.cli.shared import shared_rounds
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses.options import is_on_policy
from rlhf_lightning.methods import Mismatch
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.guidance import BlockGuidance, Realignment, RewardGuidance
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import AdapterDisabled
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import Composite, LengthReward, MathReward
from rlhf_lightning.rewards.confidence import SelfConfidence
from rlhf_lightning.rewards.prefix_value import RewardOfPrefix
from rlhf_lightning.rollout import TransformersEngine, VLLMServerEngine
from rlhf_lightning.rounds.collect import Collector
from rlhf_lightning.types import Draw, RolloutOptions, Sample, Sampling

TOKENIZER = TinyRandom().tokenizer()
LENGTH = "rlhf_lightning.rewards.LengthReward"


def node(kind: str, **options):
    reward = {"reward": {"_target_": LENGTH, "_partial_": True}}
    return {"_target_": f"rlhf_lightning.models.guidance.{kind}", **reward, **options}


def builder(adapter=None, reference="none") -> ModelBuilder:
    return ModelBuilder(TinyRandom(initializer_range=0.3), adapter, reference)


def test_a_reward_of_the_configuration_guides():
    guidance = make_guidance(node("BlockGuidance", candidates=3, tokens=2), builder())
    policy = builder()().policy
    assert guidance.scorer([[1]], [[Sample([5, 6], [], "length"), Sample([5], [], "length")]]) == [[0.02, 0.01]]
    assert guidance.guide(policy).candidates == 3
    assert make_guidance({}, builder()) is None


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (MathReward(TOKENIZER), "reads columns"),
        (Composite(terms={"math": MathReward(TOKENIZER), "length": LengthReward()}), "reads columns"),
        (SimpleNamespace(name="judge", smallest_group=2), "compares at least 2 responses, and 1 would"),
        (SimpleNamespace(name="own", policy=None), "asks the policy"),
    ],
    ids=["columns", "columns_of_a_term", "comparing", "policy"],
)
def test_rewards_that_cannot_score_a_prefix_are_refused(reward, why):
    with pytest.raises(ValueError, match=f"guidance.reward.*{why}"):
        RewardOfPrefix(reward, 1)


def test_a_composite_of_functions_scores_prefixes():
    value = RewardOfPrefix(Composite(terms={"length": LengthReward()}), 1)
    assert value([[1]], [[Sample([5, 6, 7], [], "length")]]) == [[pytest.approx(0.03)]]


def test_samples_of_an_evaluation_are_guided_and_have_no_kl():
    """Fails when an evaluation leaves the guidance out, or takes guided samples for the policy's."""
    samples, guidance = PolicySamples(pack), make_guidance(node("BlockGuidance", candidates=3), builder())
    guide_samples(guidance, SimpleNamespace(callbacks=[samples]))
    asked = {}

    def sample(prompts, **options):
        asked.update(options)
        return [[5, 6] for _ in prompts]

    models = builder(reference="frozen")()
    module = SimpleNamespace(sample=sample, policy=models.policy, tokenizer=TOKENIZER, log_ratios=pytest.fail)
    samples._prompts = [SimpleNamespace(ids=[1, 9], data=[], row="a:1", index=0, columns={})]
    (row,) = samples._sample(
        SimpleNamespace(
            global_step=0, evaluating=False, datamodule=None, is_global_zero=False, progress_bar_callback=None
        ),
        module,
    )
    assert asked["guide"].candidates == 3
    assert row.kl is None
    guide_samples(None, SimpleNamespace(callbacks=[samples]))
    assert samples.guidance is None
    with pytest.raises(ConfigError, match=r"guidance=\w+ guides samples, and nothing samples"):
        guide_samples(guidance, SimpleNamespace(callbacks=[]))


def test_other_engines_are_refused():
    engine = VLLMServerEngine.__new__(VLLMServerEngine)
    with pytest.raises(ConfigError, match=r"guidance=dera: rollout=vllm_server"):
        guided(engine, Realignment(0.5))
    assert guided(engine, None) is engine


def method(correction: str | None = None, **options) -> SimpleNamespace:
    mismatch = Mismatch() if correction is None else Mismatch(correction=correction)
    return SimpleNamespace(mismatch=mismatch, **options)


def test_policy_gradients_of_guided_samples_are_refused_or_corrected():
    with pytest.raises(ConfigError, match=r"guidance=dera .*method.policy_loss.mismatch.correction"):
        check_credit(Realignment(0.5), method())
    check_credit(Realignment(0.5), method("tis"))
    check_credit(RewardGuidance(LengthReward()), method("icepop"))
    check_credit(None, method())
    with pytest.raises(ConfigError, match=r"guidance=blocks .*nobody knows"):
        check_credit(BlockGuidance(LengthReward()), method("tis"))  # nothing to correct with


def test_rounds_learn_from_texts_alone():
    blocks, dpo = BlockGuidance(LengthReward()), SimpleNamespace(loss=losses.dpo, needs=frozenset({"policy"}))
    check_texts(blocks, dpo, LengthReward())
    nash_md = SimpleNamespace(loss=functools.partial(losses.nash_md, beta=0.1), needs=frozenset({"policy"}))
    with pytest.raises(ConfigError, match=r"guidance=blocks .*the policy's own samples"):
        check_texts(blocks, nash_md, None)
    check_texts(None, nash_md, None)
    with pytest.raises(ConfigError, match=r"guidance=blocks .*reads reference_sample"):
        check_texts(blocks, SimpleNamespace(loss=losses.xpo, needs=frozenset({"reference_sample"})), None)
    confidence = SelfConfidence()
    for reward in (confidence, Composite(terms={"own": confidence})):
        with pytest.raises(ConfigError, match=r"guidance=blocks: log-probs"):
            check_texts(blocks, dpo, reward)
    assert is_on_policy(losses.nash_md)
    assert not is_on_policy(losses.dpo)


def test_a_run_is_refused_before_its_weights_load():
    """From the configuration to the message, as ``rlhf train`` makes a run."""
    job = ["method=grpo", "model=tiny", "data=tiny", "reward=length"]
    cfg = compose("train", [*job, "guidance=blocks", "reward@guidance.reward=length"])
    module = make(cfg.method)(models=builder(reference="frozen"), optimizer=None, scheduler=None)
    with pytest.raises(ConfigError, match=r"guidance=blocks"):
        make_rollouts(cfg, builder(), module, SimpleNamespace(ptx=None))
    assert digest(cfg) != digest(compose("train", job))
    cfg.paths.shared = "somewhere"
    assert shared_rounds(cfg, builder(), SimpleNamespace(), "32-true") is None


def test_responses_of_a_configuration_are_guided():
    """``rlhf generate``: blocks as long as a response keep the longest of the candidates."""
    job = ["model=tiny_random", "max_new_tokens=16", "temperature=1", "device=cpu", "prompt=x"]
    guidance = ["guidance=blocks", "guidance.tokens=16", "guidance.candidates=6", "reward@guidance.reward=length"]
    conversations = [[{"role": "user", "content": text}] for text in ("ab", "c")]

    def lengths(*more: str) -> list[int]:
        responder = Responder.load(compose("generate", [*job, *more]))
        ends = responder.actor.base.generation_config
        ends.eos_token_id = [ends.eos_token_id, *range(0, 260, 9)]  # most responses end early
        groups = responder.sampled(conversations, 3)
        return [len(response) for group in groups for response in group.responses]

    plain, guided_lengths = lengths(), lengths(*guidance)
    assert all(longer >= length for longer, length in zip(guided_lengths, plain, strict=True))
    assert sum(guided_lengths) > sum(plain)


def test_training_draws_are_guided_and_others_are_not():
    engine = SimpleNamespace(max_new_tokens=4, min_new_tokens=0)
    parts = engine, None, RolloutOptions(), None, None
    assert Collector(*parts).sampling(Draw()).guided
    assert not Collector(*parts).sampling(Draw("reference")).guided
    assert not Collector(*parts, validating=True).sampling(Draw()).guided


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_engine_gives_the_guided_distributions_log_probs(dtype):
    """At lambda 0 they are those of the base, whatever the policy has become; without ``guided`` they are its own."""
    models = builder(Lora(r=4, seed=0))()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in models.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    engine = TransformersEngine(max_new_tokens=6, dtype=dtype)
    engine.sync(models.policy, 0)
    engine.hold(AdapterDisabled(models.policy))
    prompts, seeds = [[1, 50, 60], [1, 70]], [3, 4]
    plain = engine.generate(prompts, Sampling(6), n=2, seeds=seeds)
    reference = engine.generate(prompts, Sampling(6, source="reference"), n=2, seeds=seeds)
    assert engine.max_gap is not None
    engine.guide(Realignment(0.0))
    assert engine.max_gap is None
    assert engine.generate(prompts, Sampling(6, guided=True), n=2, seeds=seeds) == reference
    assert engine.generate(prompts, Sampling(6), n=2, seeds=seeds) == plain != reference
