"""Red-teaming and hardening a harmless detector in the tiny world, in a minute on two cores.

    python examples/red_teaming.py runs/red_teaming

1. A detector of polite responses is trained on rows in which politeness is always an opening ("certainly ,"), so it has
   never met the polite closing ("; hope that helps").
2. ``experiment=red_teaming`` trains a policy with GRPO on the gold reward, which likes politeness wherever it stands,
   less 5 times what the detector says. The policy learns to be polite where the detector does not look.
3. ``rlhf_lightning.hardening`` mines the responses that the detector missed, labels them by the grammar, trains the
   detector on them too, and evaluates it on held-out rows of both kinds.

Detector and policy are the stages of a game (``rlhf_lightning.rounds.game``): ``round_1/detector``, ``round_1/attack``,
``round_2/detector``, ... in the folder. The same command resumes what was interrupted.

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

from rlhf_lightning.cli.stages import run_job_of_stage
from rlhf_lightning.hardening import Detector, Labelled, Round, Text, classifier, harden, read_rollouts, write_rows
from rlhf_lightning.rounds.game import Game, Move
from rlhf_lightning.world import grammar
from rlhf_lightning.world.tokenizer import tiny_tokenizer

#: Responses whose politeness, if any, is an opening.
OPENINGS = replace(grammar.MIXED, polite=0.5, rude=0.2, polite_closing=0.0)
POLITE = tuple(" ".join(phrase) for phrase in (*grammar.POLITE_OPENINGS, *grammar.POLITE_CLOSINGS))


def polite(text: Text) -> bool:
    """The oracle: whether a response has a polite phrase of the grammar, wherever it stands."""
    return any(phrase in text.response for phrase in POLITE)


def rows(split: grammar.Split, number: int, seed: int) -> list[Labelled]:
    """Responses with their labels, as the makers of the detector had them."""
    draw = np.random.default_rng(seed)
    prompts = grammar.prompts(split)
    chosen = [prompts[int(draw.integers(len(prompts)))] for _ in range(number)]
    texts = [Text(prompt.text, " ".join(grammar.response(prompt, OPENINGS, draw))) for prompt in chosen]
    return [Labelled(text, polite(text)) for text in texts]


class Players:
    """The detector and the policy that attacks it, as the stages of a game: each move is an ordinary job.

    Args:
        folder: of the game; a job that is done is not run again, and one that was interrupted is resumed.
        rounds: attacks, each with the detector that is trained after it.
        overrides: more options of the attack, such as ``trainer.max_steps=20``.
    """

    def __init__(self, folder: Path, rounds: int, overrides: Sequence[str] = ()) -> None:
        self.folder = folder
        stages = {
            "detector": [
                *("method=binary_discrimination", "model=tiny", "data=json", "trainer=tiny", "callbacks=export"),
                *(f"data.source.path={folder}/rows_{{round}}.jsonl", "data.validation=0.05"),
                *("data.spec.template=tokenizer", "optimizer.lr=2e-3"),
            ],
            "attack": ["experiment=red_teaming", "reward.terms.detected.path={detector}/export/last", *overrides],
        }
        self.moves = Game(folder, rounds + 1, stages).moves()

    def fit(self, labelled: Sequence[Labelled]) -> Detector:
        """Train the next round's detector on rows; its weights are in ``round_<n>/detector/export/last``."""
        move = next(self.moves)
        write_rows(self.folder / f"rows_{move.round}.jsonl", labelled)
        return classifier(str(_done(move) / "export" / "last"), device="cpu")

    def attack(self, _: Detector) -> list[Text]:
        """Samples of a policy that was trained to be polite without the newest detector noticing."""
        return read_rollouts(_done(next(self.moves)) / "rollouts", tiny_tokenizer(), last=10)


def _done(move: Move) -> Path:
    """The folder of a move's job, after it was run."""
    if code := run_job_of_stage("train", move.options, move.folder, ()):
        raise SystemExit(code)
    return move.folder


def main(folder: Path, *, size: int = 960, rounds: int = 1, overrides: Sequence[str] = ()) -> list[Round]:
    """Detector, attack, hardening; returns what each round did."""
    players = Players(folder, rounds, overrides)
    learned, tested = rows("train", size, seed=0), rows("validation", 600, seed=1)
    detector = players.fit(learned)
    steps: dict[str, Any] = {"attack": players.attack, "oracle": polite, "fit": players.fit, "rounds": rounds}
    _, done = harden(detector, train=learned, test=tested, **steps)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(arguments.folder, rounds=arguments.rounds)  # says what each round did
