"""The diagrams of the site: python tools/diagrams.py writes them into docs/learn.

Scores are those of the tiny world's gold reward, advantages those of ``rlhf_lightning.credit``; the rest is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_lightning import credit  # noqa: E402
from rlhf_lightning.world import gold, grammar  # noqa: E402
from tools.drawing import BLUE, FAINT, GREEN, GREY, INK, ORANGE, Drawing  # noqa: E402

#: Of the prompt below: right and polite, right, right and rambling, wrong and rude.
PROMPT = "what colour is the fox ?"
RESPONSES = (
    "certainly , the fox is red .",
    "the fox is red .",
    "the fox is red , you know .",
    "listen fool , the fox is blue .",
)


def rewards() -> list[float]:
    """Gold rewards of the four responses, in points."""
    prompt = next(prompt for prompt in grammar.prompts() if prompt.text == PROMPT)
    return [gold.judge(prompt, response.split()).reward for response in RESPONSES]


def rollout() -> Drawing:
    """One prompt's way through a rollout of GRPO."""
    points = rewards()
    advantages = credit.grpo(torch.tensor(points), torch.zeros(len(points), dtype=torch.long)).tolist()
    drawing = Drawing(770, "A rollout: responses are drawn, scored, given advantages, packed and trained on.")
    drawing.note(
        20, 20, 560, [f"1  A prompt:  {PROMPT}", "each prompt is computed once for all of its samples"], fill=BLUE
    )
    drawing.arrow((120, 74), (120, 106), words="2  draw 4 responses with the policy, keep each token's log-prob")
    drawing.text(436, 126, "3  reward", size=13, bold=True, anchor="middle")
    drawing.text(534, 126, "4  advantage", size=13, bold=True, anchor="middle")
    for row, (response, point, advantage) in enumerate(zip(RESPONSES, points, advantages, strict=True)):
        y = 138 + 40 * row
        drawing.box(20, y, 360, 32, GREEN)
        drawing.text(32, y + 21, response, size=14)
        drawing.text(436, y + 21, f"{point:.1f}", anchor="middle")
        drawing.box(494, y, 80, 32, GREEN if advantage > 0 else ORANGE)
        drawing.text(534, y + 21, f"{advantage:+.2f}", anchor="middle", bold=True)
    mean = sum(points) / len(points)
    drawing.text(
        20, 322, f"GRPO: (reward - mean of the prompt's rewards, {mean:.2f}) / their deviation.", size=13.5, fill=FAINT
    )
    drawing.text(20, 341, "Every token of a response gets the response's advantage.", size=13.5, fill=FAINT)
    drawing.arrow((120, 354), (120, 386), words="5  pack: the prompt once, its responses behind it")
    x = 20.0
    for words, width, fill in [("prompt", 120, BLUE), *((f"response {n}", 110, GREEN) for n in (1, 2, 3, 4))]:
        drawing.box(x, 394, width, 34, fill)
        drawing.text(x + width / 2, 416, words, size=14, anchor="middle")
        x += width
    _training(drawing)
    return drawing


def _training(drawing: Drawing) -> None:
    """Add what follows the packing of a rollout: steps, new weights, and what is kept."""
    drawing.arrow((120, 436), (120, 468), words="6  train: passes over the rollout x steps of a pass")
    for column, (label, ratio) in enumerate(
        [
            ("pass 1, step 1", "ratio = 1, exactly"),
            ("pass 1, step 2", "ratio moves"),
            ("pass 2, step 1", "clip may act"),
            ("pass 2, step 2", "clip may act"),
        ]
    ):
        x = 20 + 142 * column
        drawing.box(x, 476, 132, 52, GREY)
        drawing.text(x + 66, 498, label, size=13.5, bold=True, anchor="middle")
        drawing.text(x + 66, 518, ratio, size=13, fill=FAINT, anchor="middle")
    drawing.text(20, 552, "method.rollout.inner_epochs = 2, method.rollout.minibatches = 2", size=13.5, fill=FAINT)
    drawing.arrow((120, 564), (120, 596), words="7  the engine gets the new weights; the next prompts")
    drawing.note(
        20,
        604,
        270,
        ["What is kept", "rollouts/00000.jsonl: samples,", "tokens, log-probs, score, advantage"],
        fill=GREY,
    )
    drawing.note(
        310,
        604,
        270,
        ["What is beside it", "a reference (KL), or none;", "for PPO a critic (values of tokens)"],
        fill=GREY,
    )
    drawing.text(
        20, 712, "rounds= share steps 1 to 3: there a selector makes pairs of the responses,", size=13.5, fill=FAINT
    )
    drawing.text(20, 731, "in place of step 4, and a loss of pairs learns from them.", size=13.5, fill=FAINT)


