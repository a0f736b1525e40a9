"""Log-ratios of any tokens, in which every process takes part."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from rlhf_lightning.methods import base
from tests.helpers.training import cut, examples, preference


def test_weights_are_gathered_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of modules is ordered by their addresses, which differ between processes: each would gather another one."""
    seen: list[Any] = []
    monkeypatch.setattr(base, "unsharded", lambda actor: seen.append(actor) or nullcontext())
    modules = [preference() for _ in range(16)]
    for module in modules:
        module.configure_model()
        module.log_ratios(cut(examples(2), [2]))
    assert seen == [actor for module in modules for actor in (module.policy, module.reference.actor)]
