"""PolicyGradient: what is computed when, denominators, KL and entropy terms, errors before anything is loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from rlhf_lightning import credit
from rlhf_lightning.losses import cispo, gspo, ppo, reinforce
from rlhf_lightning.methods import KLPenalty, Mismatch, PolicyGradient
from tests.helpers.rollouts import GROUPS, SLOTS, episodes, module, moved, step
from tests.helpers.training import Builder

AGGREGATIONS = ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]


def advantage(made: Any, **given: Any) -> torch.Tensor:
    (batch,) = step()
    return made.credit(episodes(scores=made.scores(batch), **given)).tokens["advantage"].token


def total(made: Any, sizes: list[int], **tokens: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The step's loss and gradient: the mean over its micro-batches, as Lightning takes it."""
    made.zero_grad()
    batches = step(sizes, advantage(made), **tokens)
    losses = [made(batch).loss / len(batches) for batch in batches]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), made.policy.head.weight.grad.clone()


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("apply_to", ["loss", "reward", "none"])
def test_a_step_may_be_cut_into_micro_batches_anywhere(how: str, apply_to: str) -> None:
    options = {"aggregation": how, "aggregation_length": 8, "entropy_coef": 0.01}
    made = moved(module(kl=KLPenalty(apply_to, "k3" if apply_to == "loss" else "k1", 0.1), policy_loss=options))
    value, gradient = total(made, [4])
    for sizes in ([1, 3], [2, 2], [1, 1, 2]):
        cut_value, cut_gradient = total(made, sizes)
        assert cut_value == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(cut_gradient, gradient, atol=1e-6, rtol=1e-4)


def test_the_local_token_mean_depends_on_the_cut() -> None:
    made = module(policy_loss={"aggregation": "local_token_mean"})
    assert total(made, [4])[0] != pytest.approx(total(made, [1, 3])[0], abs=1e-4)


def test_first_ratios_are_exactly_1() -> None:
    """Old log-probs of the trainer's own forward on the same micro-batch: bit for bit, whatever the batch."""
    made = moved(module(rollout={"group_size": SLOTS, "minibatches": 2}))
    for batch in step([2, 2], advantage(made)):
        batch.old_log_probs = made.scores(batch)["old_log_probs"]
        named = made(batch).diagnostics
        assert (named["diagnostic/ratio/mean"] == 1).all()
        assert named["diagnostic/clip/low"].sum() == named["diagnostic/clip/high"].sum() == 0
        assert (named["diagnostic/approx_kl"] == 0).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"rollout": {"minibatches": 2}}, {"old_log_probs"}),
        ({"rollout": {"inner_epochs": 2}}, {"old_log_probs"}),
        ({"rollout": {"inner_epochs": 2}, "policy_loss": {"mismatch": {"bypass": True}}}, set()),
        ({"kl": KLPenalty("reward")}, {"old_log_probs", "reference_log_probs"}),
        ({"kl": KLPenalty("reward", coef=0.0)}, set()),
        ({"kl": KLPenalty("loss", "k3")}, {"reference_log_probs"}),
        ({"kl": KLPenalty("loss", "k3", controller="adaptive")}, {"old_log_probs", "reference_log_probs"}),
        ({"kl": KLPenalty("none")}, set()),
        ({"advantage": credit.self_confidence, "loss": reinforce}, {"old_log_probs"}),
    ],
)
def test_only_what_is_needed_is_scored(options: dict[str, Any], expected: set[str]) -> None:
    made = module(**options)
    assert made.required_scores == expected
    (batch,) = step()
    assert made.scores(batch).keys() == expected
    assert ("reference" in made.needs) is ("reference_log_probs" in expected)
    assert made.requires({"loss": ppo, **options}) == made.needs


def test_methods_declare_whether_they_need_a_reward() -> None:
    assert not module(reinforce, advantage=credit.self_confidence).needs_reward
    assert module(advantage=credit.rloo).needs_reward
    assert module(advantage=credit.reinforce_pp).needs_reward


def test_log_probs_are_at_the_temperature_of_the_samples_unless_another_is_given() -> None:
    plain = module(rollout={"temperature": 1.0, "minibatches": 2})
    (batch,) = step()
    expected = plain.policy(batch, temperature=0.5).token
    for options in (
        {"rollout": {"temperature": 0.5, "minibatches": 2}},
        {"rollout": {"temperature": 2.0, "minibatches": 2}, "policy_loss": {"temperature": 0.5}},
    ):
        made = module(kl=KLPenalty("loss", "k3"), **options)
        scores = made.scores(batch)
        torch.testing.assert_close(scores["old_log_probs"], expected)
        torch.testing.assert_close(scores["reference_log_probs"], expected)
        torch.testing.assert_close(made.policy_log_probs(batch).token, expected)


