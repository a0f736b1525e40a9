"""Responses from the live policy: rollouts, sample tables, KL on the policy's own samples, ``rlhf generate``.

Token ids in, token ids out; nothing is decoded and tokenised again. Every setting is given here: the sampling defaults
that a checkpoint carries (top-k 50, a repetition penalty) would make samples of another distribution than the one that
is trained. Each sample draws from a stream of random numbers of its own (:mod:`rlhf_lightning.ops.streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.models.adapters.lora import is_adapted
from rlhf_lightning.models.decoding.loop import Batch, Processor, decode
from rlhf_lightning.models.decoding.reward_guidance import BlockChoice, TokenReward
from rlhf_lightning.models.decoding.shared_prefix import SharedPrefix, shared_prefix
from rlhf_lightning.models.decoding.states import WeightedModel, WeightedModels
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.sharding import compute_dtype, unsharded
from rlhf_lightning.ops.streams import stream_seed, uniforms
from rlhf_lightning.types import PromptForm, Sample, Sampling, ended_by_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.models.actor import Actor

unsharded_for_generation = unsharded

#: Batches' worth of rows that share their places: bounds what is held for rows that wait.
_POOL = 16


@dataclass(frozen=True)
class Mixed:
    """An actor whose logits, times a weight, are added to those of the policy."""

    actor: Actor
    weight: float
    adapter: bool = True  #: False: the model beneath its adapter


@dataclass(frozen=True)
class Guide:
    r"""Guidance: everything besides the policy's distribution that decides on tokens.

    Logits are :math:`z = w\,z_{policy} + \sum_i w_i z_i`, before the temperature divides them; see
    ``decode_states``. Other models whose weight is 0 are not run.
    """

    weight: float = 1.0  #: w, of the policy's logits
    others: tuple[Mixed, ...] = ()
    reward: TokenReward | BlockChoice | None = None  #: which decides on tokens, or on blocks of them

    @property
    def candidates(self) -> int:
        """Rows that are decoded for each response."""
        return self.reward.candidates if isinstance(self.reward, BlockChoice) else 1


def generate(
    actor: Actor,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    adapter: bool = True,
    processor: Processor | None = None,
    streams: Sequence[tuple[int, int]] | None = None,
    form: PromptForm | None = None,
    guide: Guide | None = None,
    progress: Callable[[], object] | None = None,
) -> list[list[int]]:
    """Sample one response for each prompt; see :func:`sample`.

    Response ``i`` draws from the stream ``(seed, i)`` or from its own of ``streams``, so the same arguments give the
    same responses and the global generators are left as they were.

    Args:
        actor: the policy.
        prompts: token ids, each prompt with at least one; repeat a prompt to sample it several times.
        max_new_tokens: most tokens of a response, EOS included, >= 1.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probability reaches this, in (0, 1].
        seed: of the samples.
        batch_size: responses decoded together.
        adapter: False samples from the model beneath the adapter.
        processor: changes the logits of the next token, before the temperature divides them: called with the ids so
            far and the logits, ``[rows, length]`` and ``[rows, vocabulary]``.
        streams: of random numbers, one a prompt: a seed and a number under it; None: see above.
        form: of the prompts: what text ends a response, and how all of them begin; None: a chat template says both.
        guide: what else decides on tokens; None: nothing does.
        progress: called before each token of the responses that are decoded together.

    Returns:
        The response of each prompt in the order of ``prompts``, with its EOS token; without one it was cut off.

    Raises:
        ValueError: an option is out of range, or a prompt is empty.
    """
    samples = sample(
        actor,
        prompts,
        Sampling(max_new_tokens, float(temperature), float(top_p), form=form or PromptForm()),
        streams=streams or [(seed, row) for row in range(len(prompts))],
        batch_size=batch_size,
        adapter=adapter,
        processor=processor if progress is None else _reporting(progress, processor),
        guide=guide,
    )
    return [[*drawn.ids] for drawn in samples]


def _reporting(progress: Callable[[], object], processor: Processor | None) -> Processor:
    """A processor that reports each token and else does what another one does."""

    def reporting(ids: Tensor, logits: Tensor) -> Tensor:
        progress()
        return logits if processor is None else processor(ids, logits)

    return reporting


@torch.no_grad()
def sample(
    actor: Actor | PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    streams: Sequence[tuple[int, int]],
    batch_size: int = 64,
    batch_tokens: int | None = None,
    adapter: bool = True,
    processor: Processor | None = None,
    guide: Guide | None = None,
    version: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[Sample]:
    """Sample one response for each prompt, with the log-prob of each token.

    Prompts are batched by length; equal ones are computed once a batch. Where nothing but the policy decides on tokens,
    a response that has ended makes way for the next prompt, the longest first. The model runs in evaluation mode and
    in the dtype of its weights. Sharded weights are gathered once: every process must call this, each with as many
    prompts as it has.

    Args:
        actor: the policy, or a plain transformers model.
        prompts: token ids, each prompt with at least one; repeat a prompt to sample it several times.
        sampling: how tokens are drawn.
        streams: of random numbers, one a prompt: a seed and a number under it.
        batch_size: most responses decoded together.
        batch_tokens: most tokens of a batch with its prompts, were all responses as long as they may be; None: any.
        adapter: False samples from the model beneath the adapter.
        processor: changes the logits; see :func:`generate`.
        guide: what else decides on tokens; None: nothing does. Log-probs are then of the guided distribution, and there
            are none where several candidates of blocks were compared, whose distribution is not known.
        version: written into the samples.
        progress: called with a number of responses when they are drawn, several batches at a time.

    Raises:
        ValueError: ``batch_size`` is out of range, or a prompt is empty.
    """
    _check(prompts, batch_size)
    model: Any = transformers_model(actor)
    ends = torch.tensor(_ends(model, sampling), dtype=torch.long, device=model.device)
    samples: dict[int, Sample] = {}
    guide = guide or Guide()
    several = guide.candidates
    with _decoding(actor, model, adapter), _mixture(guide, actor, prompts, sampling.form) as mixture:
        prefix = shared_prefix(model, prompts, sampling.form)
        size, tokens = max(1, batch_size // several), None if batch_tokens is None else batch_tokens // several
        refills = _refills(sampling, processor, guide)
        capacity = _capacity(sampling.max_new_tokens, size, tokens) if refills else None
        size, tokens = (size * _POOL, None) if refills else (size, tokens)
        for rows in _batches(prompts, sampling.max_new_tokens, size, tokens):
            batch = replace(_batch(prompts, rows, streams, sampling, prefix, several), capacity=capacity)
            drawn = decode(model, batch, sampling, ends, processor, mixture, guide.reward)
            for at, row in enumerate(rows):
                ids, ended = drawn.ids[at * several], drawn.ended[at * several]
                log_probs = drawn.log_probs[at] if several == 1 else []
                samples[row] = ended_by_text(Sample(ids, log_probs, "stop" if ended else "length", version), sampling)
            if progress is not None:
                progress(len(rows))
    return [samples[row] for row in range(len(prompts))]


def _refills(sampling: Sampling, processor: Processor | None, guide: Guide) -> bool:
    """Return whether rows at different tokens can be decoded together: nothing needs them all at the same token."""
    held = sampling.min_new_tokens > 0 and not sampling.ignore_eos
    return processor is None and guide.reward is None and not held


def _capacity(room: int, batch_size: int, batch_tokens: int | None) -> Callable[[int], int]:
    """Rows that may be decoded together, by the length of the longest prompt; at least one."""
    if batch_tokens is None:
        return lambda _longest: batch_size
    return lambda longest: max(1, min(batch_size, batch_tokens // (longest + room)))


def _check(prompts: Sequence[Sequence[int]], batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} is empty; give it at least a BOS token")


@contextmanager
def _decoding(actor: Any, model: Any, adapter: bool) -> Iterator[None]:
    """Whole weights, evaluation mode, the adapter on or off."""
    with ExitStack() as stack:
        stack.enter_context(unsharded(actor))
        stack.enter_context(evaluating(actor))
        # Autocast would cast every weight again for every token; the weights decode in their own dtype instead, but for
        # those of shards that were gathered for autocast.
        half = compute_dtype(actor)
        stack.enter_context(torch.autocast(model.device.type, dtype=half, enabled=half is not None))
        if not adapter and is_adapted(actor.model):
            stack.enter_context(actor.model.disable_adapter())
        yield


@contextmanager
def _mixture(
    guide: Guide, first: Any, prompts: Sequence[Sequence[int]], form: PromptForm
) -> Iterator[WeightedModels | None]:
    """The other models of a mixture, ready to decode; that of the first actor's own base is ready already."""
    with ExitStack() as stack:
        others = []
        for mixed in guide.others:
            if not mixed.weight:
                continue
            actor: Any = mixed.actor
            context = nullcontext if mixed.adapter else actor.model.disable_adapter
            if actor is not first:
                stack.enter_context(unsharded(actor))
                stack.enter_context(evaluating(actor))
            model: Any = transformers_model(actor)
            with context():
                prefix = shared_prefix(model, prompts, form)
            others.append(WeightedModel(model, mixed.weight, context, prefix))
        yield WeightedModels(guide.weight, tuple(others)) if others or guide.weight != 1 else None


