"""From a composed configuration to the job that ``rlhf plan`` counts. Nothing here loads weights or data."""

from __future__ import annotations

from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.build import make_models, reference_kind
from rlhf_lightning.cli.draws import draws
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.ops.log_probs import BLOCK_BYTES, DEFAULT_BLOCK_BYTES
from rlhf_lightning.planning import Draws, Job, shape_of
from rlhf_lightning.planning.job import Precision

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Bytes of a quantised weight: NF4 with double quantisation has 4.127 bits (arXiv:2305.14314, section 3).
_QUANTIZED = {"nf4": 4.127 / 8, "int8": 1.0}
#: Responses of a list where the data decides how many there are.
RANKED = 4


def job_of(cfg: DictConfig, prompt: int, response: int | None, *, processor: bool) -> Job:
    """Describe what a configuration trains, as shapes and numbers.

    Args:
        cfg: of ``rlhf train``.
        prompt: tokens of a prompt.
        response: tokens of a response; None: ``rollout.max_new_tokens`` where responses are drawn, else 256.
        processor: whether it is trained on a CPU.

    Raises:
        ConfigError: steps are counted in tokens, or the adapter is none whose weights are counted here.
    """
    if cfg.data.get("batch_size") is None:
        raise ConfigError("rlhf plan counts groups: set data.batch_size, and data.max_tokens=null")
    method: Any = make(cfg.method)
    drawn = draws(cfg, method.func)
    models = make_models(cfg, reference_kind(cfg, method))
    adapter: Any = models.adapter
    if adapter is not None and not isinstance(adapter, Lora):
        raise ConfigError(f"rlhf plan counts LoRA adapters, and this one is a {type(adapter).__name__}")
    source: Any = models.source
    precision = _precision(str(cfg.trainer.precision))
    weight = 2.0 if precision == "half" else float(_BYTES.get(str(source.dtype), 2))
    quantize = None if adapter is None else adapter.quantize
    if response is None:
        response = int(cfg.rollout.max_new_tokens) if drawn else 256
    return Job(
        shape=shape_of(source.configuration(), adapter),
        groups=int(cfg.data.batch_size),
        prompt=prompt,
        response=response,
        responses=_responses(cfg, method),
        accumulate=int(cfg.trainer.accumulate_grad_batches),
        precision=precision,
        weight_bytes=weight if quantize is None else _QUANTIZED[quantize],
        optimizer_bytes=optimizer_bytes(cfg, 2 if precision == "half" and adapter is None else 4),
        reference=_reference(ReferenceKind(models.reference), adapter),
        critic=OmegaConf.select(cfg, "method.critic.kind") == "separate",
        checkpointing=bool(models.gradient_checkpointing),
        head_block=BLOCK_BYTES["cpu"] if processor else DEFAULT_BLOCK_BYTES,
        draws=_draws(cfg, method, weight) if drawn else None,
    )


def _precision(name: str) -> Precision:
    if name.endswith("-mixed"):
        return "mixed"
    return "half" if name.endswith("-true") and name.startswith(("bf16", "16")) else "float32"


def optimizer_bytes(cfg: DictConfig, width: int) -> float:
    """Bytes that the optimiser keeps of a trained weight: two numbers for Adam, in 8 bits one byte each."""
    target = str(cfg.optimizer["_target_"]).rpartition(".")[2].lower()
    if "8bit" in target:
        return 2.0
    if target == "adafactor":  # a row and a column of each matrix
        return 0.0
    if "betas" in cfg.optimizer:
        return 2.0 * width
    return float(width) if cfg.optimizer.get("momentum") or "alpha" in cfg.optimizer else 0.0


def _responses(cfg: DictConfig, method: Any) -> int:
    """Responses of a group that are trained on."""
    if method.func.draws and not cfg.get("rounds"):
        rollout = cfg.method.get("rollout") or {}
        return int(rollout.get("keep") or rollout.get("group_size") or 1)
    return len(KINDS[method.func.kind_with(method.keywords)].slots) or RANKED


def _reference(kind: ReferenceKind, adapter: Any) -> Literal["copy", "shared", "none"]:
    if kind is ReferenceKind.AUTO:
        kind = ReferenceKind.FROZEN if adapter is None or adapter.path else ReferenceKind.ADAPTER_OFF
    if kind is ReferenceKind.ADAPTER_OFF:
        return "shared"
    return "copy" if kind in (ReferenceKind.FROZEN, ReferenceKind.TEACHER) else "none"


def _draws(cfg: DictConfig, method: Any, weight: float) -> Draws:
    """Drawing of a rollout; where rounds draw, of the samples of their draws."""
    rounds, rollout = cfg.get("rounds") or {}, cfg.method.get("rollout") or {}
    samples = sum(int(draw.get("n") or 1) for draw in rounds.get("draws") or ()) or int(rollout.get("group_size") or 1)
    engine, vllm = str(cfg.rollout["_target_"]), cfg.rollout.get("vllm") or {}
    dtype = vllm.get("dtype") if vllm else cfg.rollout.get("dtype")
    width = _BYTES.get(str(dtype), round(weight))
    elsewhere = "VLLMServer" in engine or "OpenAI" in engine
    epochs, minibatches = int(rollout.get("inner_epochs") or 1), int(rollout.get("minibatches") or 1)
    old = epochs * minibatches > 1
    critic = OmegaConf.select(cfg, "method.critic.kind") == "separate"
    return Draws(
        responses=samples,
        batch=int(vllm.get("max_num_seqs") or cfg.rollout.get("batch_size") or 64),
        copy_bytes=0 if elsewhere or not (vllm or dtype) else width,
        cache_bytes=0 if elsewhere else width,
        minibatches=minibatches,
        epochs=epochs,
        scoring=int(old) + int(critic),
    )
