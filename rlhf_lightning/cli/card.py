"""The model card of an export: what was trained how on what, and what came out, from the files of its run.

Plain files only: neither torch nor Hydra is imported.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from rlhf_lightning.cli.catalogue import MethodEntry, catalogue
from rlhf_lightning.cli.method_sections import linked
from rlhf_lightning.cli.versions import checkout
from rlhf_lightning.report.reading import Run, read_json, read_run
from rlhf_lightning.report.statistics import Pooled, rounded

FILE = "README.md"
#: Columns of a sample table that a card has, and what they are.
_SAMPLED = {
    "reward": "reward of a response to a held-out prompt",
    "kl": "log-ratio to the reference, nats a response",
    "tokens": "tokens a response",
}
#: Paragraph that an adapter's card has when its base does not load by name.
_BASE_NOTE = re.compile(r"^The base of this adapter .*$", re.MULTILINE)


class Row(NamedTuple):
    """A line of the results: before and after training, with standard errors where they can be known."""

    name: str
    before: str
    after: str


def write_cards(folder: Path) -> None:
    """Write the card of every export in a run's folder.

    Args:
        folder: of the run, with its ``result.json``.
    """
    for config in sorted(folder.glob("export/*/*config.json")):
        if config.name in ("config.json", "adapter_config.json"):
            write_card(config.parent, folder)


def write_card(export: Path, folder: Path) -> Path:
    """Write the card of one export as its ``README.md``.

    Args:
        export: folder of weights or of an adapter.
        folder: of the run that it comes from.
    """
    run = read_run(folder, folder.name)
    file = export / FILE
    note = _BASE_NOTE.search(file.read_text(encoding="utf-8")) if file.is_file() else None
    text = card_text(run, read_json(export / "adapter_config.json"), read_json(export / "config.json"))
    if note is not None:
        text = text.replace("\n\n## ", f"\n\n{note[0]}\n\n## ", 1)
    file.write_text(text, encoding="utf-8")
    return file


def card_text(run: Run, adapter: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A card for the Hugging Face hub.

    Args:
        run: with its configuration, counts of rows, metrics and samples.
        adapter: what ``adapter_config.json`` holds; empty for whole weights.
        config: what the model's ``config.json`` holds; empty for an adapter.
    """
    name = str(read_json(run.folder / "job.json").get("method") or run.method)
    entry = next((entry for entry in catalogue() if entry.name == name), None)
    lines = [*_metadata(run, name, adapter, config), f"# {run.folder.name}", ""]
    lines += [*_summary(run, name, entry, adapter), ""]
    for title, part in (
        ("Method", _method(run, entry)),
        ("Data", _data(run)),
        ("Results", _results(run)),
        ("How it was made", _made(run)),
    ):
        if text := list(part):
            lines += [f"## {title}", "", *text, ""]
    return "\n".join(lines)


def _metadata(run: Run, name: str, adapter: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """The front matter that the hub reads."""
    classifier = any("Classification" in str(kind) for kind in config.get("architectures") or ())
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if classifier else "text-generation",
        "tags": ["rlhf-lightning", name],
    }
    if (base := _base(run, adapter)) and _is_hub_id(base):
        fields["base_model"] = base
    if datasets := [source for source in _sources(run) if _is_hub_id(source)]:
        fields["datasets"] = datasets
    yield "---"
    for key, value in fields.items():
        yield f"{key}: {json.dumps(value)}"
    yield from ("---", "")


def _summary(run: Run, name: str, entry: MethodEntry | None, adapter: Mapping[str, Any]) -> Iterator[str]:
    base = _base(run, adapter)
    start = f"`{base}`" if base else f"a model of `{_class(run.config.get('model'))}`"
    method = f"{entry.title} ({linked(entry.paper)})" if entry is not None else name
    yield f"{'A LoRA adapter for' if adapter else 'Trained from'} {start} by `{name}`: {method}."


def _method(run: Run, entry: MethodEntry | None) -> Iterator[str]:
    loss = None if entry is None else entry.method_loss
    if loss is not None and loss.equation:
        yield from (f"$$ {loss.equation} $$", "")
    method, optimizer = _mapping(run.config.get("method")), _mapping(run.config.get("optimizer"))
    trainer, data = _mapping(run.config.get("trainer")), _mapping(run.config.get("data"))
    options = dict(_plain("", method)) | {f"optimizer.{key}": value for key, value in _plain("", optimizer)}
    options |= {"data.batch_size": data.get("batch_size"), "trainer.precision": trainer.get("precision")}
    options |= {"optimiser steps": run.result.get("steps"), "seed": run.seed}
    yield from ("| option | value |", "|---|---|")
    yield from (f"| `{key}` | {value} |" for key, value in options.items() if value is not None)