def test_kl_in_the_reward_lowers_it_by_what_the_rollout_strayed() -> None:
    made = moved(module(advantage=partial(credit.grpo, scale="none"), kl=KLPenalty("reward", "k1", 0.5)))
    (batch,) = step()
    scores = made.scores(batch)
    played = episodes(scores=scores)
    kl = (played.tokens["old_log_probs"].token - played.tokens["reference_log_probs"].token).double()
    summed = torch.zeros(GROUPS * SLOTS, dtype=torch.float64).index_add(0, played.tokens["old_log_probs"].sequence, kl)
    reward = played.reward.double() - 0.5 * summed
    expected = (reward.view(GROUPS, SLOTS) - reward.view(GROUPS, SLOTS).mean(1, keepdim=True)).flatten()
    assigned = made.credit(played)
    first = played.length.cumsum(0) - played.length
    torch.testing.assert_close(assigned.tokens["advantage"].token[first].double(), expected, atol=1e-5, rtol=1e-5)
    assert assigned.metrics["kl/reference"] == pytest.approx(summed.mean().item(), abs=1e-6)


def test_kl_in_the_loss_is_added_with_the_aggregation_of_the_loss() -> None:
    made = moved(module(kl=KLPenalty("loss", "k2", 0.3), policy_loss={"aggregation": "seq_mean_token_sum"}))
    batches = step()
    policy, reference = made.policy(batches[0]).token, made.reference(batches[0]).token
    expected = 0.3 * ((policy - reference) ** 2 / 2).sum() / (GROUPS * SLOTS)
    output = made(batches[0])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.diagnostics["diagnostic/kl/reference"].shape == (GROUPS * SLOTS,)
    batches[0].reference_log_probs = reference
    assert made(batches[0]).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_entropy_bonus_is_subtracted() -> None:
    made = module(policy_loss={"entropy_coef": 0.5, "aggregation": "token_mean"})
    (batch,) = step()
    entropy = made.policy(batch, statistics=frozenset({"entropy"})).entropy
    output = made(batch)
    assert output.loss.item() == pytest.approx(-0.5 * entropy.mean().item(), rel=1e-5)
    output.loss.backward()
    assert made.policy.head.weight.grad.abs().max() > 0


def test_mismatch_weighs_the_policy_loss_alone() -> None:
    """Engine log-probs that are ln 4 too high: weights of 1/4, and a quarter of the loss."""
    made = module(policy_loss={"mismatch": Mismatch("tis")})
    (batch,) = step(None, advantage(made))
    log_probs = made.policy(batch).token.detach()
    batch.rollout_log_probs = log_probs
    plain = made(batch).loss
    batch.rollout_log_probs = log_probs + torch.tensor(4.0).log()
    output = made(batch)
    assert output.loss.item() == pytest.approx(plain.item() / 4, rel=1e-4)
    assert (output.diagnostics["diagnostic/mismatch/weight/mean"] - 0.25).abs().max() < 1e-5


def test_responses_without_a_reward_teach_nothing() -> None:
    made = module()
    reward = torch.arange(GROUPS * SLOTS).float()
    reward[4] = float("nan")
    played = episodes(reward=reward)
    got = made.credit(played).tokens["advantage"]
    assert got.token.isfinite().all()
    assert (got.token[got.sequence == 4] == 0).all()
    assert (got.token[got.sequence == 3] < 0).all()


def test_normalize_then_sum_is_gdpo() -> None:
    """A term a hundred times larger drowns the other in a sum; standardised by itself it does not."""
    a, b = torch.rand(2, GROUPS * SLOTS, generator=torch.Generator().manual_seed(0))
    terms = {"a": a, "b": 100 * b}
    made = module(credit={"multi_reward": "normalize_then_sum", "reward_weights": {"b": 0.5}})
    played = episodes(terms=terms, reward=a + 100 * b)
    got = made.credit(played).tokens["advantage"]

    def standardised(x: torch.Tensor) -> torch.Tensor:
        x = x.view(GROUPS, SLOTS)
        return ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4)).flatten()

    total = standardised(terms["a"]) + 0.5 * standardised(terms["b"])
    expected = (total - total.mean()) / (total.std() + 1e-4)
    torch.testing.assert_close(got.token, expected[got.sequence], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="choose reward=composite"):
        made.credit(episodes())


