"""Losses of self-play where theory says what they come to: bandits, whose policies are tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.types import Pair, SequenceLogProbs
from rlhf_lightning.world.preference import STYLES, cyclic_win, exploitability

STRENGTH = 0.9
#: P[i, j], the probability that arm i beats arm j: rock, paper, scissors.
WINS = torch.tensor([[cyclic_win(one, other, STRENGTH) for other in STYLES] for one in STYLES], dtype=torch.float64)
#: Where policies start, which is the reference too: the best response to it wins 18 points more than half of the time.
START = torch.tensor([0.68, 0.22, 0.10], dtype=torch.float64)


def responses(log_probs: Tensor) -> SequenceLogProbs:
    """Responses of one token."""
    flat = log_probs.flatten()
    return SequenceLogProbs(flat, torch.arange(len(flat)), len(flat))


def exploited(policy: Tensor) -> float:
    """Share of wins of the best arm against a policy, above one half."""
    return float((WINS @ policy).max()) - 0.5


def test_exploitability_is_that_of_the_worlds_callback():
    counts = (68, 22, 10)
    styles = [style for style, count in zip(STYLES, counts, strict=True) for _ in range(count)]
    assert exploited(START) == pytest.approx(exploitability(styles, STRENGTH))


def nash_gradient(logits: Tensor, mix: float, beta: float) -> Tensor:
    """Expected gradient of the loss: every arm is drawn as often as the policy draws it."""
    leaf, reference = logits.detach().requires_grad_(), START.log()
    log_probs = leaf.log_softmax(0)
    mixture = ((1 - mix) * log_probs.detach() + mix * reference).softmax(0)
    output = losses.nash_md(
        policy=responses(log_probs),
        reference=responses(reference),
        win_probability=(WINS @ mixture)[:, None],
        present=torch.ones(3, 1, dtype=torch.bool),
        beta=beta,
    )
    (log_probs.detach().exp() * output.loss).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def equilibrium(mix: float, beta: float) -> Tensor:
    r"""Where the paper's algorithm stays: :math:`\pi \propto \mu\,e^{P(\cdot \succ \pi^\mu) / \tau}` with tau = beta.

    :math:`\pi^\mu \propto \pi^{1 - \mathrm{mix}} \mu^\mathrm{mix}`. By steps of a hundredth of the way.
    """
    reference = START.log()
    log_probs = reference
    for _ in range(2000):
        mixture = ((1 - mix) * log_probs + mix * reference).softmax(0)
        log_probs = (0.99 * log_probs + 0.01 * (reference + WINS @ mixture / beta)).log_softmax(0)
    return log_probs.exp()


@pytest.mark.parametrize(("mix", "beta"), [(0.0, 0.1), (0.125, 0.05), (0.5, 0.1)])
def test_nash_md_stays_at_the_equilibrium_of_the_paper(mix: float, beta: float) -> None:
    assert nash_gradient(START.log(), mix, beta).abs().max() > 0.02
    assert nash_gradient(equilibrium(mix, beta).log(), mix, beta).abs().max() < 1e-6


@pytest.mark.parametrize(("sign", "low", "high"), [(1.0, 0.0, 0.05), (-1.0, 0.35, 0.4)])
def test_nash_md_comes_to_be_exploited_by_a_quarter_of_its_start(sign: float, low: float, high: float) -> None:
    """The circle that it goes in shrinks; with its gradient sign flipped the policy ends pure, exploited by 0.4."""
    logits = START.log()
    for _ in range(120):
        logits = logits - 3.0 * sign * nash_gradient(logits, mix=0.125, beta=0.05)
    assert exploited(START) == pytest.approx(0.184)
    assert low <= exploited(logits.softmax(0)) <= high


def test_nash_md_against_a_rival_that_is_half_the_reference_is_exploited_by_more():
    """To beat such a rival is to play what beats the reference, the more so the lower the price of divergence.

    A half is the default of TRL's trainer and of conf/rounds/nash_md.yaml.
    """
    prices = 0.1, 0.05, 0.03
    little, half = ([exploited(equilibrium(mix, beta)) for beta in prices] for mix in (0.125, 0.5))
    assert max(little[1:]) < 0.05 < little[0] < exploited(START), little
    assert half[0] < exploited(START) < half[1] < half[2], half


def sppo(rounds: int, beta: float) -> list[Tensor]:
    """The policy of every round: each one solves the last one's regression, over all pairs of arms."""
    chosen, rejected = torch.combinations(torch.arange(3)).unbind(1)
    policies, reference = [START], START.log()
    for _ in range(rounds):
        against = WINS @ policies[-1]
        logits = reference.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logits], max_iter=8, line_search_fn="strong_wolfe")

        def step(logits: Tensor = logits, reference: Tensor = reference, against: Tensor = against) -> Tensor:
            log_probs = logits.log_softmax(0)
            output = losses.sppo_soft(
                Pair(responses(log_probs[chosen]), responses(log_probs[rejected])),
                Pair(responses(reference[chosen]), responses(reference[rejected])),
                torch.stack([against[chosen], against[rejected]], 1),
                beta=beta,
            )
            logits.grad = None
            loss = output.loss.mean()
            loss.backward()
            return loss

        optimizer.step(step)
        reference = logits.detach().log_softmax(0)
        policies.append(reference.exp())
    return policies


