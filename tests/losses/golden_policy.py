"""Every policy-gradient loss on two responses whose numbers were worked out by hand, token by token.

========  ==================  ==================  =========  =============================================
response  policy              old                 advantage  log-ratios
========  ==================  ==================  =========  =============================================
A         -1.0 -0.5 -2.0      -1.1 -0.7 -1.6      1          0.1  0.2  -0.4 (mean -1/30, sum -0.1)
B         -1.0 -2.0           -1.5 -1.0           -2         0.5  -1.0      (mean -0.25, sum -0.5)
========  ==================  ==================  =========  =============================================

Ratios: e^0.1 = 1.105171, e^0.2 = 1.221403, e^-0.4 = 0.670320; e^0.5 = 1.648721, e^-1 = 0.367879.
A's numbers are those of the specification: geometric mean e^(-1/30) = 0.967216, product e^-0.1 = 0.904837.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.helpers.policy_inputs import Responses

AB = Responses(
    policy=[[-1.0, -0.5, -2.0], [-1.0, -2.0]],
    old=[[-1.1, -0.7, -1.6], [-1.5, -1.0]],
    advantage=[[1.0, 1.0, 1.0], [-2.0, -2.0]],
)


@dataclass
class Golden:
    """Values that a loss gives the tokens of A and B, how they were worked out, and what breaks them."""

    loss: str
    options: dict[str, Any]
    expected: list[float]
    worked: str
    catches: str
    #: share of tokens clipped below and above
    clipped: tuple[float, float] | None = field(default=None)

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(f'{k}{v}' for k, v in self.options.items())}"


ROWS = [
    Golden("reinforce", {}, [1.0, 0.5, 2.0, -2.0, -4.0], "-A l", "sign; a ratio; the old log-probs"),
    Golden(
        "ppo",
        {},
        [-1.105171, -1.2, -0.670320, 3.297443, 1.6],
        "min(rho, 1.2), min(rho, 1.2), rho; for A = -2 max(rho, 0.8) = 1.648721, 0.8",
        "max for min; clip of the wrong side; bounds swapped",
        clipped=(0.2, 0.2),
    ),
    Golden(
        "ppo",
        {"eps_high": 0.28},
        [-1.105171, -1.221403, -0.670320, 3.297443, 1.6],
        "e^0.2 = 1.2214 is inside 1.28",
        "one epsilon for both sides",
        clipped=(0.2, 0.0),
    ),
    Golden(
        "ppo",
        {"dual_clip": 1.5},
        [-1.105171, -1.2, -0.670320, 3.0, 1.6],
        "where A < 0 the loss is at most 1.5 * 2",
        "dual clip of positive advantages, or of the ratio's lower side",
        clipped=(0.2, 0.2),
    ),
    Golden(
        "ppo",
        {"ratio": "sequence"},
        [-0.904837, -0.904837, -0.904837, 1.6, 1.6],
        "e^-0.1 is inside the band; e^-0.5 = 0.606531 is below 0.8",
        "mean for sum of log-ratios; the ratio of each token",
        clipped=(0.4, 0.0),
    ),
    Golden(
        "gspo",
        {},
        [-0.967216, -0.967216, -0.967216, 1.9994, 1.9994],
        "e^(-1/30) and A > 0: no clip below; e^-0.25 = 0.778801 is below 0.9997: 2 * 0.9997",
        "sum for mean; symmetric clip",
        clipped=(0.4, 0.0),
    ),
    Golden(
        "gspo",
        {"eps_low": 0.3, "eps_high": 0.4},
        [-0.967216, -0.967216, -0.967216, 1.557602, 1.557602],
        "inside the band: 2 e^-0.25",
        "a fixed band",
        clipped=(0.0, 0.0),
    ),
    Golden(
        "gspo_token",
        {"eps_low": 0.3, "eps_high": 0.4},
        [-0.967216, -0.967216, -0.967216, 1.557602, 1.557602],
        "the value of GSPO",
        "the token's own ratio as value",
        clipped=(0.0, 0.0),
    ),
    Golden(
        "gmpo",
        {},
        [-0.967216, -0.967216, -0.967216, 2.102542, 2.102542],
        "A: no token above 0.4; B: (0.5 + max(-1, -0.4)) / 2 = 0.05, 2 e^0.05",
        "both sides clipped (0.4 - 0.4 = 0); clip of the mean (e^-0.25)",
        clipped=(0.2, 0.0),
    ),
    Golden(
        "gmpo",
        {"clip_high": 0.15},
        [-0.951229, -0.951229, -0.951229, 2.102542, 2.102542],
        "A: (0.1 + 0.15 - 0.4) / 3 = -0.05",
        "clip_low for clip_high",
        clipped=(0.2, 0.2),
    ),
    Golden(
        "cispo",
        {},
        [1.105171, 0.610701, 1.340640, -3.297443, -1.471518],
        "-rho A l: no ratio reaches 5",
        "gradient through the ratio (value rho A); the bound 1 + 5",
        clipped=(0.0, 0.0),
    ),
    Golden(
        "cispo",
        {"eps_low": 0.2, "eps_high": 0.2, "eps_abs_high": None},
        [1.105171, 0.6, 1.6, -2.4, -3.2],
        "weights 1.105171, 1.2, 0.8, 1.2, 0.8",
        "the other convention; a bound that depends on the sign of A",
        clipped=(0.4, 0.4),
    ),
    Golden(
        "cispo",
        {"eps_abs_high": 1.2},
        [1.105171, 0.6, 1.340640, -2.4, -1.471518],
        "weights 1.105171, 1.2, 0.67032, 1.2, 0.367879",
        "a lower bound that nobody set; 1 + 1.2",
        clipped=(0.0, 0.4),
    ),
]