def test_moving_average_of_rewards_is_state() -> None:
    made = module(reinforce, advantage=credit.mean_baseline)
    first = made.credit(episodes()).tokens["advantage"]
    assert made.assignment.running.count == GROUPS * SLOTS
    mean = episodes().reward.mean()
    second = made.credit(episodes(reward=episodes().reward + 5)).tokens["advantage"]
    torch.testing.assert_close(second.token, first.token + 5)
    torch.testing.assert_close(made.state_dict()["assignment.running.mean"], mean + 2.5)


def test_greedy_baseline_reaches_remax() -> None:
    made = module(reinforce, advantage=credit.remax, rollout={"greedy_baseline": True})
    baseline = torch.arange(GROUPS).float()
    got = made.credit(episodes(baseline=baseline)).tokens["advantage"]
    expected = episodes().reward - baseline.repeat_interleave(SLOTS)
    torch.testing.assert_close(got.token, expected[got.sequence])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": gspo, "policy_loss": {"aggregation": "token_mean"}},
            "set method.policy_loss.aggregation=seq_mean_token_mean",
        ),
        ({"loss": partial(ppo, ratio="sequence")}, "set method.policy_loss.aggregation=seq_mean_token_mean"),
        ({"loss": partial(cispo, eps_high=0.2)}, "give one of them and set the other to null"),
        ({"loss": partial(ppo, eps_low=2.0)}, "loss ppo: eps_low=2.0 is not allowed"),
        ({"advantage": partial(credit.grpo, scale="std")}, "credit function grpo: scale='std' is not allowed"),
        ({"advantage": partial(credit.grpo, epsilon=0.1)}, r"no option 'epsilon' \(did you mean 'eps'\?\)"),
        ({"advantage": credit.remax}, "set method.rollout.greedy_baseline=true"),
        ({"policy_loss": {"aggregation": "mean"}}, "method.policy_loss.aggregation='mean'; it can be token_mean"),
        (
            {"policy_loss": {"aggregation": "seq_mean_token_sum_norm"}},
            "method.policy_loss.aggregation_length=None must be positive",
        ),
        ({"policy_loss": {"entropy_coef": -1.0}}, r"method.policy_loss.entropy_coef=-1.0 .* a number in \[0, inf\)"),
        ({"policy_loss": {"target_kl": 0.0}}, r"method.policy_loss.target_kl=0.0 .* a number in \(0, inf\) or null"),
        ({"policy_loss": {"temperature": 0.0}}, "method.policy_loss.temperature=0.0 is not allowed"),
        (
            {"policy_loss": {"mismatch": {"corection": "tis"}}},
            r"mismatch.corection is no option\.",
        ),
        ({"credit": {"multi_reward": "sum"}}, r"method.credit.multi_reward='sum' .* one of \['sum_then_normalize'"),
        (
            {"credit": {"multi_reward": "normalize_then_sum"}, "kl": KLPenalty("reward")},
            "set method.kl.apply_to=loss",
        ),
        (
            {"credit": {"multi_reward": "normalize_then_sum"}, "advantage": credit.reinforce_pp},
            "needs a credit function of rewards",
        ),
        ({"rollout": {"group_size": 0}}, "method.rollout.group_size=0 must be at least 1"),
        ({"kl": KLPenalty("loss", "k3"), "reference": "cached"}, "reference=cached: nothing can be cached"),
        ({"kl": KLPenalty("loss", "k3"), "reference": "none"}, "the loss needs a reference"),
    ],
)
def test_errors_before_anything_is_loaded(options: dict[str, Any], message: str) -> None:
    given = {"advantage": credit.grpo} | options
    builder = Builder(given.pop("reference", "frozen"))
    with pytest.raises(ValueError, match=message.replace("(", r"\(") if "\\" not in message else message):
        PolicyGradient(builder, given.pop("loss", ppo), **given)
    assert builder.built == 0


def test_a_batch_without_advantages_is_refused() -> None:
    made = module()
    (batch,) = step()
    batch.advantage = None
    with pytest.raises(ValueError, match=r"module\.credit\(episodes\)"):
        made(batch)


def test_what_a_rollout_lacks_is_named() -> None:
    made = module(reinforce, advantage=credit.remax, rollout={"greedy_baseline": True})
    with pytest.raises(ValueError, match="asks for a greedy baseline, and this rollout has none"):
        made.credit(episodes())
