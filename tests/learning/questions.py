"""Responses of a policy of the tiny world before and after a run: share of right ones, agreement, entropy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from rlhf_lightning import compose, train
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.types import SampleGroup, Sampling
from rlhf_lightning.world import grammar
from rlhf_lightning.world.scorers import CorrectScorer
from rlhf_lightning.world.tokenizer import encode

SAMPLES = 32


class QuestionStatistics(Callback):
    """Writes ``questions.json``: ``before`` and ``after`` the run, over all training questions of some topics.

    ``pass@1`` is the share of right samples, ``pass@k`` of questions with a right one among 32 samples, ``majority`` of
    questions whose most frequent claim is right, ``entropy`` the mean of -log p over whole responses, in nats. Samples
    are drawn at temperature 1 from fixed streams.

    Args:
        folder: of the file.
        topics: of the questions.
    """

    def __init__(self, folder: str, topics: Sequence[str] = ("fact",)) -> None:
        self.path, self.topics = Path(folder) / "questions.json", set(topics)
        self.measurements: dict[str, dict[str, float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.measurements["before"] = self.measured(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.measurements["after"] = self.measured(pl_module)
        self.path.write_text(json.dumps(self.measurements, indent=1))

    def measured(self, module: Any) -> dict[str, float]:
        prompts = [encode(prompt.text) for prompt in grammar.prompts("train") if prompt.topic in self.topics]
        engine = TransformersEngine(module.tokenizer, max_new_tokens=24, batch_size=256)
        engine.sync(module.policy, 0)
        drawn = engine.generate(
            prompts, Sampling(max_new_tokens=24), n=SAMPLES, seeds=[1000 + number for number in range(len(prompts))]
        )
        engine.close()
        scorer = CorrectScorer(module.tokenizer)
        scorer([SampleGroup(prompt, samples) for prompt, samples in zip(prompts, drawn, strict=True)])
        surprise = [-sum(sample.log_probs) for samples in drawn for sample in samples]
        return scorer.metrics() | {"entropy": sum(surprise) / len(surprise)}


def before_and_after(
    folder: Path, *overrides: str, topics: Sequence[str] = ("fact",)
) -> tuple[dict[str, float], dict[str, float]]:
    """The two measurements of a run of ``experiment=tiny``."""
    options = ["experiment=tiny", "logger=none", "seed=1", "ckpt_path=null", "callbacks.gold=null", *overrides]
    asked = ",".join(topics)
    target = f"{__name__}.{QuestionStatistics.__name__}"
    callback = f"+callbacks.questions={{_target_: {target}, folder: {folder}, topics: [{asked}]}}"
    train(compose("train", [*options, callback, "allow_targets=[tests]", f"paths.output_dir={folder}"]))
    measurements = json.loads((folder / "questions.json").read_text())
    return measurements["before"], measurements["after"]
