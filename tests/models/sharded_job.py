"""Job of ``test_sharding.py`` in two processes: everything that must not depend on sharding, against one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.export.policy import export
from rlhf_lightning.models.fingerprint import reference_fingerprint
from rlhf_lightning.models.memory import describe
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models, shard
from rlhf_lightning.models.roles.reference import AdapterDisabled, FrozenCopy
from rlhf_lightning.models.sharding import reshard
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.types import PackedBatch
from tests.models.pairs import pairs

CASES = {
    "full": (TinyRandom(), None, "frozen"),
    "tied": (TinyRandom(tie_embeddings=True, gradient_checkpointing=True), None, "frozen"),
    "lora": (TinyRandom(), Lora(r=4, seed=0), "adapter_off"),
    "lora_frozen": (TinyRandom(gradient_checkpointing=True), Lora(r=4, seed=0, init=False), "frozen"),
}
PROMPTS = [[1, 50, 60], [1, 70], [1, 80, 90, 100, 110], [1, 40, 41]]


def step(models: Models, batch: PackedBatch) -> dict[str, torch.Tensor]:
    """One step of a preference-like loss that also looks at the most likely tokens; the gradients by name."""
    policy = models.policy.train()
    rejected = torch.arange(len(batch.response_span)) % 2 == 1
    log_probs = policy(batch, top_width=3, top_of=rejected)
    ratio = log_probs.sum() - models.reference(batch).sum()
    contrast = log_probs.top.target_logit - log_probs.top.logit[:, 2]
    ((ratio * torch.arange(len(ratio))).mean() + 0.1 * contrast.sum()).backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


def build(source: TinyRandom, adapter: Lora | None, kind: str) -> Models:
    """The models of a case; an adapter that does not start at zero is held against its base, which no run would do."""
    models = ModelBuilder(source, adapter, "frozen" if kind == "frozen" else "none")()
    models.reference = models.reference or AdapterDisabled(models.policy)
    return models


def change(models: Models, whole: Models, step: Callable[[torch.Tensor], object]) -> None:
    """Change what is trained of a sharded policy and of its whole twin."""
    reshard(models.policy)
    with torch.no_grad():
        for parameter in [*models.policy.parameters(), *whole.policy.parameters()]:
            if parameter.requires_grad:
                step(parameter)


def check(name: str, folder: Path) -> None:
    source, adapter, kind = CASES[name]
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    builder = partial(build, source, adapter, kind)
    whole, models = builder(), builder()
    batch = pairs(3)
    expected = whole.policy.eval()(batch).token.detach(), whole.reference(batch).token, step(whole, batch)

    shard(models, mesh)
    shard(models, mesh)  # again: no effect
    assert isinstance(models.policy, FSDPModule)
    assert all(isinstance(p, DTensor) for p in models.policy.parameters())
    groups = [part for part in models.policy.modules() if isinstance(part, FSDPModule)]
    assert len(groups) == 3, "two layers and the root"
    if kind == "frozen":
        assert not any("reference" in key for key in models.policy.state_dict())
        assert isinstance(models.reference.actor, FSDPModule)
        assert not any(p.requires_grad for p in models.reference.actor.parameters())

    # log-probs, gradients
    for _ in range(2):  # the second pass starts from a root that the first left gathered
        torch.testing.assert_close(models.policy.eval()(batch).token.detach(), expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(models.reference(batch).token, expected[1], rtol=0, atol=1e-6)
    gradients = step(models, batch)
    assert gradients.keys() == expected[2].keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[2][key], rtol=1e-5, atol=1e-5, msg=key)
    models.policy.zero_grad()
    whole.policy.zero_grad()

    # generation, of different lengths on the two processes
    lengths = 3 + 9 * rank
    texts = generate(models.policy, PROMPTS[rank:], max_new_tokens=lengths, seed=5, batch_size=2)
    assert texts == generate(whole.policy, PROMPTS[rank:], max_new_tokens=lengths, seed=5, batch_size=2)
    assert all(isinstance(p, DTensor) for p in models.policy.parameters())
    torch.testing.assert_close(step(models, batch), gradients)

    if kind == "adapter_off":  # it starts as its base; what is exported below is to differ from that
        change(models, whole, lambda parameter: parameter.add_(0.1))

    # what reads the weights
    assert reference_fingerprint(models.policy) == reference_fingerprint(whole.policy)
    assert describe(models, tokens=64).parameters == describe(whole, tokens=64).parameters
    assert describe(models, tokens=64).weights < 0.6 * describe(whole, tokens=64).weights
    logits = whole_logits(whole)
    export(models.policy, models.tokenizer, folder / name / "sharded")
    if adapter is not None:
        export(models.policy, models.tokenizer, folder / name / "merged", form="merged")

    # a reference that follows
    if isinstance(models.reference, FrozenCopy):
        change(models, whole, lambda parameter: parameter.mul_(1.1))
        for each in (models, whole):
            each.reference.refresh(each.policy, 0.5)
        torch.testing.assert_close(models.reference(batch).token, whole.reference(batch).token, rtol=0, atol=1e-5)
        assert (models.reference(batch).token - expected[1]).abs().max() > 1e-2
    if rank == 0:
        torch.save(logits, folder / name / "logits.pt")
        source.load().save_pretrained(folder / name / "base")


def whole_logits(models: Models) -> torch.Tensor:
    with torch.no_grad():
        return models.policy.eval().model(torch.tensor(PROMPTS[2:3])).logits


def main(folder: Path) -> None:
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    for name in CASES:
        (folder / name).mkdir(exist_ok=True)
        check(name, folder)
    quantised = ModelBuilder(TinyRandom(), Lora(quantize="nf4", seed=0), "adapter_off")
    try:
        shard(quantised(), init_device_mesh("cpu", (dist.get_world_size(),)))
    except ValueError as error:
        assert "adapter.quantize" in str(error)  # noqa: PT017
    except ModuleNotFoundError:  # bitsandbytes is optional
        pass
    else:
        raise AssertionError("quantised weights were sharded")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
