"""Declarations of a loss: the inputs it needs and the range of each of its options (``rlhf_lightning.options``).

``needs(dpo)`` is ``{"policy", "reference"}``, so that a method which never asks for a reference never loads one.
``validate(partial(dpo, beta=-1.0))`` raises before any weight is loaded; so does calling it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rlhf_lightning.options import (
    Count,
    Declared,
    FlipRate,
    NonNegative,
    OpenShare,
    Positive,
    PositiveFlipRate,
    PositiveShare,
    Range,
    Real,
    Share,
    WholeNumber,
    option_values,
    unwrap,
)

__all__ = [
    "INPUTS",
    "Count",
    "FlipRate",
    "NonNegative",
    "OpenShare",
    "Positive",
    "PositiveFlipRate",
    "PositiveShare",
    "Range",
    "Real",
    "Share",
    "WholeNumber",
    "check_cut",
    "compares_groups",
    "is_on_policy",
    "loss_function",
    "needs",
    "on_policy",
    "option_values",
    "takes",
    "validate",
]

#: Inputs a loss may ask for, and what each one is.
INPUTS: Mapping[str, str] = {
    "policy": "log-probs of the model that is trained",
    "reference": "log-probs of the reference model",
    "margin": "score(chosen) - score(rejected) of each pair, from the data",
    "win_probability": "probability that each response beats one of the policy, from the data, one row a group",
    "policy_sample": "1 for a response that the policy drew, 0 for any other, from the data, one row a pair",
    "reference_sample": "1 for a response that the reference drew, 0 for any other, from the data, one row a pair",
    "collision": "log sum_v p_v^2 of each scored token under the policy, detached",
    "top_k": "logits of the policy's most likely tokens at the negative tokens (undesirable or rejected responses)",
    "running": "running mean and standard deviation of what the loss observed in earlier steps",
    "desirable": "label of each response, 1 desirable and 0 undesirable",
    "kl": "reference point of KTO: mean log-ratio of mismatched prompts and responses over the step, at least 0",
    "weight": "weight of each response, from the density ratio of the prompts of both labels",
    "score": "score of each response of a list, higher is better; nan in an empty slot",
    "present": "whether each slot of a list holds a response",
    "reward": "scores of a scalar head: one a response, or one row a group where groups have several responses",
    "token_reward": "scores of a scalar head at every scored token",
    "length": "tokens of each response and its prompt together",
    "overlap": "absolute cosine between the rows of a head with several outputs, a scalar",
    "prefix": "scored tokens at the beginning that both responses of a pair share",
    "safe": "label of each response, 1 safe and 0 unsafe",
    "step_reward": "reward of each step of a solution, read at the step's last token",
    "step_label": "label of each step, 1 right and 0 wrong",
    "rating": "what a head of several outputs says of each response, one number an attribute",
    "attributes": "rating of each response by several attributes, from the data; nan where there is none",
    "verdict": "log-probs of a judge's right and wrong letter, the chosen response shown first",
    "verdict_swapped": "the same, the chosen response shown second",
    "embedding": "hidden state of each response, pooled at its last token or at its prompt's",
    "states": "hidden states of the policy at response tokens, layer by layer",
    "base": "hidden states of the model before training, at the same tokens",
    "positive": "hidden states at the same tokens where the response is wanted",
    "negative": "hidden states at the same tokens where the response is not wanted",
    "match": "log-probs of the policy behind the instruction that a response obeys",
    "opposite": "log-probs of the policy at the same tokens, behind the opposite instruction",
    "values": "what value heads say of each scored token and of the state it is chosen in",
    "old": "log-probs of the policy that the responses were drawn from, detached",
    "advantage": "advantage of each response token, from credit assignment",
}

LossT = TypeVar("LossT", bound=Callable[..., Any])


def compares_groups(
    what: str, *, option: str | None = None, when: Callable[[Any], bool] = bool, instead: str = ""
) -> Callable[[LossT], LossT]:
    """Mark a loss whose number for a group depends on the other groups that share its micro-batch.

    Args:
        what: what the loss does with them, for errors.
        option: the option that decides whether it compares them; None: it always does.
        when: returns from the option's value whether it compares them.
        instead: the setting under which it does not; empty: there is none.
    """

    def mark(loss: LossT) -> LossT:
        loss.__dict__["comparison"] = (what, option, when, instead)
        return loss

    return mark


def on_policy(loss: LossT) -> LossT:
    """Mark a loss whose gradient is one of samples that the policy drew by its own distribution."""
    loss.__dict__["on_policy"] = True
    return loss


def is_on_policy(loss: Callable[..., Any]) -> bool:
    """Return whether a loss, or a term of a sum, is marked with :func:`on_policy`.

    Args:
        loss: a loss, a partial of one, or a sum of several.
    """
    if any(map(is_on_policy, getattr(loss, "losses", {}).values())):
        return True
    return bool(getattr(unwrap(loss)[0], "on_policy", False))


def check_cut(loss: Callable[..., Any], micro_batches: int) -> None:
    """Refuse to cut the steps of a loss that would then be another one.

    Args:
        loss: a loss, a partial of one, or a sum of several.
        micro_batches: of an optimiser step, over all processes.

    Raises:
        ValueError: the loss compares the groups of a micro-batch, and a step has several micro-batches.
    """
    for term in getattr(loss, "losses", {}).values():
        check_cut(term, micro_batches)
    plain, _ = unwrap(loss)
    comparison = getattr(plain, "comparison", None)
    if comparison is None:
        return
    what, option, when, instead = comparison
    if option is None or any(map(when, option_values(loss, option))):
        refuse_cut(f"loss {plain.__name__} {what}", micro_batches, instead)


def refuse_cut(what: str, micro_batches: int, instead: str = "") -> None:
    """Refuse to cut the steps of something that looks at a whole one.

    Args:
        what: what it is and does with the groups of a micro-batch, for the error.
        micro_batches: of an optimiser step, over all processes; one is no cut.
        instead: the setting under which it does not; empty: there is none.

    Raises:
        ValueError: a step has several micro-batches.
    """
    if micro_batches == 1:
        return
    other = f", or {instead}" if instead else ""
    raise ValueError(
        f"{what}, and trainer.accumulate_grad_batches x devices cut every step into {micro_batches} micro-batches, "
        "which would make it another loss: set trainer.accumulate_grad_batches=1 and "
        f"trainer.devices=1{other}"
    )


_LOSS = Declared("loss", "method.loss", INPUTS)
loss_function, needs, takes, validate = _LOSS.function, _LOSS.needs, _LOSS.takes, _LOSS.validate
