"""Declarations of a credit function: the inputs it needs and the range of each of its options."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_lightning.options import Declared

#: Inputs a credit function may ask for, and what each one is. Everything holds the whole rollout of all processes.
INPUTS: Mapping[str, str] = {
    "reward": "reward of each response, shaped, with the KL penalty where it is part of the reward; nan: none",
    "group": "the prompt of each response: 0 .. prompts - 1, never decreasing",
    "token_reward": "KL penalty of each token, the reward at a response's last token, and rewards of its steps",
    "value": "what a critic expected before each token",
    "cost_reward": "as token_reward, of the cost: the penalty with the other sign, the cost at the last token",
    "cost_value": "what a cost critic expected before each token",
    "multiplier": "lambda, the price of a unit of cost, a scalar",
    "baseline": "reward of the greedy response to each response's prompt",
    "length": "scored tokens of each response",
    "truncated": "whether each response was cut off at the length limit",
    "step_reward": "reward of each step at the token that ends it, nan elsewhere",
    "log_probs": "log-probs of the policy that drew the responses, at the temperature they are trained at",
    "running": "mean and standard deviation of the rewards of earlier rollouts",
}

_CREDIT = Declared("credit function", "method.advantage", INPUTS)
credit_function, needs, takes, validate = _CREDIT.function, _CREDIT.needs, _CREDIT.takes, _CREDIT.validate
