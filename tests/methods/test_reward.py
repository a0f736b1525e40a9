"""Modules of reward models: what they refuse, what they give to a loss, what they report."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.methods import CostModel, RankedRewardModel, RewardModel
from rlhf_lightning.methods.reward import by_group, lengths, shared_prefix
from rlhf_lightning.methods.tracking import ScoreStatistics
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.types import Example
from tests.helpers.kinds import EXAMPLES

BUILDER = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), None, "none")
NAN = float("nan")


def built(kind: Any, loss: Any, **options: Any) -> Any:
    module = kind(BUILDER, loss, **{"head": partial(Scorer, seed=1)} | options)
    module.configure_model()
    return module


def test_what_cannot_work_is_refused_before_weights_load():
    with pytest.raises(ValueError, match="cannot give a loss"):
        RewardModel(BUILDER, losses.k_wise)
    with pytest.raises(ValueError, match="cannot give a loss"):
        RewardModel(BUILDER, losses.cost)
    with pytest.raises(ValueError, match="ranked lists"):
        RankedRewardModel(BUILDER, losses.bradley_terry)
    with pytest.raises(ValueError, match=r"method\.normalize='z'"):
        RewardModel(BUILDER, losses.bradley_terry, normalize="z")


def test_two_outputs_need_a_loss_of_two():
    with pytest.raises(ValueError, match=r"method\.head\.outputs=2"):
        built(RewardModel, losses.bradley_terry, head=partial(Scorer, outputs=2))


def test_a_likelihood_term_keeps_the_vocabulary():
    assert built(RewardModel, partial(losses.bradley_terry, lm_weight=0.5)).policy.language_model
    assert not built(RewardModel, losses.bradley_terry).policy.language_model
    both = losses.WeightedSum(
        {
            "preference": {"weight": 1.0, "loss": losses.bradley_terry},
            "generation": {"weight": 0.5, "loss": losses.preferred_ft},
        }
    )
    batch = pack(EXAMPLES["preference"](4))
    one = built(RewardModel, both)(batch)
    other = built(RewardModel, partial(losses.bradley_terry, lm_weight=0.5))(batch)
    torch.testing.assert_close(one.loss, other.loss)


def test_shared_prefix_by_hand():
    batch = pack(
        [
            Example([9], [[1, 2, 3], [1, 2, 4]]),
            Example([9], [[5], [6, 5]]),
            Example([9], [[7, 7], [7, 7, 7]]),  # one is the beginning of the other
            Example([9], [[0, 3], [0, 4]]),  # token 0 is a token, not padding
        ]
    )
    assert shared_prefix(batch).tolist() == [2, 0, 2, 1]


def test_rows_of_groups():
    batch = pack([Example([9], [[1, 2, 3], [1]]), Example([9], [[5], [6, 5]])])
    assert by_group(lengths(batch), batch).tolist() == [[3, 1], [1, 2]]


def test_pairs_report_rewards_of_both():
    module = built(RewardModel, losses.bradley_terry)
    batch = pack(EXAMPLES["preference"](3))
    scores = module.policy(batch)
    output = module(batch).diagnostics
    torch.testing.assert_close(output["chosen_reward"], scores[0::2])
    torch.testing.assert_close(output["rejected_reward"], scores[1::2])
    torch.testing.assert_close(output["response_reward"], torch.cat([scores[0::2], scores[1::2]]))
    assert output["response_length"].tolist() == [*lengths(batch)[0::2].tolist(), *lengths(batch)[1::2].tolist()]


def test_a_cost_is_reported_as_a_negative_reward():
    module = built(CostModel, losses.cost)
    batch = pack(EXAMPLES["safety"](3), kind="safety")
    torch.testing.assert_close(module(batch).diagnostics["chosen_reward"], -module.policy(batch)[0::2])


def test_lists_report_only_responses_that_are_there():
    module = built(RankedRewardModel, losses.k_wise)
    batch = pack(EXAMPLES["ranked"](6), kind="ranked")
    assert not batch.present.all()
    output = module(batch).diagnostics
    assert len(output["response_reward"]) == len(output["response_length"]) == int(batch.present.sum())


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [("standard", 3.5, 5**0.5 / 2), ("demonstrations", 3.0, 1.0), ("scale", 0.0, 5**0.5 / 2), ("none", 0.0, 1.0)],
)
def test_normalisation_by_hand(normalize, mean, std):
    """Scores 2 3 / 4 5: mean 3.5, variance 1.25; the first responses score 2 and 4."""
    module = built(RewardModel, losses.bradley_terry, normalize=normalize)
    module.policy.forward = lambda batch: torch.tensor([2.0, 3.0, 4.0, 5.0])
    measured = module.measure([pack(EXAMPLES["preference"](2))])
    assert measured == pytest.approx((mean, std))
    assert (module.policy.mean, module.policy.std) == measured
    assert module.policy.normalized(torch.tensor([mean])).item() == pytest.approx(0.0)


def test_statistics_of_scores_by_hand():
    """Scores 1 3 5 7 with lengths 2 2 4 8: mean 4, deviation sqrt(5), covariance 5, lengths' variance 6."""
    statistics = ScoreStatistics()
    statistics.add(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    statistics.add(torch.tensor([7.0, 5.0]), torch.tensor([8.0, 4.0]))
    numbers = {name: float(value) for name, value in statistics.pop(lambda values, _: values).items()}
    expected = {"mean": 4.0, "std": 5**0.5, "min": 1.0, "max": 7.0, "length_correlation": 5 / 30**0.5}
    assert numbers == pytest.approx(expected)
    assert statistics.pop(lambda values, _: values) == {}
    statistics.add(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0]))
    assert "length_correlation" not in statistics.pop(lambda values, _: values)


def test_the_length_of_a_response_counts_its_prompt():
    """As ODIN's authors count; tokens of the response alone would be 2 1 / 1 3."""
    batch = pack([Example([1, 2, 3], [[5, 6], [7]]), Example([4], [[5], [7, 8, 9]])])
    module = built(RewardModel, partial(losses.odin, orthogonality_weight=0.0), head=partial(Scorer, outputs=2, seed=1))
    scores, _ = module.scores(batch)
    length = module.inputs(batch, scores, None)["length"]()
    assert length.tolist() == [[5.0, 4.0], [2.0, 4.0]]
    expected = losses.odin(by_group(scores, batch), length, torch.tensor(0.0), orthogonality_weight=0.0)
    torch.testing.assert_close(module(batch).loss, expected.loss.mean())


@pytest.mark.slow
def test_odin_decorrelates_from_length():
    """Fifty steps on pairs whose longer response always wins: the length head takes it up, quality does not."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(4, 200, (count,), generator=generator).tolist()

    rows = [Example(tokens(3), [tokens(6 + number % 5), tokens(2 + number % 3)]) for number in range(32)]
    batch = pack(rows)
    by_name = {}
    for name, weight in (("free", 0.0), ("odin", 1.0)):
        module = built(
            RewardModel,
            partial(losses.odin, length_weight=weight, orthogonality_weight=weight),
            head=partial(Scorer, outputs=2, unit_rows=True, seed=1),
        ).train()
        optimizer = torch.optim.Adam(module.policy.parameters(), lr=3e-3)
        for _ in range(50):
            output = module(batch)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        by_name[name] = output.diagnostics
    quality = "diagnostic/reward/quality_length_correlation"
    assert abs(by_name["odin"][quality]) < 0.1 < abs(by_name["free"][quality])
    assert by_name["odin"]["diagnostic/reward/length_head_correlation"] > 0.8
