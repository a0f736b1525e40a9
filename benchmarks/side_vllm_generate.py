"""vLLM in process drawing responses, in an environment of its own that needs nothing of this project."""

from __future__ import annotations

import os
from typing import Any

from drawing import rounds
from worker import Clock

os.environ |= {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip


def run(settings: dict[str, Any], prompts: list[list[int]], clock: Clock) -> list[float]:
    """Draw; return the new tokens of each round."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        settings["model"], dtype=settings["dtype"] or "float32", enforce_eager=True, max_model_len=1024,
        max_num_seqs=settings["batch_size"], skip_tokenizer_init=True,
    )  # fmt: skip
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]

    def draw(_number: int, tokens: int) -> list[int]:
        sampling = SamplingParams(
            n=settings["group"], temperature=1.0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False
        )
        llm.reset_prefix_cache()
        requests = llm.generate(inputs, sampling, use_tqdm=False)
        return [len(output.token_ids) for request in requests for output in request.outputs]

    return rounds(settings, clock, draw)
