"""PPO's loss against a plain loop, what each optimiser step may move, and the four kinds of critics."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rlhf_lightning.credit import gae
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses.critic import value_error
from rlhf_lightning.methods import PPO, KLPenalty
from rlhf_lightning.types import Episodes, Ragged, RolloutBatch, RolloutOptions
from tests.helpers.critics import Costly, ppo_of
from tests.helpers.loss_inputs import assert_detached
from tests.helpers.online import online
from tests.helpers.training import examples, step_totals, trainer

KINDS = ("separate", "shared", "hydra", "adapter")
ONCE = RolloutOptions(group_size=2)
ROWS = examples(6, seed=3)


def batches(parts: int = 1, seed: int = 0, **fields: Any) -> list[RolloutBatch]:
    """One optimiser step of six prompts with two responses each, cut into parts; numbers of tokens at random."""
    draw = torch.Generator().manual_seed(seed)
    totals, size = step_totals(ROWS, parts), len(ROWS) // parts
    out = []
    for at in range(0, len(ROWS), size):
        batch: RolloutBatch = pack(ROWS[at : at + size], kind="prompt", totals=totals)  # type: ignore[assignment]
        drawn = {name: torch.randn(len(batch.target), generator=draw) for name in ("advantage", "value", "returns")}
        noise = 0.4 * torch.randn(len(batch.target), generator=draw)
        out.append(replace(batch, **drawn, old_log_probs=noise, **fields))
    return out


def ready(kind: str = "separate", **options: Any) -> PPO:
    module = ppo_of(kind, ONCE, **options)
    module.configure_model()
    module.train()
    return module


def filled(module: PPO, parts: list[RolloutBatch]) -> list[RolloutBatch]:
    """Old log-probs near the policy's own, and the reference's."""
    for batch in parts:
        with torch.no_grad():
            log_probs = module.policy(batch).token
        batch.old_log_probs = log_probs + batch.old_log_probs
        batch.reference_log_probs = log_probs - 0.3 * batch.advantage
    return parts


def plain_loss(module: PPO, parts: list[RolloutBatch], options: dict[str, Any]) -> float:
    """Token by token in Python: spec 3.1, aggregated over all tokens of the step."""
    with torch.no_grad():
        made = [module.policy(batch, values=True, statistics=frozenset({"entropy"})) for batch in parts]
    advantages = [a for batch in parts for a in batch.advantage.tolist()]
    mean = sum(advantages) / len(advantages)
    variance = sum((a - mean) ** 2 for a in advantages) / (len(advantages) - 1)
    total = 0.0
    for batch, (policy, values) in zip(parts, made, strict=True):
        for t in range(len(batch.target)):
            a = batch.advantage[t].item()
            if options["whiten_advantages"] == "minibatch":
                a = (a - mean) / math.sqrt(variance + 1e-8)
            if options["advantage_clip"] is not None:
                a = min(max(a, -options["advantage_clip"]), options["advantage_clip"])
            logp, old = policy.token[t].item(), batch.old_log_probs[t].item()
            ratio = math.exp(logp - old)
            gain = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            if options["dual_clip"] is not None and a < 0:
                gain = max(gain, options["dual_clip"] * a)
            total -= gain
            v, v_old, r = values[0, t].item(), batch.value[t].item(), batch.returns[t].item()
            held = v if options["value_clip"] is None else min(max(v, v_old - 0.2), v_old + 0.2)
            total += 0.5 * 0.5 * max((v - r) ** 2, (held - r) ** 2)
            total -= options["entropy_coef"] * policy.entropy[t].item()
            if options["kl_coef"]:
                delta = logp - batch.reference_log_probs[t].item()
                total += options["kl_coef"] * (math.exp(-delta) - 1 + delta)
    return total / len(advantages)


PLAIN = {
    "whiten_advantages": "none",
    "advantage_clip": None,
    "dual_clip": None,
    "value_clip": 0.2,
    "entropy_coef": 0.0,
    "kl_coef": 0.0,
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"whiten_advantages": "minibatch"},
        {"whiten_advantages": "minibatch", "advantage_clip": 0.5},
        {"dual_clip": 1.1},
        {"value_clip": None},
        {"entropy_coef": 0.1},
        {"kl_coef": 0.2},
    ],
    ids=lambda changed: "-".join(changed) or "plain",
)
def test_the_whole_loss_is_that_of_a_plain_loop(changed: dict[str, Any], parts: int) -> None:
    options = PLAIN | changed
    module = ready(
        "shared",
        credit={"whiten": options["whiten_advantages"], "clip": options["advantage_clip"]},
        value_loss={"clip": options["value_clip"]},
        policy_loss={"entropy_coef": options["entropy_coef"]},
        kl=KLPenalty("loss", "k3", options["kl_coef"]) if options["kl_coef"] else None,
        loss_options={"dual_clip": options["dual_clip"]},
    )
    step = filled(module, batches(parts))
    advantages = torch.cat([batch.advantage for batch in step])
    for batch in step:
        batch.advantage_moments = (float(advantages.mean()), float(advantages.std(unbiased=False)))
    loss = sum(module(batch).loss.item() for batch in step) / parts
    assert loss == pytest.approx(plain_loss(module, step, options), rel=2e-5)


@pytest.mark.parametrize(
    ("options", "expected", "share"),
    [
        ({"clip": None}, [0.5 * 0.36, 0.5 * 0.16, 0.5 * 1.0], 0.0),
        ({}, [0.5 * 0.64, 0.5 * 0.16, 0.5 * 1.0], 1 / 3),  # V has come nearer to R than the clip believes
    ],
)
def test_value_loss_by_hand(options: dict[str, Any], expected: list[float], share: float) -> None:
    """V [0.4, 0.4, 2], V_old [0, 0.4, 1], R [1, 0, 1], epsilon 0.2 by default: a minimum has 0.02 at the last."""
    value = Ragged(torch.tensor([0.4, 0.4, 2.0], requires_grad=True), torch.tensor([0, 0, 1]), 2)
    error = value_error(value, torch.tensor([0.0, 0.4, 1.0]), torch.tensor([1.0, 0.0, 1.0]), **options)
    assert_detached(error)
    torch.testing.assert_close(error.token, torch.tensor(expected))
    assert error.diagnostics["value/clip"].mean().item() == pytest.approx(share)


def test_credit_is_gae_on_shaped_scores_with_the_penalty_on_tokens() -> None:
    """Score 0.4 of the published example, beta 0.15, lambda 1 and no values: the advantage is a sum of rewards."""
    kl = [-0.3315, -0.0426, 0.6351]
    layout = Ragged(torch.zeros(3), torch.zeros(3, dtype=torch.long), 1)
    module = ppo_of(
        advantage=partial(gae, lam=1.0),
        kl=KLPenalty("reward", "k1", 0.15),
        credit={"shaping": None, "whiten": "none"},
    )
    tokens = {"old_log_probs": torch.tensor(kl), "reference_log_probs": torch.zeros(3), "value": torch.zeros(3)}
    credit = module.credit(
        Episodes(
            group=torch.tensor([0]),
            reward=torch.tensor([0.4]),
            truncated=torch.tensor([False]),
            length=torch.tensor([3]),
            tokens={name: layout.with_token(value) for name, value in tokens.items()},
        )
    )
    expected = torch.tensor([0.4 - 0.15 * sum(kl), 0.4 - 0.15 * (kl[1] + kl[2]), 0.4 - 0.15 * kl[2]])
    torch.testing.assert_close(credit.tokens["advantage"].token, expected)
    torch.testing.assert_close(credit.tokens["returns"].token, expected)
    assert credit.metrics["value/explained_variance"] == pytest.approx(0.0)


def gradients(module: PPO, batch: RolloutBatch) -> dict[str, Tensor]:
    module.zero_grad()
    module(batch).loss.backward()
    return {name: p.grad for name, p in module.policy.named_parameters() if p.grad is not None and p.grad.any()}


def test_a_micro_batch_far_off_policy_trains_the_critic_alone() -> None:
    module = ready(policy_loss={"max_ratio": 5.0})
    batch = filled(module, batches())[0]
    assert any(not module.policy.of_critic(name) for name in gradients(module, batch))
    batch.old_log_probs = batch.old_log_probs - 4.0
    moved = gradients(module, batch)
    assert moved
    assert all(module.policy.of_critic(name) for name in moved)
    assert module(batch).diagnostics["diagnostic/ratio/skipped"] == 1.0


def test_steps_whose_mean_ratio_counts_are_not_cut(tmp_path) -> None:
    """A part of a step has another mean ratio than the step; without the option any cut is the same step."""
    fit = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2).fit
    for options in ({"policy_loss": {"max_ratio": 5.0}}, {}):
        module = ready(**options)
        data = online(module, None, reward=Costly(), count=8)
        if options:
            with pytest.raises(
                ValueError, match=r"max_ratio=5.0 looks at .* into 2 micro-batches.* or method.policy_loss.max_ratio"
            ):
                fit(module, datamodule=data)
        else:
            fit(module, datamodule=data)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_train_policy_and_critic_and_leave_the_reference(tmp_path, kind: str) -> None:
    """Detail of platform notes: the reference's log-probs are bit for bit what they were; both parts have moved."""
    module = ppo_of(kind, RolloutOptions(group_size=2, inner_epochs=2))
    module.configure_model()
    probe = batches()[0]
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    reference = module.reference(probe).token.clone()
    assert torch.equal(reference, module.policy.eval()(probe).token)
    trainer(tmp_path, max_steps=4).fit(module, datamodule=online(module, None, reward=Costly(), count=8))
    assert torch.equal(module.reference(probe).token, reference)
    moved = {n for n, p in module.policy.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert any(module.policy.of_critic(name) for name in moved)
    assert any(not module.policy.of_critic(name) for name in moved)
    assert (module.policy.eval()(probe).token - reference).abs().max() > 1e-4


def test_the_critic_has_its_own_learning_rate() -> None:
    module = ready(value_loss={"critic_lr": 0.5})
    groups = module.parameter_groups()
    rates = {id(p): group.get("lr") for group in groups for p in group["params"]}
    for name, parameter in module.policy.named_parameters():
        assert rates[id(parameter)] == (0.5 if module.policy.of_critic(name) else None), name
    assert all("lr" not in group for group in ready(value_loss={"critic_lr": None}).parameter_groups())


def test_in_the_warm_up_the_policy_stands_still(tmp_path) -> None:
    """Three steps of warm-up, then one of both; weight decay would move a policy that only had gradients of 0."""
    states: list[dict[str, Tensor]] = []

    module = ppo_of(
        "shared",
        RolloutOptions(group_size=2),
        value_loss={"critic_warmup": 3},
        optimizer=partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    )
    module.configure_model()

    def note(*_: Any) -> None:
        states.append({name: p.detach().clone() for name, p in module.policy.named_parameters()})

    note()
    module.on_train_batch_start = note  # type: ignore[method-assign]
    run = trainer(tmp_path, max_steps=4)
    run.fit(module, datamodule=online(module, None, reward=Costly(), count=24))
    note()
    start, warm, end = states[0], states[-2], states[-1]
    for name in start:
        still = torch.equal(start[name], warm[name])
        assert still != module.policy.of_critic(name), name
    assert any(not torch.equal(warm[name], end[name]) for name in start if not module.policy.of_critic(name))


def test_inner_epochs_stop_early(tmp_path) -> None:
    """The policy is too far in the second step of a rollout: two are skipped, and the next rollout is trained on."""
    module = ppo_of("shared", RolloutOptions(group_size=2, inner_epochs=4), policy_loss={"target_kl": 1e-6})
    weights: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            weights.append(torch.cat([p.detach().flatten() for _, p in pl_module.trained_parameters()]))

    trainer(tmp_path, [Watch()]).fit(module, datamodule=online(module, None, reward=Costly(), count=8))
    moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
    # Two rollouts of four steps each; the first two of either are taken (what the very first moves is not compared).
    assert moved == [True, False, False, True, True, False, False]


def test_pretraining_text_adds_its_mean_negative_log_likelihood() -> None:
    """Cut into three micro-batches as well: text has denominators of its own."""
    module, plain = ready("shared", policy_loss={"ptx_coef": 0.5}), ready("shared")
    rows = examples(3, seed=9, responses=1)
    whole = pack(rows, kind="supervised", totals=step_totals(rows, 1))
    with torch.no_grad():
        expected = -module.policy(whole).token.mean().item()
    step = filled(module, batches())[0]
    difference = module(replace(step, ptx=whole)).loss.item() - plain(step).loss.item()
    assert difference == pytest.approx(0.5 * expected, rel=1e-5)
    parts = [pack([row], kind="supervised", totals=step_totals(rows, 3)) for row in rows]
    cut = filled(module, batches(3))
    losses = [module(replace(b, ptx=t)).loss.item() - plain(b).loss.item() for b, t in zip(cut, parts, strict=True)]
    assert sum(losses) / 3 == pytest.approx(0.5 * expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"method\.policy_loss.ptx_coef=0\.5 .* the batch brings none"):
        module(step)


def test_a_batch_without_values_is_refused() -> None:
    module = ready()
    batch = filled(module, batches())[0]
    with pytest.raises(ValueError, match="no value or no returns"):
        module(replace(batch, returns=None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"credit": {"whiten": "batch"}}, r"one of \['minibatch', 'rollout', 'none'\]"),
        ({"value_loss": {"coef": -1.0}}, r"method\.value_loss\.coef=-1\.0 .* a number in \[0, inf\)"),
        ({"value_loss": {"clip": 0.0}}, r"method\.value_loss\.clip=0\.0 .* a number in \(0, inf\) or null"),
        ({"value_loss": {"critic_lr": 0.0}}, r"method\.value_loss\.critic_lr"),
        ({"value_loss": {"critic_warmup": 1.5}}, r"method\.value_loss\.critic_warmup=1\.5 .* a whole number"),
        ({"value_loss": {"clipp": 0.2}}, r"method\.value_loss\.clipp is no option\. Did you mean clip\?"),
        ({"policy_loss": {"max_ratio": -2.0}}, r"method\.policy_loss\.max_ratio"),
        ({"credit": {"clip": -2.0}}, r"method\.credit\.clip"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ppo_of(**options)
