"""Rollouts by vLLM in the process that trains: a copy of the weights, renewed at every sync."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from rlhf_lightning.options import Count, value_object
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.rollout.completions import copies, draws, server_seed
from rlhf_lightning.rollout.device_defaults import eager
from rlhf_lightning.rollout.vllm_adapters import check_adapter
from rlhf_lightning.rollout.vllm_options import (
    INSTALL,
    RestrictedSampling,
    VLLMOptions,
    check_gap,
    check_request,
    fitting,
    installed,
    set_environment,
)
from rlhf_lightning.rollout.vllm_worker import fix_tied
from rlhf_lightning.rollout.weights import dtype_name, ends, policy_weights, write_config
from rlhf_lightning.types import Sample, Sampling, ended_by_text

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.adapters.lora import Adapter

log = logging.getLogger(__name__)


@former_arguments("rlhf_lightning.rollout.VLLMEngine")
class VLLMEngine:
    """Samples from a copy of the policy that vLLM holds in this process.

    Each process of a run has an engine of its own. It is built at the first sync, without weights, so that every sync
    is the same: the policy's weights (an adapter merged in copies) go in by name, a tied head is packed again, and
    prompts that the old policy computed are forgotten.

    Sample ``j`` of a prompt draws from vLLM's generator of the prompt's seed plus ``j``, whatever is drawn beside it;
    but vLLM's batches round differently, so what is drawn may change where two tokens are nearly as likely:
    ``exact`` is False.

    Args:
        tokenizer: not used; ids go in and out.
        max_new_tokens: most tokens of a response, its EOS included.
        min_new_tokens: tokens before which a response cannot end; above 0 samples carry no log-probs.
        vllm: settings of vLLM; the options of ``VLLMOptions`` by name.
        max_gap: largest mean difference from the trainer's log-probs at which a run continues, in nats a token;
            null: any. In bfloat16 0.03 to 0.05 is usual.
        options: further arguments of ``vllm.LLM``.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ValueError: an option is out of range.
    """

    name = "vllm"
    exact = False
    frozen = False
    sources = frozenset({"policy"})

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_new_tokens: Count = 256,
        min_new_tokens: int = 0,
        vllm: VLLMOptions | Mapping[str, Any] | None = None,
        max_gap: float | None = 0.2,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        Sampling(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)  # checks them
        check_gap(max_gap)
        self.vllm = value_object(VLLMOptions, vllm, VLLMOptions.node)
        if not installed():
            raise ModuleNotFoundError(INSTALL)
        self.max_new_tokens, self.min_new_tokens, self.max_gap = max_new_tokens, min_new_tokens, max_gap
        self.dtype, self.max_model_len, self.memory = self.vllm.dtype, self.vllm.max_model_len, self.vllm.memory
        self._arguments: dict[str, Any] = {
            "max_num_seqs": self.vllm.max_num_seqs,
            "gpu_memory_utilization": self.vllm.gpu_memory_utilization,
            **(options or {}),
        }
        self.version = 0
        self._llm: Any = None
        self._sleeps = self._asleep = False
        self._had_group = False  # whether the default process group was there before vLLM was
        self._ends: list[int] = []
        self._restricted = RestrictedSampling()

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Refuse a run's adapter whose base cannot be copied, before weights load."""
        check_adapter(adapter, lora=False, serves_base=False)

    def sync(self, policy: Actor, version: int) -> None:
        """Take the policy's weights; a collective call. The first one builds the engine.

        Raises:
            ValueError: the policy's base is quantised.
        """
        weights = policy_weights(policy)
        if self._llm is None:
            self._llm = self._build(policy)
        self._wake()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        self._llm.apply_model(fix_tied)
        self._llm.reset_prefix_cache()
        self._ends, self.version = ends(policy), version

    def _build(self, policy: Actor) -> Any:
        """The engine with random weights. Process groups must exist before: vLLM makes one of its own otherwise."""
        set_environment(
            {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": str(self.memory),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would pin the trainer's threads too
            }
        )
        from vllm import LLM
        from vllm.platforms import current_platform

        self.max_model_len = fitting(self.max_model_len, policy)
        self._had_group = dist.is_initialized()
        distributed = torch.cuda.is_available() and self._had_group and dist.get_world_size() > 1
        arguments: dict[str, Any] = {"distributed_executor_backend": "external_launcher"} if distributed else {}
        arguments["enforce_eager"] = eager(self.vllm.enforce_eager, cpu=current_platform.is_cpu())
        if not current_platform.is_cpu():
            arguments["enable_sleep_mode"] = True  # the trainer needs the memory between rollouts
        else:
            # A request with a seed whose prompt is cut into chunks raises there: a CPU's generator has no offset.
            arguments["enable_chunked_prefill"] = False
        arguments |= self._arguments
        self._sleeps = bool(arguments.get("enable_sleep_mode"))
        if self._sleeps:
            log.info("vLLM sleeps between rollouts: its weights go to the host's memory, keys and values are freed")
        set_num_threads = torch.set_num_threads
        with tempfile.TemporaryDirectory(prefix="rlhf-vllm-") as folder:
            write_config(policy, Path(folder))
            try:
                return LLM(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    dtype=dtype_name(policy) if self.dtype == "auto" else self.dtype,
                    max_model_len=self.max_model_len,
                    logprobs_mode="processed_logprobs",
                    **arguments,
                )
            finally:
                torch.set_num_threads = set_num_threads  # on a CPU vLLM puts a no-op in its place

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Draw ``n`` responses to each prompt; at temperature 0 they are copies of one.

        Raises:
            ValueError: no policy was given yet, ``n`` is out of range, a prompt is too long, or the
                temperature is above 0 and below 0.01.
        """
        if self._llm is None:
            raise ValueError("the engine has no policy yet: call sync(policy, version) before generate")
        if n < 1:
            raise ValueError(f"n={n} samples a prompt must be at least 1")
        check_request(prompts, sampling, self.max_model_len)
        if not prompts:
            return []
        parameters = [self._parameters(sampling, draws(sampling, n), seed) for seed in seeds]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        restricted = self._restricted(sampling)
        self._wake()
        requests = self._llm.generate(inputs, parameters, use_tqdm=False)
        if self._sleeps:
            self._llm.sleep(level=1)
            self._asleep = True
        drawn = [[self._sample(output, restricted) for output in request.outputs] for request in requests]
        return [copies([ended_by_text(sample, sampling) for sample in samples], n) for samples in drawn]

    def _wake(self) -> None:
        """Take the memory back that the trainer had between rollouts."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _parameters(self, sampling: Sampling, n: int, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            min_tokens=sampling.min_new_tokens,
            ignore_eos=sampling.ignore_eos,
            stop_token_ids=[] if sampling.ignore_eos else [*self._ends, *sampling.stop],
            seed=server_seed(seed),
            logprobs=0,  # of the drawn token only
            detokenize=False,
        )

    def _sample(self, output: Any, restricted: bool) -> Sample:
        ids = [int(token) for token in output.token_ids]
        log_probs = (
            [] if restricted else [float(at[token].logprob) for at, token in zip(output.logprobs, ids, strict=True)]
        )
        return Sample(ids, log_probs, "length" if output.finish_reason == "length" else "stop", self.version)

    def close(self) -> None:
        """Free the copy of the weights and the keys and values."""
        if self._llm is not None:
            with _process_group_kept(keep=self._had_group):
                self._llm.llm_engine.engine_core.shutdown()
            self._llm = None


@contextmanager
def _process_group_kept(*, keep: bool) -> Iterator[None]:
    """Let vLLM end its own process groups but not the default one, which belongs to the trainer.

    An engine that is shut down destroys the default group, whoever made it; the trainer's next collective call fails.
    """
    destroy = dist.destroy_process_group

    def destroy_groups(group: Any = None) -> None:
        if group is not None or not keep:
            destroy(group)

    dist.destroy_process_group = destroy_groups
    try:
        yield
    finally:
        dist.destroy_process_group = destroy
