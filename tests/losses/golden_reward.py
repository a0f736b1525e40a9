"""Every loss of comparisons of rewards on numbers that were worked out by hand.

S(x) = log(1 + e^x): S(1) = 1.313262, S(-1) = .313262, S(2) = 2.126928, S(-2) = .126928, S(3) = 3.048587,
S(-3) = .048587, S(1.5) = 1.701413, S(-1.5) = .201413, S(.5) = .974077, S(-.5) = .474077, S(-2/3) = .414370.
Each row says which mistake it catches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NAN = float("nan")


@dataclass
class Golden:
    """Values that a loss must return, how they were worked out, and what breaks them."""

    loss: str
    inputs: dict[str, Any]  #: tensors as nested lists; ragged ones as a list of rows
    expected: list[float]
    worked: str
    catches: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.loss, *map(str, self.options), str(len(self.expected))])


ROWS = [
    Golden(
        "bradley_terry",
        {"reward": [[3.0, 2.0], [0.0, 2.0]], "margin": [1.0, 1.0]},
        [0.313262, 2.126928],
        "S(-1), S(2)",
        "sign of the difference; a margin that nobody asked for",
    ),
    Golden(
        "bradley_terry",
        {"reward": [[3.0, 2.0], [0.0, 2.0]], "margin": [1.0, 3.0]},
        [0.414370, 3.048587],
        "1 - 1/3 = 2/3: S(-2/3); -2 - 1 = -3: S(3)",
        "margin added; scale ignored",
        {"margin_scale": 1 / 3},
    ),
    Golden(
        "bradley_terry",
        {"reward": [[3.0, 2.0], [0.0, 2.0]]},
        [0.563262, 2.166928],
        "S(-1) + .01 * 25, S(2) + .01 * 4",
        "centring the difference (1 and 4) or each reward (13 and 4) instead of the sum",
        {"centering": 0.01},
    ),
    Golden(
        "bradley_terry",
        {
            "reward": [[3.0, 2.0], [0.0, 2.0]],
            "policy": ([[-1.0, -2.0], [-4.0]], [[-2.0, -1.0, -3.0], [-1.0, -1.0]]),
        },
        [1.313262, 3.460261],
        "tokens: 3 in 2 chosen responses, mean 1.5; S(-1) + .5 * 3/1.5, S(2) + .5 * 4/1.5",
        "likelihood of the rejected response; summed tokens; weight ignored",
        {"lm_weight": 0.5},
    ),
    Golden(
        "bradley_terry",
        {
            "reward": [[3.0, 2.0], [0.0, 2.0]],
            "policy": ([[-1.0, -2.0], [-4.0]], [[-2.0, -1.0, -3.0], [-1.0, -1.0]]),
        },
        [1.063262, 4.126928],
        "S(-1) + .5 * 1.5, S(2) + .5 * 4",
        "reduction ignored",
        {"lm_weight": 0.5, "lm_reduction": "response_mean"},
    ),
    Golden(
        "apo_reward",
        {"reward": [[3.0, 2.0], [1.0, 0.5], [1.0, 0.5]], "policy_sample": [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]},
        [0.313262, 0.025 * 0.474077, 0.474077],
        "S(-1); .1/4 S(-.5); two samples of the policy are an annotated pair",
        "weights swapped; c_APO not divided by n; either kind divided by its own number",
    ),
    Golden(
        "apo_reward",
        {"reward": [[3.0, 2.0], [1.0, 0.5]], "policy_sample": [[0.0, 0.0], [0.0, 1.0]]},
        [2 * 0.313262, 0.5 * 0.474077],
        "2 S(-1); 1/2 S(-.5)",
        "options ignored",
        {"annotated_weight": 2.0, "adversarial_weight": 1.0, "samples": 2},
    ),
    Golden("log_exp", {"reward": [[3.0, 2.0], [0.0, 2.0]]}, [0.313262, 2.126928], "S(-1), S(2)", "sign"),
    Golden(
        "odin",
        # Quality 1 0 / 0 2 against lengths 2 4 / 4 6: deviations .25 -.75 / -.75 1.25 and -2 0 / 0 2,
        # products -.5 + 2.5 = 2, squares 2.75 and 8: rho = 2 / sqrt(22) = .426401. Length head = -lengths: rho = -1.
        # Sums -1 -4 / -4 -4: deviations 2.25 -.75 / -.75 -.75, products -4.5 - 1.5, squares 6.75: rho = -.816497.
        {
            "reward": [[[1.0, -2.0], [0.0, -4.0]], [[0.0, -4.0], [2.0, -6.0]]],
            "length": [[2.0, 4.0], [4.0, 6.0]],
            "overlap": 0.25,
        },
        [0.048587 + 0.5 * 3.242898 + 0.5, 0.693147 + 0.5 * 3.242898 + 0.5],
        "sums of heads -1 -4 / -4 -4: S(-3), S(0) = ln 2; + .5 * (.426401 + .816497 + 1 + 1) + 2 * .25",
        "quality alone in the preference term; |rho| of the length head; lengths of one slot; weights swapped; "
        "no correlation of the sum, or its sign kept",
        {"length_weight": 0.5, "orthogonality_weight": 2.0},
    ),
    Golden(
        "odin",
        {"reward": [[[1.0, -2.0], [0.0, -4.0]]], "length": [[3.0, 3.0]], "overlap": 0.0},
        [1.048587],
        "equal lengths: no correlation, 1 - 0 for the length head",
        "division by 0",
    ),
    Golden(
        "k_wise",
        {"reward": [[2.0, 1.0, 0.0, -1.0]], "score": [[4.0, 3.0, 2.0, 1.0]]},
        [0.207038],
        "(3 S(-1) + 2 S(-2) + S(-3)) / 6",
        "a sum over pairs; pairs counted twice",
    ),
    Golden(
        "k_wise",
        # 2 > 1 twice for the first list (its last slots tie), one pair for the second, none for the third.
        {
            "reward": [[0.0, 1.0, -1.0], [1.0, 2.0, 0.0], [5.0, -5.0, 0.0]],
            "score": [[9.0, 1.0, 1.0], [1.0, 2.0, NAN], [3.0, 3.0, NAN]],
        },
        [0.813262, 0.313262, 0.0],
        "(S(1) + S(-1)) / 2; S(-1); no pair",
        "ties as pairs; the empty slot as a response; division by 0 pairs",
    ),
    Golden(
        "best_of_k",
        {"reward": [[2.0, 1.0, 0.0, -1.0]], "score": [[4.0, 3.0, 2.0, 1.0]]},
        [0.440190],
        "log(1 + e^-1 + e^-2 + e^-3)",
        "argmin; a mean over all responses",
    ),
    Golden(
        "best_of_k",
        {"reward": [[1.0, 0.0, 0.0], [1.0, 0.0, 9.0]], "score": [[2.0, 2.0, NAN], [1.0, 3.0, NAN]]},
        [0.813262, 1.313262],
        "(S(-1) + S(1)) / 2 for two best; S(1)",
        "only the first of the best; the empty slot in the softmax",
    ),
    Golden(
        "token_wise",
        {
            "token_reward": ([[9.0, 1.0, 2.0], [1.0, 2.0]], [[9.0, 0.0], [1.0, 2.0]]),
            "prefix": [1, 2],
        },
        [0.220095, 0.0],
        "positions 1 and 2: S(0 - 1), S(0 - 2), the rejected one's last value held; an equal pair has no position",
        "positions before the first difference (+ S(0)); stopping at the shorter end; nan for equal responses",
    ),
    Golden(
        "cost",
        # slot 0 is the safer response: c_s = -.5 safe, c_u = 1.5 unsafe
        {"reward": [[-0.5, 1.5]], "safe": [[1.0, 0.0]]},
        [0.802418],
        "S(-2) + S(-1.5) + S(-.5)",
        "cost of the safer one higher; sign of the labels",
        {"regularization": 0.0},
    ),
    Golden(
        "cost",
        {"reward": [[-0.5, 1.5], [1.0, 2.0]], "safe": [[1.0, 0.0], [0.0, 0.0]]},
        [0.126928 + 0.5 * 0.675490 + 0.125, 0.313262 + 0.5 * 0.440190 + 0.25],
        "S(-2) + .5 (S(-1.5) + S(-.5)) + .1 * 2.5 / 2; S(-1) + .5 (S(-1) + S(-2)) + .1 * 5 / 2: both unsafe",
        "the regulariser as a sum; labels taken from the order",
        {"regularization": 0.1, "sign_weight": 0.5},
    ),
]
