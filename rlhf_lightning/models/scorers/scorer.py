"""The scorer: one module that turns a packed batch into scalars. Reward, cost, value and process reward models are one.

A linear head stands on the trunk's last hidden states. Its products are always computed in float32, whatever the
precision of the trunk: differences of rewards are what is learned, and in bfloat16 two rewards near 4 are equal when
they differ by less than 0.03.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, cast, get_args, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.loading.heads import Pool, SavedHead
from rlhf_lightning.options import Seed
from rlhf_lightning.types import PackedBatch, SequenceLogProbs

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Where a score is read: at each response's last token, at the scored tokens, or at the tokens that predict those.
ReadAt = Literal["last", "scored", "source"]
HeadInit = Literal["rsqrt", "inverse", "zeros"]


class ScalarHead(nn.Module):
    r"""A linear map from hidden states to ``outputs`` numbers, in float32.

    Args:
        size: of a hidden state, d.
        outputs: numbers a token.
        bias: learn a bias; it starts at 0. A loss of differences cannot see it.
        init: of the weights: ``rsqrt`` draws from N(0, 1/sqrt(d+1)) as OpenAI's code for arXiv:1909.08593 does,
            ``inverse`` with standard deviation 1/(d+1) as the text of arXiv:2009.01325 says, ``zeros`` starts every
            score at 0.
        unit_rows: compute with rows that are centred and divided by their norm, as ODIN (arXiv:2402.07319) does, so
            that no row can grow or fade.
        seed: of the weights; None takes the global generator. Every process must draw the same numbers.

    Raises:
        ValueError: fewer than one output, or an unknown init.
    """

    def __init__(
        self,
        size: int,
        outputs: int = 1,
        *,
        bias: bool = False,
        init: HeadInit = "rsqrt",
        unit_rows: bool = False,
        seed: Seed | None = None,
    ) -> None:
        super().__init__()
        if outputs < 1 or init not in get_args(HeadInit):
            names = list(get_args(HeadInit))
            raise ValueError(f"a head of {outputs} outputs with init={init!r}; outputs >= 1, init in {names}")
        self.weight = nn.Parameter(torch.empty(outputs, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.unit_rows = unit_rows
        self.reset(init, seed)

    @torch.no_grad()
    def reset(self, init: HeadInit, seed: int | None = None) -> None:
        """Start from scratch; for the arguments see the class."""
        size = self.weight.shape[1]
        deviation = {"rsqrt": 1 / math.sqrt(size + 1), "inverse": 1 / (size + 1), "zeros": 0.0}[init]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.weight.copy_(torch.randn(self.weight.shape, generator=generator) * deviation)
        if self.bias is not None:
            self.bias.zero_()

    def rows(self) -> Float[Tensor, "outputs d"]:
        """The weights that products are computed with, float32."""
        weight = self.weight.float()
        if not self.unit_rows:
            return weight
        return F.normalize(weight - weight.mean(-1, keepdim=True), dim=-1, eps=1e-8)

    def forward(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n outputs"]:
        """Scores of hidden states, float32 also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.rows(), None if self.bias is None else self.bias.float())


