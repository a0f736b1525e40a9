"""Test by numbers whether the model beneath an adapter is the initial policy at the start of training.

LoRA's update starts at zero, so switching the adapter off gives the initial policy, for no memory. It does not where
the update starts elsewhere (a trained adapter; ``pissa``, ``olora`` and the like, which also rewrite the base), and it
does not stay where weights beneath the adapter are trained (biases, norms). Names of options cannot tell these apart
for good: the two models are compared.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.adapters.lora import without_adapter
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.loading.naming import adapter_parts, transformers_model
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.sharding import compute_dtype, reshard

if TYPE_CHECKING:
    from peft import LoraConfig

#: Tokens of the row that both models read, spread over the vocabulary.
_TOKENS = 16
#: Logits of the base that a checkpoint keeps.
_KEPT = 64
#: Rows of an adapted embedding that are compared at once.
_ROWS = 8192
#: Inputs and outputs of the layer that a start is tried on; LoftQ quantises blocks of 64.
_TRIAL_SIZE = 64
#: Fields of PEFT's configuration that a start reads.
_START_SETTINGS = ("loftq_config", "corda_config", "eva_config")
#: Beside an exported adapter that did not start at zero.
_NOTE = "adapter_start.json"
#: Key of :meth:`AdapterStart.state` in a checkpoint.
BASE = "adapter_base"


@dataclass(frozen=True)
class AdapterStart:
    """The policy at the start of training, held against the policy without its adapter.

    Args:
        difference: largest difference of a logit or of an entry of an adapted embedding, beyond what a repeated pass
            differs by (nothing, but on devices that add in any order).
        moving: names of the weights that are trained and are used with the adapter switched off, too.
        base: some logits of the policy without its adapter.
        tolerance: difference of logits, relative to the largest one, that rounding on another machine explains.
    """

    difference: float
    moving: tuple[str, ...]
    base: tuple[float, ...]
    tolerance: float

    @property
    def is_base(self) -> bool:
        """Return whether the policy without its adapter is the initial policy and stays it."""
        return self.difference == 0 and not self.moving

    def reason(self) -> str:
        """Reason why it is not, as a message."""
        reasons = []
        if self.difference != 0:  # nan as well
            size = "" if math.isnan(self.difference) else f" by up to {self.difference:.3g}"
            reasons.append(
                f"the adapter does not start at zero (with it numbers differ{size}: a trained adapter in adapter.path, "
                "or adapter.init)"
            )
        if self.moving:
            reasons.append(
                f"{len(self.moving)} of the trained weights are used without the adapter, too, for example "
                f"{self.moving[0]} (adapter.options.bias)"
            )
        return ", and ".join(reasons)

    def note(self, folder: Path) -> None:
        """Note beside an exported adapter that its base is not what it was trained from; nothing where it is."""
        if self.difference != 0:
            note = {"is_base": False, "difference": self.difference}
            (folder / _NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as plain containers: it has the adapter, and not the base beneath it."""
        return {"base": list(self.base), "tolerance": self.tolerance}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that was trained on another base.

        Args:
            saved: :meth:`state` of the run that wrote it.

        Raises:
            ValueError: the bases' logits differ by more than rounding.
        """
        present, recorded = torch.tensor(self.base), torch.tensor(saved["base"])
        close = max(self.tolerance, saved["tolerance"])
        if present.shape == recorded.shape and _difference(present, recorded) <= close * float(recorded.abs().max()):
            return
        raise ValueError(
            "the checkpoint's adapter was trained on another base than this one, and the checkpoint holds the adapter "
            "only: resume with the model that it was trained on (model.name, adapter.quantize) and, if adapter.init "
            "draws what it takes from the base (pissa_niter_4), with its adapter.seed; or set ckpt_path=null"
        )


@torch.no_grad()
def adapter_start(policy: Backbone) -> AdapterStart:
    """Compare a policy at its start with itself without its adapter: two passes over a short row, without dropout.

    Every process computes the same on whole weights, without communication: call it before they are sharded.

    Args:
        policy: with an adapter, untrained.
    """
    with evaluating(policy), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of trained biases, which are looked for here
        return _measured(policy)


def expected_start(policy: Backbone) -> AdapterStart:
    """Start of a policy whose base is not read yet, from the adapter alone: a LoRA is nothing where its B is zero.

    Args:
        policy: with a LoRA, untrained; nothing beneath it is trained.
    """
    base = transformers_model(policy)
    parts = adapter_parts(base)
    trained = [name for name, value in base.named_parameters() if value.requires_grad]
    moving = tuple(name for name in trained if not name.startswith(parts))
    factors = [value for name, value in base.named_parameters() if ".lora_B." in name]
    zero = bool(factors) and not any(bool(value.any()) for value in factors)
    return AdapterStart(0.0 if zero else math.nan, moving, (), 0.0)


@torch.no_grad()
def measured_start(policy: Backbone, expected: AdapterStart) -> AdapterStart:
    """Result of :func:`adapter_start`, of a policy that is sharded by now; a collective call.

    Args:
        policy: at its start.
        expected: of :func:`expected_start`, by which the reference was chosen.

    Raises:
        RuntimeError: the policy is not as expected.
    """
    compute = compute_dtype(policy)
    device = next(policy.parameters()).device.type
    with evaluating(policy), torch.autocast(device, dtype=compute, enabled=compute is not None):
        measured: AdapterStart = policy.inside(lambda: _measured(policy, expected.moving))
    reshard(policy)
    if expected.is_base and not measured.is_base:
        raise RuntimeError(f"an adapter whose update is zero changes its base: {measured.reason()}")
    return measured


def _measured(policy: Backbone, moving: tuple[str, ...] | None = None) -> AdapterStart:
    """The comparison; None: gradients tell which weights move; whole weights have them."""
    first = _outputs(policy)
    with policy.adapter_switched(False), torch.set_grad_enabled(moving is None):
        second = _outputs(policy)
        moving = _reached(policy, second) if moving is None else moving
    second = second.detach()
    difference = _difference(first, second)
    if difference != 0:
        with policy.adapter_switched(False):
            repeated = _difference(second, _outputs(policy))
        difference = 0.0 if difference <= 4 * repeated else difference  # atomic additions on a GPU
    difference = max(difference, *_embedding_differences(policy), key=abs)
    kept = second[0, -1].float().cpu()
    kept = kept[_spread(len(kept) - 1, _KEPT)]
    rounding = torch.bfloat16 if is_quantized(policy) else compute_dtype(policy) or second.dtype
    return AdapterStart(difference, moving, tuple(kept.tolist()), torch.finfo(rounding).eps ** 0.5)


def starts_as_base(folder: str | Path) -> bool:
    """Return whether the adapter in a folder was trained from its base, as far as the folder says; see ``note``."""
    return not (Path(folder).expanduser() / _NOTE).is_file()


def rewrites_base(config: LoraConfig) -> bool:
    """Return whether a LoRA changes the layer that it is put on (``pissa``, ``olora``, ...), tried on a small one.

    Args:
        config: of the adapter; its start counts.

    Raises:
        ValueError: PEFT cannot make such an adapter as it is (``corda`` needs statistics of the layer's inputs).
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = {name: value for name in _START_SETTINGS if (value := getattr(config, name, None))}
    trial = LoraConfig(r=2, target_modules=["0"], init_lora_weights=config.init_lora_weights, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(_TRIAL_SIZE, _TRIAL_SIZE, bias=False)
        before = layer.weight.detach().clone()
        try:
            inject_adapter_in_model(trial, nn.Sequential(layer))
        except (ValueError, KeyError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"PEFT cannot start a layer with adapter.init={config.init_lora_weights}: {error}"
            ) from error
    return not torch.equal(layer.weight, before)


def _outputs(policy: Backbone) -> Tensor:
    """Logits of the row, ``[1, tokens, vocabulary]``; hidden states of a model that has no vocabulary."""
    base = policy.base
    table: Any = base.get_input_embeddings()
    embedding: Any = without_adapter(table)
    last = int(embedding.num_embeddings) - 1
    ids = _spread(last, _TOKENS).to(base.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if policy.needs_vocabulary:
        logits: Tensor = base(**inputs).logits
        return logits
    states: Tensor = policy.trunk(**inputs).last_hidden_state
    return states


def _spread(last: int, count: int) -> Tensor:
    """Whole numbers from 0 to ``last``, evenly spaced."""
    return torch.arange(count) * last // (count - 1)


def _reached(policy: Backbone, outputs: Tensor) -> tuple[str, ...]:
    """Names of the trained weights that outputs were computed with."""
    if not outputs.requires_grad:
        return ()
    trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(outputs.float().sum(), list(trained.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None)


def _embedding_differences(policy: Backbone) -> list[float]:
    """Largest difference of every adapted embedding: the row reads few of its tokens, an adapter may know others."""
    largest = [0.0]
    for module in policy.base.modules():
        table = without_adapter(module)
        if module is table or not isinstance(table, nn.Embedding):
            continue
        for ids in torch.split(torch.arange(table.num_embeddings, device=table.weight.device), _ROWS):
            first = module(ids)
            with policy.adapter_switched(False):
                largest.append(_difference(first, module(ids)))
    return largest


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; entries that are equal count as 0, infinite ones too."""
    apart = torch.where(one == other, torch.zeros_like(one), (one - other).abs())
    return float(apart.max())
