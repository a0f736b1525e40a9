"""Batches of pairs as plain lists of numbers, and the inputs of a loss made from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.losses import needs
from rlhf_lightning.types import (
    GroupLoss,
    MeasuredLoss,
    Moments,
    Pair,
    PreferenceLoss,
    SequenceLogProbs,
    TokenLoss,
)

Rows = list[list[float]]  #: one list of per-token numbers a response

SUPERVISED = ["sft", "dft"]


def losses_of(kind: str) -> list[str]:
    """Names of the losses whose first input is annotated so: ``Pair`` for the losses of pairs."""
    functions = {name: getattr(losses, name) for name in losses.__all__}
    sources = {name: f for name, f in functions.items() if "\nSource:" in (inspect.getdoc(f) or "")}
    return sorted(name for name, f in sources.items() if f.__annotations__.get("policy") == kind)


PREFERENCE = [name for name in losses_of("Pair") if "top_k" not in needs(getattr(losses, name))]


@dataclass
class Numbers:
    """Inputs of a loss from a batch, without tensors."""

    policy_chosen: Rows
    policy_rejected: Rows
    reference_chosen: Rows
    reference_rejected: Rows
    collision_chosen: Rows = field(default_factory=list)
    collision_rejected: Rows = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    win_probability: Rows = field(default_factory=list)  #: of both responses of each pair; none: 1 and 0
    reference_sample: Rows = field(default_factory=list)  #: 1 for the reference's; none: it is the rejected one
    running: tuple[float, float, float] = (0.0, 0.0, 0.0)  #: mean, standard deviation, count
    mean_length: tuple[float, float] | None = None  #: of chosen and rejected over the optimiser step

    def __len__(self) -> int:
        return len(self.policy_chosen)

    def pick(self, rows: list[int]) -> Numbers:
        """Some pairs of the batch, which remains the optimiser step that they belong to."""
        whole = [sum(map(len, r)) / len(self) for r in (self.policy_chosen, self.policy_rejected)]
        lists = {
            name: [value[i] for i in rows] if value else []
            for name, value in vars(self).items()
            if isinstance(value, list)
        }
        return Numbers(**lists, running=self.running, mean_length=self.mean_length or (whole[0], whole[1]))


def ragged(rows: Rows, dtype: torch.dtype = torch.float64, mean_length: float | None = None) -> SequenceLogProbs:
    """Rows of numbers as the ragged tensor that losses take; its tokens are a leaf that gradients reach."""
    token = torch.tensor([x for row in rows for x in row], dtype=dtype, requires_grad=True)
    sequence = torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.long)
    return SequenceLogProbs(token, sequence, len(rows), mean_length)


def inputs(numbers: Numbers, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Everything a loss may ask for."""
    chosen_length, rejected_length = numbers.mean_length or (None, None)
    made: dict[str, Any] = {
        "policy": Pair(
            ragged(numbers.policy_chosen, dtype, chosen_length), ragged(numbers.policy_rejected, dtype, rejected_length)
        ),
        "reference": Pair(ragged(numbers.reference_chosen, dtype), ragged(numbers.reference_rejected, dtype)),
        "running": Moments(*(torch.tensor(x, dtype=dtype) for x in numbers.running)),
    }
    labels = {"win_probability": [1.0, 0.0], "reference_sample": [0.0, 1.0]}
    for name, usual in labels.items():
        made[name] = torch.tensor(getattr(numbers, name) or [usual] * len(numbers), dtype=dtype)
    if numbers.collision_chosen:
        made["collision"] = Pair(ragged(numbers.collision_chosen, dtype), ragged(numbers.collision_rejected, dtype))
    if numbers.margin:
        made["margin"] = torch.tensor(numbers.margin, dtype=dtype)
    return made


def run(
    loss: str | Callable[..., PreferenceLoss], numbers: Numbers, dtype: torch.dtype = torch.float64, **options: Any
) -> PreferenceLoss:
    """A loss, by name or as an object, on a batch."""
    function = getattr(losses, loss) if isinstance(loss, str) else loss
    given = inputs(numbers, dtype)
    return function(**{need: given[need] for need in needs(function)}, **options)


def gradients(
    loss: str | Callable[..., PreferenceLoss], numbers: Numbers, dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Tensor, Tensor]:
    """Gradient of the mean loss with respect to each token of the chosen and of the rejected responses."""
    function = getattr(losses, loss) if isinstance(loss, str) else loss
    given = inputs(numbers, dtype)
    function(**{need: given[need] for need in needs(function)}, **options).loss.mean().backward()
    leaves = given["policy"].chosen.token, given["policy"].rejected.token
    return tuple(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)  # type: ignore[return-value]


def assert_detached(output: PreferenceLoss | GroupLoss | MeasuredLoss | TokenLoss) -> None:
    """Fail where anything but the loss itself carries a gradient."""
    named = dict(vars(output))
    loss = named.pop("token" if isinstance(output, TokenLoss) else "loss")
    assert loss.requires_grad, "inputs without gradients show nothing"
    named |= named.pop("diagnostics")
    assert not [name for name, value in named.items() if value is not None and value.requires_grad]


def method_yaml(name: str) -> dict[str, Any]:
    """conf/method/<name>.yaml as plain data."""
    body: dict[str, Any] = yaml.safe_load(Path(conf_dir(), "method", f"{name}.yaml").read_text())
    return body


def loss_from_yaml(node: dict[str, Any]) -> Callable[..., Any]:
    """The loss that a yaml describes, made by hand: ``_target_``, options and the terms of a weighted sum."""
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    target = getattr(losses, node["_target_"].rpartition(".")[2])
    if "terms" in options:
        terms = options["terms"]
        return target({name: {**term, "loss": loss_from_yaml(term["loss"])} for name, term in terms.items()})
    return partial(target, **options)
