"""The decode loop: a batch of prompts, each continued any number of times, token by token.

A prompt is computed once and its keys and values are repeated for its samples. Prompts of different lengths are padded
on the left. Rows whose response has ended are taken out of the batch once enough of them have, and rows that wait come
in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.models.decoding.reward_guidance import BlockChoice, TokenReward
from rlhf_lightning.models.decoding.shared_prefix import SharedPrefix
from rlhf_lightning.models.decoding.states import State, WeightedModels, state_of
from rlhf_lightning.models.decoding.waiting import Waiting
from rlhf_lightning.ops.draw import draw
from rlhf_lightning.types import Sample, Sampling, ended_by_text

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
    """Rows that are decoded together, or one after another in the same places."""

    prompts: list[Sequence[int]]  #: each at least one token, each different
    repeats: list[int]  #: samples of each prompt
    uniform: Tensor  #: one number a row and a token, float64 ``[rows, max_new_tokens]``; rows prompt by prompt
    prefix: SharedPrefix | None = None  #: beginning of every prompt that is computed already
    #: Rows that may be decoded together when the longest prompt has so many tokens; None: all of them. The last rows
    #: come first, so the longest prompts should be the last ones.
    capacity: Callable[[int], int] | None = None


@dataclass
class Drawn:
    """Responses of a batch, row by row, on the CPU."""

    ids: list[list[int]]
    log_probs: list[list[float]]
    ended: list[bool]  #: by a token; else cut off at the limit


def decode(
    model: Any,
    batch: Batch,
    sampling: Sampling,
    ends: Tensor,
    processor: Processor | None = None,
    mixture: WeightedModels | None = None,
    guide: TokenReward | BlockChoice | None = None,
) -> Drawn:
    """Sample responses.

    Args:
        model: a transformers causal language model in evaluation mode, its weights whole.
        batch: prompts and random numbers; with a choice of blocks a row is a candidate, those of a response in a row.
        sampling: how tokens are drawn; its ``stop`` must be among ``ends``.
        ends: tokens that end a response, on the model's device.
        processor: changes the logits before the temperature divides them.
        mixture: models whose logits are mixed in, before that; None: none are.
        guide: a reward that decides too, on tokens or blocks of them; None: none does.
    """
    device, longest = model.device, sampling.max_new_tokens
    uniform = batch.uniform.to(device)
    rows = _Rows(batch, sampling, ends)
    blocks = _Blocks(guide, rows) if isinstance(guide, BlockChoice) else None
    waiting = _waiting(model, batch, longest, processor, mixture)
    stride = 1 if device.type == "cpu" else _DEVICE_STRIDE
    state, logits, room = None, None, waiting.room([])
    step, last = 0, longest  # the step at which the rows that came last have reached the limit
    while len(rows.active) or room:
        if room:
            state, logits, came = waiting.fill(state, logits, room)
            rows.enter(came)
            last = step + longest
        assert state is not None
        assert logits is not None
        forbidden = rows.forbidden(step)
        if isinstance(guide, TokenReward):
            logits = rows.guided(guide, step, logits, forbidden)
        token, log_prob = draw(
            logits,
            uniform[rows.active, rows.tokens[rows.active].clamp_max(longest - 1)],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            forbidden=forbidden,
        )
        step += 1
        rows.append(step, token, log_prob)
        if step == last and not waiting.count:
            break
        if blocks is not None and step % blocks.choice.tokens == 0:
            token = blocks.choose(state, token, step)
        token, room = rows.drop(state, token, waiting) if step % stride == 0 else (token, 0)
        if len(rows.active):
            logits = _processed(state, state.step(token), processor)
        else:
            state = logits = None
    if blocks is not None:
        blocks.close(longest)
    return rows.drawn()


def _waiting(
    model: Any, batch: Batch, room: int, processor: Processor | None, mixture: WeightedModels | None
) -> Waiting:
    """All rows of a batch, before any of them is decoded."""

    def start(prompts: list[Sequence[int]]) -> tuple[State, Tensor]:
        state = state_of(model, prompts, room, batch.prefix, mixture)
        return state, _processed(state, state.start(), processor)

    return Waiting(batch.prompts, batch.repeats, batch.capacity, start)


class _Rows:
    """Responses so far, one a row, and which rows are still decoded."""

    def __init__(self, batch: Batch, sampling: Sampling, ends: Tensor) -> None:
        self.sampling, self.ends = sampling, ends
        self.prompts = [prompt for prompt, n in zip(batch.prompts, batch.repeats, strict=True) for _ in range(n)]
        rows, longest, device = len(self.prompts), sampling.max_new_tokens, ends.device
        # One more column, for the tokens that rows at the limit draw until they are taken out.
        self.ids = torch.zeros((rows, longest + 1), dtype=torch.long, device=device)
        self.log_probs = torch.zeros((rows, longest + 1), device=device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)  #: drawn so far
        self.length = torch.full((rows,), longest, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.active = self.tokens[:0]
        #: Columns of the state at which rows that are finished go, however few they are.
        self.limit = longest + max(map(len, batch.prompts))

    def enter(self, came: range) -> None:
        """Decode these rows from now on too, below the others."""
        self.active = torch.cat([self.active, torch.arange(came.start, came.stop, device=self.ids.device)])

    def forbidden(self, step: int) -> Tensor | None:
        """Tokens that may not be drawn at this step, while no row may end."""
        held = step < self.sampling.min_new_tokens and not self.sampling.ignore_eos
        return self.ends if held and len(self.ends) else None

    def append(self, step: int, token: Tensor, log_prob: Tensor) -> None:
        """Write a token of each active row, after so many steps of the batch, and see which of them end there."""
        active, ends, longest = self.active, self.ends, self.sampling.max_new_tokens
        at = self.tokens[active]
        self.ids[active, at], self.log_probs[active, at] = token, log_prob
        self.tokens[active] = (at + 1).clamp_max(longest)
        if len(ends) and not self.sampling.ignore_eos:
            ends_here = torch.isin(token, ends) & ~self.ended[active] & (at < longest)
            self.length[active] = torch.where(ends_here, at + 1, self.length[active])
            self.ended[active] |= ends_here
        if step % _TEXT_STRIDE == 0:
            self.end_at_text()

    def end_at_text(self) -> None:
        """End the rows whose text has come to a stop; what stands behind it is cut when all rows are drawn."""
        form = self.sampling.form
        if not form.stops:
            return
        going = self.active[~self.ended[self.active]]
        for row, tokens in zip(going.tolist(), self.tokens[going].tolist(), strict=True):
            if form.last_ended(self.ids[row, :tokens].tolist(), _TEXT_WINDOW):
                self.length[row], self.ended[row] = tokens, True

    def drop(self, state: State, token: Tensor, waiting: Waiting) -> tuple[Tensor, int]:
        """Take finished rows out of the batch, when there are enough of them.

        Returns:
            The tokens of those that stay, and how many waiting rows there is room for.
        """
        finished = self.ended[self.active] | (self.tokens[self.active] == self.sampling.max_new_tokens)
        going = (~finished).nonzero()[:, 0]
        gone = len(self.active) - len(going)
        few = gone < _DROP_SHARE * len(self.active) and state.ids.shape[1] < self.limit
        if not gone or (len(going) and few):
            return token, 0
        token = self.keep(state, token, going, self.active[going])
        return token, waiting.room(self.active.tolist()) if waiting.count else 0

    def keep(self, state: State, token: Tensor, positions: Tensor, active: Tensor) -> Tensor:
        """Continue with other rows.

        Args:
            state: of the rows that were active.
            token: the last one of each of them.
            positions: for each row that is active from now on, which of them it continues.
            active: the rows that are active from now on.
        """
        if len(positions):
            state.keep(positions)
        self.active = active
        return token[positions]

    def guided(self, guide: TokenReward, step: int, logits: Tensor, forbidden: Tensor | None) -> Tensor:
        """Logits of the active rows as a reward changes them; rows that have ended are not asked for."""
        at = (~self.ended[self.active]).nonzero()[:, 0]
        rows = self.active[at].tolist()
        prefixes = self.ids[rows, :step].tolist()
        prompts = [self.prompts[row] for row in rows]
        # Its own tensor: the logits of rows beside these may be read once more.
        logits = logits.float().clone()
        logits[at] = guide.logits(prompts, prefixes, logits[at], self.ends, forbidden)
        return logits

    def samples(self, tokens: int) -> list[Sample]:
        """The response of each row after so many steps, without log-probs."""
        ids, lengths = self.ids[:, :tokens].tolist(), self.length.tolist()
        return [
            ended_by_text(Sample(row[:length], [], "stop" if ended else "length"), self.sampling)
            for row, length, ended in zip(ids, lengths, self.ended.tolist(), strict=True)
        ]

    def drawn(self) -> Drawn:
        """All responses."""
        lengths = self.length.tolist()
        return Drawn(
            [row[:n] for row, n in zip(self.ids.tolist(), lengths, strict=True)],
            [row[:n] for row, n in zip(self.log_probs.tolist(), lengths, strict=True)],
            self.ended.tolist(),
        )


class _Blocks:
    """Candidates of each response, the rows ``k r .. k r + k - 1``, all of which continue the best one of them."""

    def __init__(self, choice: BlockChoice, rows: _Rows) -> None:
        self.choice, self.rows = choice, rows
        #: Responses whose best candidate has ended.
        self.settled = rows.ended.new_zeros(len(rows.prompts) // choice.candidates)

    def choose(self, state: State, token: Tensor, tokens: int) -> Tensor:
        """Put the best candidates, so many tokens long, in the place of the others; the last token of each row."""
        rows = self.rows
        position = torch.full_like(rows.length, -1)
        position[rows.active] = torch.arange(len(rows.active), device=position.device)
        source = self.close(tokens)
        active = (~self.settled).repeat_interleave(self.choice.candidates).nonzero()[:, 0]
        # The best candidate of a response that is not finished has not ended, so it is among the active rows.
        return rows.keep(state, token, position[source[active]], active)

    def close(self, tokens: int) -> Tensor:
        """Copy the best candidates, so many tokens long, over the others; for each row, the row that was copied."""
        rows, count = self.rows, self.choice.candidates
        rows.end_at_text()
        going = (~self.settled).nonzero()[:, 0].tolist()
        samples = rows.samples(tokens)
        candidates = [samples[count * at : count * (at + 1)] for at in going]
        best = self.choice.best([rows.prompts[count * at] for at in going], candidates)
        source = torch.arange(len(rows.prompts), device=rows.ids.device)
        for at, number in zip(going, best, strict=True):
            source[count * at : count * (at + 1)] = count * at + number
        rows.ids, rows.log_probs = rows.ids[source], rows.log_probs[source]
        rows.length, rows.ended, rows.tokens = rows.length[source], rows.ended[source], rows.tokens[source]
        self.settled = rows.ended[::count].clone()  # of this moment: the rows go on to end
        return source


def _processed(state: State, logits: Tensor, processor: Processor | None) -> Tensor:
    return logits if processor is None else processor(state.ids, logits)
