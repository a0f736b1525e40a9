"""Reward heads on single responses: what is computed, logged, frozen and refused."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from torch.optim import AdamW

from rlhf_lightning.callbacks import VerbosityDebias
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses.preference import dpo
from rlhf_lightning.losses.rating import attribute_regression, binary_discrimination, process_reward
from rlhf_lightning.methods.rating import Rating
from rlhf_lightning.models.loading.heads import SavedHead
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.scorers.gated import GatedScorer
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.ops.debias import verbosity_penalties
from rlhf_lightning.types import Example, PackedBatch, StepTotals
from tests.helpers.jobs import ranks

NAN = float("nan")


def module(loss=binary_discrimination, **options) -> Rating:
    made = Rating(ModelBuilder(TinyRandom(), reference="none"), loss, partial(AdamW, lr=3e-3), **options)
    made.configure_model()
    return made


def labelled(count: int = 6) -> PackedBatch:
    """Desirable responses are full of 7, the others of 9."""
    rows = [
        Example([1, 2, 3 + i], [[7 if i % 2 == 0 else 9] * (1 + i)], numbers={"desirable": [float(i % 2 == 0)]})
        for i in range(count)
    ]
    return pack(rows, kind="unpaired")


def solutions() -> PackedBatch:
    rows = [
        Example(
            [1, 2],
            [[5, 6, 7, 8]],
            loss_mask=[[False, True, False, True]],
            step_labels=[[NAN, 1.0, NAN, 0.0]],
        ),
        Example([3], [[5, 9]], loss_mask=[[False, True]], step_labels=[[NAN, 1.0]]),
    ]
    return pack(rows, kind="steps")


def rated() -> PackedBatch:
    rows = [
        Example([1, 2], [[5, 6]], numbers={"attribute:help": [3.0], "attribute:length": [NAN]}),
        Example([3], [[7]], numbers={"attribute:help": [1.0], "attribute:length": [2.0]}),
    ]
    return pack(rows, kind="attributes")


def train(made: Rating, batch: PackedBatch, steps: int = 40) -> tuple[float, float]:
    """Loss before and after some steps."""
    optimizer = AdamW([p for p in made.policy.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = made(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses[0], losses[-1]


def test_a_head_of_zeros_starts_at_ln_2_and_learns_the_labels() -> None:
    made = module(head=partial(Scorer, init="zeros"))
    output = made(labelled())
    assert float(output.loss) == pytest.approx(math.log(2))
    assert output.diagnostics["diagnostic/reward/chosen"].shape == (3,)
    _, after = train(made, labelled())
    assert after < 0.1
    assert made(labelled()).diagnostics["diagnostic/accuracy"].tolist() == [1.0] * 6


def test_steps_are_scored_at_their_last_token() -> None:
    """The reward of a step is that of the response cut behind it: reading one token early or late changes it."""
    made = module(process_reward)
    scores = made.policy(solutions(), "scored")
    cut = pack([Example([1, 2], [[5, 6]]), Example([1, 2], [[5, 6, 7, 8]]), Example([3], [[5, 9]])])
    torch.testing.assert_close(scores, made.policy(cut, "last"))
    output = made(solutions())
    assert output.diagnostics["diagnostic/accuracy"].shape == (3,)
    before, after = train(made, solutions())
    assert after < 0.2 * before


def test_the_step_mean_does_not_depend_on_the_cut() -> None:
    made = module(process_reward)
    whole = solutions()
    parts = [
        pack([example], kind="steps", totals=StepTotals(2, (3,), 2))
        for example in (
            Example([1, 2], [[5, 6, 7, 8]], loss_mask=[[False, True, False, True]], step_labels=[[NAN, 1.0, NAN, 0.0]]),
            Example([3], [[5, 9]], loss_mask=[[False, True]], step_labels=[[NAN, 1.0]]),
        )
    ]
    torch.testing.assert_close(torch.stack([made(part).loss for part in parts]).mean(), made(whole).loss)


def test_attributes_have_an_output_each() -> None:
    made = module(attribute_regression, head=partial(Scorer, outputs=2))
    assert made.kind == "attributes"
    output = made(rated())
    assert set(output.diagnostics) >= {"diagnostic/error/help", "diagnostic/error/length"}
    assert output.diagnostics["diagnostic/error/length"].shape == (1,)  # one rating is missing
    _, after = train(made, rated(), steps=80)
    assert after < 0.05
    made.trainer = Mock()
    made.trainer.strategy.reduce = lambda values, reduce_op: values
    derived = made.derived("val/", {"val/error/help": torch.tensor(4.0)})
    assert derived["val/error/help"] == 2.0


def test_a_head_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"1 outputs, and the data rates 2 attributes \(help, length\).*outputs=2"):
        module(attribute_regression)(rated())


def test_a_frozen_trunk_trains_the_head_alone() -> None:
    made = module(freeze_trunk=True)
    before = {name: p.detach().clone() for name, p in made.policy.named_parameters()}
    train(made, labelled(), steps=3)
    changed = {name for name, p in made.policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.weight"}


def test_foreign_losses_are_refused_before_weights_load() -> None:
    with pytest.raises(ValueError, match="cannot give a loss"):
        Rating(ModelBuilder(TinyRandom(), reference="none"), dpo)


def gated(**options) -> GatedScorer:
    model = TinyRandom().load()
    generator = torch.Generator().manual_seed(0)
    model.saved_head = SavedHead(torch.randn(3, 64, generator=generator))
    return GatedScorer(model, layers=(16,), dropout=0.0, seed=1, **options)


def test_the_gate_weighs_ratings_by_prompt() -> None:
    scorer = gated()
    batch = pack([Example([1, 2], [[5, 6], [7]]), Example([3, 4], [[5, 6], []])], kind=None)
    ratings, prompt = scorer.ratings(batch)
    gates = scorer.gates(prompt)
    torch.testing.assert_close(gates.sum(-1), torch.ones(4))
    torch.testing.assert_close(gates[0], gates[1])  # the same prompt
    assert not torch.allclose(gates[0], gates[2])
    reward = scorer(batch)
    torch.testing.assert_close(reward[:3], (gates * ratings).sum(-1)[:3])
    assert reward[3] == 0  # an empty slot


def test_only_the_gate_learns_and_verbosity_is_taken_off() -> None:
    """Of the verbosity rating itself, whose penalty is 1, nothing remains."""
    scorer = gated()
    assert {name.split(".")[0] for name, p in scorer.named_parameters() if p.requires_grad} == {"gate", "scale"}
    batch = pack([Example([1, 2], [[5, 6], [7]])])
    scorer.set_verbosity(2, torch.tensor([0.5, 0.0, 1.0]))
    ratings, prompt = scorer.ratings(batch)
    gates = scorer.gates(prompt)
    expected = gates[:, 0] * (ratings[:, 0] - 0.5 * ratings[:, 2]) + gates[:, 1] * ratings[:, 1]
    torch.testing.assert_close(scorer(batch), expected)


def test_the_gate_has_a_trained_scale() -> None:
    """The reward is proportional to it, so its gradient is the reward over the scale."""
    scorer = gated(scale=2.0)
    batch = pack([Example([1, 2], [[5, 6], [7]])])
    torch.testing.assert_close(scorer.gates(scorer.ratings(batch)[1]).sum(-1), torch.full((2,), 2.0))
    reward = scorer(batch)
    torch.testing.assert_close(reward, 2 * gated()(batch))
    (gradient,) = torch.autograd.grad(reward[0], scorer.scale)
    torch.testing.assert_close(gradient, reward[:1].detach() / 2)


def test_a_gate_needs_the_first_stage() -> None:
    with pytest.raises(ValueError, match="attribute_regression"):
        GatedScorer(TinyRandom().load())


def test_verbosity_is_measured_on_the_ratings_of_training_batches() -> None:
    scorer, batches = gated(), [pack([Example([1, 2], [[5, 6], [7]]), Example([i], [[8], []])]) for i in (3, 4, 9)]
    module, trainer = Mock(policy=scorer, device="cpu"), Mock(accumulate_grad_batches=1)
    trainer.datamodule.train_dataloader.return_value = batches
    VerbosityDebias(1, batches=2).on_fit_start(trainer, module)
    table = torch.cat([scorer.ratings(batch)[0][batch.present] for batch in batches[:2]])
    assert len(table) == 6  # an empty slot has no rating
    expected = verbosity_penalties(table, 1)
    assert expected[1] == 1
    assert torch.equal(scorer.penalty, expected)
    assert scorer.verbosity == 1
    VerbosityDebias(0).on_fit_start(trainer, module)  # a resumed run has its penalties
    assert torch.equal(scorer.penalty, expected)
    with pytest.raises(ValueError, match=r"verbosity_debias needs a gated reward model"):
        VerbosityDebias(1).on_fit_start(trainer, Mock(policy=TinyRandom().load()))


def _measure(folder: Path, processes: int, accumulate: int) -> None:
    """Save what one of some processes measures on the first of two steps of four rows."""
    if processes > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if processes > 1 else 0
    rows = [Example([1, 2 + row], [[5 + 7 * row, 6], [9 * row]]) for row in range(8)]
    size = 4 // (processes * accumulate)
    cut = [pack(rows[first : first + size]) for first in range(0, 8, size)]
    scorer, trainer = gated(), Mock(accumulate_grad_batches=accumulate)
    trainer.datamodule.train_dataloader.return_value = cut[rank::processes]
    VerbosityDebias(1, batches=1).on_fit_start(trainer, Mock(policy=scorer, device="cpu"))
    torch.save(scorer.penalty, folder / f"{processes}-{accumulate}-{rank}.pt")


def test_verbosity_does_not_depend_on_how_a_step_is_cut(tmp_path: Path) -> None:
    """Fails where micro-batches are counted in the place of steps, or a process keeps to its own rows."""
    _measure(tmp_path, 1, 1)
    _measure(tmp_path, 1, 2)
    assert ranks(2, _measure, tmp_path, 2, 2) == [0, 0]
    by_run = {file.stem: torch.load(file).tolist() for file in tmp_path.iterdir()}
    assert len(by_run) == 4
    assert all(penalties == by_run["1-1-0"] for penalties in by_run.values()), by_run
