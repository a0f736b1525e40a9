"""Impossible combinations are refused before anything is loaded, and the message names the fix."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.methods import Preference, Ranked, RewardModel, Supervised
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
    data = SimpleNamespace(has_input=lambda name: name != "margin")
    run.datamodule = data
    module.trainer = run
    with pytest.raises(ValueError, match=r"margin.*data\."):
        module.setup("fit")
    assert builder.built == 0


@pytest.mark.parametrize(
    ("loss", "name", "columns"),
    [
        (losses.sppo_soft, "win_probability", r"data\.spec\.columns\.win_chosen and win_rejected"),
        (losses.xpo, "reference_sample", r"data\.spec\.columns\.reference_sample"),
        (losses.apo_reward, "policy_sample", r"data\.spec\.columns\.policy_sample"),
        (losses.nash_md, "win_probability", r"of ranked lists scores, from 0 to 1"),
    ],
)
def test_missing_numbers_are_refused_before_weights_load(loss, name, columns, tmp_path):
    builder = Builder()
    kind = RewardModel if loss is losses.apo_reward else Ranked if loss is losses.nash_md else Preference
    module = kind(builder, loss)
    run = trainer(tmp_path)
    run.datamodule = SimpleNamespace(has_input=lambda asked: asked != name)
    module.trainer = run
    with pytest.raises(ValueError, match=columns):
        module.setup("fit")
    assert builder.built == 0
    module.setup("predict")


def test_a_batch_without_win_probabilities_names_the_columns_and_one_without_samples_has_none():
    batch = next(iter(loader(1)))
    module = preference(losses.sppo_soft)
    module.configure_model()
    with pytest.raises(ValueError, match=r"win_chosen and win_rejected"):
        module(batch)
    explorer, plain = preference(partial(losses.xpo, alpha=1.0)), preference(losses.dpo)
    for each in (explorer, plain):
        each.configure_model()
    assert torch.equal(explorer(batch).loss, plain(batch).loss)


def test_numbers_of_a_batch_reach_the_loss_slot_by_slot():
    batch = next(iter(loader(1)))
    count = len(batch)
    batch.win_probability = torch.tensor([0.75, 0.25] * count)
    batch.reference_sample = torch.tensor([1.0, 0.0] * count)
    module = preference(partial(losses.sppo_soft, beta=0.5))
    module.configure_model()
    assert module(batch).loss.item() == pytest.approx((0.5**2 + 0.5**2) / 2)  # ratios 0, targets 1/2 and -1/2
    module = preference(partial(losses.xpo, alpha=1.0))
    module.configure_model()
    output = module(batch)
    drawn = output.diagnostics["chosen_log_prob"].mean()
    assert output.loss.item() == pytest.approx(math.log(2) + drawn.item(), rel=1e-5)


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


def test_training_without_an_optimizer_is_refused():
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
