"""Code that runs inside vLLM: new weights in place, also where a CPU keeps packed copies of them.

Imported by vLLM's worker processes (``--worker-extension-cls``), so it imports torch only, and vLLM when it is called.
"""

from __future__ import annotations

from typing import Any

from torch import nn

#: As ``--worker-extension-cls`` takes it.
EXTENSION = "rlhf_lightning.rollout.vllm_worker.PolicyWorker"


def fix_tied(model: nn.Module) -> None:
    """Pack a tied head again after a reload.

    On a CPU vLLM keeps each linear layer's weight in oneDNN's packed layout. With tied embeddings no tensor of the
    head arrives in a reload, so its packed copy stays that of the *old* embedding: the model responds, with a wrong
    head. Found in vLLM 0.32; a head that is not packed is left alone.
    """
    head: Any = getattr(model, "lm_head", None)
    if head is None or getattr(head, "cpu_linear", None) is None or not head.weight.numel():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(head, remove_weight=False)


class PolicyWorker:
    """Mixed into vLLM's worker by a server that is started for training."""

    model_runner: Any

    def load_policy(self, path: str) -> None:
        """Take the weights of a folder with safetensors; routes carry strings only."""
        self.model_runner.reload_weights(weights_path=path)
        fix_tied(self.model_runner.get_model())
