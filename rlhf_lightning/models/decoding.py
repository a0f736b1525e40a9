"""The decode loop: a batch of prompts, each continued any number of times, token by token.

A prompt is computed once and its keys and values are repeated for its samples. Prompts of different lengths are padded
on the left. Rows whose response has ended are taken out of the batch once enough of them have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor

from rlhf_lightning.models.forwarding import (
    CACHE_NAMES,
    cache_name,
    plain_options,
    report_every_position,
    report_once,
    takes,
    without_router_loss,
)
from rlhf_lightning.models.growing_cache import growing_cache
from rlhf_lightning.models.shared_prefix import SharedPrefix
from rlhf_lightning.ops.draw import draw
from rlhf_lightning.types import PromptForm, Sampling

#: Changes the logits of the next token: (ids so far ``[rows, length]``, logits ``[rows, vocabulary]``) -> logits.
Processor = Callable[[Tensor, Tensor], Tensor]

#: Rows are taken out when at least this share of the batch has ended: copying the cache costs about a step.
_DROP_SHARE = 0.125
#: Tokens between looks at which rows have ended, on a device whose results must be waited for.
_DEVICE_STRIDE = 8
#: Tokens between looks at the text of responses, where text may end one, and how many of the last ones are looked at.
_TEXT_STRIDE, _TEXT_WINDOW = 8, 32


@dataclass(frozen=True)
class Batch:
    """What is decoded together."""

    prompts: list[Sequence[int]]  #: each at least one token, each different
    repeats: list[int]  #: samples of each prompt
    uniform: Tensor  #: one number a row and a token, float64 ``[rows, max_new_tokens]``; rows prompt by prompt
    prefix: SharedPrefix | None = None  #: beginning of every prompt that is computed already


@dataclass(frozen=True)
class SecondModel:
    r"""A model whose logits are mixed into those of another one, which gives the geometric mixture of both.

    .. math:: p(y) \propto p_{second}(y)^w\, p_{first}(y)^{1 - w}
    """

    model: Any  #: of the same vocabulary, in evaluation mode, its weights whole
    weight: float  #: w, in [0, 1]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext  #: what its forward passes run in


@dataclass
class Drawn:
    """Responses of a batch, row by row, on the CPU."""

    ids: list[list[int]]
    log_probs: list[list[float]]
    ended: list[bool]  #: by a token; else cut off at the limit


class _State(Protocol):
    """A model in the middle of some responses."""

    ids: Tensor  #: all so far, padded on the left ``[rows, length]``

    def start(self) -> Tensor:
        """Logits of the first token of each prompt, ``[prompts, vocabulary]``."""
        ...

    def expand(self, repeats: Tensor) -> None:
        """Make the rows: each prompt as often as it is sampled."""
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row; logits of the next one, ``[rows, vocabulary]``."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows only."""
        ...


