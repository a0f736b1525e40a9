"""Models that a reward names by role are exactly those policies, and naming them changes nothing of the run."""

from __future__ import annotations

import copy
import signal
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.earlier import AdapterCopy, Earlier
from rlhf_lightning.models.roles.reference import AdapterDisabled, FrozenCopy
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import Composite, ImplicitReward
from rlhf_lightning.strategies import FSDP2Strategy
from rlhf_lightning.types import Example
from tests.helpers.jobs import Memory, differences, final_state, in_processes, ranks
from tests.helpers.online import LowBytes, Unsure, fit, rollouts, trajectory
from tests.helpers.rounds import assert_resumes, data_of, module_of, rounds_of
from tests.helpers.training import trainer
from tests.trajectory.test_online_invariance import assert_same, samples

ROLES = frozenset({"policy", "initial", "round_start", "previous_round"})
PROBE = [Example([7, 8], [[1, 2, 3], [4, 5]]), Example([9], [[6], [100, 3, 2]])]
SIZES = {"hidden_size": 16, "intermediate_size": 32}
PARENT = TinyRandom(**SIZES, seed=5)
#: The role that the run's reference plays, by the reference of the rounds.
PLAYS = {"initial": "initial", "round_start": "initial", "previous_round": "previous_round", "ema": None}
SGD = partial(torch.optim.SGD, lr=0.05)
DICE = rounds_of(reference="round_start", inner_epochs=2)


def made(adapter: Any = None, reference: str = "initial", parent: Any = None, roles: frozenset[str] = ROLES) -> Any:
    kind = "frozen" if reference in ("previous_round", "ema") else "auto"
    wanted = Earlier(roles & {"initial", "previous_round"}, parent, PLAYS[reference])
    return ModelBuilder(TinyRandom(**SIZES), adapter, kind, earlier=wanted)


def probed(model: Any) -> Tensor:
    with torch.no_grad():
        return model(pack(PROBE)).token.clone()


class Watching(LowBytes):
    """Notes in every round what each role says of the probe, and keeps a copy of the policy."""

    name, roles = "watching", ROLES

    def __init__(self) -> None:
        self.policy: Any = None
        self.models: dict[str, Any] = {}
        self.probes: list[dict[str, Tensor]] = []
        self.saved: list[Any] = []

    def assign(self, role, model, device):
        self.models[role] = model

    def __call__(self, groups):
        by_role = {}
        for role, model in self.models.items():
            with model() as opened:
                by_role[role] = probed(opened)
        self.probes.append(by_role)
        self.saved.append(copy.deepcopy(self.policy.policy).eval())
        return super().__call__(groups)


def watched(
    folder: Any, adapter: Any, reference: str, parent: Any = None, reward: Any = None
) -> tuple[Any, list[float]]:
    logger, module = Memory(), module_of(partial(made, adapter, reference, parent))
    run = trainer(folder, [], logger=logger, use_distributed_sampler=False)
    run.fit(module, datamodule=data_of(module, None, reward=reward, rounds=rounds_of(reference=reference)))
    return module, logger.series("train/loss")


@pytest.mark.parametrize("reference", ["initial", "round_start", "previous_round", "ema"])
@pytest.mark.parametrize("adapter", [None, Lora(r=2, seed=0)], ids=["full", "lora"])
def test_roles_are_the_policies_that_they_name(tmp_path, adapter, reference):
    """Their log-probs are to the bit those of copies that were saved at the start of each round."""
    reward = Watching()
    _, losses = watched(tmp_path, adapter, reference, reward=reward)
    assert len(reward.probes) == 3
    saved = [probed(policy) for policy in reward.saved]
    assert not torch.equal(saved[0], saved[1])
    assert not torch.equal(saved[1], saved[2])
    for number, by_role in enumerate(reward.probes):
        wanted = {"initial": 0, "round_start": number, "policy": number, "previous_round": max(number - 1, 0)}
        assert {role: torch.equal(values, saved[wanted[role]]) for role, values in by_role.items()} == dict.fromkeys(
            ROLES, True
        )
    _, plain = watched(tmp_path, adapter, reference, reward=LowBytes())
    assert losses == plain, "the policy has its own weights again"


@pytest.mark.parametrize("adapter", [None, Lora(r=2, seed=0)], ids=["full", "lora"])
def test_the_first_round_compares_with_the_parent(tmp_path, adapter):
    """And later ones with the round before, which the parent's weights have no part in."""
    reward = Watching()
    module, _ = watched(tmp_path, adapter, "round_start", PARENT, reward)
    parent = ModelBuilder(PARENT)().policy.eval()
    assert torch.equal(reward.probes[0]["previous_round"], probed(parent))
    for number in (1, 2):
        assert torch.equal(reward.probes[number]["previous_round"], probed(reward.saved[number - 1]))
    assert getattr(module.earlier["previous_round"], "before", None) is None, "the parent's weights are let go"


def test_the_parent_is_the_model_without_what_the_run_starts_from():
    """A checkpoint's weights, with and without an adapter; an adapter's folder."""

    def start(policy: Any, _: Any) -> None:
        with torch.no_grad():
            for weight in policy.parameters():
                if weight.requires_grad:
                    weight.add_(0.1)

    for adapter in (None, Lora(r=2, seed=0)):
        plain = probed(ModelBuilder(TinyRandom(**SIZES), adapter)().policy.eval())
        builder = made(adapter, "round_start", "model")
        builder.start = start
        models = builder()
        copied = models.earlier["previous_round"]
        assert not torch.equal(probed(models.policy.eval()), plain)
        if adapter is None:
            assert torch.equal(probed(copied), plain)
        else:
            with copied.put_in():
                assert torch.equal(probed(models.policy.eval()), plain)
    loaded = made(Lora(r=2, seed=0, init=False), "round_start", "model")()
    assert isinstance(loaded.earlier["previous_round"].before, AdapterDisabled)


