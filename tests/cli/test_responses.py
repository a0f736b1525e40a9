"""Statistics of ``rlhf generate``: rewards, the KL to another model, and costs."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning.cli import generate
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.responses import Response, check_reference, log_ratios, statistics
from rlhf_lightning.cli.runs import take_over
from rlhf_lightning.models.decoding.generation import sample
from rlhf_lightning.models.guidance import BlockGuidance
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.report.reading import read_rows
from rlhf_lightning.types import SampleGroup, Sampling

RANDOM = ["model=tiny_random", "model@reference.source=tiny_random", "spec.template=none", "device=cpu"]
DRAWN = ["temperature=1", "top_p=1", "samples=3", "max_new_tokens=5", "batch_size=6", "reward=length"]


def test_the_same_model_on_the_same_prompts_has_no_divergence(tmp_path):
    (tmp_path / "asked.txt").write_text("What is one?\nWhat is two?\n")
    where = [f"prompts={tmp_path}/asked.txt", f"output={tmp_path}/answers.jsonl"]
    metrics = generate.run([*RANDOM, *DRAWN, *where])
    ratios = [row["log_ratio"] for row in read_rows(tmp_path / "answers.jsonl")]
    assert len(ratios) == 6
    assert {row["finish"] for row in read_rows(tmp_path / "answers.jsonl")} == {"length"}  # a random model ends none
    assert max(map(abs, ratios)) < 1e-4
    assert metrics["val/kl/reference"] == pytest.approx(0, abs=1e-4)
    assert (metrics["val/prompt/added"], metrics["val/sample/drawn"]) == (0, 1)


def test_a_prompt_is_compared_with_the_prompt_as_it_is():
    """The log-ratio of a response equals that of transformers: after the given prompt minus after the plain one."""
    actor = ModelBuilder(TinyRandom(), None, ReferenceKind.NONE)().policy
    given, plain = [[5, 6, 7, 8], [9, 7]], [[7, 8], [7]]
    drawn = [sample(actor, [ids] * 2, Sampling(4, 1.0, 1.0), streams=[(0, 0), (0, 1)]) for ids in given]
    groups = [SampleGroup(ids, samples) for ids, samples in zip(given, drawn, strict=True)]

    def log_prob(prompt: list[int], response: list[int]) -> float:
        logits = actor.model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        return sum(logits[len(prompt) - 1 + at, token].item() for at, token in enumerate(response))

    wanted = [
        [log_prob(group.prompt, ids) - log_prob(asked, ids) for ids in group.responses]
        for group, asked in zip(groups, plain, strict=True)
    ]
    for batch_size in (1, 4):
        for one, other in zip(log_ratios(actor, plain, groups, batch_size), wanted, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    groups[0].samples[0] = replace(groups[0].samples[0], log_probs=[])  # as blocks leave it
    assert log_ratios(actor, plain, groups, 4) == [[None, None]] * 2
    assert log_ratios(None, plain, groups, 4) == [[None, None]] * 2


@pytest.mark.parametrize(
    ("options", "prompts", "message"),
    [
        ({"temperature": 0.7}, 2, r"temperature=0\.7 and top_p=1 change: set temperature=1 top_p=1"),
        ({"top_p": 0.9}, 2, r"top_p=0\.9 change"),
        ({"chat": True}, 2, "reference.source needs responses to prompt=TEXT"),
        ({}, 0, "reference.source needs responses to prompt=TEXT"),
    ],
)
def test_where_no_divergence_can_be_measured(options, prompts, message):
    cfg = {"temperature": 1, "top_p": 1, "chat": False, "revision": None, "reference": {"source": {"_target_": "x"}}}
    with pytest.raises(ConfigError, match=message):
        check_reference(OmegaConf.create({**cfg, **options}), prompts)
    check_reference(OmegaConf.create({**cfg, **options, "reference": None}), prompts)


def test_statistics_of_what_is_chosen():
    """Best of n: log n - (n - 1) / n nats at most (arXiv:2401.01879); n candidates for a block cost that a block."""
    responses = [[Response("a", 1.0, 0.5, (9, 4, 6))], [Response("b", 3.0, 0.7, (11, 6, 8))]]
    every = statistics(responses, 1, None, None)
    assert every["val/sample/reward"] == 2
    assert every["val/sample/reward_error"] == pytest.approx(1)
    assert every["val/kl/reference"] == pytest.approx(0.6)
    assert (every["val/prompt/tokens"], every["val/prompt/added"], every["val/sample/length"]) == (10, 5, 7)
    best = statistics(responses, 4, 1, None)
    assert "val/kl/reference" not in best  # the log-ratio is that of all samples, not of the best
    assert best["val/kl/choice"] == pytest.approx(math.log(4) - 0.75)
    assert best["val/sample/drawn"] == 4
    blocks = statistics(responses, 1, None, BlockGuidance(SimpleNamespace(), candidates=4, tokens=4))
    assert blocks["val/kl/choice"] == pytest.approx(2 * (math.log(4) - 0.75))
    assert blocks["val/sample/drawn"] == 4


def test_a_model_chosen_for_another_place_leaves_that_of_the_run():
    """``model@guidance.reference=hub`` is no choice of ``model``."""
    run = OmegaConf.create({"model": {"name": "run's"}})
    cfg = OmegaConf.create({"model": {"name": "default"}, "reference": {"source": {"name": "other"}}})
    assert take_over(cfg, run, ["model"], ["model@reference.source=hub"]).model.name == "run's"
    assert take_over(cfg, run, ["model"], ["model=hub"]).model.name == "default"
