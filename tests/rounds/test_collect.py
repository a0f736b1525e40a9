"""Counts of rewards on several processes."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.rounds import collect
from rlhf_lightning.rounds.collect import Collector
from rlhf_lightning.types import RolloutOptions


class Counting:
    name = "counting"

    def metrics(self) -> dict[str, float]:
        return {"unscored": 0.5}


def test_every_process_logs_the_same_names(monkeypatch: pytest.MonkeyPatch):
    """Breaks when a name that one process alone has (an error that happened there) is missing elsewhere: the sum over
    processes would add up tensors of different sizes."""
    collector = Collector(None, Counting(), RolloutOptions(), None, None, False)  # type: ignore[arg-type]
    assert collector.metrics() == {"unscored": 0.5}

    def both(local: Any) -> list[Any]:
        return [local, {"unscored": 0.0, "errors": 0.25}]

    monkeypatch.setattr(collect, "gathered", both)
    assert collector.metrics() == {"unscored": 0.25, "errors": 0.25}
