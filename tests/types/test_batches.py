"""Batches on their way from the host to a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf_lightning.data.batches.micro_batches import with_mismatched
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.types import UnpairedBatch
from tests.helpers.fake_device import DEVICE, Waits, pretends
from tests.helpers.training import examples


@pytest.fixture
def batch() -> UnpairedBatch:
    rows = [
        replace(row, margin=None, numbers={"desirable": [label]})
        for row, label in zip(examples(4, responses=1), [1.0, 0.0, 1.0, 1.0], strict=True)
    ]
    labelled = pack(rows, kind="unpaired")
    assert isinstance(labelled, UnpairedBatch)
    return with_mismatched(labelled, [pack(rows[:2]), pack(rows[2:])])


@pretends
def test_integers_are_taken_on_the_host_before_the_transfer(batch):
    with Waits() as waits:
        moved = batch.to(DEVICE)
        for here, there in ((batch, moved), *zip(batch.mismatched, moved.mismatched, strict=True)):
            assert there.ids.device == DEVICE
            assert there.host == here._host_layout()
        desirable, undesirable = moved.by_label(moved.desirable)
        assert (len(desirable), len(undesirable)) == (3, 1)
        assert not waits.seen


def test_a_changed_batch_counts_again(batch):
    assert len(batch.host.response_tokens) == 4
    assert batch.emptied().host.response_tokens == ()


def test_transfers_to_cuda_are_pinned_and_do_not_block(batch, monkeypatch):
    sent: list[tuple[str, bool]] = []
    pinned: set[int] = set()
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: (pinned.add(id(tensor)), tensor)[1])

    def to(tensor: Tensor, device: str, non_blocking: bool = False) -> Tensor:
        sent.append((device, non_blocking and (id(tensor) in pinned)))
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    batch.to("cuda")
    assert set(sent) == {("cuda", True)}
    sent.clear()
    pinned.clear()
    batch.to("cpu")
    assert set(sent) == {("cpu", False)}
    assert not pinned


def test_labels_divide_as_masks_do(batch):
    values = torch.arange(4.0)
    desirable, undesirable = batch.by_label(values)
    assert desirable.tolist() == values[batch.desirable > 0.5].tolist()
    assert undesirable.tolist() == values[batch.desirable <= 0.5].tolist()
