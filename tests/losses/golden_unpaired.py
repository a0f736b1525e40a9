"""Every loss of labelled responses on four responses whose numbers were worked out by hand.

====  ===========  =================  ================  ====
row   label        policy             reference         rho
====  ===========  =================  ================  ====
A     desirable    -1 -2: l -3        -2 -3: l -5       2
B     undesirable  -4: l -4           -1: l -1          -3
C     desirable    -2 -1 -3: l -6     -1 -1 -2: l -4    -2
D     undesirable  -1 -1: l -2        -2 -1: l -3       1
====  ===========  =================  ================  ====

They are the responses of golden_rows.py. s(x) = 1/(1 + e^-x): s(-0.5) = 0.377541, s(0.5) = 0.622459, s(-1) = 0.268941,
s(1) = 0.731059, s(1.5) = 0.817574, s(-1.5) = 0.182426, s(-2) = 0.119203; S(x) = log(1 + e^x): S(-0.5) = 0.474077,
S(0.5) = 0.974077, S(1) = 1.313262, S(-1) = 0.313262, S(1.5) = 1.701413, S(-1.5) = 0.201413, S(-2) = 0.126928. The four
responses have 8 tokens, so their mean length is 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.helpers.unpaired_inputs import Labelled

ABCD = Labelled(
    policy=[[-1.0, -2.0], [-4.0], [-2.0, -1.0, -3.0], [-1.0, -1.0]],
    reference=[[-2.0, -3.0], [-1.0], [-1.0, -1.0, -2.0], [-2.0, -1.0]],
    desirable=[1.0, 0.0, 1.0, 0.0],
)


@dataclass
class Golden:
    """Values that a loss must return for ``ABCD``, how they were worked out, and what breaks them."""

    loss: str
    options: dict[str, Any]
    expected: list[float]
    worked: str
    catches: str
    given: dict[str, Any] = field(default_factory=dict)  #: inputs other than those of ``ABCD``

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(map(str, [*self.options.values(), *self.given.values()]))}"


ROWS = [
    Golden(
        "kto",
        {"beta": 0.5},
        [0.377541, 0.119203, 0.817574, 0.5],
        "s(-0.5(2 - 1)), s(-0.5(1 + 3)), s(-0.5(-2 - 1)), s(-0.5(1 - 1))",
        "z_0 forgotten, or added for one label; labels swapped; means for sums",
        {"kl": 1.0},
    ),
    Golden(
        "kto",
        {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.5},
        [0.755081, 0.059601, 1.635149, 0.25],
        "the row above times 2 or 0.5",
        "weights swapped, or one of them forgotten",
        {"kl": 1.0},
    ),
    Golden("kto", {"beta": 0.5}, [0.268941, 0.182426, 0.731059, 0.622459], "s(-1), s(-1.5), s(1), s(0.5)", "offset"),
    Golden(
        "bco",
        {"beta": 0.5},
        [0.474077, 0.126928, 1.701413, 0.693147],
        "S(-(1 - 0.5)), S(-1.5 - 0.5), S(-(-1 - 0.5)), S(0.5 - 0.5)",
        "delta of one label only; its sign; rewards without beta",
        {"running": (0.5, 1.0, 3.0)},
    ),
    Golden(
        "bco",
        {"beta": 0.5, "delta": "zero"},
        [0.313262, 0.402826, 1.313262, 0.487039],
        "S(-1), 2 S(-1.5), S(1), 0.5 S(0.5)",
        "the running mean taken all the same; weights ignored",
        {"running": (0.5, 1.0, 3.0), "weight": [1.0, 2.0, 1.0, 0.5]},
    ),
    Golden(
        "apo_zero_unpaired",
        {"beta": 0.5, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        [0.268941, 0.182426, 0.731059, 0.622459],
        "1 - s(1), s(-1.5), 1 - s(-1), s(0.5)",
        "labels swapped; a reference point",
        {"kl": 1.0},
    ),
    Golden(
        "apo_zero_unpaired",
        {"beta": 0.5, "desirable_weight": 2.0, "undesirable_weight": 0.5},
        [0.537883, 0.091213, 1.462117, 0.311230],
        "the row above times 2 or 0.5",
        "weights swapped",
    ),
    Golden(
        "unlikelihood",
        {},
        [1.5, 0.009243, 3.0, 0.458675],
        "3/2; -log(1 - e^-4)/2 = 0.018485/2; 6/2; -2 log(1 - e^-1)/2",
        "log p for log(1 - p); the label's own mean length; swapped labels",
    ),
    Golden(
        "unlikelihood",
        {"weight": 0.5, "reduction": "sum"},
        [3.0, 0.009243, 6.0, 0.458675],
        "3; 0.018485/2; 6; 2 * 0.458675/2",
        "the weight on both labels",
    ),
    Golden(
        "unlikelihood",
        {"weight": 1.0, "reduction": "response_mean"},
        [1.5, 0.018485, 2.0, 0.458675],
        "3/2; 0.018485/1; 6/3; 2 * 0.458675/2",
        "one shared length",
    ),
]
