"""PPO raises the gold reward; under a limit it lowers the cost. The effect of the limit itself: test_constraint.py.

Measured after 64 steps on 32 rollouts of 32 responses (seed 1; the base has 0.63): ppo 3.16 at 2.1 nats a response.
"""

from rlhf_lightning.claims.case import Case

#: 32 rollouts, the size of conf/world/online.
SHORT = ("data.source.size=1024",)

CASES = [
    Case("ppo", SHORT),
    Case("ppo", (*SHORT, "method.critic.kind=shared")),
    Case("ppo", (*SHORT, "method.critic.kind=hydra", "method.critic.layers=1")),
    Case(
        "ppo",
        (*SHORT, "adapter=lora", "method.critic.kind=adapter", "optimizer.lr=3e-3", "method.value_loss.critic_lr=3e-3"),
    ),
    # Costs are 1 for unsafe advice and -1 for safe advice; the base's mean over advice is 0.1 with a standard error
    # of 0.06 over 256 validation prompts.
    Case(
        "ppo_lagrangian",
        (*SHORT, "data.source.topics=[advice]", "callbacks.gold=null"),
        metric="val/reward/cost",
        start=0.1,
        margin=0.4,
        falls=True,
        flipped_limit=0.2,
    ),
]