def test_sppo_goes_in_a_circle_and_its_mean_policy_is_hardly_exploited():
    """Its theorem is about the mean of all rounds' policies; the last one is as exploited as any."""
    policies = sppo(40, 1.0)
    assert exploited(torch.stack(policies).mean(0)) < 0.05
    assert max(exploited(policy) for policy in policies[-10:]) > exploited(START)


#: Words that a reference almost always says, and one that it says once in a thousand times.
COMMON, RARE = 8, 1e-3


def finds_the_bonus(loss: str, worlds: int = 8, **options: float) -> float:
    """In which share of bandits the arm with a bonus becomes likelier than all others within 12 x 16 samples.

    A round is eight pairs, of two samples of the policy or of one of policy and reference, labelled with noise; then
    the policy is fitted to all pairs so far, as the paper's algorithm says.
    """
    draw = torch.Generator().manual_seed(0)
    common = torch.rand(worlds, COMMON, generator=draw, dtype=torch.float64) + 0.2
    rare = torch.full((worlds, 1), RARE, dtype=torch.float64)
    reference = torch.cat([common / common.sum(1, keepdim=True) * (1 - RARE), rare], 1)
    worth = torch.cat([0.7 * torch.randn(worlds, COMMON, generator=draw), torch.full((worlds, 1), 3.0)], 1)
    logits, pairs, drawn = reference.log().requires_grad_(), [], []
    for _ in range(12):
        policy = logits.detach().softmax(1)
        sources = policy, reference if loss == "xpo" else policy
        arms = torch.stack([torch.multinomial(source, 8, True, generator=draw) for source in sources], 2)
        labels = worth.gather(1, arms.flatten(1)).view(arms.shape) + 0.5 * torch.randn(arms.shape, generator=draw)
        order = labels.argsort(2, descending=True)
        pairs.append(arms.gather(2, order))
        drawn.append(order.double())  # 1 for the second sample, the reference's
        _fit(loss, logits, reference.log(), torch.cat(pairs, 1), torch.cat(drawn, 1), **options)
    return float((logits.softmax(1)[:, -1] > 0.5).double().mean())


def _fit(loss: str, logits: Tensor, reference: Tensor, pairs: Tensor, drawn: Tensor, **options: float) -> None:
    """Thirty steps of Adam on pairs of arms, (worlds, pairs, 2)."""
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(30):
        chosen, rejected = pairs.unbind(2)
        both = [
            Pair(responses(table.gather(1, chosen)), responses(table.gather(1, rejected)))
            for table in (logits.log_softmax(1), reference)
        ]
        more = {"reference_sample": drawn.flatten(0, 1)} if loss == "xpo" else {}
        optimizer.zero_grad()
        getattr(losses, loss)(*both, **more, **options).loss.mean().backward()
        optimizer.step()


def test_xpo_finds_a_rare_bonus_that_online_dpo_does_not():
    """At equal samples. It is the optimism: without it the reference's samples alone rarely have the bonus."""
    assert finds_the_bonus("dpo") == 0
    assert finds_the_bonus("xpo", alpha=0.0) <= 0.25
    assert finds_the_bonus("xpo", alpha=1e-3) >= 0.75


def test_xpos_optimism_has_no_first_step():
    """At the start the policy is the reference, whose mean score is zero: one step a sample, there is nothing to gain.

    Only away from it, or where many steps are taken on the same samples, does the term raise what they lack.
    """
    policy, other = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(1)

    def optimism(logits: Tensor) -> Tensor:
        """Expected gradient of the term, over all pairs of a sample of the policy and one of the reference."""
        leaf = logits.detach().requires_grad_()
        table, reference = leaf.log_softmax(0), START.log()
        both = [Pair(responses(logs[policy]), responses(logs[other])) for logs in (table, reference)]
        drawn = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(len(policy), 2)
        more, less = (losses.xpo(*both, drawn, alpha=alpha).loss for alpha in (1.0, 0.0))
        weight = table.detach().exp()[policy] * START[other]
        (weight * (more - less)).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert optimism(START.log()).abs().max() < 1e-12
    moved = optimism(START.log() + torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(moved, START - (START.log() + torch.tensor([1.0, 0.0, 0.0])).softmax(0))
