"""A policy of a few hundred parameters and batches for it: what the tests of methods and callbacks train."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses.preference import dpo
from rlhf_lightning.losses.supervised import sft
from rlhf_lightning.methods import Preference, Supervised
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.roles.reference import Cached, FrozenCopy
from rlhf_lightning.ops.top_k import logits_top
from rlhf_lightning.types import Example, PackedBatch, SequenceLogProbs, StepTotals, TopTokens

VOCAB = 23


class Bigram(nn.Module):
    """Next-token log-probs from the previous token alone, behind the interface of ``models.actor.Actor``."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(VOCAB, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCAB)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5

    def policy_copy(self) -> Bigram:
        return copy.deepcopy(self)

    def forward(
        self,
        batch: PackedBatch,
        *,
        temperature: float = 1.0,
        statistics=frozenset(),
        adapter=True,
        top_width=0,
        top_of=None,
    ):
        hidden = self.dropout(self.norm(self.embed(batch.ids[batch.source])))
        log_probs = torch.log_softmax(self.head(hidden).float() / temperature, -1)
        target = batch.ids[batch.target]
        extra = {}
        if "entropy" in statistics:
            extra["entropy"] = -(log_probs.exp() * log_probs).sum(-1)
        if "top1" in statistics:
            extra["top1"] = log_probs.argmax(-1) == target
        if "collision" in statistics:
            extra["collision"] = (2 * log_probs).logsumexp(-1).detach()
        if top_width:
            asked = top_of[batch.sequence]
            top = logits_top(log_probs[asked], target[asked], width=top_width)
            count = len(batch.response_span)
            extra["top"] = TopTokens(
                top.logit, top.token, top.target_logit, target[asked], batch.sequence[asked], count
            )
        token = log_probs.gather(-1, target[:, None])[:, 0]
        ragged = batch.ragged(token)
        return SequenceLogProbs(ragged.token, ragged.sequence, ragged.count, ragged.mean_length, **extra)


@dataclass
class Builder:
    """Counts how often it was called: construction must not load anything."""

    reference: str = "frozen"
    seed: int = 0
    dropout: float = 0.0
    built: int = 0

    def __call__(self) -> Models:
        self.built += 1
        policy = Bigram(self.seed, self.dropout)
        reference = {"frozen": lambda: FrozenCopy.of(policy), "cached": Cached, "none": lambda: None}
        return Models(policy, reference[self.reference](), tokenizer=None)


def examples(count: int, seed: int = 0, responses: int = 2) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(0, VOCAB, (size,), generator=generator).tolist()

    return [
        Example(tokens(1, 5), [tokens(1, 7) for _ in range(responses)], row=f"pairs.jsonl:{i}", margin=float(i % 3))
        for i in range(count)
    ]


def step_totals(rows: list[Example], micro_batches: int) -> StepTotals:
    slots = range(len(rows[0].responses))
    return StepTotals(len(rows), tuple(sum(len(r.responses[s]) for r in rows) for s in slots), micro_batches)


def cut(rows: list[Example], sizes: list[int]) -> list[PackedBatch]:
    """One optimiser step cut into parts of these sizes."""
    totals = step_totals(rows, len(sizes))
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [pack(rows[at : at + size], totals=totals) for at, size in zip(starts, sizes, strict=True)]


def micro_batches(rows: list[Example], parts: int) -> list[PackedBatch]:
    """One optimiser step cut into equal parts."""
    size = len(rows) // parts
    totals = step_totals(rows, parts)
    return [pack(rows[i : i + size], totals=totals, indices=range(i, i + size)) for i in range(0, parts * size, size)]


def loader(steps: int = 4, batch: int = 4, parts: int = 1, responses: int = 2) -> DataLoader:
    rows = examples(steps * batch, responses=responses)
    cut = [m for s in range(steps) for m in micro_batches(rows[s * batch : (s + 1) * batch], parts)]
    return DataLoader(cut, batch_size=None)


def preference(loss=dpo, builder: Builder | None = None, lr: float = 1e-2, **kwargs) -> Preference:
    return Preference(builder or Builder(), loss, partial(torch.optim.AdamW, lr=lr), **kwargs)


def supervised(loss=sft, builder: Builder | None = None, lr: float = 1e-2, **kwargs) -> Supervised:
    return Supervised(builder or Builder("none"), loss, partial(torch.optim.AdamW, lr=lr), **kwargs)


def trainer(tmp_path, callbacks=(), **kwargs) -> L.Trainer:
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": str(tmp_path),
    }
    return L.Trainer(callbacks=list(callbacks), **(options | kwargs))
