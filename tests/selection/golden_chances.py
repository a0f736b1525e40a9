"""Golden rows of selectors that look at chances to win, or draw by chance."""

from __future__ import annotations

import math

from rlhf_lightning.types import NONE
from tests.helpers.selection_inputs import SampleRound
from tests.selection.golden_inputs import CYCLE, FIVE, THREE, Golden, X, margin

ROWS = [
    Golden(
        "win_probability",
        {"judge": "scores"},
        [(0, (0, 4), {"win_probability": [0.809289, 0.190711]})],
        "(1/2 + s(1) + s(2) + s(3) + s(4)) / 5",
        "4 for 5",
        samples=FIVE,
        metrics={"from_scores": 1, "intransitive": 0, "near_even": 0.2, "tie_rate": 0},
    ),
    Golden(
        "win_probability",
        {"judge": "scores", "include_self": False},
        [(0, (0, 4), {"win_probability": [0.886611, 0.113389]})],
        "(s(1) + s(2) + s(3) + s(4)) / 4",
        "the diagonal in the mean",
        samples=FIVE,
    ),
    Golden(
        "win_probability",
        {"judge": "scores", "cut_off": "keep"},
        [(0, (0, 4), {"win_probability": [0.809289, 0.190711]})],
        "as without cut-off samples",
        "the best of the finished ones",
        samples=SampleRound(score=FIVE.score, truncated=[[True, False, False, False, True]]),
    ),
    Golden(
        "win_probability",
        {"judge": "scores", "target": "pair"},
        [(0, (0, 4), {"win_probability": [0.982014, 0.017986]})],
        "s(4)",
        "the chance against the policy",
        samples=FIVE,
    ),
    Golden(
        "win_probability",
        {},
        [(0, (0, 3), {"win_probability": [0.65, 0.35]})],
        "0: 2.6 / 4; 1: 1.3 / 3; 2: 1.4 / 3; 3: .7 / 2, and unknown is not 0",
        "unknown chances as 0; columns for rows",
        samples=CYCLE,
        metrics={"from_scores": 0, "intransitive": 1.0, "near_even": 0.5},
    ),
    Golden(
        "policy_vs_reference",
        {},
        [(0, (2, 0), {"margin": 2, "reference_sample": [1, 0]})],
        "0, 1 are the policy's, 2, 3 the reference's; A: 3 against 1, and 4* was cut off; B: x, and 2 = 2",
        "the best of all against the worst; a pair of one draw; the policy's sample as the reference's",
        metrics={"tie_rate": 1 / 2, "policy_wins": 0, "left_out": 1},
    ),
    Golden(
        "policy_vs_reference",
        {"cut_off": "keep"},
        [
            (0, (2, 0), {"margin": 2, "reference_sample": [1, 0]}),
            (0, (1, 3), {"margin": 4, "reference_sample": [0, 1]}),
        ],
        "A: 4* against 0",
        "a cut-off sample of the policy that cannot win",
    ),
    Golden(
        "policy_vs_reference",
        {"ties": "keep"},
        [
            (0, (2, 0), {"margin": 2, "reference_sample": [1, 0]}),
            (1, (1, 3), {"margin": 0, "reference_sample": [0, 1]}),
        ],
        "B: the policy's sample wins the tie",
        "the last sample as the winner of a tie",
    ),
    Golden(
        "win_rates",
        {},
        [(0, (0, 1), {"score": [0.6, 0.7]})],
        "0: (.4 + .8) / 2; 1: .7, and against 3 nothing is known",
        "the chance against all samples; unknown as 0; columns for rows",
        samples=CYCLE,
        metrics={"win_rate": 0.65, "from_scores": 0, "left_out": 0},
    ),
    Golden(
        "win_rates",
        {"judge": "scores"},
        [(0, (0, NONE), {"score": [0.425131, 0]}), (1, (0, 1), {"score": [0.5, 0.5]})],
        "A: (s(1 - 3) + s(1 - 0)) / 2, and 4* was cut off; B: 2 against 2",
        "an empty slot before a filled one",
        metrics={"win_rate": (0.425131 + 1) / 3, "from_scores": 1},
    ),
    Golden(
        "win_rates",
        {"judge": "scores", "cut_off": "lose"},
        [(0, (0, 1), {"score": [0.425131, 0]}), (1, (0, 1), {"score": [0.5, 0.5]})],
        "A: 4* has lost",
        "the chance of a cut-off sample",
    ),
    Golden(
        "win_rates",
        {"judge": "scores", "cut_off": "keep"},
        [(0, (0, 1), {"score": [0.425131, 0.856536]}), (1, (0, 1), {"score": [0.5, 0.5]})],
        "A: (s(4 - 3) + s(4 - 0)) / 2 for 4*",
        "a cut-off sample that has lost",
    ),
    Golden(
        "rejection_sampling",
        {"n": 3},
        None,
        "acceptance 1, e^-2, e^-4; entropy of .866813 .117310 .015876 is .441057, log 3 less it",
        "e^s; entropy for KL",
        samples=THREE,
        metrics={"acceptance_rate": 0.384550, "target_kl": 0.657555, "pool_score": -1, "drawn_score": -1},
    ),
    Golden(
        "rejection_sampling",
        {"beta": 0.0, "cut_off": "keep"},
        [(0, (0, 2), margin(2))],
        "as the next row, but that the best one was cut off",
        "a winner that is drawn in vain",
        samples=SampleRound(score=[[1.0, X, -1.0]], truncated=[[True, False, False]]),
        metrics={"sweeps": 2, "left_out": 0},
    ),
    Golden(
        "rejection_sampling",
        {"beta": 0.0},
        [(0, (0, 2), margin(2))],
        "both usable samples are drawn, in two sweeps that accept the best alone, and paired",
        "a division by 0; a sample without a score",
        samples=SampleRound(score=[[1.0, X, -1.0]]),
        metrics={"sweeps": 2, "acceptance_rate": 0.5, "target_kl": math.log(2), "left_out": 0},
    ),
]
