"""KTO's reference point in rounds: every prompt of a step with the response of another one, as the data has them."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch

from rlhf_lightning.data.batches.plan import ProcessShare
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.lessons import SelectLesson
from rlhf_lightning.losses import kto
from rlhf_lightning.methods import Unpaired
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.schedules import cosine
from rlhf_lightning.selection import threshold
from rlhf_lightning.types import Draw, Example
from tests.helpers.fake_rollouts import Sum
from tests.helpers.jobs import Memory
from tests.helpers.online import builder, prompts
from tests.helpers.round_methods import halves
from tests.helpers.rounds import data_of, rounds_of
from tests.helpers.training import trainer
from tests.lessons.test_select import Learner, Silent, spans

LABELS = partial(threshold, quantile=0.5, undesirable="keep")


class Pointing(Learner):
    """Asks for the reference point too."""

    needs, kind = frozenset({"reference", "kl"}), "unpaired"


def looped(process_share: ProcessShare | None = None, rows: list[Example] | None = None, **options):
    """Two samples a prompt, both labelled; four prompts a step."""
    rounds = rounds_of(**{"selector": LABELS, "draws": [Draw(n=2)]} | options)
    source = AlignmentDataModule(rows or prompts(24), kind="prompt", batch_size=4, seed=3, process_share=process_share)
    data = OnlineData(source, Silent(), Sum(), rounds, lesson=partial(SelectLesson, kind="unpaired", seed=3))
    module = Pointing()
    data.attach(module)
    data.setup()
    return data, module


def training(make=builder, **options):
    module = Unpaired(make(), kto, partial(torch.optim.AdamW, lr=1e-2), partial(cosine, warmup=0.2), **options)
    return module, rounds_of(selector=halves, reference="round_start")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_loss_of_every_round_is_one_half(tmp_path, accumulate):
    """To the last bit, so the reference point is 0: mismatched rows have the log-probs of the round's start too."""
    logger, (module, rounds) = Memory(), training()
    run = trainer(tmp_path, [], logger=logger, use_distributed_sampler=False, accumulate_grad_batches=accumulate)
    run.fit(module, datamodule=data_of(module, None, rounds=rounds))
    losses, point = logger.series("train/loss"), logger.series("train/log_ratio/mismatched")
    assert losses[::2] == [0.5] * 3
    assert point[::2] == [0.0] * 3
    assert all(value != 0.5 for value in losses[1::2])


def test_a_step_brings_its_prompts_with_responses_to_others():
    """All of the step's prompts with its first micro-batch, and with the reference that the round has."""
    data, _ = looped(ProcessShare(2))
    first, second = (next(batches) for batches in [iter(data.train_dataloader())] for _ in range(2))
    assert second.mismatched == ()
    assert len(first.mismatched) == 2
    for batch, other in zip((first, second), first.mismatched, strict=True):
        assert other.index.tolist() == batch.index.tolist()
        assert [other.ids[a:b].tolist() for a, b in other.prompt_span.tolist()] == [
            batch.ids[a:b].tolist() for a, b in batch.prompt_span.tolist()
        ]
        assert other.reference_log_probs.tolist() == (-other.ids[other.target]).tolist()
        assert spans(other) != spans(batch)
    names = [row for other in first.mismatched for row in other.rows]
    prompt_rows, others = zip(*(name.split(" with the response of ") for name in names), strict=True)
    assert not [pair for pair in zip(prompt_rows, others, strict=True) if pair[0] == pair[1]]


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_a_checkpoint_within_a_round_has_the_reference_point(taken):
    def numbers(batch):
        return [(one.ids.tolist(), one.reference_log_probs.tolist()) for one in (batch, *batch.mismatched)]

    expected = [numbers(batch) for batch in looped(inner_epochs=2)[0].train_dataloader()]
    loader = looped(inner_epochs=2)[0].train_dataloader()
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    stored = io.BytesIO()
    torch.save(loader.state_dict(), stored)
    stored.seek(0)
    resumed = looped(inner_epochs=2)[0].train_dataloader()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert [numbers(batch) for batch in resumed] == expected[taken:]


def test_rounds_of_one_prompt_have_no_estimate():
    """The rows bring a micro-batch without groups, whose mean is 0, rather than end the run."""
    data, _ = looped(rows=[Example([5], [[]], row=f"prompts.jsonl:{row}") for row in range(8)])
    batch = next(iter(data.train_dataloader()))
    (other,) = batch.mismatched
    assert len(other) == 0
    assert len(other.stand_in) == len(batch)
