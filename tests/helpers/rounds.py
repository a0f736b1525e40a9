"""Small runs that learn from groups of their own samples: selectors as plain as can be, and the data around them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.lessons import Rounds, SelectLesson
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.schedules import cosine
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.types import Draw, Example, Selected
from tests.helpers.jobs import differences, final_state, forked
from tests.helpers.online import Engine, LowBytes, builder, fit, prompts, rollouts


@selector
@makes("preference")
def extremes(score: Tensor) -> Selected:
    """The sample with the highest score against the one with the lowest; no pair where all are tied."""
    differs = score.amax(1) > score.amin(1)
    at = differs.nonzero()[:, 0]
    slots = torch.stack([score.argmax(1)[at], score.argmin(1)[at]], dim=1)
    margin = (score.amax(1) - score.amin(1))[at].float()
    return Selected(at, slots, {"margin": margin}, {"tie_rate": float((~differs).double().mean())})


def rounds_of(**options: Any) -> Rounds:
    """Three samples a prompt, two steps of a round."""
    return Rounds(**{"selector": extremes, "draws": [Draw(n=3)], "minibatches": 2} | options)


def module_of(make: Callable[..., Any] = builder, optimizer: Any = None, **options: Any) -> Preference:
    """DPO."""
    maker = optimizer or partial(torch.optim.AdamW, lr=1e-2)
    return Preference(make(), dpo, maker, partial(cosine, warmup=0.2), **options)


def data_of(
    module: Any,
    folder: Path | None,
    engine: Any = None,
    reward: Any = None,
    count: int = 24,
    *,
    rounds: Rounds | None = None,
    ptx: Any = None,
    responses: Mapping[str, Example] | None = None,
    **options: Any,
) -> OnlineData:
    """Rounds of eight prompts each, three of them an epoch."""
    source = AlignmentDataModule(prompts(count), kind="prompt", **{"batch_size": 4, "seed": 3} | options)
    lesson = partial(SelectLesson, kind=module.kind, seed=3, responses=responses)
    chosen = rounds or rounds_of()
    return OnlineData(source, engine or Engine(), reward or LowBytes(), chosen, folder, lesson=lesson)


def assert_resumes(folder: Path, kill: Mapping[str, Any], **settings: Any) -> None:
    """A run of three rounds that was killed and resumed ends as the uninterrupted one, files included.

    Args:
        folder: both runs are written below it.
        kill: where it is killed, of ``fit``.
        settings: of both.
    """
    settings |= {"max_epochs": 1, "limit_val_batches": 0, "val_check_interval": None}
    whole, cut = folder / "whole", folder / "cut"
    fit(whole, **settings)
    assert forked(fit, cut, **settings, **kill) == -signal.SIGKILL
    fit(cut, **settings)
    one, other = final_state(whole), final_state(cut)
    assert one["global_step"] == 12
    assert differences(one, other) == []
    assert rollouts(whole) == rollouts(cut)
