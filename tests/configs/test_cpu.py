"""A processor without instructions for bfloat16: the quickstart takes float32, other runs are told."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.cli.cpu import emulates_bf16
from rlhf_lightning.cli.quickstart import precision

OLD = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def on(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        (OLD, True),
        (OLD | {"avx512_bf16": True}, False),
        (OLD | {"amx_bf16": True}, False),
        ({"architecture": "arm64"}, False),
        ({}, False),
    ],
)
def test_who_has_no_instructions_for_bfloat16(monkeypatch, capabilities, slow):
    on(monkeypatch, capabilities)
    assert emulates_bf16() == slow
    assert precision([]) == (["trainer.precision=32-true"] if slow else [])


@pytest.mark.parametrize("given", ["trainer=bf16", "trainer.precision=bf16-true", "+trainer.precision=16-mixed"])
def test_who_chooses_a_precision_has_it(monkeypatch, given):
    on(monkeypatch, OLD)
    assert precision(["optimizer.lr=1e-4", given]) == []


def test_a_torch_that_cannot_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not emulates_bf16()


def test_a_run_in_bfloat16_is_told(monkeypatch, rlhf, tiny):
    on(monkeypatch, OLD)
    code, _, err = rlhf(
        "train", *tiny, "trainer=bf16", "trainer.fast_dev_run=true", "trainer.accelerator=cpu", "paths.output_dir=run"
    )
    assert code == 0, err
    assert (
        "precision bf16-mixed (this processor has no instructions for it: trainer.precision=32-true is faster)"
        in " ".join(err.split())
    )
