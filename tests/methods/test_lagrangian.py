"""PPO-Lagrangian: the multiplier's published steps, its window and bounds, and the credit that a rollout gets."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning import compose
from rlhf_lightning.cli.build import make_run
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.credit import gae
from rlhf_lightning.methods import KLPenalty, Multiplier
from rlhf_lightning.types import Episodes, Ragged
from tests.helpers.critics import ppo_of


def test_golden_steps_of_the_multiplier() -> None:
    """lr 0.1 from lambda 1: a mean cost of 2 gives e^0.2, then one of -1 gives e^(0.2 - 0.1 e^0.2).

    Without lambda in the step the second is e^0.1 = 1.105171; with the sign turned the first is 0.818731.
    """
    multiplier = Multiplier(window=4)
    multiplier.update(torch.full((4,), 2.0))
    assert float(multiplier.value) == pytest.approx(1.221403, abs=1e-6)
    multiplier.update(torch.full((4,), -1.0))
    assert float(multiplier.value) == pytest.approx(1.080971, abs=1e-6)


def test_the_limit_shifts_what_counts_as_too_much() -> None:
    multiplier = Multiplier(threshold=2.0)
    multiplier.update(torch.full((4,), 2.0))
    assert float(multiplier.value) == 1.0
    multiplier.update(torch.full((4,), 3.0))
    assert float(multiplier.value) > 1.0


def test_the_window_holds_the_last_episodes() -> None:
    multiplier = Multiplier(window=3, lr=0.0)
    multiplier.update(torch.tensor([9.0, 1.0]))
    assert multiplier.mean_cost == 5.0  # not diluted by places that are still empty
    multiplier.update(torch.tensor([2.0, 3.0]))
    assert multiplier.mean_cost == 2.0
    multiplier.update(torch.tensor([4.0, 5.0, 6.0, 7.0]))
    assert multiplier.mean_cost == 6.0


def test_the_maximum_and_the_delay() -> None:
    multiplier = Multiplier(maximum=1.5, delay=1)
    multiplier.update(torch.full((4,), 50.0))
    assert float(multiplier.value) == 1.0
    multiplier.update(torch.full((4,), 50.0))
    assert float(multiplier.value) == pytest.approx(1.5)


def test_state_survives_a_cast_and_a_checkpoint() -> None:
    multiplier = Multiplier(window=4).to(torch.bfloat16)
    multiplier.update(torch.tensor([0.013, 0.027]))
    other = Multiplier(window=4)
    other.load_state_dict(multiplier.state_dict())
    for one in (multiplier, other):
        one.update(torch.tensor([0.4]))
    assert float(other.value) == float(multiplier.value) != 1.0


def episodes(**terms: list[float]) -> Episodes:
    length = torch.tensor([2, 1])
    sequence = torch.tensor([0, 0, 1])

    def tokens(*numbers: float) -> Ragged:
        return Ragged(torch.tensor(numbers), sequence, 2)

    return Episodes(
        group=torch.tensor([0, 1]),
        reward=torch.tensor([1.0, 2.0]),
        truncated=torch.tensor([False, False]),
        length=length,
        tokens={
            "old_log_probs": tokens(-1.0, -2.0, -0.5),
            "reference_log_probs": tokens(-1.2, -1.5, -0.5),
            "value": tokens(0.2, 0.1, 0.4),
            "cost_value": tokens(0.0, 0.5, -0.5),
        },
        terms={name: torch.tensor(values) for name, values in terms.items()},
    )


def plain_credit(reward: list[float], value: list[float], lam: float) -> list[float]:
    out, ahead, following = [], 0.0, 0.0
    for r, v in zip(reversed(reward), reversed(value), strict=True):
        ahead = r + following - v + lam * ahead
        following = v
        out.append(ahead)
    return out[::-1]


def test_credit_of_reward_and_cost_by_hand() -> None:
    """The penalty lowers the reward and raises the cost; the multiplier moves first, by the costs without it."""
    options = {"multiplier": Multiplier(threshold=0.0, lr=0.1), "shaping": None, "whiten": "none"}
    module = ppo_of(cost=True, kl=KLPenalty("reward", "k1", 0.1), credit=options)
    credit = module.credit(episodes(cost=[1.0, -0.5], other=[0.0, 0.0]))
    price = math.exp(0.1 * 0.25)
    kl = [0.2, -0.5, 0.0]
    reward = [plain_credit([-0.1 * kl[0], 1 - 0.1 * kl[1]], [0.2, 0.1], 0.95), plain_credit([2.0], [0.4], 0.95)]
    cost = [plain_credit([0.1 * kl[0], 1 + 0.1 * kl[1]], [0.0, 0.5], 0.95), plain_credit([-0.5], [-0.5], 0.95)]
    expected = [
        (r - price * c) / (1 + price)
        for rewards, costs in zip(reward, cost, strict=True)
        for r, c in zip(rewards, costs, strict=True)
    ]
    torch.testing.assert_close(credit.tokens["advantage"].token, torch.tensor(expected))
    cost_returns = [c + v for c, v in zip([*cost[0], *cost[1]], [0.0, 0.5, -0.5], strict=True)]
    torch.testing.assert_close(credit.tokens["cost_returns"].token, torch.tensor(cost_returns))
    assert credit.metrics["cost/lambda"] == pytest.approx(price)
    assert credit.metrics["cost/window"] == 0.25
    assert module.cost_terms == {"cost"}


def test_a_reward_without_the_term_is_refused_with_its_terms() -> None:
    with pytest.raises(ValueError, match=r"no term 'cost' to limit; its terms are \['harm'\]"):
        ppo_of(cost=True).credit(episodes(harm=[0.0, 0.0]))


def test_a_reward_without_terms_is_refused_before_weights_load(tmp_path: Path) -> None:
    options = ["model=tiny_random", "data=tiny", "reward=length", f"paths.output_dir={tmp_path}"]
    cfg = compose("train", ["method=ppo_lagrangian", *options])
    with pytest.raises(ConfigError, match="limits the cost 'cost', a term of the reward"):
        make_run(cfg)


NEVER = ["+reward@reward.terms.help=model", "reward.terms.help.path=/nowhere"]
HARM = ["+reward@reward.terms.harm=length"]
GRADED = ["+reward@reward.terms.graded=grader", "reward.terms.graded.spec=grader.yaml"]
MULTI = """{type: multi, name: graded, calculate_output: "a + b", graders: {
  a: {type: string_check, name: a, input: "{{ sample.output_text }}", reference: x, operation: eq},
  b: {type: string_check, name: b, input: "{{ sample.output_text }}", reference: y, operation: eq}}}"""


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        # Reported although the reward model of the other term is not there: nothing was loaded.
        (
            NEVER,
            r"(?s)cost=cost is no term of the reward: .* or add the term, for example \+reward@reward.terms.cost=cost",
        ),
        ([*HARM, "method.credit.multiplier.cost=harn"], r"(?s)Did you mean harm\?\n  options: harm"),
        (
            [*HARM, *GRADED, "method.credit.multiplier.cost=graded/c"],
            r"(?s)Did you mean graded/\w\?.* graded/b, .*harm",
        ),
        (
            [*HARM, "method.credit.multiplier.cost=harm"],
            r"adds up its term 'harm' with weight 1, .* set 'reward.costs=\[harm\]'",
        ),
    ],
)
def test_a_cost_that_is_no_cost_is_refused_before_weights_load(
    terms: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    Path("grader.yaml").write_text(MULTI)
    options = ["model=tiny_random", "data=tiny", "reward=composite", f"paths.output_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=message):
        make_run(compose("train", ["method=ppo_lagrangian", *options, *terms]))


@pytest.mark.parametrize(
    "terms",
    [
        [*HARM, "method.credit.multiplier.cost=harm", "reward.costs=[harm]"],
        [*HARM, *GRADED, "method.credit.multiplier.cost=graded/b"],
    ],
)
def test_a_cost_among_the_terms_is_taken(terms: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grader.yaml").write_text(MULTI)
    options = ["model=tiny_random", "data=tiny", "reward=composite", f"paths.output_dir={tmp_path}"]
    run = make_run(compose("train", ["method=ppo_lagrangian", *options, *terms]))
    assert run.module.cost_terms <= run.data.reward.term_names


@pytest.mark.parametrize("options", [{"credit": {"multiplier": None}}, {"advantage": gae}])
def test_multiplier_and_credit_go_together(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"goes with method\.advantage=credit\.lagrangian"):
        ppo_of(cost=True, **options)


@pytest.mark.parametrize("options", [{"init": 0.0}, {"init": 6.0}, {"lr": -1.0}, {"delay": -1}, {"window": 0}])
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"method\.credit\.multiplier"):
        Multiplier(**options)


def test_each_of_two_critics_has_its_loss() -> None:
    module = ppo_of(cost=True)
    assert {"value", "cost_value"} <= module.required_scores
    module.configure_model()
    assert module.policy.outputs == 2
    assert partial(ppo_of)().required_scores & {"cost_value"} == set()