def test_copies_are_as_few_and_as_small_as_they_can_be():
    """The reference plays the role that it is; an adapter's copy has the adapter alone."""
    full = made(None, "round_start")()
    assert full.earlier["initial"] is full.reference
    assert isinstance(full.earlier["previous_round"], FrozenCopy)
    moving = made(None, "previous_round")()
    assert moving.earlier["previous_round"] is moving.reference
    assert moving.earlier["initial"] is not moving.reference
    adapted = made(Lora(r=2, seed=0), "round_start")()
    assert isinstance(adapted.earlier["initial"], AdapterDisabled)
    trained = {name for name, weight in adapted.policy.named_parameters() if weight.requires_grad}
    assert isinstance(adapted.earlier["previous_round"], AdapterCopy)
    assert adapted.earlier["previous_round"].weights.keys() == trained
    assert made(None, "round_start", roles=frozenset({"policy", "round_start"}))().earlier == {}


def test_a_parent_of_another_architecture_is_refused():
    with pytest.raises(ValueError, match=r"rounds\.parent=.* has other weights than the policy, for example model"):
        made(None, "round_start", TinyRandom(hidden_size=32, intermediate_size=32))()


# Whole runs: scores hang on both roles, so a copy that a checkpoint lost would choose other pairs.


def scorer() -> Any:
    implicit = ImplicitReward(TinyRandom().tokenizer(), path="round_start", reference="previous_round", beta=100.0)
    return Composite(TinyRandom().tokenizer(), terms={"implicit": implicit, "bytes": Unsure()}, missing="none")


def dice_module(adapter: Any = None, **options: Any) -> Any:
    return module_of(partial(made, adapter, "round_start", PARENT, frozenset({"previous_round"})), **options)


def assert_same_rollouts(one, other):
    """The same samples were drawn; scores are differences of sums that a cut may round otherwise, a hundredfold."""
    first, second = samples(one), samples(other)
    assert [[row[:2] for row in rows] for rows in first] == [[row[:2] for row in rows] for rows in second]
    scores = ([row[2] for rows in group_rows for row in rows] for group_rows in (first, second))
    assert all(a == pytest.approx(b, abs=1e-2) for a, b in zip(*scores, strict=True))


def run(folder, adapter=None, **options):
    make = partial(dice_module, adapter, optimizer=SGD)
    return trajectory(make, folder, scorer(), data=partial(data_of, rounds=DICE), **options)


KILLS = [{"kill_call": 2}, {"kill_call": 3}, {"kill_at": 4}, {"kill_at": 7}, {"kill_at": 9}]


@pytest.mark.parametrize(
    ("adapter", "kill"),
    [
        (None, KILLS[1]),
        (Lora(r=2, seed=0), KILLS[3]),
        *(pytest.param(a, k, marks=pytest.mark.slow) for a in (None, Lora(r=2, seed=0)) for k in KILLS),
    ],
)
def test_killed_and_resumed(tmp_path, adapter, kill):
    """In a draw, before a round's first step and within rounds: the copies are those of the run that was not killed."""
    settings = {"make": partial(dice_module, adapter), "data": partial(data_of, rounds=DICE), "reward": scorer()}
    assert_resumes(tmp_path, kill, **settings)


def test_8x1_is_4x2(tmp_path):
    whole = run(tmp_path / "whole")
    assert whole["metrics"]["train/loss"][::4] == pytest.approx([float(torch.tensor(2.0).log())] * 3, abs=0)
    accumulated = run(tmp_path / "cut", accumulate_grad_batches=2)
    assert_same_rollouts(tmp_path / "whole", tmp_path / "cut")
    assert_same(whole, accumulated)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, Lora(r=2, seed=0)], ids=["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", FSDP2Strategy])
def test_two_processes_are_one(tmp_path, strategy, adapter):
    """Each scores its share; with FSDP2 the copies are shards, and every role gathers its own."""
    whole, folder = run(tmp_path / "whole", adapter), tmp_path / "two"
    two = in_processes(2, folder, run, folder, adapter, devices=2, strategy=strategy, accumulate_grad_batches=2)
    assert_same_rollouts(tmp_path / "whole", folder)
    assert_same(whole, two)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, Lora(r=2, seed=0)], ids=["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", FSDP2Strategy])
def test_killed_and_resumed_in_two_processes(tmp_path, strategy, adapter):
    settings = {"make": partial(dice_module, adapter), "data": partial(data_of, rounds=DICE), "reward": scorer()}
    settings |= {"max_epochs": 1, "limit_val_batches": 0, "val_check_interval": None, "devices": 2}
    settings["strategy"] = strategy
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ranks(2, fit, whole, **settings) == [0, 0]
    assert ranks(2, fit, cut, **settings, kill_at=7) == [-signal.SIGKILL] * 2
    assert ranks(2, fit, cut, **settings) == [0, 0]
    assert differences(final_state(whole), final_state(cut)) == []
    assert rollouts(whole) == rollouts(cut)
