"""Token-level losses on numbers that were worked out by hand.

S(x) = log(1 + e^x): S(1) = 1.313262, S(-2) = 0.126928; s(-1) = 0.268941.

**Cringe.** Three tokens with logits 2, 1, 0. The bad response BAD has token 0 and then token 2. With k = 1 the
alternatives are token 1 (rank 2: token 0 itself is struck) and token 0 (rank 1): S(2 - 1) + S(0 - 2) = 1.440190.
Its log-probs are -0.407606 and -2.407606. GOOD has log-probs -1 and -2. As a pair the margin is
M = -3 + 2.815212 = -0.184788, and the bracket with alpha = 0.5 (3 + 0.720095)/4 = 0.930024.

**CUT.** Row J has log-probs -1 -2 -1 behind the criticism (A) and -1.5 -1.9 -3 alone (B): ratios e^0.5 = 1.648721,
e^-0.1 = 0.904837 and e^2 = 7.389056. Row P has no criticism and log-prob -0.5. log(1 - e^-1.5) = -0.252483,
log(1 - e^-3) = -0.051069, together -0.303552. Mean lengths over the two rows: 1.5 (A) and 2 (B).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.reference_token import Position, Response, Row


def certain(log_prob: float) -> Position:
    """A token of exactly this log-prob among two."""
    return Position([log_prob, math.log(1 - math.exp(log_prob)), -1e9], 0)


BAD: Response = [Position([2.0, 1.0, 0.0], 0), Position([2.0, 1.0, 0.0], 2)]
GOOD: Response = [certain(-1.0), certain(-2.0)]
JUDGED: Row = ([-1.0, -2.0, -1.0], [-1.5, -1.9, -3.0])
PLAIN: Row = ([], [-0.5])


@dataclass
class Golden:
    """Values that a loss must return, how they were worked out, and what breaks them."""

    loss: str
    options: dict[str, Any]
    expected: list[float]
    worked: str
    catches: str
    rows: list[Row] = field(default_factory=list)
    diagnostics: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(map(str, self.options.values()))}"


CRINGE = [
    Golden(
        "cringe",
        {"alpha": 1.0, "k": 1},
        [1.5, 0.720095],
        "(1 + 2)/2 and 1.440190/2",
        "terms of the wrong label; the target sampled as its own alternative (S(0) = ln 2 at the first token)",
        diagnostics={"ce": [1.5], "contrast": [0.720095], "rank": [2.0, 1.0]},
    ),
    Golden("cringe", {"alpha": 0.5, "k": 1}, [1.5, 0.360048], "half of 0.720095", "alpha on the likelihood term"),
    Golden(
        "cringe",
        {"alpha": 1.0, "k": 1, "detach_alternative": True},
        [1.5, 0.720095],
        "the value is the same",
        "a detached loss",
    ),
]

PAIRWISE = [
    Golden(
        "pairwise_cringe",
        {"alpha": 0.5, "k": 1, "threshold": -1.184788, "tau": 1.0, "gate": "soft"},
        [0.250122],
        "b - M = -1: 0.268941 * 0.930024",
        "sign of M (s(-1.37)) or of the gate's exponent (s(1)); gate left out",
        diagnostics={"gate": [0.268941], "closed": [1.0], "margin": [-0.184788], "rank": [1.5], "contrast": [0.720095]},
    ),
    Golden(
        "pairwise_cringe",
        {"alpha": 0.5, "k": 1, "threshold": -2.184788, "tau": 2.0, "gate": "soft"},
        [0.250122],
        "(b - M)/tau = -2/2",
        "tau multiplied",
    ),
    Golden(
        "pairwise_cringe",
        {"alpha": 0.5, "k": 1, "threshold": 0.0, "tau": 1.0, "gate": "hard"},
        [0.930024],
        "M < 0: open",
        "the soft gate; comparison reversed",
        diagnostics={"gate": [1.0], "closed": [0.0], "ce": [1.5]},
    ),
    Golden(
        "pairwise_cringe",
        {"alpha": 0.5, "k": 1, "threshold": -1.0, "tau": 1.0, "gate": "hard"},
        [0.0],
        "M > -1: closed",
        "comparison reversed",
    ),
]

CUT = [
    Golden(
        "cut",
        {"threshold": 1.1, "unlikelihood_weight": 1.0},
        [1.734517, 0.125],
        "A 4/2, the demonstration's token counts too; B (1.9 + 0.303552)/1.5, those of criticised rows only; half of "
        "2 + 1.469035; half of 0.5/2. The mean is the authors' ((4 + 0.5)/4 + 2.203552/3)/2 = 0.929759",
        "contexts swapped; U on the other side; no half; response means; the demonstration averaged with context B",
        [JUDGED, PLAIN],
        {
            "detected": [1.0, 0.0, 1.0],
            "ratio": [1.648721, 7.389056],
            "detected_prob": [0.223130, 0.049787],
            "loss/judged": [1.333333],
            "loss/plain": [1.469035, 0.25],
        },
    ),
    Golden(
        "cut",
        {"threshold": 2.0, "unlikelihood_weight": 0.5},
        [2.141845, 0.125],
        "U holds the last token only: (1.5 + 1.9 + 0.5 * 0.051069)/1.5 = 2.283690, and 4/2",
        "threshold on the log-ratio (0.5 < 2, 2 = 2: U empty); weight on the likelihood",
        [JUDGED, PLAIN],
    ),
    Golden(
        "cut",
        {"threshold": 1.1, "unlikelihood_weight": 1.0},
        [0.5],
        "a step without criticism is fine-tuning, and the whole of it",
        "half of it; 0/0",
        [PLAIN],
        {"detected": [], "ratio": [], "loss/judged": []},
    ),
    Golden(
        "cut",
        {"threshold": 1.1, "unlikelihood_weight": 1.0},
        [0.572707],
        "one token, ratio e: (1 - log(1 - e^-2)) / 2 with log(1 - e^-2) = -0.145413",
        "a response of one token taken for one without criticism",
        [([-1.0], [-2.0])],
        {"detected": [1.0], "ratio": [2.718282], "loss/judged": [1.0], "loss/plain": [0.145413]},
    ),
    Golden(
        "cut_paper",
        {"threshold": 1.1, "unlikelihood_weight": 0.5, "gamma": 1.0},
        [1.985278, 0.5],
        "(1.9 + 0.5 e^-1 0.303552)/3 + 4/3; 0.5",
        "gamma ignored; weight from context B",
        [JUDGED, PLAIN],
    ),
    Golden(
        "cut_paper",
        {"threshold": 1.1, "unlikelihood_weight": 0.5, "gamma": 0.5},
        [1.997352, 0.5],
        "(1.9 + 0.5 e^-0.5 0.303552)/3 + 4/3",
        "gamma as a factor of the weight",
        [JUDGED, PLAIN],
    ),
]
