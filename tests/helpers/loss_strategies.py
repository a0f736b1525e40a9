"""Hypothesis strategies: batches of pairs, and options within their ranges for every preference loss."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.helpers.loss_inputs import Numbers, Rows


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


BETA = floats(0.0625, 2.0)
FLIP = floats(0.0, 0.4375)
REDUCTION = st.sampled_from(["token_mean", "response_mean", "sum"])
WEIGHT = floats(0.0, 2.0)

#: Every option of every preference loss; a test checks that none is missing.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "dpo": {"beta": BETA},
    "cdpo": {"beta": BETA, "label_smoothing": FLIP},
    "robust_dpo": {"beta": BETA, "label_smoothing": FLIP},
    "ipo": {"beta": BETA, "aggregate": st.sampled_from(["mean", "sum"])},
    "hinge": {"beta": BETA},
    "exo": {"beta": BETA, "label_smoothing": floats(0.0009765625, 0.4375)},
    "discopop": {"beta": BETA, "tau": floats(0.03125, 1.0)},
    "sigmoid_norm": {"beta": BETA},
    "f_dpo": {
        "beta": BETA,
        "divergence": st.sampled_from(["reverse_kl", "forward_kl", "js", "alpha"]),
        "alpha": st.one_of(st.just(0.0), floats(0.0625, 1.0)),
        "alpha_convention": st.sampled_from(["f_dpo", "trl"]),
    },
    "nca": {"beta": BETA},
    "sppo": {"beta": BETA},
    "sppo_soft": {"beta": BETA},
    "xpo": {"beta": BETA, "alpha": WEIGHT},
    "apo_zero": {"beta": BETA},
    "apo_down": {"beta": BETA},
    "kto_pair": {"beta": BETA, "detach_kl": st.booleans()},
    "aot": {"beta": BETA, "label_smoothing": FLIP},
    "aot_unpaired": {"beta": BETA, "label_smoothing": FLIP},
    "rpo": {"beta": BETA, "nll_weight": WEIGHT, "nll_reduction": REDUCTION},
    "dpop": {"beta": BETA, "penalty": floats(0.0, 8.0)},
    "odpo": {"beta": BETA, "alpha": WEIGHT},
    "wpo": {"beta": BETA, "label_smoothing": FLIP, "clamp": st.booleans()},
    "r_dpo": {"beta": BETA, "alpha": WEIGHT},
    "ld_dpo": {"beta": BETA, "alpha": floats(0.0, 1.0)},
    "bco_pair": {"beta": BETA, "delta": st.sampled_from(["running", "zero"])},
    "beta_dpo": {
        "beta": BETA,
        "alpha": WEIGHT,
        "min_beta": floats(0.0009765625, 0.125),
        "level": st.sampled_from(["batch", "pair"]),
    },
    "alpha_dpo": {
        "beta": BETA,
        "gamma": WEIGHT,
        "alpha": WEIGHT,
        "label_smoothing": FLIP,
        "eps": st.just(1e-6),
    },
    "preferred_ft": {"reduction": REDUCTION},
    "slic": {"delta": WEIGHT, "nll_weight": WEIGHT},
    "simpo": {"beta": BETA, "gamma": WEIGHT, "label_smoothing": FLIP, "nll_weight": WEIGHT},
    "simper": {},
    "alpha_po": {"beta": BETA, "gamma": WEIGHT, "alpha": st.one_of(st.just(0.0), floats(0.0625, 1.0))},
    "cpo": {"beta": BETA, "label_smoothing": FLIP, "nll_weight": WEIGHT, "nll_reduction": REDUCTION},
    "orpo": {"beta": WEIGHT, "nll_reduction": REDUCTION},
    "odds_ratio_judgment": {"weight": WEIGHT, "nll_reduction": REDUCTION},
}


@st.composite
def batches(draw: st.DrawFn, min_pairs: int = 1, max_pairs: int = 4) -> Numbers:
    """Pairs with responses of one to four tokens and log-probs of a model that is neither sure nor hopeless."""
    pairs = draw(st.integers(min_pairs, max_pairs))
    lengths = [[draw(st.integers(1, 4)) for _ in range(pairs)] for _ in range(2)]
    log_prob = floats(-4.0, -0.0625)

    def rows(slot: int) -> Rows:
        return [draw(st.lists(log_prob, min_size=n, max_size=n)) for n in lengths[slot]]

    return Numbers(
        policy_chosen=rows(0),
        policy_rejected=rows(1),
        reference_chosen=rows(0),
        reference_rejected=rows(1),
        collision_chosen=rows(0),
        collision_rejected=rows(1),
        margin=[draw(floats(0.125, 8.0)) for _ in range(pairs)],
        win_probability=[[draw(floats(0.0, 1.0)) for _ in range(2)] for _ in range(pairs)],
        reference_sample=[draw(st.sampled_from([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])) for _ in range(pairs)],
        running=(draw(floats(-2.0, 2.0)), draw(floats(0.125, 3.0)), draw(st.sampled_from([0.0, 5.0]))),
    )
