"""Losses on pairs, against DPO with the same pairs, steps and learning rate."""

from rlhf_lightning.claims.claim import Arm, Check, Claim, learns
from rlhf_lightning.claims.papers._common import CHOSEN_LOG_RATIO, CHOSEN_ONLY, DPO, KL, SIMPO, case

#: Eight passes over 256 pairs.
_FEW = ("data.source.size=256", "trainer.max_epochs=8")

CLAIMS = [
    Claim(
        "arXiv:2305.18290",
        "DPO: a logistic loss on pairs aligns a policy without a reward model, better than fine-tuning on the chosen "
        "responses.",
        (learns(case("dpo")), Check(DPO, CHOSEN_ONLY)),
    ),
    Claim(
        "arXiv:2310.12036",
        "IPO: where few preferences are certain, DPO leaves the reference behind whatever beta is, and IPO does not.",
        (
            Check(Arm("ipo", _FEW), Arm("dpo", _FEW), KL, falls=True),
            Check(Arm("ipo", _FEW), Arm("dpo", _FEW), least=-0.2),
        ),
    ),
    Claim(
        "arXiv:2404.09656",
        "TR-DPO: a reference that follows the policy lets DPO reach a higher reward.",
        (Check(Arm("tr_dpo"), DPO),),
    ),
    Claim(
        "arXiv:2402.00856",
        "EXO: the reverse KL to the labels, which seeks the mode, gives a better policy than DPO's forward KL.",
        (Check(Arm("exo"), DPO),),
    ),
    Claim(
        "arXiv:2406.08414",
        "DiscoPOP: a loss that a language model discovered beats DPO.",
        (Check(Arm("discopop"), DPO),),
    ),
    Claim(
        "arXiv:2309.16240",
        "f-DPO: other divergences than the reverse KL trade reward for variety; the forward KL keeps more of it.",
        (Check(Arm("f_dpo"), DPO, "val/token/entropy"),),
    ),
    Claim(
        "arXiv:2402.05369",
        "NCA: as each response is judged by itself, chosen responses keep the likelihood that DPO lets fall.",
        (Check(Arm("nca"), DPO, CHOSEN_LOG_RATIO),),
    ),
    Claim(
        "arXiv:2408.06266",
        "APO: APO-zero makes chosen responses likelier, APO-down makes them less likely; which one is right depends on "
        "how good they are.",
        (
            Check(Arm("apo_zero"), 0.0, CHOSEN_LOG_RATIO),
            Check(Arm("apo_down"), 0.0, CHOSEN_LOG_RATIO, falls=True),
        ),
    ),
    Claim(
        "arXiv:2405.16436",
        "RPO: the chosen responses' likelihood as a second term keeps DPO from lowering it.",
        (Check(Arm("rpo"), DPO, CHOSEN_LOG_RATIO), Check(Arm("rpo"), DPO, least=-0.2)),
    ),
    Claim(
        "arXiv:2402.13228",
        "DPOP: where pairs differ little, DPO lowers the likelihood of chosen responses; a penalty keeps it.",
        (Check(Arm("dpop"), DPO, CHOSEN_LOG_RATIO),),
    ),
    Claim(
        "arXiv:2406.05882",
        "AOT: to let chosen rewards dominate as a distribution, not pair by pair, aligns better than DPO.",
        (Check(Arm("aot"), DPO),),
    ),
    Claim(
        "arXiv:2402.10571",
        "ODPO: an offset from the gap of the scores beats DPO where pairs are few.",
        (Check(Arm("odpo", _FEW), Arm("dpo", _FEW)),),
    ),
    Claim(
        "arXiv:2406.11827",
        "WPO: pairs weighted by how likely the policy is to give them beat unweighted ones.",
        (Check(Arm("wpo"), DPO),),
    ),
    Claim(
        "arXiv:2411.10442",
        "MPO: DPO, BCO and the chosen responses' likelihood together beat DPO alone.",
        (Check(Arm("mpo"), DPO),),
    ),
    Claim(
        "arXiv:2305.10425",
        "SLiC: a hinge beside the chosen responses' likelihood aligns without a reference or a reward model.",
        (learns(case("slic")),),
    ),
    Claim(
        "arXiv:2401.08417",
        "CPO: the contrast with a rejected response teaches more than fine-tuning on the chosen one; no reference.",
        (Check(Arm("cpo"), CHOSEN_ONLY),),
    ),
    Claim(
        "arXiv:2403.07691",
        "ORPO: an odds ratio beside the likelihood of chosen responses beats fine-tuning on them; no reference.",
        (Check(Arm("orpo"), CHOSEN_ONLY),),
    ),
    Claim(
        "arXiv:2502.00883",
        "SimPER: inverse perplexities as rewards, without any option, beat SimPO.",
        (Check(Arm("simper"), SIMPO),),
    ),
    Claim(
        "arXiv:2501.03884",
        "AlphaPO: another shape of SimPO's reward beats it.",
        (Check(Arm("alpha_po"), SIMPO),),
    ),
    Claim(
        "arXiv:2410.10148",
        "alpha-DPO: a target margin for each pair beats SimPO's fixed one.",
        (Check(Arm("alpha_dpo"), SIMPO),),
    ),
]
