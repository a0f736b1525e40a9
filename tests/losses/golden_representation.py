"""Losses on states and on opposite instructions, with numbers that were worked out by hand.

**Fit.** One token, width 2: base (1, 0), positive (1, 1), negative (0, 0). With alpha 5 the target is
(1, 0) + 5 (1, 1) = (6, 5); states that are still the base's are |(5, 5)| = 7.071068 away.

**Contrast.** Mean log-probs -1 and -2: D = 1, -log sigma(1) = 0.313262, -log sigma(-1) = 1.313262; with smoothing 0.2
the contrast is 0.8 * 0.313262 + 0.2 * 1.313262 = 0.513262. It is smallest at D = ln 4, where sigma(D) = 0.8: there
it is the entropy of (0.8, 0.2), 0.500402.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Vector = list[float]

#: States of one layer: responses of tokens of numbers.
BASE = [[[1.0, 0.0]]]
POSITIVE = [[[1.0, 1.0]]]
NEGATIVE = [[[0.0, 0.0]]]
FAR = 5 * math.sqrt(2)


@dataclass
class Golden:
    """Values that a loss must return, how they were worked out, and what breaks them.

    ``given`` are the inputs by name: for ``representation_fit`` states by layer, for ``contrastive_instruction``
    log-probs of responses.
    """

    loss: str
    options: dict[str, Any]
    given: dict[str, Any]
    expected: Vector
    worked: str
    catches: str
    diagnostics: dict[str, Vector] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(map(str, self.options.values()))}"


ROWS = [
    Golden(
        "representation_fit",
        {},
        {"states": {3: BASE}, "base": {3: BASE}, "positive": {3: POSITIVE}, "negative": {3: NEGATIVE}},
        [FAR],
        "|(5, 5)|",
        "a squared norm (50); the negative added; alpha on the base",
        {"fit/3": [FAR], "shift/3": [math.sqrt(2)], "cosine/3": [0.0]},
    ),
    Golden(
        "representation_fit",
        {"alpha": 2.0},
        {
            "states": {1: [[[2.0, 1.0]], [[3.0, 2.0], [1.0, 0.0]]], 4: [[[0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]},
            "base": {1: [[[1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]], 4: [[[0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]},
            "positive": {1: [[[1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]], 4: [[[0.0, 1.0]], [[0.0, 1.0], [0.0, 0.0]]]},
            "negative": {1: [[[0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], 4: [[[0.0, -1.0]], [[0.0, 0.0], [0.0, 0.0]]]},
        },
        [(math.sqrt(2) + 1) / 2 / 1.5, (0 + 2 * math.sqrt(2) + 2 + 0) / 2 / 1.5],
        "layer 1: |(1,1)-(2,2)|, |(2,2)-(2,2)|, |(0,0)-(2,2)|; layer 4: |3-4|, |0-2|, 0; 2 layers, 3 tokens in 2 rows",
        "the mean over a response's own tokens; the mean over padded slots; layers added up",
        {"shift/4": [2.0, 1.0, 0.0], "cosine/4": [1.0, 0.0, 0.0], "cosine/1": [1.0, 1.0, 0.0]},
    ),
    Golden(
        "contrastive_instruction",
        {},
        {"match": [[-1.0]], "opposite": [[-2.0]]},
        [1.513262],
        "1 + 0.513262",
        "contexts swapped (2.113262 with 1 + 1.113262); no likelihood; smoothing on the wrong side",
        {"nll": [1.0], "instruction/margin": [1.0], "instruction/accuracy": [1.0]},
    ),
    Golden(
        "contrastive_instruction",
        {"label_smoothing": 0.2, "reduction": "response_mean"},
        {"match": [[-1.0, -3.0], [-1.0]], "opposite": [[-2.0 - math.log(4), -2.0 - math.log(4)], [-1.0]]},
        [2.500402, 1 + math.log(2)],
        "means -2 and -2 - ln 4: the smallest contrast; equal contexts: ln 2",
        "sums for means (D = 2 ln 4)",
        {"instruction/accuracy": [1.0, 0.5]},
    ),
]
