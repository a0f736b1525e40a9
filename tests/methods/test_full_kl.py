"""``method.kl.estimator=full``: what is charged, differentiated and logged, and what it does not go with."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning import credit
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import ppo, reinforce
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.ops.aggregation import AGGREGATIONS
from rlhf_lightning.ops.divergence import Predictions, divergence
from rlhf_lightning.types import Example, RolloutBatch, RolloutOptions
from tests.helpers.critics import ppo_of
from tests.helpers.rollouts import episodes, rollout_batch
from tests.helpers.training import Builder, cut

SOURCE = TinyRandom(hidden_size=16, intermediate_size=32)
ROWS = [
    Example([5, 9, 3], [[4, 8, 2], [7, 2], [1]]),
    Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2], [5, 4]]),
    Example([8], [[1], [2, 3], [40, 41, 42]]),
    Example([40, 41], [[9, 9, 9, 9], [5, 2], [6, 2]]),
]
SLOTS, COEF, TEMPERATURE = 3, 0.3, 0.7
LOSS = partial(KLPenalty, "loss", "full", coef=COEF)
REWARD = partial(KLPenalty, "reward", "full", coef=COEF)


def built(kl: KLPenalty, loss: Any = ppo, **options: Any) -> Any:
    """A method around a random model that has left its reference."""
    options = {"advantage": credit.grpo, "rollout": {"group_size": SLOTS, "temperature": TEMPERATURE}} | options
    made = PolicyGradient(ModelBuilder(SOURCE, None, "frozen"), loss, kl=kl, **options)
    return left(made)


def left(made: Any) -> Any:
    made.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def step(sizes: list[int] | None = None, advantage: Tensor | None = None) -> list[RolloutBatch]:
    """One step over ``ROWS`` in micro-batches of so many groups; advantages 0 by default."""
    batches, start = [], 0
    for packed in cut(ROWS, sizes or [len(ROWS)]):
        end = start + len(packed.target)
        part = torch.zeros(end - start) if advantage is None else advantage[start:end]
        batches.append(rollout_batch(packed, advantage=part))
        start = end
    return batches


def loop(made: Any, rows: list[Example] = ROWS) -> list[Tensor]:
    """The KL at each token of each response: full logits, one response and one token at a time."""
    out = []
    for row in rows:
        for response in row.responses:
            ids = torch.tensor([row.prompt + response])
            here, there = (model.base(input_ids=ids).logits[0] for model in (made.policy, made.reference.actor))
            per_token = []
            for at in range(len(row.prompt) - 1, len(row.prompt) + len(response) - 1):
                log_p = (here[at] / TEMPERATURE).log_softmax(-1)
                log_q = (there[at].detach() / TEMPERATURE).log_softmax(-1)
                per_token.append((log_p.exp() * (log_p - log_q)).sum())
            out.append(torch.stack(per_token))
    return out


def gradients(made: Any, loss: Tensor) -> list[Tensor]:
    made.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in made.policy.parameters()]


def total(made: Any, sizes: list[int]) -> tuple[float, list[Tensor]]:
    batches = step(sizes)
    loss = sum(made(batch).loss for batch in batches) / len(batches)
    return loss.item(), gradients(made, loss)


def test_golden() -> None:
    """Three words. Fails for KL(reference || policy), which is 0.564029, and for a renormalised or signed sum."""
    policy, reference = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.125, 0.125, 0.75])

    def of(distribution: Tensor) -> Predictions:
        return Predictions(torch.ones(1, 1), distribution.log()[:, None])

    # .5 ln 4 + .25 ln 2 - .25 ln 3
    expected = torch.tensor([0.591781])
    torch.testing.assert_close(divergence(of(policy), of(reference), "reverse_kl"), expected, atol=1e-6, rtol=0)


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=9),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_never_negative(logits: list[tuple[float, float]], dtype: torch.dtype) -> None:
    here, there = (
        Predictions(torch.ones(1, 1, dtype=dtype), torch.tensor(column, dtype=dtype)[:, None])
        for column in zip(*logits, strict=True)
    )
    rounding = 64 * 30 * torch.finfo(dtype).eps
    assert divergence(here, there, "reverse_kl").item() >= -rounding


@pytest.mark.parametrize("how", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum"])
def test_the_loss_and_its_gradient_are_those_of_a_plain_loop(how: str) -> None:
    made = built(LOSS(), policy_loss={"aggregation": how})
    (batch,) = step()
    output = made(batch)
    kl = loop(made)
    expected = {
        "token_mean": torch.cat(kl).mean(),
        "seq_mean_token_mean": torch.stack([row.mean() for row in kl]).mean(),
        "seq_mean_token_sum": torch.stack([row.sum() for row in kl]).mean(),
    }[how]
    assert output.loss.item() == pytest.approx(COEF * expected.item(), rel=1e-4)
    wanted = gradients(made, COEF * expected)
    for gradient, want in zip(gradients(made, output.loss), wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(output.diagnostics["diagnostic/kl/token"], torch.cat(kl).detach(), atol=1e-5, rtol=1e-4)
    summed = torch.stack([row.sum() for row in kl]).detach()
    torch.testing.assert_close(output.diagnostics["diagnostic/kl/reference"], summed, atol=1e-5, rtol=1e-4)
    assert torch.equal(output.diagnostics["diagnostic/kl/loss"], output.diagnostics["diagnostic/kl/token"])


@pytest.mark.parametrize("how", [how for how in AGGREGATIONS if how != "local_token_mean"])
def test_a_step_may_be_cut_into_micro_batches_anywhere(how: str) -> None:
    length = 8 if how.endswith("norm") else None
    made = built(LOSS(), policy_loss={"aggregation": how, "aggregation_length": length})
    value, gradient = total(made, [4])
    assert value > 1e-3
    for sizes in ([2, 2], [1, 3], [1, 1, 1, 1]):
        cut_value, cut_gradient = total(made, sizes)
        assert cut_value == pytest.approx(value, abs=1e-6)
        for one, other in zip(cut_gradient, gradient, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (REWARD(), {"reference_kl"}),
        (REWARD(controller="adaptive"), {"reference_kl"}),
        (LOSS(), set()),
        (LOSS(controller="adaptive"), {"reference_kl"}),
        (REWARD(coef=0.0), set()),
        (KLPenalty("none", "full"), set()),
    ],
)
def test_only_what_is_needed_is_scored(kl: KLPenalty, expected: set[str]) -> None:
    made = built(kl)
    assert made.required_scores == made.scores(step()[0]).keys() == expected
    assert ("reference" in made.needs) is kl.active
    twice = built(kl, rollout={"group_size": SLOTS, "inner_epochs": 2})
    assert twice.required_scores == twice.scores(step()[0]).keys() == expected | {"old_log_probs"}


def test_in_the_reward_every_token_is_charged() -> None:
    made = built(REWARD(), advantage=partial(credit.grpo, scale="none"))
    (batch,) = step()
    scores = made.scores(batch)
    kl = [row.detach() for row in loop(made)]
    torch.testing.assert_close(scores["reference_kl"], torch.cat(kl), atol=1e-5, rtol=1e-4)
    assert not scores["reference_kl"].requires_grad
    played = episodes(ROWS, scores)
    assigned = made.credit(played)
    summed = torch.stack([row.sum() for row in kl])
    reward = (played.reward - COEF * summed).view(len(ROWS), SLOTS)
    expected = (reward - reward.mean(1, keepdim=True)).flatten()
    first = played.length.cumsum(0) - played.length
    torch.testing.assert_close(assigned.tokens["advantage"].token[first], expected, atol=1e-5, rtol=1e-4)
    assert assigned.metrics["kl/reference"] == pytest.approx(summed.mean().item(), rel=1e-4)
    assert assigned.metrics["kl/token"] == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)
    (rewarded,) = step(None, assigned.tokens["advantage"].token)
    assert not any("kl/" in name for name in made(rewarded).diagnostics)


def test_the_controller_moves_by_the_kl_itself() -> None:
    for kl in (REWARD(controller="adaptive", target=1e-3, horizon=100), LOSS(controller="adaptive", target=1e-3)):
        made = built(kl)
        made.credit(episodes(ROWS, made.scores(step()[0])))
        assert float(made.kl.coef) == pytest.approx(COEF * (1 + 0.2 * SLOTS * len(ROWS) / kl.horizon))


@pytest.mark.parametrize("kind", ["separate", "shared", "hydra", "adapter"])
@pytest.mark.parametrize("kl", [REWARD, LOSS])
def test_with_a_critic_it_is_the_same_as_without(kind: str, kl: Any) -> None:
    options = RolloutOptions(group_size=SLOTS, temperature=TEMPERATURE, inner_epochs=2)
    made: Any = left(ppo_of(kind, options, kl=kl(), value_loss={"coef": 0.0}, credit={"whiten": "none"}))
    (batch,) = step()
    scores = made.scores(batch)
    divergence = made.policy(batch, temperature=TEMPERATURE, **made.compared(batch, True)).reference_kl
    assert bool((divergence > 1e-5).all())
    if made.kl.in_reward:
        torch.testing.assert_close(scores["reference_kl"], divergence.detach())
        assert scores.keys() == {"old_log_probs", "reference_kl", "value"}
        return
    batch.old_log_probs, batch.value, batch.returns = scores["old_log_probs"], scores["value"], scores["value"]
    output = made(batch)
    assert output.loss.item() == pytest.approx(COEF * divergence.mean().item(), rel=1e-5)
    assert (output.diagnostics["diagnostic/ratio/mean"] == 1).all()


def test_validation_reports_it_for_reward_and_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    for kl in (REWARD(), LOSS()):
        made, seen = built(kl), {}
        monkeypatch.setattr(made, "track", lambda name, value, seen=seen: seen.update({name: value}))
        made.eval().validation_step(step()[0], 0)
        expected = loop(made)
        torch.testing.assert_close(seen["val/kl/token"], torch.cat(expected).detach(), atol=1e-5, rtol=1e-4)
        summed = torch.stack([row.sum() for row in expected]).detach()
        torch.testing.assert_close(seen["val/kl/reference"], summed, atol=1e-5, rtol=1e-4)


def test_with_an_adapter_the_base_is_the_reference() -> None:
    made: Any = PolicyGradient(
        ModelBuilder(SOURCE, Lora(r=4, seed=0), "adapter_off"), ppo, kl=LOSS(), advantage=credit.grpo
    )
    made.configure_model()
    assert made(step()[0]).loss.item() == pytest.approx(0, abs=1e-6)
    output = left(made)(step()[0])
    output.loss.backward()
    assert output.loss.item() > 1e-4
    trained = {name for name, parameter in made.policy.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)


def test_another_model_may_be_the_reference() -> None:
    models = ModelBuilder(SOURCE, None, "teacher", teacher=replace(SOURCE, seed=5))
    made: Any = PolicyGradient(
        models, ppo, kl=LOSS(), advantage=credit.grpo, rollout={"group_size": SLOTS, "temperature": TEMPERATURE}
    )
    made.configure_model()
    assert made(step()[0]).loss.item() == pytest.approx(COEF * torch.cat(loop(made)).mean().item(), rel=1e-4)


def test_in_the_reward_it_does_not_pull_at_the_token_that_is_drawn() -> None:
    """Responses of one token, each as often as it is drawn: k1 has the gradient of the KL, and full has none at all."""
    prompt = [5, 9, 3]
    made = built(REWARD(), reinforce, policy_loss={"aggregation": "seq_mean_token_sum"})
    vocabulary = made.policy.base.config.vocab_size
    every = rollout_batch(pack([Example(prompt, [[token] for token in range(vocabulary)])]))
    policy = made.policy(every, temperature=TEMPERATURE).token.detach()
    estimates = {
        "k1": policy - made.reference(every, temperature=TEMPERATURE).token,
        "full": made.scores(every)["reference_kl"],
    }
    by_estimator = {}
    for name, kl in estimates.items():
        every.advantage = -vocabulary * policy.exp() * kl
        by_estimator[name] = torch.cat([gradient.flatten() for gradient in gradients(made, made(every).loss)])
    (exact,) = loop(made, [Example(prompt, [[0]])])
    wanted = torch.cat([gradient.flatten() for gradient in gradients(made, exact.sum())])
    assert float(wanted.abs().max()) > 1e-2
    torch.testing.assert_close(by_estimator["k1"], wanted, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(by_estimator["full"], torch.zeros_like(wanted), atol=1e-4, rtol=0)


def test_the_ratio_would_add_noise_and_correct_nothing() -> None:
    """Tokens of an older policy: the mean of the ratio times the KL is the KL, and its additional gradient vanishes."""
    made = built(LOSS())
    vocabulary = made.policy.base.config.vocab_size
    every = pack([Example([5, 9, 3], [[token] for token in range(vocabulary)])])
    old = made.reference(every, temperature=TEMPERATURE).token
    policy = made.policy(every, temperature=TEMPERATURE, **made.compared(every, True))
    ratio = (policy.token - old).exp()
    corrected, plain = (old.exp() * ratio * policy.reference_kl).sum(), policy.reference_kl[0]
    assert corrected.item() == pytest.approx(plain.item(), rel=1e-4)
    assert float(ratio.detach().std()) > 0.05
    parameters = list(made.policy.parameters())
    wanted = torch.autograd.grad(plain, parameters, retain_graph=True)
    for one, other in zip(torch.autograd.grad(corrected, parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kl", "reference", "message"),
    [
        (LOSS, "cached", "reference=cached: nothing can be cached of responses that are not drawn yet"),
        (REWARD, "cached", "choose reference=frozen, adapter_off or auto"),
        (LOSS, "none", "the loss needs a reference, but reference=none: choose reference=frozen"),
        (REWARD, "none", "the loss needs a reference, but reference=none: choose reference=frozen"),
    ],
)
def test_it_needs_a_live_reference(kl: Any, reference: str, message: str) -> None:
    builder = Builder(reference)
    with pytest.raises(ValueError, match=message):
        PolicyGradient(builder, ppo, kl=kl(), advantage=credit.grpo)
    assert builder.built == 0


def test_what_it_does_not_go_with() -> None:
    with pytest.raises(ValueError, match=r"method.kl.estimator=full has no such token: set method.kl.is_correct=false"):
        LOSS(is_correct=True)
    with pytest.raises(ValueError, match="takes both models' distributions, not a log-ratio a token"):
        LOSS().estimate(torch.zeros(3))
    with pytest.raises(ValueError, match=r"multi_reward=normalize_then_sum .* set method.kl.apply_to=loss"):
        built(REWARD(), credit={"multi_reward": "normalize_then_sum"})


def test_in_the_reward_it_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        LOSS(), KLPenalty("reward", "k1"), KLPenalty("none", "full"), REWARD(coef=0.0)
        assert caplog.text == ""
        REWARD()
    assert "method.kl.apply_to=loss does" in caplog.text
