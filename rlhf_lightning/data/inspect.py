"""A data set as the model sees it: counts, lengths, rows with their scored tokens, every problem.

Scored text is coloured; on a terminal without colours it is between ``[[`` and ``]]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.chat_templates import special_pattern
from rlhf_lightning.data.batches.packing import ATTRIBUTE
from rlhf_lightning.data.kinds import KINDS, RANKED_SLOT, slot_names
from rlhf_lightning.data.rows.problems import ADVICE, DataReport, ProblemKind, grouped
from rlhf_lightning.data.statistics import PROMPT, lengths_of, remarks, together
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example

_BINS = 10
_COLUMNS = 3  #: of the histogram, at most
_BAR = 18  #: characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SHOWN_TOKENS = 160  #: longer prompts and responses are shown with their middle left out
_SHOWN_IDS = 6
_SHOWN_COLUMN = 200  #: characters of a column's value
_WIDTH = 120  #: of a shown row, at most: longer lines are hard to read


def inspect(
    examples: Examples, report: DataReport, tokenizer: PreTrainedTokenizerBase, console: Console, *, rows: int = 3
) -> None:
    """Print a data set to a terminal.

    Args:
        examples: the tokenised data set.
        report: of its tokenisation.
        tokenizer: that made the tokens.
        console: to print to.
        rows: examples to show, spread evenly over the data set.
    """
    # soft_wrap is always off: inside a panel it would cut long lines instead of folding them.
    console.print(_overview(report), soft_wrap=False)
    if len(examples):
        parts = lengths_of(examples, report.kind)
        console.print(_lengths(examples, parts, report.kind), soft_wrap=False)
        console.print(_histogram(parts, ascii_only=console.options.ascii_only), soft_wrap=False)
        for group in np.unique(np.linspace(0, len(examples) - 1, max(rows, 0)).round().astype(int)).tolist():
            panel = _row(examples, group, tokenizer, report.kind, marks=console.color_system is None)
            console.print(panel, soft_wrap=False, width=min(console.width, _WIDTH))
    for note in report.notes:
        console.print(Text("note  ", style="yellow").append(note, style="default"))
    _problems(report, console)


def _style(name: str) -> str:
    """The colour of a prompt, a response or a worse response, by the name of its slot."""
    if name.startswith(PROMPT):
        return "cyan"
    return "red" if any(name == kind.slots[slot] for kind in KINDS.values() for slot in kind.worse) else "green"


def _overview(report: DataReport) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    formats = ", ".join(f"{name} ({count:,})" for name, count in report.formats.items()) or "none recognised"
    kept = Text(f"{report.kept:,} of {report.rows:,}")
    if report.bad:
        kept.append(f", {report.bad:,} left out", style="bold red")
    if report.filtered:
        kept.append(f", {report.filtered:,} with another label", style="yellow")
    if report.groups != report.kept:
        kept.append(f", as {report.groups:,} {KINDS[report.kind].named(report.groups)}", style="cyan")
    grid.add_row("rows kept", kept)
    grid.add_row("read as", f"{formats}, for {report.kind} training")
    grid.add_row("template", report.template)
    tokens = f"{report.prompt_tokens + report.response_tokens:,}"
    if report.response_tokens:
        tokens += f", of which {report.scored_tokens:,} scored ({report.supervised_fraction:.1%})"
    grid.add_row("tokens", tokens)
    if report.boundary_checked:
        merged = f"{report.boundary_mismatched:,} of {report.boundary_checked:,} checked rows"
        grid.add_row("boundary", f"prompt and response would merge tokens in {merged}")
    title = Text(report.source, style="bold")
    return Panel(grid, title=title, title_align="left", box=box.ROUNDED, expand=False)


def _lengths(examples: Examples, parts: dict[str, NDArray[np.int64]], kind: str) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title="tokens", title_justify="left", title_style="bold")
    for name in ("", "min", "median", "mean", "95 %", "max"):
        table.add_column(name, justify="left" if not name else "right")
    both = {"prompt + longest": together(examples)} if len(parts) > 1 else {}
    for name, counts in {**parts, **both}.items():
        low, middle, high, top = np.percentile(counts, [0, 50, 95, 100])
        numbers = [f"{value:,.0f}" for value in (low, middle, counts.mean(), high, top)]
        table.add_row(Text(name, style=_style(name) if name in parts else ""), *numbers)
    lines = remarks(examples, kind)
    return Group(table, *(Text(f"  {line}", style="dim") for line in lines), Text())


def _histogram(parts: dict[str, NDArray[np.int64]], *, ascii_only: bool) -> RenderableType:
    if len(parts) > _COLUMNS:
        prompts = [counts for name, counts in parts.items() if name.startswith(PROMPT)]
        responses = [counts for name, counts in parts.items() if not name.startswith(PROMPT)]
        parts = {PROMPT: np.concatenate(prompts), RANKED_SLOT: np.concatenate(responses)}
    edges = np.linspace(0, max(int(counts.max()) for counts in parts.values()) + 1, _BINS + 1).round().astype(int)
    edges = np.unique(edges)
    table = Table(box=None, padding=(0, 1), title="lengths", title_justify="left", title_style="bold")
    table.add_column("tokens", justify="right", style="dim", no_wrap=True)
    columns = []
    for name, counts in parts.items():
        table.add_column(name, style=_style(name), no_wrap=True)
        heights, _ = np.histogram(counts, bins=edges)
        columns.append([_bar(int(n), int(heights.max()), ascii_only=ascii_only) for n in heights])
    for number, (low, high) in enumerate(pairwise(edges)):
        table.add_row(f"{low:,} - {high - 1:,}", *(bars[number] for bars in columns))
    return Group(table, Text())


def _bar(count: int, most: int, *, ascii_only: bool) -> Text:
    filled, rest = divmod(round(8 * _BAR * count / most), 8)
    bar = "#" * filled if ascii_only else "█" * filled + _EIGHTHS[rest].strip()
    return Text(f"{bar or ('.' if ascii_only and count else '')}{' ' if count else ''}").append(
        f"{count:,}" if count else "", style="dim"
    )


def _row(
    examples: Examples, group: int, tokenizer: PreTrainedTokenizerBase, kind: str, *, marks: bool
) -> RenderableType:
    example = examples[group]
    title = Text(example.row, style="bold")
    if example.margin is not None:
        title.append(f"  margin {example.margin:.3g}", style="not bold")
    blocks = _responses(example, kind, tokenizer, marks=marks)
    if not blocks:
        prompt = example.prompt
        blocks = [_heading(PROMPT, prompt, 0), _tokens(prompt, [False] * len(prompt), "", tokenizer, marks=marks)]
        blocks += _columns(examples.columns_of(group))
    return Panel(Group(*blocks), title=title, title_align="left", box=box.ROUNDED)


def _columns(columns: Mapping[str, Any]) -> list[RenderableType]:
    """The row's columns as a reward sees them, without its prompt, long values cut."""
    shown = [(name, value) for name, value in columns.items() if name != PROMPT]
    listed = [Text(f"{name}  ", style="bold", overflow="fold").append(_short(value)) for name, value in shown]
    return [Text(), *listed] if listed else []


