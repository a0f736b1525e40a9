"""Losses for labels of which some are wrong, with three labels of ten the wrong way round."""

from rlhf_lightning.claims.claim import Arm, Check, Claim
from rlhf_lightning.claims.papers._common import DPO

FLIPS = "data.source.flips=0.3"
_DPO = Arm("dpo", (FLIPS,))
_SMOOTHING = "method.loss.label_smoothing=0.3"

CLAIMS = [
    Claim(
        "E. Mitchell's note, 2023",
        "cDPO: smoothed labels make DPO better where some labels are wrong.",
        (Check(Arm("cdpo", (FLIPS, _SMOOTHING)), _DPO),),
    ),
    Claim(
        "arXiv:2403.00409",
        "Robust DPO: a loss that is unbiased under label flips beats DPO where some labels are wrong.",
        (Check(Arm("robust_dpo", (FLIPS, _SMOOTHING)), _DPO),),
    ),
    Claim(
        "arXiv:2407.08639",
        "beta-DPO: a beta that follows the batch's gaps beats a fixed one, also where some labels are wrong.",
        (Check(Arm("beta_dpo"), DPO), Check(Arm("beta_dpo", (FLIPS,)), _DPO)),
    ),
]
