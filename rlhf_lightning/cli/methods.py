"""``rlhf methods``: what there is to choose from, read from the yaml files and the losses' docstrings.

Docstrings are parsed, not imported, so nothing here waits for torch. METHODS.md and its pages are written from the same
entries::

    rlhf methods                # a table
    rlhf methods ipo            # one method: equation, source, defaults, differences to other implementations
    rlhf methods --write        # METHODS.md and docs/methods
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.catalogue import MethodEntry, catalogue, needs_of
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.method_pages import write_pages
from rlhf_lightning.cli.method_sections import function_section, section
from rlhf_lightning.cli.prompt_methods import prompt_entries, prompt_lines
from rlhf_lightning.cli.round_methods import rounds_entries, rounds_lines
from rlhf_lightning.cli.selectors import selector_lines, selectors


def render_table(entries: Sequence[MethodEntry]) -> Any:
    """A rich table of all methods."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column, style in (("method", "cyan"), ("what", ""), ("needs", "green"), ("paper", "dim")):
        table.add_column(column, style=style, no_wrap=column in {"method", "paper"}, overflow="fold")
    family = ""
    for entry in entries:
        if entry.family != family:
            family = entry.family
            table.add_row("", Text(f"\n{family}", style="bold"))
        table.add_row(entry.name, entry.title, needs_of(entry), entry.paper)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """``rlhf methods [NAME] [--write [FOLDER]]``.

    Args:
        arguments: without the program's name; None: the command line's.

    Raises:
        ConfigError: no method has that name.
    """
    parser = argparse.ArgumentParser(prog="rlhf methods", description="List the methods, or say more about one.")
    parser.add_argument(
        "name",
        nargs="?",
        help="a method, rounds, a selector, a prompt or a search: its equation, source, defaults and differences",
    )
    parser.add_argument(
        "--write", metavar="FOLDER", nargs="?", const=".", help="write METHODS.md and docs/methods below a folder"
    )
    given = parser.parse_args(arguments)
    entries = catalogue()
    if given.write:
        write_pages(Path(given.write), entries)
    elif given.name:
        _show_one(given.name, entries)
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(render_table(entries))
        console.print("\nMore about one: rlhf methods NAME. Train with it: rlhf train method=NAME", style="dim")
    return 0


def _show_one(name: str, entries: Sequence[MethodEntry]) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    entry = next((entry for entry in entries if entry.name == name), None)
    rounds, lines = rounds_entries(), list[str]()
    if entry is not None:
        lines += section(entry)
    if entry is not None and entry.credit is not None:
        lines += ["", f"### Credit: {entry.credit.name}", "", *function_section(entry.credit, "credit")]
    if name in rounds:
        lines += ["", *rounds_lines(rounds[name])]
    if name in selectors():
        lines += selector_lines(name)
    if (prompts := prompt_entries()) and name in prompts:
        lines += ["", *prompt_lines(prompts[name])]
    if not lines:
        names = [*(entry.name for entry in entries), *rounds, *selectors(), *prompts]
        raise ConfigError(f"no method {name!r}.{suggestion(name, names)}")
    text = "\n".join(lines).replace("$`", "`").replace("`$", "`").replace("```math", "```tex")
    Console(highlight=False).print(Markdown(text, hyperlinks=False))


if __name__ == "__main__":
    sys.exit(main())
