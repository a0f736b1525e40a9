"""Dr. GRPO against GRPO in the tiny world: the length of wrong responses while right ones are learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning import compose, train

#: 40 steps on questions for one fact, 1 for a right response and 0 for a wrong one, no KL penalty.
OPTIONS = [
    *("experiment=tiny", "reward=gold_correct", "data.source.topics=[fact]", "data.source.size=1280"),
    *("logger=none", "seed=1", "ckpt_path=null", "callbacks.gold=null"),
]


def wrong_lengths(files: list[Path]) -> float:
    """Mean tokens of the wrong responses in some rollouts."""
    samples = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    lengths = [sample["tokens"] for sample in samples if sample["score"] == 0]
    return sum(lengths) / len(lengths)


@pytest.mark.slow
def test_dr_grpo_does_not_inflate_wrong_responses(tmp_path: Path) -> None:
    """Later wrong responses are no longer than the base's, and not longer than under GRPO.

    The reason is tested without chance in tests/losses/test_policy_length.py; here right responses are short, so both
    methods shorten all of them.
    """
    later, start = {}, 0.0
    for method, options in (("grpo", ["method.kl=null"]), ("dr_grpo", [])):
        folder = tmp_path / method
        train(compose("train", [*OPTIONS, *options, f"method={method}", f"paths.output_dir={folder}"]))
        files = sorted((folder / "rollouts").glob("*.jsonl"))
        start, later[method] = wrong_lengths(files[:2]), wrong_lengths(files[len(files) // 2 :])
    assert later["dr_grpo"] < start
    assert later["dr_grpo"] < later["grpo"] + 0.5  # less than two standard errors of the difference
