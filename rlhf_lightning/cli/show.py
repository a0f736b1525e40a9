"""``rlhf show RUN``: what a run was, what it changed, the files it left, and the commands that follow.

Plain files only: neither torch nor Hydra is imported.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from rlhf_lightning.cli.console import OUT
from rlhf_lightning.cli.results import duration, short
from rlhf_lightning.report.changes import changes_of
from rlhf_lightning.report.reading import Run, read_json, read_runs

#: Options of a source that say where its rows come from, the most telling first.
_NAMES = ("path", "name", "repo", "url", "folder")


def main(arguments: Sequence[str]) -> int:
    """``rlhf show RUN [RUN ...]``."""
    parser = argparse.ArgumentParser(
        prog="rlhf show",
        description="What a run was, what it changed, its files, and the commands that follow.",
        epilog="example: rlhf show runs/first",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, of a sweep, or a glob")
    parser.add_argument("--all", action="store_true", help="every metric, not only those that matter most")
    given = parser.parse_args(arguments)
    for number, run in enumerate(read_runs(given.runs)):
        if number:
            OUT.print()
        show(run, everything=given.all)
    return 0


def show(run: Run, *, everything: bool = False) -> None:
    """Print all about a run."""
    OUT.print(f"[bold]{escape(short(run.folder))}[/]  {_outcome(run)}")
    for name, text in _facts(run):
        OUT.print(f"  {name:<10} {text}", markup=False)
    _print_changes(run, everything=everything)
    OUT.print()
    for name, text in [*_files(run.folder), *_commands(run)]:
        OUT.print(f"  {name:<10} {text}", markup=False)


def show_changes(folder: Path) -> None:
    """Print what a run changed: how ``rlhf train`` ends."""
    run = read_runs([folder])[0]
    _print_changes(run)
    OUT.print(f"\nrlhf show {shlex.quote(short(folder))} has its files and commands", markup=False)


def _print_changes(run: Run, *, everything: bool = False) -> None:
    optimized = run.result.get("optimized_metric")
    changes = changes_of(run, [optimized] if optimized else [], everything=everything)
    if not changes:
        return
    table = Table(title="What the run changed", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("", "first", "last", "change"):
        table.add_column(name, justify="right" if name else "left")
    for change in changes:
        *cells, difference = change.cells()
        style = {True: "green", False: "red", None: ""}[change.better]
        table.add_row(*cells, f"[{style}]{difference}[/]" if style and difference else difference)
    OUT.print()
    OUT.print(table)
    if any(change.averaged for change in changes):
        OUT.print("[dim]* means of the first and of the last tenth of the steps[/]")


def _outcome(run: Run) -> str:
    steps, seconds = run.result.get("steps"), run.result.get("seconds")
    parts = [f"{run.state} in {duration(float(seconds))}" if seconds else run.state]
    parts += [f"{steps} steps"] if steps else []
    return ", ".join(parts) + (f": {escape(run.error)}" if run.error else "")


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """Facts from the run's configuration and its count of rows, as far as it came."""
    config = run.config
    if run.method != "unknown":
        name = read_json(run.folder / "job.json").get("method") or run.method
        yield "method", f"{name}{_paper(str(name))}"
    if model := _named(config.get("model")):
        adapter = _mapping(config.get("adapter"))
        rank = f" r={adapter['r']}" if "r" in adapter else ""
        yield "model", model + (f", adapter {_class(adapter)}{rank}" if _class(adapter) else "")
    for role, counts in read_json(run.folder / "data.json").items():
        tokens = sum(counts.get(part) or 0 for part in ("prompt_tokens", "response_tokens"))
        yield role, f"{counts.get('kept')} of {counts.get('rows')} rows from {counts.get('source')}, {tokens} tokens"
    if precision := _mapping(config.get("trainer")).get("precision"):
        yield "trainer", f"precision {precision}, seed {run.seed}"
    versions = _mapping(run.result.get("versions"))
    if versions:
        yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())


def _paper(method: str) -> str:
    from rlhf_lightning.cli.catalogue import catalogue

    return next((f" ({entry.paper})" for entry in catalogue() if entry.name == method and entry.paper), "")


def _named(node: Any) -> str:
    """A model's name or path behind its class."""
    options = _mapping(node)
    name = next((str(options[key]) for key in (*_NAMES, "run") if options.get(key)), "")
    return f"{_class(options)} {name}".strip()


def _class(node: Mapping[str, Any]) -> str:
    return str(node.get("_target_") or "").rpartition(".")[2]


def _mapping(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Files in the folder and their purpose."""
    exports = sorted(path.parent for path in folder.glob("export/*/*config.json"))
    for export in dict.fromkeys(exports):
        form = "adapter for PEFT" if (export / "adapter_config.json").exists() else "weights for transformers"
        yield "export", f"{short(export)}  {_size(export)}, {form}"
    checkpoints = sorted(folder.glob("checkpoints/*.ckpt"))
    if checkpoints:
        yield "resume", ", ".join(f"{file.name} ({_size(file)})" for file in checkpoints) + " in checkpoints/"
    named = {"metrics.csv": "every metric of every step", "samples": "responses to held-out prompts",
             "rollouts": "what the policy drew, with scores", "train.log": "the log"}  # fmt: skip
    for name, description in named.items():
        if (folder / name).exists():
            yield "", f"{name:<12} {description}"


def _commands(run: Run) -> Iterator[tuple[str, str]]:
    """The command of the run, and what can follow it."""
    record = read_json(run.folder / "job.json")
    command = str(record.get("command") or "train")
    overrides = record.get("overrides") or run.result.get("overrides") or ()
    given = [option for option in overrides if not str(option).startswith("paths.output_dir=")]
    folder = shlex.quote(short(run.folder))
    if overrides or record:
        quoted = " ".join(shlex.quote(str(option)) for option in given)
        yield "command", f"rlhf {command} {quoted} paths.output_dir={folder}".replace("  ", " ")
    if run.state == "done" and command == "train":
        scores = "head" in _mapping(run.config.get("method"))  # a model that scores text has nothing to generate
        yield from [] if scores else [("next", f"rlhf generate run={folder}")]
        yield "next" if scores else "", f"rlhf evaluate run={folder}"
        yield "", f"rlhf report {folder}"


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = float(sum(file.stat().st_size for file in files))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit returns")