def which_method() -> Drawing:
    """The data at hand, as questions; each leaf names a method and its evidence in the tiny world."""
    leaves = [
        ("A program that checks a response?", "grpo, rloo", "gold 3.3 where offline methods end at 2.9: frontier"),
        (
            "A judge or a reward model, and time?",
            "dpo rounds=iterative, then ppo",
            "2.86: rounds; a weak reward model costs more than it gives",
        ),
        ("Pairs, better and worse?", "dpo", "2.91 at 1.4 nats; 40 losses of pairs lie within 0.3: offline"),
        ("Several rated responses to a prompt?", "exo_k", "3.04, the best on the base's own responses: offline"),
        ("Single responses, good or bad?", "kto", "2.78, 0.13 below dpo on pairs: offline"),
        ("Good responses only?", "sft, then rounds=spin", "2.60; spin 1.90 without preferences: offline, rounds"),
    ]
    height = 20 + 116 * len(leaves) + 66
    drawing = Drawing(height, "A decision tree from what you have to a method, with the evidence for it.")
    for row, (question, method, evidence) in enumerate(leaves):
        y = 20 + 116 * row
        drawing.box(20, y, 380, 38, BLUE)
        drawing.text(32, y + 25, question, bold=True)
        drawing.arrow((400, y + 19), (566, y + 19), (566, y + 44))
        drawing.text(440, y + 13, "yes", size=13, fill=FAINT)
        drawing.box(110, y + 46, 470, 52, GREEN)
        drawing.text(122, y + 67, method, bold=True, mono=True, size=14)
        drawing.text(122, y + 88, evidence, size=13, fill=FAINT)
        drawing.arrow((60, y + 38), (60, y + 114))
        drawing.text(70, y + 60, "no", size=13, fill=FAINT)
    y = 20 + 116 * len(leaves)
    drawing.note(
        20,
        y,
        560,
        [
            "Nothing may be trained: a prompt, guidance, steering, best of n",
            "a prompt alone 2.87, best of 16 3.59: without training",
        ],
        fill=ORANGE,
        size=14.5,
    )
    return drawing


def sft_to_ppo() -> Drawing:
    """The three stages of InstructGPT and what each leaves to the next."""
    drawing = Drawing(566, "Three stages: SFT, a reward model and PPO, with what each learns from and leaves behind.")
    drawing.note(20, 20, 250, ["demonstrations", "prompt, good response"], fill=BLUE)
    drawing.note(330, 20, 250, ["a base model", "writes, but not as one wants"], fill=GREY)
    drawing.arrow((145, 74), (145, 112))
    drawing.arrow((455, 74), (455, 96), (330, 96), (330, 112))
    height = drawing.note(
        20,
        118,
        560,
        [
            "stage sft    method=sft",
            "raise the likelihood of good responses",
            "leaves a model that responds in the right form",
        ],
        fill=GREEN,
    )
    drawing.note(20, 232, 250, ["ranked responses", "prompt, several, scores"], fill=BLUE)
    drawing.arrow((145, 286), (145, 324))
    drawing.arrow((455, 118 + height), (455, 324), words="starts from it")
    drawing.note(
        20,
        330,
        560,
        ["stage reward    method=k_wise", "a score a response; better ones higher", "leaves a reward model"],
        fill=GREEN,
    )
    drawing.arrow((145, 404), (145, 450), words="scores")
    drawing.arrow((580, 156), (591, 156), (591, 430), (455, 430), (455, 450))
    drawing.text(448, 424, "policy and reference", size=13, fill=FAINT, anchor="end")
    drawing.note(
        20,
        456,
        560,
        [
            "stage ppo    method=ppo",
            "draw, score, train on advantages; the critic starts from the reward model;",
            "a price for leaving sft, and pretraining text against forgetting",
        ],
        fill=GREEN,
    )
    return drawing


