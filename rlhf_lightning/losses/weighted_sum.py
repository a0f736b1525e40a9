"""Several preference losses at once, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from rlhf_lightning.losses.options import needs, takes, validate
from rlhf_lightning.types import PreferenceLoss


class WeightedSum:
    """The weighted sum of preference losses, usable wherever one of them is.

    In a yaml::

        loss:
          _target_: rlhf_lightning.losses.WeightedSum
          terms:
            preference: {weight: 0.8, loss: {_target_: rlhf_lightning.losses.dpo, _partial_: true}}
            generation: {weight: 1.0, loss: {_target_: rlhf_lightning.losses.preferred_ft, _partial_: true}}

    Its inputs are those of all terms together. The rewards it reports are those of the first term; each term's own
    loss, before weighting, is a diagnostic ``loss/<name>``, and a term's diagnostics become ``<name>/<key>``.

    Args:
        terms: for each name a mapping with ``loss`` (a function or a partial) and ``weight`` (any finite number).

    Raises:
        ValueError: no term, a term without a loss or weight, an option outside its range, or two terms that ask for
            running statistics (each would need its own).
    """

    def __init__(self, terms: Mapping[str, Mapping[str, Any]]) -> None:
        if not terms:
            raise ValueError("WeightedSum needs at least one term: terms: {name: {loss: ..., weight: ...}}")
        for name, term in terms.items():
            if set(term) != {"loss", "weight"}:
                raise ValueError(f"term {name!r} of WeightedSum must have exactly loss and weight, not {sorted(term)}")
        self.losses: dict[str, Callable[..., PreferenceLoss]] = {str(name): t["loss"] for name, t in terms.items()}
        self.weights: dict[str, float] = {str(name): term["weight"] for name, term in terms.items()}
        self.validate()

    @property
    def needs(self) -> frozenset[str]:
        """Inputs of all terms together."""
        return frozenset[str]().union(*(needs(loss) for loss in self.losses.values()))

    def validate(self) -> None:
        """Check every term as ``losses.options.validate`` checks a single loss."""
        for name, loss in self.losses.items():
            validate(loss)
            weight = self.weights[name]
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"term {name!r} of WeightedSum: weight={weight!r} must be a finite number")
        observers = [name for name, loss in self.losses.items() if "running" in needs(loss)]
        if len(observers) > 1:
            raise ValueError(
                f"terms {observers} of WeightedSum all ask for running statistics, but a method keeps one set: "
                "leave one of them in"
            )

    def __call__(self, **inputs: Any) -> PreferenceLoss:
        """The sum for one batch; ``inputs`` are the inputs by name, as every loss takes them."""
        outputs = {
            name: loss(**{key: inputs[key] for key in takes(loss) if key in inputs or key in needs(loss)})
            for name, loss in self.losses.items()
        }
        first, *others = outputs
        loss = self.weights[first] * outputs[first].loss
        for name in others:
            loss = loss + self.weights[name] * outputs[name].loss
        diagnostics: dict[str, Tensor] = {}
        for name, output in outputs.items():
            diagnostics[f"loss/{name}"] = output.loss.detach()
            diagnostics |= {f"{name}/{key}": value for key, value in output.diagnostics.items()}
        observed = next((output.observed for output in outputs.values() if output.observed is not None), None)
        return PreferenceLoss(loss, outputs[first].chosen_reward, outputs[first].rejected_reward, observed, diagnostics)
