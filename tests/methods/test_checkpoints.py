"""Contents of a checkpoint, and models that refuse to load it."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from rlhf_lightning.callbacks import LastCheckpoint, ReferenceSync
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.rewards import ImplicitReward
from tests.helpers.training import Builder, loader, preference, trainer


def tiny(adapter: Lora | None = None, hidden_size: int = 16) -> Preference:
    source = TinyRandom(hidden_size=hidden_size, intermediate_size=32)
    return Preference(ModelBuilder(source, adapter), partial(dpo, beta=0.1), partial(torch.optim.AdamW, lr=1e-3))


def saved(tmp_path, module, *callbacks) -> dict:
    run = trainer(tmp_path, [LastCheckpoint(), *callbacks], plugins=[AtomicCheckpointIO()])
    run.fit(module, loader(2))
    return torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)  # plain containers only


def test_full_checkpoint_has_the_policy_and_not_the_reference(tmp_path):
    module = preference()
    checkpoint = saved(tmp_path, module)
    assert checkpoint["state_dict"].keys() == {f"policy.{name}" for name, _ in module.policy.named_parameters()}
    assert "reference" not in checkpoint


def test_adapter_checkpoint_has_the_adapter_only(tmp_path):
    module = tiny(Lora(r=2))
    checkpoint = saved(tmp_path, module)
    assert checkpoint["state_dict"]
    assert all("lora_" in name for name in checkpoint["state_dict"])


def test_refreshed_reference_is_state(tmp_path):
    module = preference()
    checkpoint = saved(tmp_path, module, ReferenceSync(every_n_steps=2, alpha=1.0))
    for name, weight in checkpoint["reference"].items():
        assert torch.equal(weight, checkpoint["state_dict"][f"policy.{name}"])  # a hard update at the last step


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: tiny(Lora(r=2)), r"lacks .*lora_.*resume with the model, adapter"),
        (lambda: tiny(hidden_size=32), r"another shape for"),
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path, other, message):
    saved(tmp_path, tiny())
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(other(), loader(2), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def test_a_refreshed_reference_needs_a_copy_to_load_into(tmp_path):
    saved(tmp_path, preference(), ReferenceSync(every_n_steps=1))
    module = preference(builder=Builder("cached"))
    with pytest.raises(ValueError, match="reference=frozen"):
        trainer(tmp_path).fit(module, loader(2), ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


def cached(fingerprint: str) -> Preference:
    module = preference(builder=Builder("cached"))
    module.configure_model()
    module.reference.fingerprint = fingerprint
    return module


class WithReference(L.Callback):
    """Gives every batch log-probs of a reference."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch.reference_log_probs = torch.zeros(len(batch.target))


def test_a_cached_reference_of_another_model_is_refused(tmp_path):
    """The numbers would be those of another initial policy from the resume on."""
    assert saved(tmp_path, cached("one"), WithReference())["reference_fingerprint"] == "one"
    path = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, [WithReference()]).fit(cached("one"), loader(2), ckpt_path=path)
    with pytest.raises(ValueError, match=r"reference=cached.*not the one that this run began with.*adapter\.path"):
        trainer(tmp_path, [WithReference()]).fit(cached("other"), loader(2), ckpt_path=path)


@pytest.mark.parametrize("init", [True, False])
def test_an_export_notes_an_adapter_that_did_not_start_as_its_base(tmp_path, init):
    """A model trained from another start has another reference than the base that its folder names."""
    TinyRandom(hidden_size=16, intermediate_size=32).load().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    builder = ModelBuilder(Pretrained(str(tmp_path / "base")), Lora(r=2, seed=0, init=init), "auto")
    module = Preference(builder, partial(dpo, beta=0.1))
    module.configure_model()
    folder = str(module.export(tmp_path / "export"))
    if init:
        ImplicitReward(path=folder)
        return
    with pytest.raises(ValueError, match=rf"not start at zero.* set reward\.reference={tmp_path / 'base'} if .*\.path"):
        ImplicitReward(path=folder)
    ImplicitReward(path=folder, reference=str(tmp_path / "base"))


def test_validation_of_a_checkpoint_uses_its_weights(tmp_path):
    module = preference(lr=0.5)
    saved(tmp_path, module)
    other = preference()
    trainer(tmp_path).validate(other, loader(1), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False)
    for (name, weight), (_, expected) in zip(
        other.policy.named_parameters(), module.policy.named_parameters(), strict=True
    ):
        assert torch.equal(weight, expected), name