def decode(
    model: Any,
    batch: Batch,
    sampling: Sampling,
    ends: Tensor,
    processor: Processor | None = None,
    second: SecondModel | None = None,
) -> Drawn:
    """Sample responses.

    Args:
        model: a transformers causal language model in evaluation mode, its weights whole.
        batch: prompts and random numbers.
        sampling: how tokens are drawn; its ``stop`` must be among ``ends``.
        ends: tokens that end a response, on the model's device.
        processor: changes the logits before the temperature divides them.
        second: whose logits are mixed in, before that; None: nothing is.
    """
    device, repeats = model.device, torch.tensor(batch.repeats, device=model.device)
    rows, longest = int(repeats.sum()), sampling.max_new_tokens
    uniform = batch.uniform.to(device)
    ids = torch.zeros((rows, longest), dtype=torch.long, device=device)
    log_probs = torch.zeros((rows, longest), device=device)
    length = torch.full((rows,), longest, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    state = _state(model, batch.prompts, longest, batch.prefix)
    if second is not None:
        state = _Mixed(state, _state(second.model, batch.prompts, longest), second)
    logits = _processed(state, state.start(), processor).repeat_interleave(repeats, dim=0)
    state.expand(repeats)
    active = torch.arange(rows, device=device)
    stride = 1 if device.type == "cpu" else _DEVICE_STRIDE
    for step in range(longest):
        held = step < sampling.min_new_tokens and not sampling.ignore_eos
        token, log_prob = draw(
            logits,
            uniform[active, step],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            forbidden=ends if held and len(ends) else None,
        )
        ids[active, step], log_probs[active, step] = token, log_prob
        if len(ends) and not sampling.ignore_eos:
            ends_here = torch.isin(token, ends) & ~ended[active]
            length[active] = torch.where(ends_here, step + 1, length[active])
            ended[active] |= ends_here
        if sampling.form.stops and (step + 1) % _TEXT_STRIDE == 0:
            _end_at_text(ids, length, ended, step + 1, sampling.form)
        if step + 1 == longest:
            break
        if (step + 1) % stride == 0:
            active, token = _drop(state, active, token, ended)
            if not len(active):
                break
        logits = _processed(state, state.step(token), processor)
    return _collected(ids, log_probs, length, ended)


def _end_at_text(ids: Tensor, length: Tensor, ended: Tensor, tokens: int, form: PromptForm) -> None:
    """End the rows whose text has come to a stop, in place; what stands behind it is cut when all rows are drawn."""
    for row in (~ended).nonzero()[:, 0].tolist():
        if form.last_ended(ids[row, :tokens].tolist(), _TEXT_WINDOW):
            length[row], ended[row] = tokens, True


def _drop(state: _State, active: Tensor, token: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
    """Take the rows that have ended out of the batch, when there are enough of them."""
    going = (~ended[active]).nonzero()[:, 0]
    gone = len(active) - len(going)
    if not gone or (len(going) and gone < _DROP_SHARE * len(active)):
        return active, token
    if len(going):
        state.keep(going)
    return active[going], token[going]


def _processed(state: _State, logits: Tensor, processor: Processor | None) -> Tensor:
    return logits if processor is None else processor(state.ids, logits)


def _collected(ids: Tensor, log_probs: Tensor, length: Tensor, ended: Tensor) -> Drawn:
    lengths = length.tolist()
    return Drawn(
        [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)],
        [row[:n] for row, n in zip(log_probs.tolist(), lengths, strict=True)],
        ended.tolist(),
    )


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


def _state(model: Any, prompts: Sequence[Sequence[int]], room: int, prefix: SharedPrefix | None = None) -> _State:
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
        self.model, self.ids, self.next = model, ids, lengths
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

    def expand(self, repeats: Tensor) -> None:
        self.keep(torch.arange(len(repeats), device=repeats.device).repeat_interleave(repeats))

    def step(self, ids: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
        logits = self._forward(ids[:, None], self.next[:, None])
        self.next = self.next + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.ids, self.next = self.ids[rows], self.next[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        options = dict(self.options)
        if self.takes_positions:
            options["position_ids"] = positions
        if self.keeps_logits:
            # An index and not 1: a slice of the states is not contiguous, and the head would be copied for every row.
            options["logits_to_keep"] = torch.tensor([ids.shape[1] - 1], device=ids.device)
        mask = None if self.mask is None else self.mask[:, : self.ids.shape[1]]
        out = self.model(input_ids=ids, attention_mask=mask, **options)
        logits: Tensor = out.logits[:, -1]
        return logits


class _Mixed:
    """Two models in the middle of the same responses; each keeps keys and values of its own."""

    def __init__(self, first: _State, other: _State, second: SecondModel) -> None:
        self.first, self.other, self.second = first, other, second
        self.ids = first.ids

    def start(self) -> Tensor:
        with self.second.context():
            other = self.other.start()
        return self._mix(self.first.start(), other)

    def expand(self, repeats: Tensor) -> None:
        self.first.expand(repeats)
        self.other.expand(repeats)
        self.ids = self.first.ids

    def step(self, ids: Tensor) -> Tensor:
        with self.second.context():
            other = self.other.step(ids)
        return self._mix(self.first.step(ids), other)

    def keep(self, rows: Tensor) -> None:
        self.first.keep(rows)
        self.other.keep(rows)
        self.ids = self.first.ids

    def _mix(self, first: Tensor, other: Tensor) -> Tensor:
        # Of logits as of log-probs: what normalises each of them is the same for every token.
        self.ids = self.first.ids
        return (1 - self.second.weight) * first.float() + self.second.weight * other.float()


class _Whole:
    """Nothing is kept: each step computes the whole row again, padded on the right, where no causal model looks."""

    def __init__(self, model: Any, ids: Tensor, lengths: Tensor) -> None:
        self.model, self.ids, self.lengths = model, ids, lengths
        self.options, self.keeps_logits = plain_options(model), takes(model, "logits_to_keep")

    def start(self) -> Tensor:
        return self._forward()

    def expand(self, repeats: Tensor) -> None:
        self.keep(torch.arange(len(repeats), device=repeats.device).repeat_interleave(repeats))

    def step(self, ids: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
        self.lengths = self.lengths + 1
        return self._forward()

    def keep(self, rows: Tensor) -> None:
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]

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