class Scorer(Backbone):
    """A transformer with a scalar head, with or without an adapter; the head is trained in full beside an adapter.

    The weights are a causal language model's, or a sequence-classification folder's, whose head is then taken over.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        backend: see :class:`~rlhf_lightning.models.backbone.Backbone`.
        outputs: numbers a token; with 1 the scores have no last dimension.
        bias: see :class:`ScalarHead`; so are ``init``, ``unit_rows`` and ``seed``.
        init: of the head.
        unit_rows: centred rows of norm 1.
        seed: of the head.
        language_model: keep the head over the vocabulary, for a likelihood term beside the scores. Without it that
            head is dropped, and with it its memory.
        pool: where a response's score is read: ``eos``, at its last token, or ``before_eos``, one token earlier (at the
            prompt's last token where the response has one token), as the authors of APO (arXiv:2311.08045) do. None:
            as the head that came with the weights was trained, else ``eos``.

    Raises:
        ValueError: the head that came with the weights has another number of outputs, an unknown pool, or
            ``language_model`` without a head over the vocabulary.
    """

    needs_vocabulary: ClassVar[bool] = False
    linear: ClassVar[bool] = True  #: whether head and trunk are all there is, as a sequence-classification folder holds

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        backend: Literal["auto", "packed", "padded"] = "auto",
        outputs: int = 1,
        bias: bool = False,
        init: HeadInit = "rsqrt",
        unit_rows: bool = False,
        seed: Seed | None = None,
        language_model: bool = False,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(model, backend=backend)
        saved: SavedHead | None = getattr(self.base, "saved_head", None)
        self.pool: Pool = pool or ("eos" if saved is None else saved.pool)
        if self.pool not in get_args(Pool):
            raise ValueError(f"method.head.pool={self.pool!r} is none of {', '.join(get_args(Pool))}")
        vocabulary = self.base.get_output_embeddings()
        if language_model and vocabulary is None:
            raise ValueError(
                "the likelihood term needs a head over the vocabulary, and the weights are a reward model's, without "
                "one: start from a language model, or set method.loss.lm_weight=0"
            )
        size = vocabulary.weight.shape[1] if saved is None else saved.weight.shape[1]
        self.head = ScalarHead(size, outputs, bias=bias, init=init, unit_rows=unit_rows, seed=seed)
        #: Of the scores on reference samples, once measured; see :meth:`normalized`. Plain numbers, since a cast of the
        #: module to half precision would round a buffer.
        self.mean, self.std = 0.0, 1.0
        self.head_origin = None if saved is None else saved.origin  #: where the head came from; None: it is new
        if saved is not None:
            self._take(saved)
        self.language_model = language_model
        if not language_model and vocabulary is not None:
            self.base.set_output_embeddings(None)

    @property
    def outputs(self) -> int:
        """Numbers a token."""
        return len(self.head.weight)

    def _take(self, saved: SavedHead) -> None:
        if saved.weight.shape != self.head.weight.shape:
            raise ValueError(
                f"the weights come with a head of {len(saved.weight)} outputs, but the scorer has {self.outputs}: "
                f"set method.head.outputs={len(saved.weight)}"
            )
        with torch.no_grad():
            self.head.weight.copy_(saved.weight)
            if self.head.bias is not None and saved.bias is not None:
                self.head.bias.copy_(saved.bias)
        # A bias that the head has no room for is a shift of its scores.
        shift = float(saved.bias[0]) if saved.bias is not None and self.head.bias is None else 0.0
        self.mean, self.std = saved.mean - shift, saved.std

    @overload
    def forward(
        self, batch: PackedBatch, at: ReadAt = ..., *, adapter: bool = ..., log_probs: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self, batch: PackedBatch, at: ReadAt = ..., *, adapter: bool = ..., log_probs: Literal[True]
    ) -> tuple[Tensor, SequenceLogProbs]: ...

    def forward(
        self, batch: PackedBatch, at: ReadAt = "last", *, adapter: bool = True, log_probs: bool = False
    ) -> Tensor | tuple[Tensor, SequenceLogProbs]:
        """Scores of a batch, in one pass of the trunk.

        Args:
            batch: packed prompts and responses, on the model's device.
            at: ``last``: one score a response, read at its last token (its end of sequence) or where ``pool`` says;
                ``scored``: one at each scored token, which has then been read; ``source``: one at each token before a
                scored one, the state that the scored token is chosen in.
            adapter: False computes with the adapter disabled.
            log_probs: also return the log-probs of the scored tokens; needs ``language_model=True``.

        Returns:
            ``[responses]`` or ``[response_tokens]``, float32; with several outputs they are the last dimension. The
            score of an empty slot is 0.

        Raises:
            ValueError: an unknown place, or log-probs of a scorer without a language-model head.
        """
        if log_probs and not self.language_model:
            raise ValueError(
                "the likelihood term needs the head over the vocabulary: set method.head.language_model=true"
            )
        source, sequence = _read_positions(batch, at, self.pool)
        if log_probs:
            source, sequence = torch.cat([source, batch.source]), torch.cat([sequence, batch.sequence])
        with self.adapter_switched(adapter):
            hidden = self.hidden(batch, source, sequence)
            count = len(hidden) - len(batch.source) if log_probs else len(hidden)
            scores: Tensor = self.head(hidden[:count])
            if at == "last":
                scores = scores.masked_fill(~batch.present[:, None], 0.0)
            scores = scores[:, 0] if self.outputs == 1 else scores
            if not log_probs:
                return scores
            token = Actor.token_log_probs(cast("Actor", self), hidden[count:], batch.ids[batch.target]).log_prob
        responses = len(batch.response_span)
        return scores, SequenceLogProbs(token, batch.sequence, responses, batch.totals.mean_length())

    def normalized(self, scores: Tensor) -> Tensor:
        """Scores less their mean, divided by their standard deviation, both on reference samples."""
        return (scores - self.mean) / self.std

    def overlap(self) -> Float[Tensor, ""]:
        """|cosine| between the rows of the head, averaged over pairs of rows; 0 for a single row. Has gradients.

        Call it after ``forward`` of the same step: sharded weights are gathered then.
        """
        rows = F.normalize(self.head.rows(), dim=-1, eps=1e-8)
        cosines = (rows @ rows.T).triu(diagonal=1).abs()
        return cosines.sum() / max(self.outputs * (self.outputs - 1) / 2, 1)


def _read_positions(batch: PackedBatch, at: ReadAt, pool: Pool) -> tuple[Tensor, Tensor]:
    """Index in ``ids`` of the tokens at which scores are read, and the response of each."""
    if at == "last":
        read = batch.last if pool == "eos" else _before_last(batch)
        return read.clamp(min=0), torch.arange(len(batch.response_span), device=batch.ids.device)
    if at not in ("scored", "source"):
        raise ValueError(f"scores are read at 'last', 'scored' or 'source', not at {at!r}")
    return batch.target if at == "scored" else batch.source, batch.sequence


def _before_last(batch: PackedBatch) -> Tensor:
    """Index of the token before each response's last one: the prompt's last where the response has no other."""
    longer = batch.response_span[:, 1] - batch.response_span[:, 0] > 1
    return torch.where(longer, batch.last - 1, batch.prompt_span[batch.parent, 1] - 1)
