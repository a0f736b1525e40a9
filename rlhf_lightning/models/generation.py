"""Responses from the live policy: sample tables, KL on the policy's own samples, ``rlhf generate``.

Token ids in, token ids out; nothing is decoded and tokenised again. It stands on transformers' ``generate`` with every
setting given here: the sampling defaults that a checkpoint carries (top-k 50, a repetition penalty) would make samples
of another distribution than the one that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.naming import transformers_model
from rlhf_lightning.models.roles import evaluating
from rlhf_lightning.models.sharding import unsharded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from rlhf_lightning.models.actor import Actor

unsharded_for_generation = unsharded


@torch.no_grad()
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
    processor: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """Sample one response for each prompt.

    Prompts are batched by length and padded on the left; each batch draws from a generator of its own, so the same
    arguments give the same responses and the global generators are left as they were. The model runs in evaluation
    mode. Sharded weights are gathered once: every process must call this, each with as many prompts as it has.

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

    Returns:
        The response of each prompt in the order of ``prompts``, with its EOS token; without one it was cut off.

    Raises:
        ValueError: an option is out of range, or a prompt is empty.
    """
    _check(prompts, max_new_tokens, temperature, top_p, batch_size)
    model = transformers_model(actor)
    config = _generation_config(model, max_new_tokens, temperature, top_p)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in prompts]
    with ExitStack() as stack:
        stack.enter_context(unsharded(actor))
        stack.enter_context(evaluating(actor))
        stack.enter_context(_only(model, config))
        # Autocast would cast every weight again for every token; the weights decode in their own dtype instead.
        stack.enter_context(torch.autocast(model.device.type, enabled=False))
        if not adapter and is_adapted(actor.model):
            stack.enter_context(actor.model.disable_adapter())
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with _generators(seed * 1_000_003 + start, model.device):
                answers = _decode(model, [prompts[i] for i in rows], config, processor)
            for row, answer in zip(rows, answers, strict=True):
                responses[row] = answer
    return responses


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, top_p: float, batch: int) -> None:
    if max_new_tokens < 1 or batch < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} and batch_size={batch} must be at least 1")
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature={temperature} must be >= 0 and top_p={top_p} in (0, 1]")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} is empty; give it at least a BOS token")


def _decode(
    model: PreTrainedModel,
    prompts: list[Sequence[int]],
    config: GenerationConfig,
    processor: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[list[int]]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), int(config.pad_token_id))
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    generator: Any = model
    out = generator.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
        logits_processor=[] if processor is None else [processor],
    )
    ends = set(config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id])
    return [_until_end(row, ends) for row in out[:, longest:].tolist()]


def _until_end(ids: list[int], ends: set[int | None]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def _generation_config(model: Any, max_new_tokens: int, temperature: float, top_p: float) -> GenerationConfig:
    from transformers import GenerationConfig

    own = model.generation_config
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    ends = own.eos_token_id
    first = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else first or 0,
        **({"do_sample": False} | sampling),
    )


@contextmanager
def _only(model: Any, config: GenerationConfig) -> Iterator[None]:
    """``generate`` fills what a config leaves open from the model's own; for a while that is the same config."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _generators(seed: int, device: torch.device) -> Iterator[None]:
    """Generators at a seed, put back afterwards (``generate`` draws from the global ones only)."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
