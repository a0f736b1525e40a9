"""Losses on whole distributions, hidden states and values of tokens, with numbers that were worked out by hand.

**Distillation.** Teacher (3/4, 1/4) against student (1/2, 1/2): KL(p||q) = .75 ln 1.5 + .25 ln .5 = 0.130812,
KL(q||p) = 0.143841. Response A has one such token, response B one and one where both models agree: 3 tokens in 2
responses. With three words, p = (1/2, 3/8, 1/8) and uniform q: the full KL is .5 ln 1.5 + .375 ln 1.125 + .125 ln .375
= 0.124298, and with one class and a remainder .5 ln 1.5 + .5 ln .75 = 0.058892.

**CoIN.** Originals have log-probs -1 -2 and (the hard negative) -3: token mean 6/3 = 2. Paraphrases have -1.5 and
-.5 -.5: 2.5/3. States (1, 0) and (0, 1), those of the paraphrases point the same ways: at temperature 0.5 each
cross-entropy is log(1 + e^-2) = 0.126928.

**ILQL.** Two tokens of one response of score 1.5, gamma 0.5, tau 0.75:

=====  ========  ===========  ===========  ======  =============  ========================  =======================
token  log-prob  Q            copies       V       log-softmax    Q loss                    V loss
=====  ========  ===========  ===========  ======  =============  ========================  =======================
1      -1        0.5  0       0.2  0.6     0.1     -1  -1.5       0.15^2 + 0.35^2 = 0.145   u = 0.1: .75 * .01
2      -2        1  2         1  0.4       0.7     -2  -0.5       0.25 + 0.25               u = -0.3: .25 * .09
=====  ========  ===========  ===========  ======  =============  ========================  =======================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.reference_hidden import Instruction, Step, Vector

UNEVEN: Vector = [math.log(3.0), 0.0]
EVEN: Vector = [0.0, 0.0]
STUDENT = [[EVEN], [EVEN, EVEN]]
TEACHER = [[UNEVEN], [UNEVEN, EVEN]]
THREE_STUDENT = [[[0.0, 0.0, 0.0]]]
THREE_TEACHER = [[[math.log(4.0), math.log(3.0), 0.0]]]

INSTRUCTION = Instruction([-1.0, -2.0], [-1.5], [1.0, 0.0], [2.0, 0.0])
NEGATIVE = Instruction([-3.0], [-0.5, -0.5], [0.0, 1.0], [0.0, 3.0])
NOTHING = Instruction([], [], [0.0, 0.0], [0.0, 0.0])
GROUP = [(INSTRUCTION, NEGATIVE)]
#: Another group, without a hard negative.
GROUPS = [*GROUP, (Instruction([-3.0, -3.0], [-1.0], [1.0, 0.0], [0.0, 1.0]), NOTHING)]
#: A hard negative whose states are near the instruction's.
NEAR = [(INSTRUCTION, Instruction([-3.0], [-0.5, -0.5], [3.0, 4.0], [4.0, 3.0]))]

STEPS = [
    [
        Step(-1.0, (0.5, 0.0), (0.2, 0.6), 0.1, (-1.0, -1.5)),
        Step(-2.0, (1.0, 2.0), (1.0, 0.4), 0.7, (-2.0, -0.5)),
    ]
]


@dataclass
class Golden:
    """Values that a loss must return, how they were worked out, and what breaks them."""

    loss: str
    options: dict[str, Any]
    given: tuple[Any, ...]
    expected: list[float]
    worked: str
    catches: str
    diagnostics: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(map(str, self.options.values()))}"


ILQL = {"tau": 0.75, "gamma": 0.5, "cql_weight": 0.1, "awac_weight": 1.0, "awac_beta": 0.0}
ROWS = [
    Golden(
        "knowledge_distillation",
        {},
        (STUDENT, TEACHER),
        [0.087208, 0.087208],
        "0.130812 / 1.5 each",
        "models swapped (0.143841); the mean over a response's own tokens",
        {"divergence": [0.130812, 0.130812, 0.0]},
    ),
    Golden(
        "knowledge_distillation",
        {"reduction": "response_mean", "divergence": "reverse_kl"},
        (STUDENT, TEACHER),
        [0.143841, 0.071921],
        "0.143841, and half of it",
        "forward KL",
    ),
    Golden(
        "knowledge_distillation",
        {"divergence": "jsd", "mixture": 0.25, "reduction": "sum"},
        (STUDENT, TEACHER),
        [0.024870, 0.024870],
        "m = (9/16, 7/16): .25 (.75 ln 4/3 + .25 ln 4/7) + .75 (.5 ln 8/9 + .5 ln 8/7)",
        "beta on the student's side; no beta before the divergences",
    ),
    Golden(
        "knowledge_distillation",
        {"temperature": 2.0, "reduction": "sum"},
        (STUDENT, TEACHER),
        [0.145365, 0.145365],
        "p = sqrt 3 / (1 + sqrt 3) = .633975: 4 * 0.036341",
        "no squared temperature; logits multiplied; the teacher's logits alone divided",
        {"divergence": [0.036341, 0.036341, 0.0]},
    ),
    Golden(
        "context_distillation",
        {},
        (THREE_STUDENT, THREE_TEACHER),
        [0.124298],
        "see above",
        "reverse KL: (ln 2/3 + ln 8/9 + ln 8/3) / -3 = -0.152...",
    ),
    Golden(
        "context_distillation",
        {"classes": 1},
        (THREE_STUDENT, THREE_TEACHER),
        [0.058892],
        "see above",
        "no class for the remainder: .5 ln 1.5 = 0.202733",
    ),
    Golden(
        "coin",
        {"weight": 1.0, "temperature": 0.5, "in_batch": True},
        (GROUP,),
        [2.960261],
        "2 + 0.833333 + 0.126928",
        "one wording only; a response mean; one direction counted twice; states not normalised",
        {
            "nll/original": [2.0],
            "nll/paraphrase": [0.833333],
            "contrastive/raw": [0.126928],
            "cosine/positive": [1.0, 1.0],
            "cosine/hard_negative": [0.0, 0.0],
        },
    ),
    Golden(
        "coin",
        {"weight": 1000.0, "temperature": 0.5, "in_batch": True},
        (GROUP,),
        [5.666667],
        "126.9 is more than 2.833333, which is then counted twice",
        "no bound (129.8)",
        {"contrastive/scaled": [2.833333]},
    ),
    Golden(
        "coin",
        {"weight": 1.0, "temperature": 0.5, "in_batch": False},
        (GROUPS,),
        [6 / 2.5 + 2.5 / 2 + 0.126928, 6 / 2.5 + 1 / 2],
        "originals 5 tokens and paraphrases 4 in 2 groups; 2 * 0.126928 over 2 instructions of the group; 0 alone",
        "negatives of other groups; an empty slot taken for an instruction; the mean over slots",
    ),
    Golden(
        "coin",
        {"weight": 0.5, "temperature": 0.5, "in_batch": True},
        (GROUPS,),
        [3.982723, 3.646515],
        "2.4 + 1.25 and 2.4 + 0.5; the cosines' rows are (1 0 0), (0 1 1), (1 0 0): two instructions cost "
        "(ln(1 + 2e^-2) + ln(2 + e^2) - 2) / 2 = 0.499085 and one ln(2 + e^2) = 2.239545, over 3/2 a group",
        "the instructions of all groups in a group's place; a mean over slots",
        {"contrastive/raw": [0.665446, 1.493030], "contrastive/scaled": [0.332723, 0.746515]},
    ),
    Golden(
        "coin",
        {"weight": 0.0},
        (NEAR,),
        [2.833333],
        "the likelihoods alone; cosines (1, 0)(1, 0), (.6, .8)(.8, .6) and across (1, 0)(.8, .6), (.6, .8)(1, 0)",
        "the gap turned round or a sum; the hard negative's own state in its paraphrase's place",
        {"cosine/positive": [1.0, 0.96], "cosine/hard_negative": [0.8, 0.6], "cosine/gap": [0.2, 0.36]},
    ),
    Golden(
        "coin",
        {"in_batch": False},
        ([(Instruction([0.0], [0.0], [1.0, 0.0], [1.0, 0.0]), NOTHING), (NOTHING, NOTHING)],),
        [0.0, 0.0],
        "certain responses and no hard negative; an empty slot of a step",
        "0/0",
    ),
    Golden(
        "ilql",
        ILQL,
        (STEPS, [1.5]),
        [2.0875],
        "(0.145 + 0.0075 + 0.25 + 1 + 0.5 + 0.0225 + 0.25 + 2) / 2",
        "gamma at the last token; V' of the same token; the greater copy; expectile turned round; one Q head",
        {
            "loss/q": [0.145, 0.5],
            "loss/value": [0.0075, 0.0225],
            "loss/cql": [2.5, 2.5],
            "loss/awac": [1.0, 2.0],
            "value/q": [0.2, 0.4],
            "value/advantage": [0.1, -0.3],
        },
    ),
    Golden(
        "ilql",
        {**ILQL, "awac_beta": 2.0},
        (STEPS, [1.5]),
        [1.747013],
        "likelihoods weigh e^0.2 = 1.221403 and e^-0.6 = 0.548812",
        "sign of the advantage",
        {"awac_weight": [1.221403, 0.548812]},
    ),
]
