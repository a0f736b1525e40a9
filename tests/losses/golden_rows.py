"""Every loss on two pairs whose numbers were worked out by hand.

=====  =======================  =======================  ======================  ======================
pair   policy chosen            policy rejected          reference chosen        reference rejected
=====  =======================  =======================  ======================  ======================
A      -1 -2: l -3, mean -1.5   -2 -1 -3: l -6, mean -2  -2 -3: l -5, mean -2.5  -1 -1 -2: l -4, mean -4/3
B      -4: l -4, mean -4        -1 -1: l -2, mean -1     -1: l -1, mean -1       -2 -1: l -3, mean -1.5
=====  =======================  =======================  ======================  ======================

So A has log-ratios 2 and -2, gap h = 4, gap per token 1 + 2/3 = 5/3; B has -3 and 1, h = -4, per token -3 - 0.5 = -3.5.
Below, S(x) = log(1 + e^x): S(2) = 2.126928, S(-2) = 0.126928, S(1) = 1.313262, S(-1) = 0.313262, S(1.5) = 1.701413,
S(-1.5) = 0.201413, S(0.5) = 0.974077, S(-0.5) = 0.474077; and s(x) = 1/(1 + e^-x): s(1) = 0.731059, s(2) = 0.880797.
The scored tokens of the chosen responses are 3 in 2 pairs, so their mean length is 1.5.

Each row says which mistake it catches; CONTRIBUTING.md says how to try such mistakes on a whole file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.helpers.loss_inputs import Numbers

AB = Numbers(
    policy_chosen=[[-1.0, -2.0], [-4.0]],
    policy_rejected=[[-2.0, -1.0, -3.0], [-1.0, -1.0]],
    reference_chosen=[[-2.0, -3.0], [-1.0]],
    reference_rejected=[[-1.0, -1.0, -2.0], [-2.0, -1.0]],
    collision_chosen=[[-0.5, -0.5], [-6.0]],
    collision_rejected=[[-1.0, -1.0, -1.0], [-0.5, -0.5]],
    margin=[4.0, 0.5],
    win_probability=[[0.8, 0.3], [0.6, 0.5]],
    reference_sample=[[0.0, 1.0], [1.0, 0.0]],
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
    pairs: list[int] = field(default_factory=lambda: [0, 1])

    def __str__(self) -> str:
        return f"{self.loss}-{'-'.join(map(str, self.options.values()))}-{''.join('AB'[i] for i in self.pairs)}"


ROWS = [
    Golden("dpo", {"beta": 0.5}, [0.126928, 2.126928], "S(-2), S(2)", "sign of h; mean for sum; no reference"),
    Golden(
        "cdpo",
        {"beta": 0.5, "label_smoothing": 0.1},
        [0.326928, 1.926928],
        "0.9 S(-2) + 0.1 S(2), and swapped",
        "second term subtracted (robust DPO); smoothing ignored as TRL does",
    ),
    Golden(
        "robust_dpo",
        {"beta": 0.5, "label_smoothing": 0.1},
        [-0.123072, 2.376928],
        "(0.9 S(-2) - 0.1 S(2)) / 0.8: negative for A",
        "second term added (cDPO); division by 1 - 2e forgotten",
    ),
    Golden(
        "ipo", {"beta": 0.5, "aggregate": "mean"}, [4 / 9, 20.25], "(5/3 - 1)^2, (-3.5 - 1)^2", "sum for mean; 1/beta"
    ),
    Golden("ipo", {"beta": 0.5, "aggregate": "sum"}, [9.0, 25.0], "(4 - 1)^2, (-4 - 1)^2", "mean for sum"),
    Golden("ipo", {"beta": 0.25, "aggregate": "sum"}, [4.0, 36.0], "(4 - 2)^2, (-4 - 2)^2", "1/beta for 1/(2 beta)"),
    Golden("hinge", {"beta": 0.5}, [0.0, 3.0], "max(0, 1 - 2), 1 + 2", "no max(0, .)"),
    Golden("hinge", {"beta": 0.125}, [0.5, 1.5], "1 - 0.5, 1 + 0.5", "a margin other than 1"),
    Golden(
        "exo",
        {"beta": 0.5, "label_smoothing": 0.1},
        [0.001942, 1.675336],
        "s(2)(-S(-2) - log .9) + s(-2)(-S(2) - log .1), and with 2 -> -2",
        "forward KL; label probabilities swapped",
    ),
    Golden(
        "exo",
        {"label_smoothing": 4.5397868702e-05},
        [0.826741, 8.442681],
        "the authors' labels 0 and -10 at their beta 0.5: s(2)(-S(-2)) + s(-2)(10 - S(2)) = 0.826695, and with "
        "2 -> -2; plus log(1 + e^-10), as their labels are not normalised",
        "another beta by default",
    ),
    Golden(
        "discopop",
        {"beta": 0.5, "tau": 0.5},
        [0.135184, 2.221574],
        "(1 - s(4)) S(-2) + s(4) e^-2; (1 - s(-4)) S(2) + s(-4) e^2",
        "blend weights swapped; tau multiplied",
    ),
    Golden("sigmoid_norm", {"beta": 3.0}, [0.006715, 10.500028], "S(-5), S(10.5)", "sum for mean; one shared length"),
    Golden(
        "f_dpo",
        {"beta": 0.1, "divergence": "forward_kl"},
        [0.394838, 2.102102],
        "S(-0.1(e^2 - e^-2)), S(-0.1(e^-1 - e^3))",
        "e^rho for e^-rho",
    ),
    Golden(
        "f_dpo",
        {"beta": 0.5, "divergence": "js"},
        [0.313262, 1.594561],
        "S(-0.5(S(2) - S(-2))) = S(-1); S(-0.5(S(-1) - S(3)))",
        "log sigmoid of -rho",
    ),
    Golden(
        "f_dpo",
        {"beta": 0.5, "divergence": "alpha", "alpha": 0.25, "alpha_convention": "f_dpo"},
        [0.117235, 2.742945],
        "f'(2) - f'(-2) = (e^0.5 - e^-0.5)/0.25 = 4.168762; -5.206... for B",
        "the other convention",
    ),
    Golden(
        "f_dpo",
        {"beta": 0.5, "divergence": "alpha", "alpha": 0.25, "alpha_convention": "trl"},
        [0.056836, 6.012697],
        "TRL's 0.25 is the paper's 0.75: (e^1.5 - e^-1.5)/0.75 = 5.677906",
        "the other convention",
    ),
    Golden(
        "f_dpo",
        {"beta": 0.5, "divergence": "reverse_kl"},
        [0.126928, 2.126928],
        "DPO",
        "reverse and forward KL swapped",
    ),
    Golden(
        "nca",
        {"beta": 0.5},
        [1.126523, 2.289158],
        "S(-1) + S(1)/2 + S(-1)/2; S(1.5) + S(-1.5)/2 + S(0.5)/2",
        "weight 1 for 1/2; the chosen response's second term missing",
    ),
    Golden(
        "sppo",
        {"beta": 0.5},
        [1.0, 10.0],
        "((2 - 1)^2 + (-2 + 1)^2) / 2; ((-3 - 1)^2 + (1 + 1)^2) / 2",
        "target signs; the sum of TRL, which the authors halve",
    ),
    Golden("sppo", {"beta": 0.25}, [0.0, 17.0], "targets +-2: (0 + 0) / 2; (25 + 9) / 2", "target 1/beta"),
    Golden(
        "apo_zero", {"beta": 0.5}, [0.537883, 1.440034], "2 (1 - s(1)); s(1.5) + s(0.5)", "either sign; no reference"
    ),
    Golden("apo_down", {"beta": 0.5}, [0.850262, 1.063223], "s(1) + 1 - s(2); s(-1.5) + 1 - s(-2)", "apo_zero; signs"),
    Golden(
        "kto_pair",
        {"beta": 0.5},
        [0.268941, 0.720017],
        "both means are -0.5, clamped to 0: 1 - s(1); (1 - s(-1.5) + 1 - s(-0.5)) / 2",
        "reference points not clamped at 0",
    ),
    Golden(
        "kto_pair",
        {"beta": 0.5},
        [0.194072],
        "K_w = 2, K_l = 0: (1 - s(1) + 1 - s(2)) / 2",
        "reference points swapped",
        pairs=[0],
    ),
    Golden(
        "kto_pair",
        {"beta": 0.5, "detach_kl": True},
        [0.751628],
        "K_w = 0, K_l = 1: (s(2) + s(0.5)) / 2",
        "reference points swapped",
        pairs=[1],
    ),
    Golden(
        "sppo_soft",
        {"beta": 0.5},
        [2.26, 5.62],
        "targets .6, -.4 and .2, 0: ((2 - .6)^2 + (-2 + .4)^2)/2, ((-3 - .2)^2 + (1 - 0)^2)/2",
        "probabilities swapped or 1 and 0; beta multiplied; no half; 1/2 not taken off",
    ),
    Golden(
        "xpo",
        {"beta": 0.5, "alpha": 0.1},
        [-0.473072, 1.726928],
        "S(-2) + .1 * -6 of the rejected one; S(2) + .1 * -4 of the chosen one",
        "sign of the term; always the rejected one; a mean over tokens; the log-ratio",
    ),
    Golden(
        "aot",
        {"beta": 0.5, "label_smoothing": 0.0},
        [0.974077, 0.474077],
        "margins sorted -2, 3; the reference's -1, 2; S(0.5), S(-0.5)",
        "not sorted (DPO); log-ratios sorted",
    ),
    Golden(
        "aot",
        {"beta": 0.5, "label_smoothing": 0.1},
        [0.924077, 0.524077],
        "0.9 S(0.5) + 0.1 S(-0.5), and swapped",
        "no smoothing",
    ),
    Golden(
        "aot_unpaired",
        {"beta": 0.25, "label_smoothing": 0.1},
        [0.800939, 0.600939],
        "log-ratios sorted -3, 2 and -2, 1: 0.9 S(0.25) + 0.1 S(-0.25), and swapped",
        "aot's margins; not sorted; no smoothing",
    ),
    Golden(
        "rpo",
        {"beta": 0.5, "nll_weight": 0.3, "nll_reduction": "token_mean"},
        [0.726928, 2.926928],
        "S(-2) + 0.3 * 3/1.5; S(2) + 0.3 * 4/1.5",
        "weight on the DPO term; sum for mean",
    ),
    Golden(
        "rpo",
        {"beta": 0.5, "nll_weight": 0.3, "nll_reduction": "response_mean"},
        [0.576928, 3.326928],
        "S(-2) + 0.3 * 1.5; S(2) + 0.3 * 4",
        "token mean",
    ),
    Golden(
        "rpo",
        {"beta": 0.5, "nll_weight": 0.3, "nll_reduction": "sum"},
        [1.026928, 3.326928],
        "S(-2) + 0.3 * 3; S(2) + 0.3 * 4",
        "response mean",
    ),
    Golden(
        "dpop",
        {"beta": 0.5, "penalty": 2.0},
        [0.126928, 5.006715],
        "no penalty for A: S(-2); B: S(-0.5(-4 - 2 * 3)) = S(5)",
        "penalty outside beta's bracket; its sign; on the rejected response",
    ),
    Golden(
        "odpo",
        {"beta": 0.5, "alpha": 0.5},
        [0.239545, 1.828550],
        "S(-(2 - 0.5 log 4)), S(-(-2 - 0.5 log 0.5))",
        "offset added; gap for its logarithm",
    ),
    Golden(
        "wpo",
        {"beta": 0.5, "label_smoothing": 0.0, "clamp": True},
        [0.017178, 2.126928],
        "A: both averages -1, weight e^-2; B: 2 - 0.5 = 1.5 > 0, weight 1",
        "no clamp; clamp per response; summed exponents",
    ),
    Golden(
        "wpo",
        {"beta": 0.5, "label_smoothing": 0.0, "clamp": False},
        [0.017178, 9.532230],
        "e^-2 S(-2); e^1.5 S(2)",
        "clamp always on",
    ),
    Golden(
        "r_dpo",
        {"beta": 0.5, "alpha": 0.5},
        [0.201413, 2.578890],
        "both chosen are one token shorter: S(-(2 - 0.5)), S(-(-2 - 0.5))",
        "sign of the length term; alpha inside beta's bracket",
    ),
    Golden(
        "ld_dpo",
        {"beta": 0.5, "alpha": 0.25},
        [0.179745, 2.126928],
        "A: m = 2, rejected -3 + 0.25 * -3 = -3.75, reference -2 + 0.25 * -2 = -2.5, h = 2 + 1.25; "
        "B: m = 1, rejected -1.25, reference -2.25, h = -3 - 1",
        "policy only; the last tokens for the first; max for min",
    ),
    Golden(
        "bco_pair",
        {"beta": 0.5, "delta": "running"},
        [0.638800, 2.736164],
        "delta 0.25: S(-0.75) + S(-1.25); S(1.75) + S(0.25)",
        "sign of delta in either term; delta ignored",
        running=(0.25, 1.0, 4.0),
    ),
    Golden(
        "bco_pair",
        {"beta": 0.5, "delta": "zero"},
        [0.626523, 2.675490],
        "S(-1) + S(-1); S(1.5) + S(0.5)",
        "delta used",
        running=(0.25, 1.0, 4.0),
    ),
    Golden(
        "beta_dpo",
        {"beta": 0.1, "alpha": 0.25, "min_beta": 1e-3, "level": "batch"},
        [0.598139, 0.798139],
        "mean gap 0, usual 2: beta 0.1 (1 - 0.25 * 2) = 0.05; S(-0.2), S(0.2)",
        "sign of the gap; alpha ignored",
        running=(2.0, 1.0, 4.0),
    ),
    Golden(
        "beta_dpo",
        {"beta": 0.1, "alpha": 0.25, "min_beta": 1e-3, "level": "pair"},
        [0.437488, 0.695149],
        "A: 0.1 * 1.5, S(-0.6); B: 0.1 (1 - 1.5) < 0, floor 1e-3, S(0.004)",
        "no floor; one beta for all",
        running=(2.0, 1.0, 4.0),
    ),
    Golden(
        "beta_dpo",
        {"beta": 0.1, "alpha": 0.25, "min_beta": 1e-3, "level": "batch"},
        [0.513015, 0.913015],
        "nothing observed yet, so beta stays 0.1: S(-0.4), S(0.4)",
        "running mean used before it exists",
        running=(2.0, 1.0, 0.0),
    ),
    Golden(
        "beta_dpo",
        {"beta": 0.1, "alpha": 0.25, "min_beta": 1e-3, "level": "batch"},
        [0.540306, 0.540306, 0.873639],
        "mean gap 4/3, usual 2: beta 0.1 (1 - 0.25 * 2/3) = 1/12; S(-1/3) twice, S(1/3)",
        "the sum of the gaps",
        running=(2.0, 1.0, 4.0),
        pairs=[0, 0, 1],
    ),
    Golden(
        "beta_dpo",
        {"beta": 0.1, "alpha": 0.5, "min_beta": 1e-3, "level": "batch"},
        [0.513015, 0.513015, 0.913015],
        "nothing observed yet: the batch's own mean 4/3 is the usual one, so beta stays 0.1",
        "the sum as the usual gap",
        pairs=[0, 0, 1],
    ),
    Golden(
        "alpha_dpo",
        {"beta": 2.0, "gamma": 0.25, "alpha": 0.1, "label_smoothing": 0.0},
        [0.561482, 6.202027],
        "z = (5/3 + 0.5)/2 = 13/12, (-3.5 + 0.5)/2 = -1.5: S(-2(0.5 - 0.25 - 0.1083333)), S(-2(-3 - 0.25 + 0.15))",
        "gamma outside beta's bracket; sign of z; sums for means; the mean in the place of the spread",
        running=(-0.5, 2.0, 4.0),
    ),
    Golden(
        "alpha_dpo",
        {"beta": 2.0, "gamma": 0.25, "alpha": 0.1, "label_smoothing": 0.0},
        [0.474077, 6.501502],
        "no spread yet, z = 0: S(-2(0.5 - 0.25)), S(-2(-3 - 0.25))",
        "0/0 at the first step",
    ),
    Golden("preferred_ft", {"reduction": "token_mean"}, [2.0, 8 / 3], "3/1.5, 4/1.5", "the rejected response; signs"),
    Golden("slic", {"delta": 4.0, "nll_weight": 0.1}, [1.3, 6.4], "4 - 3 + 0.3; 4 + 2 + 0.4", "hinge or NLL sign"),
    Golden("slic", {"delta": 1.0, "nll_weight": 0.1}, [0.3, 3.4], "0 + 0.3; 3 + 0.4", "no max(0, .)"),
    Golden(
        "simpo",
        {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0, "nll_weight": 0.0},
        [0.474077, 6.501502],
        "S(-(2 * 0.5 - 0.5)), S(-(2 * -3 - 0.5))",
        "sums for means; gamma added; gamma inside beta's bracket",
    ),
    Golden(
        "simpo",
        {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0, "nll_weight": 0.5},
        [1.474077, 7.834836],
        "+ 0.5 * 3/1.5; + 0.5 * 4/1.5",
        "likelihood term ignored",
    ),
    Golden("simper", {}, [-0.087795, 0.349564], "e^-2 - e^-1.5, e^-1 - e^-4", "sums for means; swapped signs"),
    Golden(
        "alpha_po",
        {"beta": 2.0, "gamma": 0.1, "alpha": 0.25},
        [0.210754, 11.574061],
        "r = 4(1 - e^(-m/4)): A -1.819966 + 2.594885 = 0.774919; S(-(2 * 0.774919 - 0.1))",
        "sign of alpha; division by alpha forgotten",
    ),
    Golden(
        "cpo",
        {"beta": 0.5, "label_smoothing": 0.0, "nll_weight": 0.3, "nll_reduction": "token_mean"},
        [0.801413, 2.113262],
        "S(-1.5) + 0.3 * 2; S(1) + 0.3 * 8/3",
        "means for sums; likelihood term ignored",
    ),
    Golden(
        "orpo",
        {"beta": 0.5, "nll_reduction": "token_mean"},
        [2.217494, 4.402539],
        "D = (-1.5 - log(1 - e^-1.5)) - (-2 - log(1 - e^-2)) = 0.607069 and -3.440190; 3/1.5 + 0.5 S(-D)",
        "log(1 - p) added; sums for means; sign of the odds term",
    ),
    Golden(
        "odds_ratio_judgment",
        {"weight": 0.5, "nll_reduction": "response_mean"},
        [1.717494, 5.735872],
        "ORPO's D: 1.5 + 0.5 S(-0.607069), 4 + 0.5 S(3.440190)",
        "sums for means; sign of D",
    ),
]
