"""Nash-MD where preferences go in a circle, with the whole loop: only an even mixture of three words is beaten by none.

tests/losses/test_bandits.py has the theory, and why the mixture and the price of divergence here are no defaults.
"""

from __future__ import annotations

from itertools import chain
from statistics import fmean

import pytest

from rlhf_lightning import compose, train
from rlhf_lightning.world.preference import exploitability
from tests.learning.claims import SEEDS, rollouts
from tests.learning.one_word import one_word_world, style_of

pytestmark = pytest.mark.slow
#: Plain gradient steps, as in theory: Adam makes the small gradients near the even mixture as large as any.
OPTIONS = (
    "method=nash_md",
    "method.loss.beta=0.05",
    "rounds=nash_md",
    "rounds.draws.1.mix=0.125",
    "rounds.selector.cut_off=lose",
    "reward._target_=tests.learning.one_word.Circle",
    "reward._partial_=true",
    "optimizer=sgd",
    "optimizer.lr=0.2",
    "optimizer.momentum=0.0",
    "data.batch_size=128",
    "rollout.batch_size=256",
)


START = (0.68, 0.22, 0.10)  #: of the three words; the best reply wins 0.184 more than half


@pytest.mark.parametrize("seed", SEEDS)
def test_nash_md_is_exploited_less_than_its_start(seed, tmp_path):
    """The mean of the last four eights of the steps, as the policy goes round while it comes nearer.

    Measured: 0.097, 0.049 and 0.085; theory has it end at 0.042. Of one eighth the standard error is 0.015.
    """
    world = one_word_world(tmp_path / "world", START, prompts=64 * 128)
    train(compose("train", [*world, *OPTIONS, f"seed={seed}", f"paths.output_dir={tmp_path / 'run'}"]))
    words = [
        [style_of(row["ids"][0]) for row in rows if row["source"] == "policy"] for rows in rollouts(tmp_path / "run")
    ]
    eights = [exploitability(list(chain(*words[first : first + 8])), 0.9) for first in range(0, 64, 8)]
    assert fmean(eights[4:]) < 0.184 - 0.04, eights
