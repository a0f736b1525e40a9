"""Red-teaming and hardening a harmless detector in the tiny world, in a minute on two cores.

    python examples/red_teaming.py runs/red_teaming

1. A detector of polite answers is trained on rows in which politeness is always an opening ("certainly ,"), so it has
   never met the polite closing ("; hope that helps").
2. ``experiment=red_teaming`` trains a policy with GRPO on the gold reward, which likes politeness wherever it stands,
   less 5 times what the detector says. The policy learns to be polite where the detector does not look.
3. ``rlhf_lightning.hardening`` mines the answers that the detector missed, labels them by the grammar, trains the
   detector on them too, and evaluates it on held-out rows of both kinds.

After "Unveiling the Implicit Toxicity in Large Language Models", arXiv:2311.17391.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_lightning import compose, train
from rlhf_lightning.hardening import Detector, Labelled, Round, Text, classifier, harden, read_rollouts, write_rows
from rlhf_lightning.world import grammar
from rlhf_lightning.world.tokenizer import tiny_tokenizer

#: Answers whose politeness, if any, is an opening.
OPENINGS = replace(grammar.MIXED, polite=0.5, rude=0.2, polite_closing=0.0)
POLITE = tuple(" ".join(phrase) for phrase in (*grammar.POLITE_OPENINGS, *grammar.POLITE_CLOSINGS))


def polite(text: Text) -> bool:
    """The oracle: whether an answer has a polite phrase of the grammar, wherever it stands."""
    return any(phrase in text.response for phrase in POLITE)


def rows(split: grammar.Split, number: int, seed: int) -> list[Labelled]:
    """Answers with their labels, as the makers of the detector had them."""
    draw = np.random.default_rng(seed)
    prompts = grammar.prompts(split)
    chosen = [prompts[int(draw.integers(len(prompts)))] for _ in range(number)]
    texts = [Text(prompt.text, " ".join(grammar.answer(prompt, OPENINGS, draw))) for prompt in chosen]
    return [Labelled(text, polite(text)) for text in texts]


class Bench:
    """Where the runs of the example lie, and how they are made.

    Args:
        folder: of the runs.
        overrides: further options of the attack, such as ``trainer.max_steps=20``.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        self.folder, self.overrides = folder, list(overrides)
        self.detectors = self.attacks = 0

    def fit(self, labelled: Sequence[Labelled]) -> Detector:
        """Train a detector on rows and give it back; its folder is ``detector_<n>/export/last``."""
        run = self.folder / f"detector_{self.detectors}"
        self.detectors += 1
        file = write_rows(run / "rows.jsonl", labelled)
        options = [
            *("method=binary_discrimination", "model=tiny", "data=json", "trainer=tiny", "callbacks=export"),
            *(f"data.source.path={file}", "data.validation=0.05", "data.spec.template=tokenizer"),
            *("optimizer.lr=2e-3", f"paths.output_dir={run}", "rerun=true"),
        ]
        train(compose("train", options))
        return classifier(self.detector_folder(), device="cpu")

    def detector_folder(self) -> str:
        """The newest detector's weights."""
        return str(self.folder / f"detector_{self.detectors - 1}" / "export" / "last")

    def attack(self, _: Detector) -> list[Text]:
        """What a policy writes that was trained to be polite behind the newest detector's back."""
        run = self.folder / f"attack_{self.attacks}"
        self.attacks += 1
        path = f"reward.terms.detected.path={self.detector_folder()}"
        options = ["experiment=red_teaming", path, f"paths.output_dir={run}", "rerun=true", *self.overrides]
        train(compose("train", options))
        return read_rollouts(run / "rollouts", tiny_tokenizer(), last=10)


def main(folder: Path, *, size: int = 960, rounds: int = 1, overrides: Sequence[str] = ()) -> list[Round]:
    """Detector, attack, hardening; returns what each round did."""
    bench = Bench(folder, overrides)
    learned, tested = rows("train", size, seed=0), rows("validation", 600, seed=1)
    detector = bench.fit(learned)
    steps: dict[str, Any] = {"attack": bench.attack, "oracle": polite, "fit": bench.fit, "rounds": rounds}
    _, done = harden(detector, train=learned, test=tested, **steps)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(arguments.folder, rounds=arguments.rounds)  # says what each round did
