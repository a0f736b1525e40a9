"""Losses of single responses, of steps and of a judge, on numbers that were worked out by hand.

S(x) = log(1 + e^x): S(-1) = .313262, S(2) = 2.126928, S(.5) = .974077, S(-2) = .126928. Each row says which mistake it
catches.
"""

from __future__ import annotations

import math

from tests.losses.golden_reward import NAN, Golden

#: Log-probs of the right and of the wrong letter, in both orders.
VERDICTS = {
    "verdict": ([[math.log(0.5)]], [[math.log(0.25)]]),
    "verdict_swapped": ([[math.log(0.2)]], [[math.log(0.2)]]),
}

ROWS = [
    Golden(
        "binary_discrimination",
        {"reward": [1.0, 2.0], "desirable": [1.0, 0.0]},
        [0.313262, 2.126928],
        "good with logit 1: S(-1); bad with logit 2: S(2)",
        "a swapped label; a mean taken too early",
    ),
    Golden(
        "binary_discrimination",
        {"reward": [2.0], "desirable": [0.25]},
        [1.626928],
        ".25 * S(-2) + .75 * S(2)",
        "a soft label that is rounded (2.126928), or whose sides are swapped (.626928)",
    ),
    # Solutions of 2 and 1 steps: the step mean over 3 steps in 2 solutions divides by 3/2.
    Golden(
        "process_reward",
        {"step_reward": [[1.0, 0.5], [2.0]], "step_label": [1.0, 0.0, 1.0]},
        [0.858226, 0.084618],
        "(S(-1) + S(.5)) / 1.5, S(-2) / 1.5",
        "a mean of means (the next row); a sum; a mean over this solution's steps",
        {"reduction": "step_mean"},
    ),
    Golden(
        "process_reward",
        {"step_reward": [[1.0, 0.5], [2.0]], "step_label": [1.0, 0.0, 1.0]},
        [0.643670, 0.126928],
        "(S(-1) + S(.5)) / 2, S(-2)",
        "a division by the mean number of steps",
        {"reduction": "solution_mean"},
    ),
    Golden(
        "attribute_regression",
        {"rating": [[1.0, 9.0], [2.0, 0.0], [5.0, 5.0]], "attributes": [[3.0, NAN], [1.0, 2.0], [NAN, NAN]]},
        [4.0, 2.5, 0.0],
        "(1 - 3)^2 alone; ((2 - 1)^2 + (0 - 2)^2) / 2; nothing is rated",
        "a missing rating read as 0 (42.5), or counted in the mean (2)",
    ),
    Golden(
        "pairwise_judge",
        VERDICTS,
        [1.151293],
        "-(log .5 + log .2) / 2",
        "one order alone (.693147); a sum over both orders",
        {"over": "vocabulary"},
    ),
    Golden(
        "pairwise_judge",
        VERDICTS,
        [0.549306],
        "-(log 2/3 + log 1/2) / 2: .5 against .25 is 2/3, .2 against .2 is 1/2",
        "a softmax over both orders together",
        {"over": "letters"},
    ),
    Golden(
        "pairwise_judge",
        {
            "verdict": ([[math.log(0.5), math.log(0.5)]], [[math.log(0.25), math.log(0.5)]]),
            "verdict_swapped": VERDICTS["verdict_swapped"],
        },
        [0.549306],
        "letters of two tokens: .25 against .125 is 2/3 again",
        "a mean over a letter's tokens, .5 against .353553",
        {"over": "letters"},
    ),
]
