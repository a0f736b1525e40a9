"""Requests to ``/v1/completions`` and the meaning of its answers, for every server that has this route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.rollout.endpoint import ServerError
from rlhf_lightning.types import Sample, Sampling

#: Some servers keep seeds in signed 32 bits, and vLLM draws sample j of a request from its seed plus j.
SEEDS = (1 << 31) - (1 << 16)


def server_seed(seed: int) -> int:
    """A seed as servers take it, for a seed of any size."""
    return stream_seed(seed) % SEEDS


def draws(sampling: Sampling, n: int) -> int:
    """Samples to ask for: one where decoding is greedy, since all are the same and vLLM refuses more."""
    return n if sampling.temperature > 0 else 1


def copies(samples: Sequence[Sample], n: int) -> list[Sample]:
    """``n`` samples of those that :func:`draws` asked for: themselves, or copies of the only one."""
    if len(samples) == n:
        return list(samples)
    (only,) = samples
    return [replace(only, ids=list(only.ids), log_probs=list(only.log_probs)) for _ in range(n)]


def sampling_fields(sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
    """Fields of a request for ``n`` samples, those of the OpenAI API only unless an option asks for more.

    Args:
        sampling: how tokens are drawn. ``top_k``, ``min_new_tokens``, ``ignore_eos`` and ``stop`` are vLLM's and
            SGLang's extensions and are left out where they are at their defaults, since other servers refuse them.
        n: samples.
        seed: of the request, of any size.
    """
    fields: dict[str, Any] = {
        "n": n,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": server_seed(seed),
    }
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.min_new_tokens:
        fields["min_tokens"] = sampling.min_new_tokens
    if sampling.ignore_eos:
        fields["ignore_eos"] = True
    if sampling.stop:
        fields["stop_token_ids"] = list(sampling.stop)
    if sampling.form.stops:
        fields["stop"] = list(sampling.form.stops)
    return fields


def choices(answer: Any, n: int, url: str) -> list[Mapping[str, Any]]:
    """The answer's choices, in their order.

    Raises:
        ServerError: there are not as many as were asked for.
    """
    choices_given = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices_given, Sequence) or len(choices_given) != n:
        many = len(choices_given) if isinstance(choices_given, Sequence) else 0
        raise ServerError(
            f"{url} gave {many} choices where n={n} were asked for: {str(answer)[:200]}; a server that ignores n needs "
            "method.rollout.group_size=1"
        )
    return sorted(choices_given, key=lambda choice: choice.get("index", 0))


def finish(choice: Mapping[str, Any]) -> Literal["stop", "length"]:
    """Reason why a choice ended: the length limit, or a token or text that ends responses."""
    return "length" if choice.get("finish_reason") == "length" else "stop"


def token_sample(choice: Mapping[str, Any], version: int, url: str) -> Sample:
    """A choice of a server that returns its token ids and their log-probs (vLLM's ``return_token_ids``).

    Raises:
        ServerError: it does not.
    """
    ids = choice.get("token_ids")
    if not ids:
        raise ServerError(
            f"{url} returned no token ids: rollout=vllm_server needs vLLM's return_token_ids (0.11 or newer)"
        )
    log_probs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    if log_probs and len(log_probs) != len(ids):
        raise ServerError(f"{url} returned {len(ids)} token ids with {len(log_probs)} log-probs")
    return Sample([int(token) for token in ids], [float(x) for x in log_probs], finish(choice), version)
