"""Every loss, by the name that a yaml uses: ``_target_: rlhf_lightning.losses.<name>``.

* log-ratio difference: ``dpo cdpo robust_dpo ipo hinge exo discopop sigmoid_norm f_dpo``
* each response on its own: ``nca sppo apo_zero apo_down kto_pair``
* distributions over the batch: ``aot aot_unpaired``
* DPO with one thing added: ``rpo dpop odpo wpo``
* the model's own samples: ``sppo_soft xpo nash_md``
* against length bias: ``r_dpo ld_dpo``
* with running statistics: ``bco_pair beta_dpo alpha_dpo``
* without a reference: ``preferred_ft slic simpo simper alpha_po cpo orpo``
* single responses with a label: ``kto bco apo_zero_unpaired unlikelihood``
* contrast at each token: ``cringe pairwise_cringe``
* judgments: ``cut cut_paper odds_ratio_judgment``
* rewards from comparisons: ``bradley_terry apo_reward log_exp odin k_wise best_of_k token_wise cost``
* rewards from labels and verdicts: ``binary_discrimination process_reward attribute_regression pairwise_judge``
* ranked lists: ``plackett_luce pro rrhf exo_k``
* fine-tuning on scored responses: ``best_of_n reward_weighted``
* whole distributions: ``context_distillation knowledge_distillation``
* hidden states: ``coin representation_fit``
* opposite instructions: ``contrastive_instruction``
* values of tokens: ``ilql``
* policy gradients of sampled responses: ``reinforce ppo cispo gspo gspo_token gmpo``
* supervised: ``sft dft``
* several at once: ``WeightedSum``

A loss is a pure function: its positional parameters are the inputs it needs, its keyword-only ones its options
(``losses/options.py``). docs/methods is made from their docstrings.
"""

from rlhf_lightning.losses.anchored import apo_down, apo_zero, kto_pair, nca, sppo
from rlhf_lightning.losses.contrastive import coin
from rlhf_lightning.losses.distillation import context_distillation, knowledge_distillation
from rlhf_lightning.losses.extended import dpop, odpo, rpo, wpo
from rlhf_lightning.losses.filtered import best_of_n, reward_weighted
from rlhf_lightning.losses.judge import pairwise_judge
from rlhf_lightning.losses.judgment import cut, cut_paper, odds_ratio_judgment
from rlhf_lightning.losses.length import ld_dpo, r_dpo
from rlhf_lightning.losses.options import INPUTS, loss_function, needs, validate
from rlhf_lightning.losses.policy_gradient import cispo, gmpo, gspo, gspo_token, ppo, reinforce
from rlhf_lightning.losses.preference import (
    cdpo,
    discopop,
    dpo,
    exo,
    f_dpo,
    hinge,
    ipo,
    robust_dpo,
    sigmoid_norm,
)
from rlhf_lightning.losses.ranking import exo_k, plackett_luce, pro, rrhf
from rlhf_lightning.losses.rating import attribute_regression, binary_discrimination, process_reward
from rlhf_lightning.losses.reference_free import alpha_po, cpo, orpo, preferred_ft, simper, simpo, slic
from rlhf_lightning.losses.representation import contrastive_instruction, representation_fit
from rlhf_lightning.losses.reward import apo_reward, best_of_k, bradley_terry, cost, k_wise, log_exp, odin, token_wise
from rlhf_lightning.losses.running import alpha_dpo, bco_pair, beta_dpo
from rlhf_lightning.losses.self_play import nash_md, sppo_soft, xpo
from rlhf_lightning.losses.supervised import dft, sft
from rlhf_lightning.losses.token_contrast import cringe, pairwise_cringe
from rlhf_lightning.losses.transport import aot, aot_unpaired
from rlhf_lightning.losses.unpaired import apo_zero_unpaired, bco, kto, unlikelihood
from rlhf_lightning.losses.value import ilql
from rlhf_lightning.losses.weighted_sum import WeightedSum

__all__ = [
    "INPUTS",
    "WeightedSum",
    "alpha_dpo",
    "alpha_po",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_reward",
    "apo_zero",
    "apo_zero_unpaired",
    "attribute_regression",
    "bco",
    "bco_pair",
    "best_of_k",
    "best_of_n",
    "beta_dpo",
    "binary_discrimination",
    "bradley_terry",
    "cdpo",
    "cispo",
    "coin",
    "context_distillation",
    "contrastive_instruction",
    "cost",
    "cpo",
    "cringe",
    "cut",
    "cut_paper",
    "dft",
    "discopop",
    "dpo",
    "dpop",
    "exo",
    "exo_k",
    "f_dpo",
    "gmpo",
    "gspo",
    "gspo_token",
    "hinge",
    "ilql",
    "ipo",
    "k_wise",
    "knowledge_distillation",
    "kto",
    "kto_pair",
    "ld_dpo",
    "log_exp",
    "loss_function",
    "nash_md",
    "nca",
    "needs",
    "odds_ratio_judgment",
    "odin",
    "odpo",
    "orpo",
    "pairwise_cringe",
    "pairwise_judge",
    "plackett_luce",
    "ppo",
    "preferred_ft",
    "pro",
    "process_reward",
    "r_dpo",
    "reinforce",
    "representation_fit",
    "reward_weighted",
    "robust_dpo",
    "rpo",
    "rrhf",
    "sft",
    "sigmoid_norm",
    "simper",
    "simpo",
    "slic",
    "sppo",
    "sppo_soft",
    "token_wise",
    "unlikelihood",
    "validate",
    "wpo",
    "xpo",
]