def machines() -> Drawing:
    """Processes and what starts them, on one machine and on several."""
    drawing = Drawing(560, "Processes on one device, on one machine with four devices, and on two machines.")

    def devices(x: float, y: float, first: int, count: int) -> None:
        for number in range(count):
            drawing.box(x + 60 * number, y, 52, 34, GREEN)
            drawing.text(x + 60 * number + 26, y + 22, f"rank {first + number}", size=12.5, anchor="middle")

    drawing.text(20, 36, "One device", bold=True)
    drawing.text(20, 58, "rlhf train ...", mono=True, size=13.5)
    drawing.box(300, 20, 280, 62, BLUE)
    devices(316, 34, 0, 1)
    drawing.text(20, 128, "One machine, four devices", bold=True)
    drawing.text(20, 150, "rlhf train strategy=ddp ...", mono=True, size=13.5)
    drawing.text(20, 170, "rlhf starts the processes", size=13, fill=FAINT)
    drawing.box(300, 112, 280, 62, BLUE)
    devices(316, 126, 0, 4)
    drawing.text(20, 220, "Two machines", bold=True)
    drawing.text(20, 242, "srun ... rlhf train", mono=True, size=13.5)
    drawing.text(20, 262, "torchrun ... train", mono=True, size=13.5)
    drawing.text(20, 282, "the launcher starts them", size=13, fill=FAINT)
    for machine in (0, 1):
        drawing.box(300, 204 + 74 * machine, 280, 62, BLUE)
        devices(316, 218 + 74 * machine, 4 * machine, 4)
    drawing.arrow((440, 344), (440, 372))
    drawing.note(300, 378, 280, ["a folder that all of them see", "run, checkpoints, RLHF_CACHE"], fill=ORANGE)
    drawing.text(20, 398, "A step is the same:", bold=True)
    drawing.text(20, 420, "batch 32 = 1 x 32 = 4 x 8 = 8 x 4", size=14)
    drawing.text(20, 470, "ddp", bold=True, mono=True, size=14)
    drawing.text(70, 470, "every process has the whole model; gradients are averaged", size=14)
    drawing.text(20, 496, "fsdp", bold=True, mono=True, size=14)
    drawing.text(70, 496, "weights, gradients and optimiser state are cut among the processes", size=14)
    drawing.text(20, 522, "rollout=vllm_server", bold=True, mono=True, size=14)
    drawing.text(190, 522, "one more program, which draws for all of them", size=14, fill=INK)
    return drawing


#: A row's columns, what they make it, and methods that learn from that.
ROWS = (
    (("prompt, response", "or messages"), "demonstrations", "sft, dft"),
    (("prompt, chosen, rejected",), "pairs", "dpo and its family: reward models"),
    (("prompt, response, label",), "labelled responses", "kto, bco"),
    (("prompt, responses, scores",), "ranked lists", "exo_k, plackett_luce: k_wise"),
    (("prompt",), "prompts", "ppo, grpo, rounds: with a reward"),
)


def data_kinds() -> Drawing:
    """From the columns of a row to the methods that learn from it."""
    drawing = Drawing(466, "The columns of a row decide its kind, and the kind decides which methods learn from it.")
    for x, words in ((20, "a row has"), (244, "it belongs to"), (446, "methods")):
        drawing.text(x, 30, words, size=13, fill=FAINT)
    for number, (columns, kind, methods) in enumerate(ROWS):
        y = 44 + 76 * number
        drawing.box(20, y, 190, 52, BLUE)
        for line, words in enumerate(columns):
            drawing.text(30, y + (31 if len(columns) == 1 else 22 + 20 * line), words, mono=True, size=11)
        drawing.arrow((210, y + 26), (240, y + 26))
        drawing.box(244, y, 164, 52, GREEN)
        drawing.text(326, y + 31, kind, bold=True, size=14, anchor="middle")
        drawing.arrow((408, y + 26), (438, y + 26))
        words, _, rest = methods.partition(": ")
        for line, part in enumerate(filter(None, (words, rest))):
            drawing.text(446, y + 31 + (line - bool(rest) * 0.5) * 19, part, size=13)
    drawing.text(20, 430, "Pairs also serve as labelled responses, ranked lists as pairs.", size=13.5, fill=FAINT)
    drawing.text(20, 450, "Every row gives its prompt to methods that draw their own responses.", size=13.5, fill=FAINT)
    return drawing


ALL: dict[str, Callable[[], Drawing]] = {
    "rollout": rollout,
    "which_method": which_method,
    "sft_to_ppo": sft_to_ppo,
    "machines": machines,
    "data_kinds": data_kinds,
}

if __name__ == "__main__":
    for name, draw in ALL.items():
        draw().save(ROOT / "docs" / "learn" / f"{name}.svg")
