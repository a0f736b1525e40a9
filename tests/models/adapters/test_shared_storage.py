"""One base with the adapters of policy, reference, reward and value: one copy of its weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.adapters.shared_storage import share_base, stored_bytes
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.roles.reference import AdapterDisabled
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.rewards import Composite, LengthReward, ModelReward
from rlhf_lightning.types import sample_groups

SAMPLES = sample_groups([[5, 9, 3], [6, 1, 30]], [[[4, 8, 2], [7, 2]], [[12, 2]]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in ``base``, and in ``reward`` a reward model that is an adapter on it."""
    folder, source = tmp_path_factory.mktemp("shared"), TinyRandom()
    source.load().save_pretrained(folder / "base")
    source.tokenizer().save_pretrained(folder / "base")
    scorer = Scorer(Lora(r=3, seed=9, init=False).apply(Pretrained(str(folder / "base")).load()), seed=2)
    export_scorer(scorer, source.tokenizer(), folder / "reward", form="adapter")
    return folder


def models(folders: Path, **options: Any) -> Models:
    """Policy with an adapter and a critic that is one, and its reference."""
    critic = Lora(path=str(folders / "reward"))
    builder = ModelBuilder(Pretrained(str(folders / "base")), Lora(r=4, seed=1), "auto")
    return builder(lambda model, **given: ActorCritic(model, kind="adapter", adapter=critic, **options, **given))


def adapters(*modules: torch.nn.Module) -> int:
    """Bytes of all that is no base."""
    named = [pair for module in modules for pair in module.named_parameters()]
    return sum(p.nbytes for name, p in named if "lora_" in name or name.startswith(("value_heads.", "head.")))


def test_four_adapters_hold_one_base(folders: Path) -> None:
    """Fails when anything loads a second copy and keeps it."""
    made = models(folders)
    assert isinstance(made.reference, AdapterDisabled)
    reward = ModelReward(TinyRandom().tokenizer(), path=str(folders / "reward"))
    base = sum(p.nbytes for p in Pretrained(str(folders / "base")).load().parameters())
    trunk = base - TinyRandom().load().lm_head.weight.nbytes
    of_policy = adapters(made.policy, reward.model)
    assert stored_bytes([made.policy, reward.model]) == base + trunk + of_policy
    before = reward(SAMPLES)
    reward.policy = SimpleNamespace(policy=made.policy)
    assert stored_bytes([made.policy, reward.model]) == base + of_policy
    assert reward(SAMPLES) == before


def test_a_reward_behind_others_shares_too_and_asks_nothing(folders: Path) -> None:
    made = models(folders)
    term = ModelReward(path=str(folders / "reward"))
    reward = Composite(terms={"model": term, "length": LengthReward()})
    assert not reward.asks_policy
    apart = stored_bytes([made.policy, term.model])
    reward.policy = SimpleNamespace(policy=made.policy)
    assert stored_bytes([made.policy, term.model]) < 0.7 * apart


def test_weights_that_differ_or_are_trained_stay_apart(folders: Path) -> None:
    """Another base of the same names and shapes; one in another precision; and a policy that is trained in full."""
    reward = ModelReward(path=str(folders / "reward"))
    scores = reward(SAMPLES)
    other = Lora(r=4).apply(TinyRandom(seed=5).load())
    half = Lora(r=4).apply(Pretrained(str(folders / "base"), dtype="bfloat16").load())
    whole = Pretrained(str(folders / "base")).load()
    for policy in (half, whole):
        assert share_base(reward.model, policy) == 0
    norms = sum(p.nbytes for name, p in other.named_parameters() if "norm" in name)
    assert share_base(reward.model, other) <= norms  # of ones, in a model that nobody trained
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(1.0)
    assert reward(SAMPLES) == scores
