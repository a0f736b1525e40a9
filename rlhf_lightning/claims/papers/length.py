"""Losses against length. In the tiny world chosen responses are shorter, so what DPO learns of length is brevity."""

from rlhf_lightning.claims.claim import Arm, Check, Claim
from rlhf_lightning.claims.papers._common import DPO, LENGTH, SIMPO, arm

_ILR = arm("ilr_dpo", "rounds=ilr_dpo")
_ILR_DPO = Arm("dpo", _ILR.overrides)

CLAIMS = [
    Claim(
        "arXiv:2403.19159",
        "R-DPO: a price on length makes responses shorter than DPO's at no loss of reward.",
        (Check(Arm("r_dpo"), DPO, LENGTH, falls=True), Check(Arm("r_dpo"), DPO, least=-0.2)),
    ),
    Claim(
        "arXiv:2409.06411",
        "LD-DPO: less weight on the longer response's excess tokens makes responses shorter at no loss of reward.",
        (Check(Arm("ld_dpo"), DPO, LENGTH, falls=True), Check(Arm("ld_dpo"), DPO, least=-0.2)),
    ),
    Claim(
        "arXiv:2405.14734",
        "SimPO: mean log-probs as rewards, without a reference, beat DPO without longer responses.",
        (Check(SIMPO, DPO), Check(SIMPO, DPO, LENGTH, least=-0.5, falls=True)),
    ),
    Claim(
        "arXiv:2411.15124",
        "Tulu 3: DPO on log-probs per token beats DPO on their sums.",
        (Check(Arm("sigmoid_norm"), DPO),),
    ),
    Claim(
        "arXiv:2406.11817",
        "iLR-DPO: rounds of DPO make responses longer; a price on length prevents it at no loss of reward.",
        (
            Check(_ILR, _ILR_DPO, LENGTH, falls=True),
            Check(_ILR, _ILR_DPO, least=-0.2),
        ),
    ),
]
