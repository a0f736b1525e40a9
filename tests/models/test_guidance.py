"""Guided decoding against golden values, its identities, and plain loops without a cache."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.decoding.generation import Guide, Mixed, candidate_streams, sample
from rlhf_lightning.models.decoding.reward_guidance import TokenReward
from rlhf_lightning.models.decoding.states import WeightedModel, _Mixed
from rlhf_lightning.models.guidance import BlockGuidance, Contrast, Realignment, RewardGuidance
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.ops.draw import draw
from rlhf_lightning.ops.streams import uniforms
from rlhf_lightning.types import Sample, Sampling

PROMPTS = [[1, 50, 60], [1, 70], [1, 80, 90, 100, 110, 120, 130]]
STREAMS = [(5, row) for row in range(len(PROMPTS))]
#: Every ninth token ends a response, so that rows leave the batch all the time.
SAMPLING = Sampling(max_new_tokens=12, stop=tuple(range(3, 260, 9)))


def value(prompts, candidates):
    """Of prefixes: spread out, and another one for every continuation."""
    return [
        [sum((token * 37 + at * 11 + len(prompt)) % 17 for at, token in enumerate(one.ids)) / 8 for one in row]
        for prompt, row in zip(prompts, candidates, strict=True)
    ]


def source(seed: int = 0) -> TinyRandom:
    return TinyRandom(initializer_range=0.3, seed=seed)


def actor_of(seed: int = 0, adapter: Lora | None = None):
    return ModelBuilder(source(seed), adapter, "none")().policy


@pytest.fixture(scope="module")
def policy():
    return actor_of()


@pytest.fixture(scope="module")
def adapted():
    """An aligned model: an adapter that is not zero."""
    actor = actor_of(adapter=Lora(r=4, seed=0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in actor.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return actor


def drawn(actor, guide: Guide | None = None, sampling: Sampling = SAMPLING, **options):
    return sample(actor, PROMPTS, sampling, streams=STREAMS, guide=guide, **options)


def guided_by(guidance, policy) -> Guide:
    if hasattr(guidance, "reward"):
        guidance.value = value
    return guidance.guide(policy)


# Golden values


class Fixed:
    """A state whose logits never change."""

    ids = torch.zeros(1, 1, dtype=torch.long)

    def __init__(self, *logits: float) -> None:
        self.logits = torch.tensor([logits])

    def start(self):
        return self.logits


@pytest.mark.parametrize(
    ("weight", "others", "expected"),
    [
        (1.0, [((1.0, 0.0), 1.0), ((0.0, 0.0), -1.0)], 0.952574),  # proxy-tuning: base (2, 0), delta (1, 0), a = 1
        (1.0, [((1.0, 0.0), 0.0), ((0.0, 0.0), 0.0)], 0.880797),  # a = 0: the base
        (0.25, [((0.0, 2.0), 0.75)], 0.268941),  # DeRa: logits (.5, 1.5)
    ],
)
def test_logits_of_several_models_are_added_by_weight(weight, others, expected):
    models = [(Fixed(*logits), WeightedModel(None, share)) for logits, share in others]
    mixed = _Mixed(Fixed(2.0, 0.0), weight, models).start()
    assert mixed.softmax(-1)[0, 0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("weight", "expected"), [(0.2, 0.448814), (0.5, 0.523616), (1.5, 0.749235), (0.0, 0.4)])
def test_a_reward_weighs_tokens(weight, expected):
    guide = TokenReward(lambda prompts, candidates: [[float(one.ids[-1] == 1) for one in candidates[0]]], weight, 2)
    logits = torch.tensor([[0.6, 0.4, 1e-9]]).log() + 3.0
    guided = guide.logits([[1]], [[]], logits, torch.tensor([9]))
    assert guided.softmax(-1)[0, 1].item() == pytest.approx(expected, abs=1e-6)
    assert guided[0, 2] == -torch.inf


def test_candidates_say_whether_they_end_and_unjudged_ones_count_as_the_mean():
    seen = []

    def two_of_three(prompts, candidates):
        seen.extend(candidates[0])
        return [[3.0, None, 1.0]]

    guided = TokenReward(two_of_three, 1.0, 3).logits([[7]], [[5]], torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]))
    assert [(one.ids, one.finish) for one in seen] == [([5, 0], "length"), ([5, 1], "stop"), ([5, 2], "length")]
    bonus = guided - torch.tensor([[2.0, 1.0, 0.0]]).log_softmax(-1)
    assert bonus.tolist() == [pytest.approx([3.0, 2.0, 1.0], abs=1e-6)]


# Identities


@pytest.mark.parametrize("reference", [None, source(1)], ids=["adapter_off", "another_model"])
def test_realignment_at_1_is_the_policy_and_at_0_the_reference(adapted, reference):
    """Tokens and log-probs, bit for bit; between them it is neither."""
    ends = drawn(adapted), drawn(adapted, adapter=False) if reference is None else drawn(actor_of(1))
    assert ends[0] != ends[1]
    assert drawn(adapted, guided_by(Realignment(1.0, reference), adapted)) == ends[0]
    assert drawn(adapted, guided_by(Realignment(0.0, reference), adapted)) == ends[1]
    assert drawn(adapted, guided_by(Realignment(0.5, reference), adapted)) not in ends


def test_a_contrast_of_no_strength_is_the_policy(policy):
    assert drawn(policy, guided_by(Contrast(source(1), source(2), 0.0), policy)) == drawn(policy)
    equal = drawn(policy, guided_by(Contrast(source(1), source(1), 1.0), policy))
    assert [one.ids for one in equal] == [one.ids for one in drawn(policy)]
    assert drawn(policy, guided_by(Contrast(source(1), source(2), 1.0), policy)) != drawn(policy)


@pytest.mark.parametrize("top_k", [3, 1000])
def test_a_reward_of_no_weight_is_sampling_of_the_most_likely_tokens(policy, top_k):
    guided = drawn(policy, guided_by(RewardGuidance("any", 0.0, top_k), policy))
    plain = drawn(policy, sampling=Sampling(12, top_k=top_k, stop=SAMPLING.stop))
    assert [one.ids for one in guided] == [one.ids for one in plain]


def test_one_candidate_is_sampling(policy):
    assert drawn(policy, guided_by(BlockGuidance("any", 1, 4), policy)) == drawn(policy)


@pytest.mark.parametrize("tokens", [12, 100])
def test_blocks_as_long_as_a_response_are_best_of_k(policy, tokens):
    guided = drawn(policy, guided_by(BlockGuidance("any", 5, tokens), policy))
    for prompt, stream, response in zip(PROMPTS, STREAMS, guided, strict=True):
        candidates = sample(policy, [prompt] * 5, SAMPLING, streams=candidate_streams(stream, 5))
        values = value([prompt], [candidates])[0]
        best = candidates[values.index(max(values))]
        assert (response.ids, response.finish, response.log_probs) == (best.ids, best.finish, [])


@pytest.mark.parametrize("guidance", [BlockGuidance("any", 3, 4), RewardGuidance("any", 1.0, 4)])
def test_batches_do_not_enter(policy, guidance):
    guide = guided_by(guidance, policy)
    assert [one.ids for one in drawn(policy, guide, batch_size=1)] == [one.ids for one in drawn(policy, guide)]


# Plain loops: no cache, no batch, every token by whole forward passes


def next_logits(models, prompt, ids):
    total = 0.0
    for actor, weight, adapter in models:
        with nullcontext() if adapter else actor.model.disable_adapter(), torch.no_grad():
            total = total + weight * actor.base(torch.tensor([[*prompt, *ids]])).logits[:, -1].float()
    return total


def ended(actor, ids) -> bool:
    return bool(ids) and ids[-1] in {actor.base.generation_config.eos_token_id, *SAMPLING.stop}


@pytest.mark.parametrize(("kind", "temperature"), [("contrast", 1.0), ("contrast", 0.0), ("dera", 0.7)])
def test_a_contrast_is_a_plain_loop_over_its_models(adapted, kind, temperature):
    if kind == "contrast":
        guidance = Contrast(source(1), source(2), 0.8)
        models = [(adapted, 1.0, True), (actor_of(1), 0.8, True), (actor_of(2), -0.8, True)]
    else:
        guidance = Realignment(1.7)
        models = [(adapted, 1.7, True), (adapted, -0.7, False)]
    sampling = Sampling(12, temperature, stop=SAMPLING.stop)
    guided = drawn(adapted, guided_by(guidance, adapted), sampling)
    for prompt, stream, response in zip(PROMPTS, STREAMS, guided, strict=True):
        numbers, ids, log_probs = uniforms([stream], 12), [], []
        while len(ids) < 12 and not ended(adapted, ids):
            token, log_prob = draw(next_logits(models, prompt, ids), numbers[:, len(ids)], temperature=temperature)
            ids.append(int(token))
            log_probs.append(float(log_prob))
        assert response.ids == ids
        assert response.log_probs == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_token_rewards_are_a_plain_loop_over_candidates(policy, temperature):
    sampling = Sampling(12, temperature, stop=SAMPLING.stop, min_new_tokens=2)
    guided = drawn(policy, guided_by(RewardGuidance("any", 0.6, 5), policy), sampling)
    for prompt, stream, response in zip(PROMPTS, STREAMS, guided, strict=True):
        numbers, ids, log_probs = uniforms([stream], 12), [], []
        ends = [policy.base.generation_config.eos_token_id, *SAMPLING.stop]
        while len(ids) < 12 and not ended(policy, ids[2:]):
            z = next_logits([(policy, 1.0, True)], prompt, ids)[0].log_softmax(-1)
            if len(ids) < 2:
                z[ends] = -torch.inf
            scores = torch.full_like(z, -torch.inf)
            for token in z.argsort(descending=True)[:5].tolist():
                reward = value([prompt], [[Sample([*ids, token], [], "length")]])[0][0]
                scores[token] = z[token] + 0.6 * reward
            token, log_prob = draw(scores[None], numbers[:, len(ids)], temperature=temperature)
            ids.append(int(token))
            log_probs.append(float(log_prob))
        assert response.ids == ids
        assert response.log_probs == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize("tokens", [1, 5])
def test_blocks_are_a_plain_loop_over_candidates(policy, tokens):
    guided = drawn(policy, guided_by(BlockGuidance("any", 3, tokens), policy))
    for prompt, stream, response in zip(PROMPTS, STREAMS, guided, strict=True):
        numbers, ids = uniforms(candidate_streams(stream, 3), 12), []
        while len(ids) < 12 and not ended(policy, ids):
            candidates = []
            for row in numbers:
                one = list(ids)
                while len(one) < min(len(ids) + tokens, 12) and not (len(one) > len(ids) and ended(policy, one)):
                    one.append(int(draw(next_logits([(policy, 1.0, True)], prompt, one), row[None, len(one)])[0]))
                candidates.append(Sample(one, [], "length"))
            values = value([prompt], [candidates])[0]
            ids = candidates[values.index(max(values))].ids
        assert (response.ids, response.log_probs) == (ids, [])


def test_blocks_without_any_value_continue_the_first_candidate(policy):
    guidance = BlockGuidance("any", 3, 4)
    guidance.value = lambda prompts, candidates: [[None] * len(row) for row in candidates]
    assert [one.ids for one in drawn(policy, guidance.guide(policy))] == [one.ids for one in drawn(policy)]


def test_a_model_without_weight_is_not_run(policy):
    class Broken:
        """Would fail if anything were asked of it."""

    assert drawn(policy, Guide(1.0, (Mixed(Broken(), 0.0),))) == drawn(policy)


# Refusals


@pytest.mark.parametrize(
    ("guidance", "option"),
    [
        (Realignment(0.5), "guidance.reference=null"),
        (RewardGuidance({}), "reward@guidance.reward="),
        (BlockGuidance(None), "reward@guidance.reward="),
    ],
)
def test_what_cannot_guide_is_refused_before_weights_load(guidance, option):
    with pytest.raises(ValueError, match=option):
        guidance.check(ModelBuilder(source(), None, "none"))


class OtherWords(TinyRandom):
    """Of another vocabulary."""

    def tokenizer(self):
        tokenizer = super().tokenizer()
        tokenizer.add_tokens(["<another>"])
        return tokenizer


@pytest.mark.parametrize("option", ["tuned", "untuned", "reference"])
def test_models_of_another_vocabulary_are_refused(option):
    other = OtherWords()
    if option == "reference":
        guidance = Realignment(0.5, other)
    else:
        guidance = Contrast(**{"tuned": source(1), "untuned": source(1), option: other})
    with pytest.raises(ValueError, match=f"guidance.{option} has another vocabulary"):
        guidance.check(ModelBuilder(source(), None, "none"))