def _short(value: object) -> Text:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    cut = text if len(text) <= _SHOWN_COLUMN else f"{text[:_SHOWN_COLUMN]} ... {len(text):,} characters"
    return Text(cut.replace("\n", "↵"), style="not bold")


def _responses(example: Example, kind: str, tokenizer: PreTrainedTokenizerBase, *, marks: bool) -> list[RenderableType]:
    """Each response of a group behind its prompt; empty where there is none."""
    masks = example.loss_mask or [[True] * len(ids) for ids in example.responses]
    names = slot_names(kind, len(example.responses))
    prompts = [example.prompt, *example.more_prompts]
    blocks: list[RenderableType] = []
    for slot, (name, ids, mask) in enumerate(zip(names, example.responses, masks, strict=True)):
        prompt = prompts[slot if len(prompts) > 1 else 0]
        if not ids:
            continue
        if slot == 0 or len(prompts) > 1:
            blocks += [Text()] * bool(blocks) + [
                _heading(PROMPT, prompt, 0),
                _tokens(prompt, [False] * len(prompt), "", tokenizer, marks=marks),
            ]
        numbers = _numbers(example, slot)
        blocks += [
            Text(),
            _heading(name, ids, sum(mask), numbers),
            _tokens(ids, mask, _style(name), tokenizer, marks=marks),
        ]
    return blocks


