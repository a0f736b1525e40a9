"""Our policy-gradient losses against TRL 1.16's own code, on what benchmarks/trl_policy_values.py recorded.

For each setting the fixture holds the loss of a batch, its gradient with respect to each log-prob and the shares of
clipped tokens. Loss and gradient have to agree to 1e-5, relative where they are large.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_lightning.losses as losses
from rlhf_lightning.methods.kl import KLPenalty
from rlhf_lightning.ops.aggregation import token_aggregate
from tests.helpers.policy_inputs import ragged

FIXTURE = json.loads((Path(__file__).parent / "trl_policy.json").read_text())
BATCHES: dict[str, dict[str, Any]] = FIXTURE["batches"]
_GSPO = {"loss": "gspo"}
#: TRL's setting -> loss, options, aggregation, KL penalty, entropy bonus.
OURS: dict[str, dict[str, Any]] = {
    "grpo": {"loss": "ppo"},
    "bnpo": {"loss": "ppo", "how": "local_token_mean"},
    "dr_grpo": {"loss": "ppo", "how": "seq_mean_token_sum_norm"},
    "dapo": {"loss": "ppo", "how": "token_mean", "options": {"eps_high": 0.28}},
    "cispo": {"loss": "cispo", "how": "token_mean"},
    "cispo_low_cap": {"loss": "cispo", "how": "token_mean", "options": {"eps_abs_high": 1.1}},
    "gspo": _GSPO,
    "gspo_wide": _GSPO | {"options": {"eps_low": 0.1, "eps_high": 0.2}},
    "grpo_kl": {"loss": "ppo", "kl": KLPenalty("loss", "k3", 0.1)},
    "grpo_kl_corrected": {"loss": "ppo", "kl": KLPenalty("loss", "k3", 0.1, is_correct=True)},
    "dapo_kl_corrected": {"loss": "ppo", "how": "token_mean", "kl": KLPenalty("loss", "k3", 0.04, is_correct=True)},
    "dr_grpo_kl": {"loss": "ppo", "how": "seq_mean_token_sum_norm", "kl": KLPenalty("loss", "k3", 0.1)},
    "grpo_entropy": {"loss": "ppo", "how": "local_token_mean", "entropy": 0.01},
    "gmpo": {"loss": "gmpo"},
    "rloo": {"loss": "ppo", "options": {"ratio": "sequence"}},
}


def ours(batch: dict[str, Any], setting: dict[str, Any]) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, gradient and diagnostics in float32."""
    policy, old, reference = (ragged(batch[name], torch.float32) for name in ("policy", "old", "reference"))
    policy.token.requires_grad_(True)
    advantage = policy.with_token(torch.tensor(batch["advantage"])[policy.sequence])
    options, how = setting.get("options", {}), setting.get("how", "seq_mean_token_mean")
    result = getattr(losses, setting["loss"])(policy, old, advantage, **options)
    token = result.token
    if "kl" in setting:
        token = token + setting["kl"].coef.float() * setting["kl"].term(policy.token, reference.token, old.token)
    token = token - setting.get("entropy", 0.0) * ragged(batch["entropy"], torch.float32).token
    value = token_aggregate(token, policy.sequence, policy.count, how, float(FIXTURE["max_length"]))
    (gradient,) = torch.autograd.grad(value, policy.token)
    return value.item(), gradient, result.diagnostics


CASES = [(setting, batch) for setting in OURS for batch in BATCHES]


@pytest.mark.parametrize(("setting", "batch"), CASES)
def test_agrees_with_trl(setting: str, batch: str) -> None:
    expected = FIXTURE["results"][setting][batch]
    value, gradient, _ = ours(BATCHES[batch], OURS[setting])
    assert value == pytest.approx(expected["loss"], rel=1e-5, abs=1e-5)
    wanted = torch.tensor([x for row in expected["gradient"] for x in row])
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(gradient / scale, wanted / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("setting", ["grpo", "dapo", "gspo_wide", "rloo"])
def test_shares_of_clipped_tokens_agree(setting: str, batch: str) -> None:
    """TRL counts a response once where its ratio is of the response; ours counts each of its tokens."""
    expected = FIXTURE["results"][setting][batch]["metrics"]
    _, _, named = ours(BATCHES[batch], OURS[setting])
    rows = ragged(BATCHES[batch]["policy"])
    for side in ("low", "high"):
        clipped = rows.with_token(named[f"clip/{side}"])
        share = clipped.mean().mean() if setting in ("gspo_wide", "rloo") else clipped.token.mean()
        assert share.item() == pytest.approx(expected[f"clip_ratio/{side}_mean"], abs=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
def test_delta_is_a_dual_clip_for_negative_advantages(batch: str) -> None:
    """The documented difference: TRL's delta also bounds the ratio of tokens whose clipped gain is the smaller one."""
    expected = FIXTURE["results"]["grpo_delta"][batch]
    value, _, _ = ours(BATCHES[batch], {"loss": "ppo", "options": {"dual_clip": 1.5}})
    assert value == pytest.approx(expected["loss"], rel=1e-5, abs=1e-5)


def test_every_setting_of_trl_is_compared() -> None:
    assert set(FIXTURE["results"]) == {*OURS, "grpo_delta"}
    assert FIXTURE["trl"].startswith("1.16")
