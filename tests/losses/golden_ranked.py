"""Every loss of ranked lists on two lists whose numbers were worked out by hand.

====  =====  ==========================  ================  ====
row   score  policy                      reference         rho
====  =====  ==========================  ================  ====
A0    2      -1 -2: l -3, mean -1.5      -2 -3: l -5       2
A1    0      -4: l -4, mean -4           -1: l -1          -3
A2    1      -1 -1: l -2, mean -1        -2 -1: l -3       1
B0    1      -2 -1 -3: l -6, mean -2     -1 -1 -2: l -4    -2
B1    0.5    -0.5 -0.5: l -1, mean -0.5  -1 -1: l -2       1
====  =====  ==========================  ================  ====

B has an empty third slot. S(x) = log(1 + e^x) and s(x) = 1/(1 + e^-x), with S(-3) = 0.048587, S(-2) = 0.126928,
S(0.75) = 1.136871, S(1.5) = 1.701413, S(5) = 5.006715, s(0.5) = 0.622459, s(-1.5) = 0.182426.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.helpers.ranked_inputs import Item, Lists

AB = Lists(
    [
        [
            Item([-1.0, -2.0], [-2.0, -3.0], 2.0),
            Item([-4.0], [-1.0], 0.0),
            Item([-1.0, -1.0], [-2.0, -1.0], 1.0),
        ],
        [Item([-2.0, -1.0, -3.0], [-1.0, -1.0, -2.0], 1.0), Item([-0.5, -0.5], [-1.0, -1.0], 0.5)],
    ]
)


@dataclass
class Golden:
    """Values that a loss must return for ``AB``, how they were worked out, and what breaks them."""

    loss: str
    options: dict[str, Any]
    expected: list[float]
    worked: str
    catches: str
    running: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(map(str, [*self.options.values(), *self.running]))}"


ROWS = [
    Golden(
        "plackett_luce",
        {"beta": 0.5},
        [0.650837, 1.701413],
        "log(1 + e^-0.5 + e^-2.5) + S(-2); S(1.5): A0 against both, A2 against A1",
        "order of the slots taken for the ranking; the reversed ranking; an empty slot as a rival of log-ratio 0",
    ),
    Golden(
        "pro",
        {},
        [2.776318, 1.436871],
        "log(1 + e^(-1+3) + e^(-8+3)) + S(-4+1) + 0.05 * 4 * 3; S(-0.25 + 1) + 0.05 * 1 * 6",
        "T of the positive the smallest gap; (n - 1)^2 with the slots for n; mean for sum in the likelihood",
    ),
    Golden(
        "pro",
        {"aggregate": "sum", "temperature": "fixed", "nll_weight": 0.0},
        [1.534534, 5.006715],
        "log(1 + e + e^-1) + S(-2); S(5)",
        "temperatures kept; means kept; weight 0 ignored",
    ),
    Golden(
        "pro",
        {"nll_scale": "none", "nll_reduction": "response_mean"},
        [2.251318, 1.236871],
        "2.176318 + 0.05 * 1.5; 1.136871 + 0.05 * 2",
        "the squared length kept; a sum for the mean",
    ),
    Golden(
        "rrhf",
        {},
        [2.0, 3.5],
        "max(0, -1 + 1.5) + 1.5; max(0, -0.5 + 2) + 2",
        "hinge of the pairs in the right order; a margin; the first response for the best",
    ),
    Golden(
        "rrhf",
        {"rank_weight": 2.0, "length_penalty": 0.0, "nll_weight": 0.5, "nll_reduction": "sum"},
        [3.5, 13.0],
        "2 max(0, -2 + 3) + 3/2; 2 max(0, -1 + 6) + 6/2",
        "weights swapped; division by the length",
    ),
    Golden(
        "exo_k",
        {"beta": 0.5, "score_beta": 0.5},
        [0.230722, 0.655784],
        "p = softmax(1, -1.5, 0.5) against softmax(4, 0, 2); (s(-1.5), s(1.5)) against softmax(2, 1)",
        "forward KL; the scores multiplied by their beta; an empty slot with probability",
    ),
    Golden("best_of_n", {}, [1.5, 2.0], "3/2; 6/3", "the first, last or most likely response; a sum"),
    Golden(
        "best_of_n",
        {"top_fraction": 0.67},
        [1.25, 2.0],
        "(1.5 + 1)/2 of the 2 best of 3; 1 of 2: 2",
        "rounding up; empty slots in n; the sum over those kept",
    ),
    Golden("best_of_n", {"top_fraction": 1.0, "reduction": "sum"}, [3.0, 3.5], "(3 + 4 + 2)/3; (6 + 1)/2", "/ slots"),
    Golden(
        "reward_weighted",
        {},
        [1.602712, 1.433689],
        "softmax(2, 0, 1) . (1.5, 4, 1); s(0.5) 2 + s(-0.5) 0.5",
        "weights not normalised; normalised over the batch; an empty slot with weight",
    ),
    Golden(
        "reward_weighted",
        {"beta": 0.5, "normalise": "running", "max_weight": 5.0},
        [3.013780, 1.091970],
        "(5 * 1.5 + e^-2 4 + 1)/3; (2 + e^-1 0.5)/2",
        "no limit; the mean forgotten; multiplied by beta",
        (1.0, 3.0, 5.0),
    ),
    Golden(
        "reward_weighted",
        {"beta": 0.01, "normalise": "running"},
        [31 / 3, 1.0],
        "(20 * 1.5 + 0 * 4 + 1)/3; (2 + 0 * 0.5)/2: weights of at most 20",
        "a mean that a single score makes is not taken",
        (1.0, 0.0, 1.0),
    ),
    Golden(
        "reward_weighted",
        {"beta": 0.5, "normalise": "running", "max_weight": 5.0},
        [6.5 / 3, 1.25],
        "plain fine-tuning before anything was seen",
        "weights against a mean of 0 that nobody measured",
    ),
    Golden(
        "nash_md",
        {"beta": 0.1, "kl": "sequence"},
        [1.3, 2.05],
        "(1.3 * 3 - .2 * 4 + .4 * 2)/3; (.7 * 6 - .1 * 1)/2: score - 1/2 - .1 rho times l",
        "sign of either part; no baseline of 1/2; the mean over slots",
    ),
    Golden(
        "nash_md",
        {"beta": 0.1, "kl": "reward_to_go"},
        [1.4, 1.8625],
        "(1.3 + 1.4 * 2 - .8 + .4 + .5)/3; (.7 * 2 + .6 + .6 * 3 - .1 * .5 - .05 * .5)/2",
        "log-ratios up to the token; those of the next response",
    ),
    Golden(
        "nash_md",
        {"beta": 0.1, "kl": "token"},
        [4.3 / 3, 1.725],
        "(1.4 + 1.4 * 2 - .8 + .4 + .5)/3; (.6 * 2 + .5 + .6 * 3 - .05)/2",
        "any sum of log-ratios",
    ),
]
