"""Forward, reduction, diagnostics and logging of a step."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

from rlhf_lightning import losses
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods.optimizers import decay_groups, make_scheduler
from rlhf_lightning.methods.tracking import Means
from rlhf_lightning.schedules import cosine
from rlhf_lightning.types import SequenceLogProbs
from tests.helpers.jobs import Memory
from tests.helpers.training import (
    Bigram,
    Builder,
    cut,
    examples,
    loader,
    micro_batches,
    preference,
    supervised,
    trainer,
)


def built(module):
    module.configure_model()
    return module


def test_step_zero_has_the_loss_ln_2():
    output = built(preference())(micro_batches(examples(4), 1)[0])
    assert float(output.loss) == pytest.approx(math.log(2), abs=1e-6)
    assert torch.equal(output.diagnostics["chosen_reward"], torch.zeros(4))


def test_forward_needs_no_trainer_and_has_gradients():
    module = built(preference())
    module(micro_batches(examples(4), 1)[0]).loss.backward()
    assert any(p.grad.abs().sum() > 0 for p in module.policy.parameters())
    assert all(p.grad is None for p in module.reference.parameters())


def test_loss_is_divided_by_the_groups_of_the_step():
    """Parts of 1, 2 and 3 groups: their mean, which is what Lightning computes, is the loss of the step of 6.
    Fails when the micro-batch's own size is the denominator."""
    rows = examples(6)
    module = built(preference(partial(losses.rpo, beta=0.3, nll_weight=1.0), lr=0.1))
    module.policy.head.bias.data += torch.linspace(-1, 1, 23)
    whole = module(micro_batches(rows, 1)[0]).loss
    parts = [module(batch).loss for batch in cut(rows, [1, 2, 3])]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    unscaled = module(micro_batches(rows[:1], 1)[0]).loss
    assert abs(float(unscaled) - float(parts[0])) > 1e-3


def test_diagnostics_are_detached_and_complete():
    module = built(preference(partial(losses.wpo, beta=0.1), statistics=["entropy", "top1"]))
    module.trainer = None
    batch = micro_batches(examples(4), 1)[0]
    diagnostics = module(batch).diagnostics
    assert all(not value.requires_grad for value in diagnostics.values())
    pairs = {"group_loss", "chosen_reward", "rejected_reward", "chosen_log_prob", "rejected_log_prob"}
    assert all(diagnostics[name].shape == (4,) for name in pairs | {"chosen_length", "rejected_length"})
    tokens = {"log_ratio", "entropy", "top1"}
    assert all(len(diagnostics[name]) == len(batch.target) for name in tokens)
    lengths = torch.tensor([float(len(row.responses[0])) for row in examples(4)])
    assert torch.equal(diagnostics["chosen_length"], lengths)


def test_training_asks_the_reference_only_where_the_loss_does():
    """Validation reports the KL of every method that has a reference at hand."""
    module = built(preference(losses.simpo))
    batch = micro_batches(examples(4), 1)[0]
    assert "log_ratio" not in module(batch).diagnostics
    module.eval()
    assert "log_ratio" in module(batch).diagnostics


def test_logged_loss_is_that_of_the_whole_step(tmp_path):
    """Fails when the last micro-batch's loss is logged, as Lightning would."""
    logs = []
    for parts in (1, 4):
        logger = Memory()
        module = preference(partial(dpo, beta=1.0), lr=0.1)
        trainer(tmp_path, logger=logger, accumulate_grad_batches=parts).fit(module, loader(3, batch=8, parts=parts))
        logs.append(logger.series("train/loss"))
    assert len(logs[0]) == 3
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert logs[0][2] != pytest.approx(math.log(2))


def test_learning_rate_is_logged_as_it_was_used(tmp_path):
    logger = Memory()
    module = preference(scheduler=partial(cosine, warmup=2), lr=0.5)
    trainer(tmp_path, logger=logger).fit(module, loader(4))
    assert logger.series("train/lr") == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_loss_diagnostics_are_logged_by_name(tmp_path):
    logger = Memory()
    trainer(tmp_path, logger=logger).fit(preference(losses.rpo), loader(2), loader(1))
    assert {"train/nll", "val/nll"} <= {name for row in logger.rows for name in row}


def test_micro_batches_of_a_step_see_the_same_moments(tmp_path):
    """Fails when observations are folded in as they come."""
    module = preference(losses.bco_pair)
    seen = []
    moments = {}
    original = module.running.moments

    def spy():
        moments["count"] = float(original().count)
        seen.append(moments["count"])
        return original()

    module.running.moments = spy
    trainer(tmp_path, accumulate_grad_batches=2).fit(module, loader(3, batch=4, parts=2))
    assert seen == [0, 0, 8, 8, 16, 16]  # 4 pairs, two rewards each, a step


def test_predict_gives_the_reference_or_the_untrained_policy():
    batch = micro_batches(examples(3), 1)[0]
    for reference in ("frozen", "cached", "none"):
        loss = losses.simpo if reference == "none" else dpo
        module = built(preference(loss, Builder(reference))).eval()
        with torch.no_grad():
            log_probs = module.predict_step(batch, 0)
            expected = Bigram().eval()(batch)
        assert isinstance(log_probs, SequenceLogProbs)
        torch.testing.assert_close(log_probs.token, expected.token)


def test_supervised_step_is_the_token_mean():
    module = built(supervised())
    batch = micro_batches(examples(5, responses=1), 1)[0]
    token = module.policy(batch).token
    torch.testing.assert_close(module(batch).loss, -token.mean())


def test_norms_and_biases_do_not_decay():
    policy = Bigram()
    policy.embed.weight.requires_grad = False
    groups = decay_groups(policy.parameters())
    assert [p is policy.head.weight for p in groups[0]["params"]] == [True]
    assert {id(p) for p in groups[1]["params"]} == {id(policy.norm.weight), id(policy.norm.bias), id(policy.head.bias)}
    optimizer = AdamW(groups, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match=r"adapter\.target_modules"):
        decay_groups(Bigram().requires_grad_(False).parameters())


@pytest.mark.parametrize(
    ("partial_", "attribute"),
    [
        (partial(CosineAnnealingLR), "T_max"),
        (partial(CosineAnnealingLR, T_max=None), "T_max"),
        (partial(OneCycleLR, max_lr=1.0), "total_steps"),
    ],
)
def test_schedules_learn_the_length_of_the_run(partial_, attribute):
    optimizer = SGD(Bigram().parameters(), lr=1.0)
    assert getattr(make_scheduler(partial_, optimizer, lambda: 70), attribute) == 70


def test_schedules_keep_what_is_given_and_do_not_ask():
    optimizer = SGD(Bigram().parameters(), lr=1.0)

    def unknown() -> int:
        raise AssertionError("nobody needs to know")

    assert make_scheduler(partial(CosineAnnealingLR, T_max=5), optimizer, unknown).T_max == 5
    assert make_scheduler(partial(LinearLR), optimizer, unknown).total_iters == 5


def test_means_weigh_every_number_once():
    means = Means()
    means.add("a", torch.tensor([1.0, 2.0, 3.0]))
    means.add("b", torch.tensor(5.0))
    means.add("a", torch.tensor([10.0]))
    means.add("a", torch.tensor([]))
    assert {name: float(value) for name, value in means.pop(lambda x: x, torch.device("cpu")).items()} == {
        "a": 4.0,
        "b": 5.0,
    }
    assert means.pop(lambda x: x, torch.device("cpu")) == {}