def _data(run: Run) -> Iterator[str]:
    digests = _mapping(read_json(run.folder / "job.json").get("content"))
    for role, counts in read_json(run.folder / "data.json").items():
        tokens = sum(counts.get(part) or 0 for part in ("prompt_tokens", "response_tokens"))
        rows = f"{counts.get('kept')} of {counts.get('rows')} rows of {counts.get('source')}, {tokens} tokens"
        digest = digests.get(f"the {'training' if role == 'train' else role} data")
        yield f"- {role}: {rows}" + (f", digest `{digest}`" if digest else "")
    if list(_sources(run)):
        yield "- The licence of the data is that of its source; it is not recorded by the run."


def _results(run: Run) -> Iterator[str]:
    """Numbers with standard errors from samples and held-out pairs, then the metrics as they were logged."""
    rows = [*_of_samples(run), *_of_pairs(run)]
    if rows:
        yield from ("| held out | before | after |", "|---|---|---|")
        yield from (f"| {row.name} | {row.before} | {row.after} |" for row in rows)
        yield from ("", "`±` is the standard error over prompts, or over pairs, of this one run.", "")
    metrics = {key: value for key, value in sorted(run.metrics.items()) if key.startswith("val/")}
    if metrics:
        yield from ("| metric | last value |", "|---|---|")
        yield from (f"| `{key}` | {rounded(value)} |" for key, value in metrics.items())


def _of_samples(run: Run) -> Iterator[Row]:
    tables = run.samples
    if not tables:
        return
    first, last = min(tables), max(tables)
    for column, name in _SAMPLED.items():
        after = _by_prompt(tables[last], column)
        if after.n:
            before = str(_by_prompt(tables[first], column)) if first == 0 and first != last else ""
            yield Row(name, before, str(after))


def _of_pairs(run: Run) -> Iterator[Row]:
    if run.rewards is None:
        return
    margins = [float(value) for value in run.rewards[0] - run.rewards[1]]
    wins = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    yield Row("pairs ordered as the data orders them", "", str(_with_error(wins)))
    yield Row("margin of implicit rewards", "", str(_with_error(margins)))


def _by_prompt(rows: Sequence[Mapping[str, Any]], column: str) -> Pooled:
    """The mean over prompts of each prompt's mean: responses to one prompt are no independent draws."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if isinstance(row.get(column), (int, float)) and math.isfinite(row[column]):
            values.setdefault((str(row.get("row")), str(row.get("prompt"))), []).append(float(row[column]))
    return _with_error([fmean(group) for group in values.values()])


def _with_error(values: Sequence[float]) -> Pooled:
    """Mean and standard error."""
    if not values:
        return Pooled(math.nan, math.nan, 0)
    spread = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Pooled(fmean(values), spread, len(values))


def _made(run: Run) -> Iterator[str]:
    record = read_json(run.folder / "job.json")
    overrides = record.get("overrides") or run.result.get("overrides") or ()
    if overrides:
        yield from ("```", f"rlhf train {' '.join(shlex.quote(str(option)) for option in overrides)}", "```", "")
    versions = dict(_mapping(run.result.get("versions")))
    if commit := checkout():
        versions["commit"] = commit
    if versions:
        yield "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."


def _base(run: Run, adapter: Mapping[str, Any]) -> str:
    named = adapter.get("base_model_name_or_path") or _mapping(run.config.get("model")).get("name")
    return str(named or "")


def _sources(run: Run) -> Iterator[str]:
    data = _mapping(run.config.get("data"))
    for node in (data.get("source"), data.get("validation")):
        if name := _mapping(node).get("id") or _mapping(node).get("path"):
            yield str(name)


def _is_hub_id(name: str) -> bool:
    """``organisation/name`` that is no path here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def _plain(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options by their dotted keys, without the names of what is made."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _plain(f"{prefix}{key}.", value)
        elif not str(key).startswith("_") and value is not None:
            yield f"{prefix}{key}", value


def _class(node: Any) -> str:
    return str(_mapping(node).get("_target_") or "").rpartition(".")[2]


def _mapping(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}
