"""``rlhf quickstart``: align a small model on two cores, and show what changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.cpu import emulates_bf16

if TYPE_CHECKING:
    from rlhf_lightning.quickstart.summary import Summary

PICTURE = "quickstart.png"
FOOTNOTE = "* by definition: before training the policy is its own reference"


def main(arguments: Sequence[str]) -> int:
    """Train ``experiment=quickstart`` with the given overrides; end with a table, three prompts and a picture."""
    from rlhf_lightning.cli.launch import main as launch

    return launch(["train", "experiment=quickstart", *precision(arguments), *arguments], ending=show)


def precision(arguments: Sequence[str]) -> list[str]:
    """The override that takes bfloat16 out where it would be slow, unless the user has one of the trainer's.

    Args:
        arguments: overrides of the user.
    """
    import torch

    chosen = any(argument.lstrip("+").startswith(("trainer=", "trainer.precision=")) for argument in arguments)
    if chosen or torch.cuda.is_available() or not emulates_bf16():
        return []
    say("this processor has no instructions for bfloat16: training in float32")
    return ["trainer.precision=32-true"]


def show(folder: Path) -> None:
    """Print the summary of a quickstart run and write its picture."""
    from rlhf_lightning.quickstart.picture import draw
    from rlhf_lightning.quickstart.summary import Summary, metrics_file

    summary = Summary.read(folder)
    say(numbers(summary))
    say(f"[dim]{FOOTNOTE}[/]\n")
    examples(summary)
    before, after = ([response.score for response in side] for side in (summary.before, summary.after))
    draw(metrics_file(folder), before, after, folder / PICTURE)
    say(f"\ncurves      {folder / PICTURE}")
    say(f"weights     {folder / 'export' / 'last'}   (plain transformers or peft load them)")
    say(f"chat with it:   [bold]rlhf generate run={folder}[/]")


def numbers(summary: Summary) -> Table:
    """Before and after, in numbers."""
    table = Table(title="What the run changed", title_justify="left", title_style="bold")
    table.add_column()
    table.add_column("before", justify="right")
    table.add_column("after", justify="right", style="bold")
    for row in summary.rows():
        table.add_row(*row)
    return table


def examples(summary: Summary) -> None:
    """Show three held-out questions with both responses and the rule's scores, as ``rlhf generate`` shows them."""
    from rlhf_lightning.cli.responses import show_prompt, show_response

    say("[bold]Three held-out prompts[/]  [dim]as rlhf generate shows them, with the rule's score[/]\n")
    for question, before, after in summary.examples():
        show_prompt(question)
        for label, side in (("before", before), ("after ", after)):
            show_response(side.text, round(side.score, 2), label)
            say("")
