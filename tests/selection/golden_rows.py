"""Every selector on rounds whose groups were worked out by hand.

Scores of the two prompts, unless a row says otherwise (x: no score, *: cut off)::

    prompt  sample 0  1    2    3
    A       1         4*   3    0
    B       2         2    x    2

Lengths of A are 10, 20, 40, 30 and of B 10, 20, 30, 40.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.types import DATA, NONE
from tests.helpers.selection_inputs import Group, SampleRound

X = math.nan
#: Which of a pair of the data's response and a sample was drawn.
SAMPLED = {"policy_sample": [0.0, 1.0]}
AB = SampleRound(
    score=[[1.0, 4.0, 3.0, 0.0], [2.0, 2.0, X, 2.0]],
    length=[[10.0, 20.0, 40.0, 30.0], [10.0, 20.0, 30.0, 40.0]],
    truncated=[[False, True, False, False], [False] * 4],
    same_as=[[0, DATA, 0, 3], [DATA, 1, 2, 3]],
)
#: corrections to DICE: gaps +50, +50 at alpha 0, +50, -50 at .01, -50, -50 at .02.
DICE = SampleRound(score=[[2.0, 1.2], [0.5, 0.9]], length=[[100.0, 50.0], [40.0, 90.0]])
FIVE = SampleRound(score=[[2.0, 1.0, 0.0, -1.0, -2.0]])
THREE = SampleRound(score=[[0.0, -1.0, -2.0]])
#: 0 beats 1, 1 beats 2 and 2 beats 0, and 0 wins most clearly; nobody compared 3 with anyone but 0.
CYCLE = SampleRound(
    score=[[0.0] * 4],
    preference=[[[0.5, 0.9, 0.4, 0.8], [0.1, 0.5, 0.7, X], [0.6, 0.3, 0.5, X], [0.2, X, X, 0.5]]],
)


@dataclass
class Golden:
    """What a selector gives, how it was worked out, and what breaks it."""

    selector: str
    options: dict[str, Any]
    expected: list[Group] | None  #: None: a matter of chance
    worked: str
    catches: str
    samples: SampleRound = field(default_factory=lambda: AB)
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.selector}-{'-'.join(f'{k}={v}' for k, v in self.options.items())}"


def margin(value: float) -> dict[str, Any]:
    return {"margin": value}


ROWS = [
    Golden(
        "best_and_worst",
        {},
        [(0, (2, 3), margin(3))],
        "A: the 4 was cut off, so 3 against 0; B: 2 = 2 is dropped",
        "a cut-off winner; a tie as a pair; nan as lowest",
        metrics={"tie_rate": 0.5, "left_out": 0, "cut_off_rate": 1 / 8, "unscored_rate": 1 / 8},
    ),
    Golden(
        "best_and_worst",
        {"ties": "keep"},
        [(0, (2, 3), margin(3)), (1, (0, 3), margin(0))],
        "B: first of the highest, last of the lowest",
        "the first sample on both sides",
        metrics={"tie_rate": 0.5},
    ),
    Golden(
        "best_and_worst",
        {"cut_off": "lose"},
        [],
        "X: 1 may win alone, and the other, cut off, has 5; Y: one sample",
        "a rejected response with the higher score",
        samples=SampleRound(score=[[1.0, 5.0], [1.0, X]], truncated=[[False, True], [False, False]]),
        metrics={"left_out": 2, "tie_rate": 0},
    ),
    Golden(
        "best_and_worst",
        {"cut_off": "lose"},
        [(0, (0, 1), margin(2))],
        "the cut-off sample has the lowest score",
        "cut-off samples that never lose",
        samples=SampleRound(score=[[1.0, -1.0]], truncated=[[False, True]]),
    ),
    Golden(
        "best_and_worst",
        {"cut_off": "keep"},
        [(0, (1, 3), margin(4))],
        "A: the 4 wins although it was cut off; B: a tie",
        "cut-off samples that only lose; a cut-off share that is not counted",
        metrics={"tie_rate": 0.5, "left_out": 0, "cut_off_rate": 1 / 8},
    ),
    Golden(
        "best_and_another",
        {"cut_off": "keep", "other": "second"},
        [(0, (1, 2), margin(1))],
        "A: 4* against 3; B: a tie",
        "the best of the finished ones",
    ),
    Golden(
        "best_and_another",
        {},
        [(0, (2, 0), margin(2))],
        "A: 3 against the first other one, 1; B is a tie",
        "the worst; a cut-off rival",
        metrics={"tie_rate": 0.5},
    ),
    Golden(
        "best_and_another",
        {"other": "second"},
        [(0, (2, 0), margin(4)), (1, (1, 2), margin(1))],
        "5 and 1 (0 is the worst); 3 and 2, the first one is the third",
        "the worst; the first",
        samples=SampleRound(score=[[1.0, 0.0, 5.0], [0.0, 3.0, 2.0]]),
    ),
    Golden(
        "length_penalised",
        {"penalty": 0.1},
        [(0, (2, 0), margin(2))],
        "1 - 1 = 0 and 3 - 4 = -1 are best and worst, and of them 3 > 1",
        "the label of the penalised score",
        samples=SampleRound(score=[[1.0, 4.0, 3.0]], length=[[10.0, 50.0, 40.0]], truncated=[[False, True, False]]),
    ),
    Golden(
        "length_penalised",
        {"penalty": 0.1, "label": "penalised"},
        [(0, (0, 2), margin(1))],
        "1 - 1 = 0 against 3 - 4 = -1: the short one wins",
        "the label of the raw score; margin of raw scores (-2)",
        samples=SampleRound(score=[[1.0, 4.0, 3.0]], length=[[10.0, 50.0, 40.0]], truncated=[[False, True, False]]),
    ),
    Golden(
        "length_penalised",
        {"penalty": 0.1, "cut_off": "keep"},
        [(0, (1, 0), margin(3))],
        "1 - 1 = 0 and 4 - 5 = -1* are best and worst, and of them 4* > 1",
        "a swap that a cut-off sample does not take part in",
        samples=SampleRound(score=[[1.0, 4.0, 3.0]], length=[[10.0, 50.0, 35.0]], truncated=[[False, True, False]]),
    ),
    Golden(
        "length_calibrated",
        {"step": 0.01},
        [(0, (0, 1), margin(0.3)), (1, (0, 1), margin(0.1))],
        "alpha .01: 2 - 1 against 1.2 - .5; .5 - .4 against .9 - .9",
        "absolute gaps before the mean, which never reach 0; the last alpha of a plateau",
        samples=DICE,
        metrics={"alpha": 0.01, "length_gap_before": 50, "length_gap": 0},
    ),
    Golden(
        "length_calibrated",
        {"alpha": 0.02},
        [(0, (1, 0), margin(0.2)), (1, (0, 1), margin(0.6))],
        "2 - 2 against 1.2 - 1; .5 - .8 against .9 - 1.8",
        "a given alpha that is searched all the same",
        samples=DICE,
        metrics={"alpha": 0.02, "length_gap_before": 50, "length_gap": -50},
    ),
    Golden(
        "length_calibrated",
        {"step": 0.01, "cut_off": "keep"},
        [(0, (0, 1), margin(0.3)), (1, (0, 1), margin(0.1))],
        "as without a cut-off sample",
        "a price that is searched without the cut-off samples",
        samples=SampleRound(score=DICE.score, length=DICE.length, truncated=[[True, False], [False, True]]),
        metrics={"alpha": 0.01, "length_gap_before": 50, "length_gap": 0, "cut_off_rate": 0.5},
    ),
    Golden(
        "length_calibrated",
        {"alpha": 0.0, "least": 4},
        [],
        "A has three usable samples, and so has B",
        "cut-off and unscored samples that count",
        metrics={"left_out": 2, "length_gap": 0},
    ),
    Golden(
        "all_pairs",
        {},
        [(0, (2, 0), margin(2)), (0, (2, 3), margin(3)), (0, (0, 3), margin(1))],
        "3, 1, 0; B: three ties of six pairs",
        "both orders; ties",
        metrics={"tie_rate": 0.5, "left_out": 0},
    ),
    Golden(
        "all_pairs",
        {"cut_off": "lose"},
        [(0, (2, 0), margin(2)), (0, (2, 3), margin(3)), (0, (0, 3), margin(1))],
        "the cut-off 4 beats nobody and loses to nobody",
        "a cut-off winner",
    ),
    Golden(
        "all_pairs",
        {"cut_off": "keep"},
        [
            (0, (1, 2), margin(1)),
            (0, (1, 0), margin(3)),
            (0, (1, 3), margin(4)),
            (0, (2, 0), margin(2)),
            (0, (2, 3), margin(3)),
            (0, (0, 3), margin(1)),
        ],
        "4*, 3, 1, 0",
        "a cut-off sample that wins nothing",
    ),
    Golden(
        "adjacent_pairs",
        {"cut_off": "keep"},
        [(0, (1, 2), margin(1)), (0, (2, 0), margin(2)), (0, (0, 3), margin(1))],
        "4* > 3 > 1 > 0",
        "a ranking without the cut-off sample",
    ),
    Golden(
        "adjacent_pairs",
        {},
        [(0, (2, 0), margin(2)), (0, (0, 3), margin(1))],
        "3 > 1 > 0; B: two ties of four pairs",
        "pairs (1, 2), (3, 4) without an overlap",
        metrics={"tie_rate": 0.5, "left_out": 0},
    ),
    Golden(
        "best_of_n",
        {},
        [(0, (2,), {}), (1, (0,), {})],
        "the 4 was cut off; the first of equals",
        "a cut-off winner",
        metrics={"tie_rate": 0.5, "left_out": 0},
    ),
    Golden(
        "best_of_n",
        {"cut_off": "keep"},
        [(0, (1,), {}), (1, (0,), {})],
        "the 4 counts although it was cut off",
        "the best of the finished ones",
    ),
    Golden("best_of_n", {"ties": "drop"}, [(0, (2,), {})], "B says nothing", "a tie that is kept"),
    Golden(
        "best_of_n",
        {"keep": "top", "fraction": 0.5},
        [(0, (2,), {}), (1, (0,), {}), (1, (1,), {})],
        "half of the six usable: 3, 2, 2",
        "half of all eight; the best of each prompt",
    ),
    Golden(
        "threshold",
        {"above": 1.0},
        [(0, (2,), {}), (1, (0,), {}), (1, (1,), {}), (1, (3,), {})],
        "above 1, not at it; the 4 was cut off",
        ">=; cut-off samples",
        metrics={"above_rate": 4 / 6, "threshold": 1.0, "left_out": 0},
    ),
    Golden(
        "threshold",
        {"above": 1.0, "undesirable": "keep", "cut_off": "lose"},
        [
            (0, (0,), {"desirable": [0.0]}),
            (0, (2,), {"desirable": [1.0]}),
            (0, (3,), {"desirable": [0.0]}),
            (1, (0,), {"desirable": [1.0]}),
            (1, (1,), {"desirable": [1.0]}),
            (1, (3,), {"desirable": [1.0]}),
        ],
        "the cut-off 4 is above, so it is neither",
        "a cut-off sample that is undesirable in spite of its score",
    ),
    Golden(
        "threshold",
        {"above": 2.0, "undesirable": "keep", "cut_off": "keep"},
        [
            (0, (0,), {"desirable": [0.0]}),
            (0, (1,), {"desirable": [1.0]}),
            (0, (2,), {"desirable": [1.0]}),
            (0, (3,), {"desirable": [0.0]}),
            (1, (0,), {"desirable": [0.0]}),
            (1, (1,), {"desirable": [0.0]}),
            (1, (3,), {"desirable": [0.0]}),
        ],
        "4* and 3 are above 2",
        "a cut-off sample that is undesirable alone",
        metrics={"above_rate": 2 / 7},
    ),
    Golden(
        "threshold",
        {"quantile": 0.5},
        [(0, (0,), {}), (0, (1,), {})],
        "between 0 and 1: .5 * 3 = 1.5 of 0, 0, 1, 2 is .5",
        "the lower or the upper value",
        samples=SampleRound(score=[[1.0, 2.0, 0.0, 0.0]]),
        metrics={"threshold": 0.5},
    ),
    Golden(
        "data_vs_own",
        {},
        [
            (0, (DATA, 0), SAMPLED),
            (0, (DATA, 2), SAMPLED),
            (0, (DATA, 3), SAMPLED),
            (1, (DATA, 1), SAMPLED),
            (1, (DATA, 2), SAMPLED),
            (1, (DATA, 3), SAMPLED),
        ],
        "A 1 was cut off, B 0 has the data's text; scores do not matter",
        "equal texts; an own sample that wins",
        metrics={"equal_rate": 0.25, "cut_off_rate": 1 / 8, "left_out": 0},
    ),
    Golden(
        "data_vs_own",
        {"equal": "keep", "cut_off": "lose"},
        [(0, (DATA, 0), SAMPLED), (0, (DATA, 1), SAMPLED)],
        "everything",
        "options that do nothing",
        samples=SampleRound(score=[[0.0, 0.0]], truncated=[[False, True]], same_as=[[DATA, 1]]),
    ),
    Golden(
        "data_vs_own",
        {"cut_off": "keep"},
        [(0, (DATA, 0), SAMPLED)],
        "samples lose here, finished or not; the other one has the data's text",
        "cut-off samples that are left out",
        samples=SampleRound(score=[[0.0, 0.0]], truncated=[[True, True]], same_as=[[0, DATA]]),
    ),
    Golden(
        "random_pair",
        {"cut_off": "keep"},
        [(0, (1, 0), margin(1))],
        "both are usable, and the cut-off one is ahead",
        "a pair that a cut-off sample cannot win",
        samples=SampleRound(score=[[1.0, 2.0]], truncated=[[True, True]]),
        metrics={"left_out": 0, "cut_off_rate": 1},
    ),
    Golden(
        "random_pair",
        {},
        [(0, (2, 0), margin(2))],
        "two usable samples, so which ones is no matter of chance; the second prompt is a tie",
        "the label of the draw",
        samples=SampleRound(score=[[1.0, X, 3.0], [1.0, 1.0, X]]),
        metrics={"tie_rate": 0.5, "left_out": 0},
    ),
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