def _numbers(example: Example, slot: int) -> str:
    """Numbers and labels of a response, as text."""
    texts = [f"{name.removeprefix(ATTRIBUTE)} {values[slot]:.3g}" for name, values in example.numbers.items()]
    if example.step_labels is not None:
        labels = [f"{label:.3g}" for label in example.step_labels[slot] if not math.isnan(label)]
        texts.append(f"labels {' '.join(labels)}")
    return ", ".join(texts)


def _heading(name: str, ids: Sequence[int], targets: int, numbers: str = "") -> RenderableType:
    count = f"{len(ids)} tokens" + (f", {targets} scored" if name != PROMPT else "")
    short = len(ids) <= 2 * _SHOWN_IDS
    shown = [str(token) for token in (ids if short else [*ids[:_SHOWN_IDS], *ids[-_SHOWN_IDS:]])]
    if not short:
        shown.insert(_SHOWN_IDS, "...")
    heading = Text(name, style=f"bold {_style(name)}")
    if numbers:
        heading.append(f"  {numbers}", style="not bold")
    return heading.append(f"  {count}  ids {' '.join(shown)}", style="dim not bold")


def _tokens(
    ids: Sequence[int], mask: Sequence[bool], style: str, tokenizer: PreTrainedTokenizerBase, *, marks: bool
) -> Text:
    """Decoded tokens; scored ones coloured, special ones bold, a long middle left out."""
    text = Text(overflow="fold")
    if len(ids) > _SHOWN_TOKENS:
        half = _SHOWN_TOKENS // 2
        head = _tokens(ids[:half], mask[:half], style, tokenizer, marks=marks)
        tail = _tokens(ids[-half:], mask[-half:], style, tokenizer, marks=marks)
        return text.append(head).append(f"\n ... {len(ids) - 2 * half} tokens ...\n", style="dim italic").append(tail)
    position = 0
    for counts, run in groupby(mask):
        length = len(list(run))
        piece = tokenizer.decode(list(ids[position : position + length]), skip_special_tokens=False)
        piece = _visible(str(piece))
        text.append(f"[[{piece}]]" if counts and marks else piece, style=style if counts else "dim")
        position += length
    text.highlight_regex(special_pattern(tokenizer), "bold")
    return text


def _visible(piece: str) -> str:
    """Show line breaks at the end of a piece as signs, since errors of boundaries are visible there."""
    body = piece.rstrip("\n")
    return body + "↵" * (len(piece) - len(body))


def _problems(report: DataReport, console: Console) -> None:
    counts = report.by_kind()
    if not counts:
        console.print(Text("no problems found", style="bold green"))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title="problems", title_justify="left", title_style="bold")
    for name, justify in (("rows", "right"), ("kind", "left"), ("used", "left"), ("what to do", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # a literal, but not for mypy
    for kind, count in counts.most_common():
        used = kind in (ProblemKind.DUPLICATE, ProblemKind.TRUNCATED)
        label = Text(kind.value, style="yellow" if used else "red")
        table.add_row(f"{count:,}", label, "yes" if used else "no", ADVICE[kind])
    console.print(table, Text(), soft_wrap=False)
    for problem, count in grouped(report.problems):
        style = "yellow" if problem.warning else "red"
        line = Text(problem.row, style="bold", overflow="fold").append(
            f"  {problem.kind.value}", style=f"not bold {style}"
        )
        rows = f" ({count:,} rows)" if count > 1 else ""
        console.print(line.append(f"  {problem.message}{rows}", style="not bold default"), soft_wrap=True)
    hidden = sum(counts.values()) - len(report.problems)
    if hidden:
        console.print(Text(f"... and {hidden:,} more", style="dim"))
