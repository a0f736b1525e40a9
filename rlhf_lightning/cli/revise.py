"""``rlhf generate revision=constitution``: responses, their critiques and revisions as preference pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlhf_lightning.cli.console import ERR, OUT
from rlhf_lightning.cli.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.data.rows.messages import Turns


def make_revision(cfg: DictConfig, prompts: int) -> Any:
    """The chain of a configuration, None without one.

    Args:
        cfg: of the command.
        prompts: how many there are.

    Raises:
        ConfigError: the other options make no pairs.
        ValueError: a file of the chain is missing or lacks a text.
    """
    from rlhf_lightning.cli.instantiate import make

    if not cfg.revision:
        return None
    if cfg.chat or not prompts:
        raise ConfigError("revision=... revises responses to prompt=TEXT or prompts=FILE, and a chat has none")
    if cfg.reward or cfg.keep is not None:
        raise ConfigError(
            "revision=... writes pairs, and reward=... and keep=... judge single responses: score the pairs' file later"
        )
    if cfg.prompting:
        raise ConfigError("revision=... asks in turns of a conversation, and prompting=... rewrites them: choose one")
    if cfg.spec.get("template") == "none":
        raise ConfigError("revision=... asks in turns of a conversation: spec.template=none has none")
    return make(cfg.revision)


def write_pairs(
    chain: Any,
    conversations: Sequence[Turns],
    respond: Callable[[Sequence[Turns], int], Sequence[Sequence[str]]],
    cfg: DictConfig,
) -> None:
    """Draw responses, critique and revise them; write or show the pairs. Empty or unchanged revisions make none.

    Args:
        chain: :class:`~rlhf_lightning.prompting.Revision`.
        conversations: one a prompt.
        respond: draws a number of responses to each conversation.
        cfg: of the command.
    """
    first = respond(conversations, cfg.samples)
    asked = [turns for turns, group in zip(conversations, first, strict=True) for _ in group]
    responses = [text for group in first for text in group]
    revised = chain(asked, responses, lambda turns: [group[0] for group in respond(turns, 1)], cfg.seed)
    pairs = [one.row() for one in revised if one.pair]
    if len(pairs) < len(revised):
        ERR.print(f"{len(revised) - len(pairs)} of {len(revised)} revisions are empty or change nothing: left out")
    if cfg.output is None:
        _show(pairs)
        return
    file = Path(cfg.output).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8")
    ERR.print(f"{len(pairs)} pairs in {cfg.output}")


def _show(pairs: Sequence[Mapping[str, Any]]) -> None:
    for row in pairs:
        prompt, chosen, rejected = (row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))
        texts = [("prompt", prompt), ("response", rejected)]
        texts += [(f"critique: {name}", text) for name, text in zip(row["principles"], row["critiques"], strict=True)]
        for title, text in [*texts, ("revision", chosen)]:
            OUT.print(f"[bold]{title}[/]")
            OUT.print(text, markup=False)
        OUT.print()
