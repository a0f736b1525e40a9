"""Losses of responses of 32 thousand tokens: in float32 what they are in float64."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.losses.terms import summed_margin
from rlhf_lightning.types import Pair
from tests.helpers.loss_inputs import PREFERENCE, Numbers, ragged, run
from tests.helpers.ranked_inputs import RANKED, Item, Lists
from tests.helpers.ranked_inputs import run as run_ranked
from tests.helpers.unpaired_inputs import UNPAIRED, Labelled
from tests.helpers.unpaired_inputs import run as run_unpaired

LONG = 32_768


def rows(generator: torch.Generator, *lengths: int) -> list[list[float]]:
    """Log-probs of about -2 nats a token, float32."""
    return [(-4 * torch.rand(length, generator=generator)).tolist() for length in lengths]


def moved(base: list[list[float]], generator: torch.Generator) -> list[list[float]]:
    """Another model's: some hundredths of a nat away at each token, on the whole up."""
    return [(torch.tensor(row) + 0.02 * (torch.rand(len(row), generator=generator) - 0.45)).tolist() for row in base]


def made() -> Numbers:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = rows(generator, LONG, 3), rows(generator, LONG - 8, 5)
    policy = moved(chosen, generator), moved(rejected, generator)
    return Numbers(*policy, chosen, rejected, chosen, rejected, margin=[1.0, 2.0], running=(0.5, 2.0, 8.0))


@pytest.mark.parametrize("name", PREFERENCE)
def test_pairs(name: str) -> None:
    batch = made()
    rounded, exact = run(name, batch, torch.float32), run(name, batch, torch.float64)
    for field in ("loss", "chosen_reward", "rejected_reward"):
        # A reward is beta = 0.1 times a log-ratio, or one of two terms of 60,000 nats that float32 rounds.
        one, other = getattr(rounded, field), getattr(exact, field)
        torch.testing.assert_close(one.double(), other, atol=5e-5, rtol=1e-6)


@pytest.mark.parametrize("name", UNPAIRED)
def test_labelled_responses(name: str) -> None:
    pairs = made()
    batch = Labelled(
        pairs.policy_chosen, pairs.reference_chosen, [1.0, 0.0], kl=0.5, running=(0.5, 2.0, 8.0), weight=[1.0, 0.7]
    )
    rounded, exact = run_unpaired(name, batch, torch.float32), run_unpaired(name, batch, torch.float64)
    torch.testing.assert_close(rounded.reward.double(), exact.reward, atol=5e-5, rtol=0)
    torch.testing.assert_close(rounded.loss.double(), exact.loss, atol=5e-5, rtol=1e-6)


@pytest.mark.parametrize("name", RANKED)
def test_ranked_lists(name: str) -> None:
    pairs = made()
    models = zip(
        pairs.policy_chosen + pairs.policy_rejected, pairs.reference_chosen + pairs.reference_rejected, strict=True
    )
    items = [Item(policy, reference, float(score)) for score, (policy, reference) in enumerate(models)]
    batch = Lists([[items[0], items[2]], [items[1], items[3]]], running=(0.5, 2.0, 8.0))
    rounded, exact = run_ranked(name, batch, torch.float32), run_ranked(name, batch, torch.float64)
    torch.testing.assert_close(rounded.reward.double(), exact.reward, atol=5e-5, rtol=1e-6)
    torch.testing.assert_close(rounded.loss.double(), exact.loss, atol=5e-5, rtol=1e-6)


def test_difference_of_two_sums_is_rounded_once() -> None:
    """60,000 nats each, 600 apart: the two sums in float32 would leave 0.004 of it."""
    batch = made()
    rounded, exact = (
        summed_margin(Pair(ragged(batch.policy_chosen, dtype), ragged(batch.policy_rejected, dtype)))
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(rounded.double(), exact, atol=4e-5, rtol=0)
