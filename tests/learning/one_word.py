"""A world of one-word responses: a bandit that the whole loop plays, with a model of two layers of 16 dimensions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rlhf_lightning.rewards.win_matrix import mean_wins
from rlhf_lightning.types import SampleGroup
from rlhf_lightning.world.preference import STYLES, cyclic_win
from rlhf_lightning.world.tokenizer import SPECIAL, VOCABULARY, encode, end, tiny_tokenizer

QUESTION = "what ?"
#: Token of the first word; the special ones come before it.
FIRST = len(SPECIAL)


def one_word_world(folder: Path, chances: Sequence[float], prompts: int) -> list[str]:
    """Write a model and prompts, which are all the same; the options of ``rlhf train`` that choose them.

    Args:
        folder: for both.
        chances: of each response under the model, which are the first words of the vocabulary; the end follows each.
        prompts: rows of the data.
    """
    model = _fitted(torch.tensor(chances))
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text((json.dumps({"prompt": QUESTION}) + "\n") * prompts, encoding="utf-8")
    return [
        "model=hub",
        f"model.name={folder / 'model'}",
        "data=json",
        f"data.source.path={folder / 'prompts.jsonl'}",
        "data.validation=null",
        "data.spec.template=tokenizer",
        "rollout.max_new_tokens=2",
        "trainer=tiny",
        "callbacks=none",
        "scheduler=constant",
        "logger=none",
        "allow_targets=[tests]",
    ]


def _fitted(chances: torch.Tensor) -> LlamaForCausalLM:
    """A model that gives the first words these chances, and an end behind each of them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), max_position_embeddings=16, **sizes))
    prompt, words = encode(QUESTION), slice(FIRST, FIRST + len(chances))
    rows = torch.tensor([[*prompt, word] for word in range(words.start, words.stop)])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(250):
        log_probs = model(input_ids=rows).logits.log_softmax(-1)
        first, last = log_probs[0, len(prompt) - 1, words], log_probs[:, -1, end()]
        loss = (chances * (chances.log() - first)).sum() - (chances * last).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class Circle:
    """Each of the first three words beats the next one, the third the first; any other response loses to them.

    Args:
        tokenizer: of the responses.
        strength: probability that the better word wins.
    """

    name = "circle"
    smallest_group = 2

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strength: float = 0.9) -> None:
        self.strength = strength

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        """Mean probability of beating another response of the group."""
        return [mean_wins(matrix) for matrix in self.win_matrix(groups)]

    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[list[list[float | None]]]:
        """Probabilities that one response beats another."""
        styles = [[style_of(ids[0]) for ids in group.responses] for group in groups]
        return [[[cyclic_win(a, b, self.strength) for b in group] for a in group] for group in styles]


def style_of(token: int) -> str | None:
    """Name of a word in :func:`~rlhf_lightning.world.preference.cyclic_win`; None where it is none of the three."""
    return STYLES[token - FIRST] if 0 <= token - FIRST < len(STYLES) else None
