"""Reward and cost models: held-out comparisons, made by the gold reward, are told apart better than by chance.

The standard error of an accuracy over the 256 held-out pairs is 0.03, so a margin of 0.15 is five of them.
"""

from rlhf_lightning.claims.case import Case

ACCURACY = "val/reward/accuracy"

CASES = [
    Case("bradley_terry", metric=ACCURACY, start=0.5, margin=0.15),
    Case("bradley_terry", ["method.loss.lm_weight=0.1"], metric=ACCURACY, start=0.5, margin=0.15),
    Case("bradley_terry", ["adapter=lora", "optimizer.lr=5e-3"], metric=ACCURACY, start=0.5, margin=0.15),
    Case("apo_reward", metric=ACCURACY, start=0.5, margin=0.15),
    Case("log_exp", metric=ACCURACY, start=0.5, margin=0.15),
    # With the gradient sign flipped the values diverge together and the last ones differ by thousandths, so an accuracy
    # is not informative; the loss at chance is ln 2.
    Case("token_wise", metric="val/loss", start=0.693, margin=0.05, falls=True),
    Case("k_wise", metric=ACCURACY, start=0.5, margin=0.15),
    # the best of four: chance is a quarter
    Case("best_of_k", metric=ACCURACY, start=0.25, margin=0.2),
    # The quality head alone; that it has nothing to do with length is in tests/methods/test_reward.py.
    Case("odin", metric=ACCURACY, start=0.5, margin=0.15),
    # whether a single response is safe, which no comparison tells
    Case("cost", metric="val/reward/accuracy_sign", start=0.5, margin=0.3),
]
