"""Losses of methods that train on their own samples: the values of their papers and codes, and what they reduce to."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning import losses
from tests.helpers.loss_inputs import Numbers, gradients, loss_from_yaml, method_yaml, run
from tests.helpers.loss_strategies import batches
from tests.helpers.ranked_inputs import Item, Lists, gradient, ranked
from tests.helpers.ranked_inputs import run as run_lists


@settings(max_examples=15, deadline=None)
@given(batch=batches())
def test_spin_is_dpo_on_the_same_pairs(batch: Numbers) -> None:
    spin = loss_from_yaml(method_yaml("spin")["loss"])
    assert torch.equal(run(spin, batch).loss, run("dpo", batch, beta=0.1).loss)


def test_the_hinge_of_spin() -> None:
    """The authors' code: max(0, 1 - beta h), here with h = 4 and -4."""
    node = method_yaml("spin")["loss"] | {"_target_": "rlhf_lightning.losses.hinge"}
    batch = Numbers([[-3.0], [-4.0]], [[-6.0], [-2.0]], [[-5.0], [-1.0]], [[-4.0], [-3.0]])
    assert run(loss_from_yaml(node), batch).loss.tolist() == pytest.approx([0.6, 1.4])


def test_sppo_with_win_probabilities_at_the_first_step() -> None:
    """Scores 2, 1, 0, -1, -2: P(best) is the mean of s(0), s(1), s(2), s(3), s(4), itself included, .809289."""
    best = sum(1 / (1 + math.exp(-gap)) for gap in range(5)) / 5
    start = Numbers([[-1.0]], [[-2.0]], [[-1.0]], [[-2.0]], win_probability=[[best, 1 - best]])
    output = run("sppo_soft", start)
    assert output.loss.item() == pytest.approx(95_659.51, abs=0.01)
    assert output.diagnostics["target/chosen"].item() == pytest.approx(309.289, abs=1e-3)
    assert output.diagnostics["target/rejected"].item() == pytest.approx(-309.289, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(batch=batches(), beta=st.floats(0.05, 2))
def test_sppo_of_probabilities_1_and_0_has_hard_labels(batch: Numbers, beta: float) -> None:
    batch.win_probability = [[1.0, 0.0]] * len(batch)
    torch.testing.assert_close(run("sppo_soft", batch, beta=beta).loss, run("sppo", batch, beta=beta).loss)


def test_sppo_is_least_where_log_ratios_are_their_targets() -> None:
    batch = Numbers([[-1.0]], [[-2.0]], [[-1.6]], [[-1.6]], win_probability=[[0.8, 0.3]])  # ratios .6 and -.4
    assert run("sppo_soft", batch, beta=0.5).loss.item() == pytest.approx(0.0, abs=1e-12)
    for slope in gradients("sppo_soft", batch, beta=0.5):
        assert slope.abs().max() < 1e-9


def test_undecided_pairs_of_sppo() -> None:
    batch = Numbers(*[[[-1.0]] * 3] * 4, win_probability=[[0.55, 0.45], [0.8, 0.45], [0.7, 0.3]])
    assert run("sppo_soft", batch).diagnostics["undecided"].tolist() == [1.0, 0.5, 0.0]


def test_xpo() -> None:
    """Policy's sample -5 against -6, reference's -7 against -6: h = 2, S(-.2) - .01 * 7."""
    batch = Numbers([[-5.0]], [[-7.0]], [[-6.0]], [[-6.0]], reference_sample=[[0.0, 1.0]])
    assert run("xpo", batch, beta=0.1, alpha=0.01).loss.item() == pytest.approx(0.528139, abs=1e-6)
    lost = Numbers([[-4.0, -3.0]], [[-5.0]], [[-3.0, -3.0]], [[-6.0]], reference_sample=[[1.0, 0.0]])
    assert run("xpo", lost, beta=0.1, alpha=0.01).loss.item() == pytest.approx(0.798139 - 0.07, abs=1e-6)
    usual = run("xpo", lost).loss - run("dpo", lost).loss
    assert usual.item() == pytest.approx(-7e-5, rel=1e-6), "alpha is 1e-5 by default"


def test_xpo_lowers_what_the_reference_wrote_whichever_won() -> None:
    for drawn in ([[0.0, 1.0]], [[1.0, 0.0]]):
        batch = Numbers([[-5.0]], [[-7.0]], [[-6.0]], [[-6.0]], reference_sample=drawn)
        moved = [a - b for a, b in zip(gradients("xpo", batch, alpha=0.5), gradients("dpo", batch), strict=True)]
        assert torch.cat(moved).tolist() == pytest.approx([0.5 * x for x in drawn[0]])


def test_xpo_reports_the_log_prob_of_the_references_samples_alone() -> None:
    batch = Numbers(*[[[-1.0], [-2.0]], [[-3.0], [-4.0]]] * 2, reference_sample=[[0.0, 0.0], [0.0, 1.0]])
    assert run("xpo", batch).diagnostics["log_prob/reference_sample"].tolist() == [-4.0]
    assert run("xpo", batch, alpha=1.0).loss[0].item() == pytest.approx(run("dpo", batch).loss[0].item())


#: Log-probs -1, -2, log-ratios .2, -.1, a win probability of .7, beta .1.
ONE = Lists([[Item([-1.0, -2.0], [-1.2, -1.9], 0.7)]])


@pytest.mark.parametrize(
    ("kl", "value", "slope"),
    [
        ("sequence", 0.57, [-0.19, -0.19]),
        ("token", 0.60, [-0.18, -0.21]),  # TRL
        ("reward_to_go", 0.61, [-0.19, -0.21]),
    ],
)
def test_nash_md(kl: str, value: float, slope: list[float]) -> None:
    output = run_lists("nash_md", ONE, beta=0.1, kl=kl)
    assert output.loss.item() == pytest.approx(value)
    assert gradient("nash_md", ONE, beta=0.1, kl=kl).tolist() == pytest.approx(slope)
    assert output.reward.tolist() == pytest.approx([0.19])
    assert output.diagnostics["win_probability"].tolist() == pytest.approx([0.7])
    assert output.diagnostics["kl/sample"].tolist() == pytest.approx([0.1])
    assert not any(each.requires_grad for each in (output.reward, *output.diagnostics.values()))


@settings(max_examples=15, deadline=None)
@given(batch=ranked(), kl=st.sampled_from(["sequence", "reward_to_go", "token"]))
def test_nash_md_without_a_penalty_is_reinforce_with_a_baseline_of_one_half(batch: Lists, kl: str) -> None:
    rows = [(len(items), item) for items in batch.lists for item in items]
    expected = [(0.5 - item.score) / count / len(batch.lists) for count, item in rows for _ in item.policy]
    assert gradient("nash_md", batch, beta=0.0, kl=kl).tolist() == pytest.approx(expected)


def test_nash_md_is_unbiased_over_all_responses_of_two_tokens() -> None:
    """The expected gradient is that of E[P] - beta KL, worked out by autograd on the whole distribution.

    Catches: a penalty that leaves out what a token costs later; it is why ``kl="token"`` is not the default.
    """
    torch.manual_seed(0)
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)  # first token, second after 0, after 1
    other = torch.randn(3, 2, dtype=torch.float64).log_softmax(-1)
    win, beta = torch.rand(2, 2, dtype=torch.float64), 0.3
    log_prob = logits.log_softmax(-1)
    whole = log_prob[0][:, None] + log_prob[1:]
    kl = (whole.exp() * (whole - other[0][:, None] - other[1:])).sum()
    (exact,) = torch.autograd.grad(beta * kl - (whole.exp() * win).sum(), logits, retain_graph=True)

    def expected(estimator: str) -> torch.Tensor:
        total = torch.zeros_like(logits)
        for a in (0, 1):
            for b in (0, 1):
                policy = [log_prob[0, a].item(), log_prob[1 + a, b].item()]
                item = Item(policy, [other[0, a].item(), other[1 + a, b].item()], win[a, b].item())
                slope = gradient("nash_md", Lists([[item]]), beta=beta, kl=estimator)
                tokens = torch.stack([log_prob[0, a], log_prob[1 + a, b]])
                (drawn,) = torch.autograd.grad((slope * tokens).sum(), logits, retain_graph=True)
                total += whole[a, b].exp().detach() * drawn
        return total

    torch.testing.assert_close(expected("sequence"), exact)
    torch.testing.assert_close(expected("reward_to_go"), exact)
    assert not torch.allclose(expected("token"), exact, atol=1e-3)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("sppo_soft", {"beta": 0.0}, r"loss sppo_soft: beta=0.0 is not allowed"),
        ("xpo", {"alpha": -1e-5}, r"loss xpo: alpha=-1e-05 is not allowed"),
        ("nash_md", {"kl": "none"}, r"one of \['sequence', 'reward_to_go', 'token'\]"),
    ],
)
def test_options_out_of_range(loss: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.validate(partial(getattr(losses, loss), **options))