def _ends(model: Any, sampling: Sampling) -> list[int]:
    """Tokens that end a response: the model's own and those asked for."""
    eos = model.generation_config.eos_token_id
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return sorted({*ids, *sampling.stop})


def _batches(
    prompts: Sequence[Sequence[int]], room: int, batch_size: int, batch_tokens: int | None
) -> Iterator[list[int]]:
    """Rows to decode together: by length of the prompt, equal prompts side by side."""
    first: dict[tuple[int, ...], int] = {}
    keys = [(len(prompt), first.setdefault(tuple(prompt), row)) for row, prompt in enumerate(prompts)]
    batch: list[int] = []
    for row in sorted(range(len(prompts)), key=keys.__getitem__):
        tokens = (len(batch) + 1) * (len(prompts[row]) + room)
        if batch and (len(batch) == batch_size or (batch_tokens is not None and tokens > batch_tokens)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _batch(
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    streams: Sequence[tuple[int, int]],
    sampling: Sampling,
    prefix: SharedPrefix | None,
    candidates: int,
) -> Batch:
    repeats: dict[tuple[int, ...], int] = {}
    for row in rows:
        prompt = tuple(prompts[row])
        repeats[prompt] = repeats.get(prompt, 0) + candidates
    each = [stream for row in rows for stream in candidate_streams(streams[row], candidates)]
    return Batch(list(repeats), list(repeats.values()), uniforms(each, sampling.max_new_tokens), prefix)


def candidate_streams(stream: tuple[int, int], candidates: int) -> list[tuple[int, int]]:
    """Streams of the candidates of one response, of which the first one is that of the response itself."""
    seed, number = stream
    return [stream, *((stream_seed("candidate", seed, other), number) for other in range(1, candidates))]
