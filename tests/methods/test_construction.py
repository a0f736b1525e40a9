"""What cannot work is refused before anything is loaded, and the message says what to change."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.methods import Preference, Supervised
from rlhf_lightning.types import PreferenceLoss
from tests.helpers.training import Builder, loader, preference, trainer


def unknown_input(policy, temperature_of_the_moon) -> PreferenceLoss: ...


@pytest.mark.parametrize(
    ("method", "loss", "reference", "message"),
    [
        (Preference, partial(losses.dpo, betta=0.1), "frozen", r"no option 'betta' .did you mean 'beta'"),
        (Preference, partial(losses.dpo, beta=-1.0), "frozen", r"beta=-1.0 is not allowed"),
        (Preference, losses.dpo, "none", r"reference=none.*reference=frozen, adapter_off or cached"),
        (Preference, unknown_input, "frozen", r"temperature_of_the_moon"),
        (Supervised, losses.dpo, "frozen", r"Supervised cannot give a loss \['reference'\].*supervised data"),
    ],
)
def test_refused_at_construction(method, loss, reference, message):
    builder = Builder(reference)
    with pytest.raises(ValueError, match=message):
        method(builder, loss)
    assert builder.built == 0


def test_unknown_statistic_is_refused():
    with pytest.raises(ValueError, match=r"method.statistics=\['kurtosis'\].*entropy"):
        preference(statistics=["kurtosis"])


def test_missing_margin_is_refused_before_weights_load(tmp_path):
    """The data module knows; without one, the first batch does."""
    builder = Builder()
    module = preference(partial(losses.odpo, beta=0.1), builder)
    run = trainer(tmp_path)
    data = SimpleNamespace(has_margin=False)
    run.datamodule = data
    module.trainer = run
    with pytest.raises(ValueError, match=r"margin.*data\."):
        module.setup("fit")
    assert builder.built == 0


def test_missing_margin_of_a_batch_names_the_option():
    module = preference(partial(losses.odpo, beta=0.1))
    module.configure_model()
    batch = next(iter(loader(1)))
    batch.margin = None
    with pytest.raises(ValueError, match=r"margin.*data\."):
        module(batch)


def test_a_loss_without_reference_loads_none():
    builder = Builder("none")
    module = Preference(builder, losses.simpo)
    module.configure_model()
    assert module.needs == {"policy"}
    assert module.reference is None


def test_configure_model_builds_once():
    builder = Builder()
    module = preference(builder=builder)
    module.configure_model()
    policy = module.policy
    module.configure_model()
    assert builder.built == 1
    assert module.policy is policy


def test_training_without_optimizer_says_so():
    module = Preference(Builder(), losses.dpo)
    with pytest.raises(ValueError, match="optimizer"):
        module.configure_optimizers()


def test_run_without_an_end_cannot_have_a_schedule(tmp_path):
    from rlhf_lightning.schedules import cosine

    module = preference(scheduler=partial(cosine, warmup=0.1))
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(module, loader(1))


def test_reference_is_no_part_of_the_module():
    module = preference()
    module.configure_model()
    assert not [name for name, _ in module.named_parameters() if "reference" in name]
    assert all(not p.requires_grad for p in module.reference.parameters())
    assert {id(p) for p in module.reference.parameters()}.isdisjoint({id(p) for p in module.parameters()})
    assert isinstance(module.reference, torch.nn.Module)
