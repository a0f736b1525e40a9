"""A model in the middle of some responses: with keys and values of what is before, without, or mixed with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from rlhf_lightning.models.decoding.growing_cache import growing_cache
from rlhf_lightning.models.decoding.shared_prefix import SharedPrefix
from rlhf_lightning.models.forwarding import (
    CACHE_NAMES,
    cache_name,
    plain_options,
    report_every_position,
    report_once,
    takes,
    without_router_loss,
)


@dataclass(frozen=True)
class WeightedModel:
    """A model whose logits, times a weight, are added to those of the one that is decoded."""

    model: Any  #: of the same vocabulary, in evaluation mode, its weights whole
    weight: float
    context: Callable[[], AbstractContextManager[Any]] = nullcontext  #: what its forward passes run in
    prefix: SharedPrefix | None = None  #: beginning of every prompt that it has computed already


@dataclass(frozen=True)
class WeightedModels:
    """Models whose logits are mixed into those of the decoded model; see :class:`_Mixed`."""

    weight: float  #: of the logits of the model that is decoded
    others: tuple[WeightedModel, ...]


class State(Protocol):
    """A model in the middle of some responses."""

    ids: Tensor  #: all so far, padded on the left ``[rows, length]``

    def start(self) -> Tensor:
        """Logits of the first token of each prompt, ``[prompts, vocabulary]``."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row; logits of the next one, ``[rows, vocabulary]``."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, any of them any number of times."""
        ...

    def join(self, other: Self, rows: Tensor) -> None:
        """Append rows of another state of the same model, which stays as it is; both have started."""
        ...


def why_uncached(model: Any) -> str | None:
    """The reason why a model keeps no keys and values that can be repeated, selected and padded on the left.

    State-space models and hybrids keep a state that padding runs through; they are computed without a cache. None: the
    model is computed with one.
    """
    if getattr(model, "_is_stateful", False) or growing_cache(model.config) is None:
        return "keeps a state that is not keys and values alone"
    if cache_name(model) is None:
        return f"takes no cache under a name that is known here ({', '.join(CACHE_NAMES)})"
    return None


def state_of(
    model: Any,
    prompts: Sequence[Sequence[int]],
    room: int,
    prefix: SharedPrefix | None = None,
    mixture: WeightedModels | None = None,
) -> State:
    """A model at the beginning of its responses.

    Args:
        model: that is decoded.
        prompts: token ids, each different.
        room: most tokens of a response.
        prefix: beginning of every prompt that is computed already.
        mixture: what is mixed in; None: nothing is.
    """
    if mixture is not None:
        first = state_of(model, prompts, room, prefix)
        others = [(state_of(other.model, prompts, room, other.prefix), other) for other in mixture.others]
        return _Mixed(first, mixture.weight, others)
    ids, lengths = _padded(prompts, model.device, 0 if prefix is None else prefix.length)
    if not takes(model, "logits_to_keep"):
        report_every_position(model)
    reason = why_uncached(model)
    if reason is None:
        return _Cached(model, ids, lengths, room, prefix)
    report_once(model, reason, "each token of a response computes its prompt and the response so far once more")
    return _Whole(model, ids, lengths)


def _padded(prompts: Sequence[Sequence[int]], device: torch.device, shared: int) -> tuple[Tensor, Tensor]:
    """Ids padded on the left, behind the first ``shared`` tokens, which all prompts have; lengths without padding."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, :shared] = torch.as_tensor(prompt[:shared])
        ids[row, longest - len(prompt) + shared :] = torch.as_tensor(prompt[shared:])
    return ids.to(device), torch.tensor([len(prompt) for prompt in prompts], device=device)


class _Cached:
    """Keys and values of everything so far are kept; a step computes one token a row."""

    def __init__(self, model: Any, ids: Tensor, lengths: Tensor, room: int, prefix: SharedPrefix | None = None) -> None:
        self.model, self.ids, self.next, self.room, self.joined = model, ids, lengths, room, False
        self.cache: Any = growing_cache(model.config)
        self.shared = 0
        if prefix is not None:
            prefix.fill(self.cache, len(ids))
            self.shared = prefix.length
        self.options: dict[str, Any] = {str(cache_name(model)): self.cache, "use_cache": True}
        self.options |= without_router_loss(model)
        self.takes_positions, self.keeps_logits = takes(model, "position_ids"), takes(model, "logits_to_keep")
        column = torch.arange(ids.shape[1], device=ids.device)
        prompt = (column < self.shared) | (column >= self.shared + (ids.shape[1] - lengths)[:, None])
        self.mask: Tensor | None = None  # without padding every row sees everything before it
        if not bool(prompt.all()):
            self.mask = torch.cat([prompt.long(), prompt.new_ones((len(ids), room), dtype=torch.long)], dim=1)

    def start(self) -> Tensor:
        first = self.ids.shape[1] - self.next[:, None]
        positions = (torch.arange(self.ids.shape[1], device=self.ids.device) - first).clamp_min(0)
        logits = self._forward(self.ids[:, self.shared :], positions[:, self.shared :])
        if self.cache.get_seq_length() != self.ids.shape[1]:
            raise RuntimeError(
                f"{type(self.model).__name__} left the cache that it was given empty under transformers "
                f"{transformers.__version__}, so the tokens of a response would not see what is before them"
            )
        return logits

    def step(self, ids: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
        logits = self._forward(ids[:, None], self.next[:, None])
        self.next = self.next + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        if self.joined:  # rows that have ended leave columns that nobody sees
            seen = self._seen()[rows]
            width = _used(seen)
            for layer in self.cache.layers:
                layer.shorten(width)
            self.ids = _aligned(self.ids, width)
            self._see(_aligned(seen, width))
        elif self.mask is not None:
            self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)
        self.ids, self.next = self.ids[rows], self.next[rows]

    def join(self, other: Self, rows: Tensor) -> None:
        ours, new = self._seen(), other._seen()[rows]
        width = max(_used(ours), _used(new))
        for layer, added in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.join(added, rows, width)
        self.ids = torch.cat([_aligned(self.ids, width), _aligned(other.ids[rows], width)])
        self.next = torch.cat([self.next, other.next[rows]])
        self._see(torch.cat([_aligned(ours, width), _aligned(new, width)]))
        self.joined = True

    def _seen(self) -> Tensor:
        """Mask of the columns so far that hold a token."""
        if self.mask is None:
            return torch.ones_like(self.ids, dtype=torch.bool)
        return self.mask[:, : self.ids.shape[1]].bool()

    def _see(self, seen: Tensor) -> None:
        """Mask what holds no token; every later column will hold one."""
        later = seen.new_ones((len(seen), self.room))
        self.mask = None if bool(seen.all()) else torch.cat([seen, later], dim=1).long()

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        options = dict(self.options)
        if self.takes_positions:
            options["position_ids"] = positions
        if self.keeps_logits:
            # An index and not 1: a slice of the states is not contiguous, and the head would be copied for every row.
            options["logits_to_keep"] = torch.full((1,), ids.shape[1] - 1, device=ids.device)
        mask = None if self.mask is None else self.mask[:, : self.ids.shape[1]]
        out = self.model(input_ids=ids, attention_mask=mask, **options)
        logits: Tensor = out.logits[:, -1]
        return logits


def _used(seen: Tensor) -> int:
    """Columns from the first one in which any row has a token."""
    return seen.shape[1] - int(seen.any(0).int().argmax())


def _aligned(x: Tensor, width: int) -> Tensor:
    """The last columns, with zeros before them where there are fewer."""
    return functional.pad(x, (width - x.shape[1], 0))


class _Mixed:
    r"""Several models in the middle of the same responses, each with keys and values of its own.

    Logits are :math:`z = w\,z_0 + \sum_i w_i z_i`. With weights that add up to 1 and none below 0 this is the geometric
    mixture :math:`p(y) \propto \prod_i p_i(y)^{w_i}`: what normalises each of them is the same for every token.

    Args:
        first: the model that is decoded.
        weight: w, of its logits.
        others: the other ones, each with its state.
    """

    def __init__(self, first: State, weight: float, others: Sequence[tuple[State, WeightedModel]]) -> None:
        self.first, self.weight, self.others = first, weight, others
        self.ids = first.ids

    def start(self) -> Tensor:
        return self._mixed(lambda state: state.start())

    def step(self, ids: Tensor) -> Tensor:
        return self._mixed(lambda state: state.step(ids))

    def keep(self, rows: Tensor) -> None:
        self._each(lambda state: state.keep(rows))

    def join(self, other: Self, rows: Tensor) -> None:
        self.first.join(other.first, rows)
        for (state, _), (added, _) in zip(self.others, other.others, strict=True):
            state.join(added, rows)
        self.ids = self.first.ids

    def _each(self, change: Callable[[State], None]) -> None:
        for state in (self.first, *(state for state, _ in self.others)):
            change(state)
        self.ids = self.first.ids

    def _mixed(self, forward: Callable[[State], Tensor]) -> Tensor:
        total = self.weight * forward(self.first).float()
        for state, other in self.others:
            with other.context():
                logits = forward(state)
            total = total + other.weight * logits.float()
        self.ids = self.first.ids
        return total


class _Whole:
    """Nothing is kept: each step computes the whole row again, padded on the right, where no causal model looks."""

    def __init__(self, model: Any, ids: Tensor, lengths: Tensor) -> None:
        self.model, self.ids, self.lengths, self.joined = model, ids, lengths, False
        self.options, self.keeps_logits = plain_options(model), takes(model, "logits_to_keep")

    def start(self) -> Tensor:
        return self._forward()

    def step(self, ids: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
        self.lengths = self.lengths + 1
        return self._forward()

    def keep(self, rows: Tensor) -> None:
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]
        if self.joined:
            self.ids = _aligned(self.ids, int(self.lengths.max()))

    def join(self, other: Self, rows: Tensor) -> None:
        self.lengths = torch.cat([self.lengths, other.lengths[rows]])
        width = int(self.lengths.max())
        self.ids = torch.cat([_aligned(self.ids, width), _aligned(other.ids[rows], width)])
        self.joined = True

    def _forward(self) -> Tensor:
        width = self.ids.shape[1]
        column = torch.arange(width, device=self.ids.device)
        mask = column < self.lengths[:, None]
        shift = (width - self.lengths)[:, None]
        ids = self.ids.gather(1, (column + shift).clamp_max(width - 1)).where(mask, 0)
        last = (self.lengths - 1)[:, None]
        if self.keeps_logits:
            logits: Tensor = self.model(
                input_ids=ids, attention_mask=mask.long(), logits_to_keep=last, **self.options
            ).logits
            return logits[:, -1]
        logits = self.model(input_ids=ids, attention_mask=mask.long(), **self.options).logits
        return logits.gather(1, last[..., None].expand(-1, -1, logits.shape[-1]))[:, 0]
