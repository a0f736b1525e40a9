"""One method, or one function, as lines of Markdown: for the pages and for ``rlhf methods NAME``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf_lightning.cli.catalogue import MethodEntry
from rlhf_lightning.cli.docstrings import FunctionDoc
from rlhf_lightning.cli.headers import plain


def section(entry: MethodEntry) -> Iterator[str]:
    """One method: equation, paper, function, yaml, deviations."""
    loss = entry.method_loss
    yield f"### {entry.name}"
    yield ""
    if loss is None:
        yield f"{entry.title}."
        yield from (["", entry.remarks] if entry.remarks else [])
    else:
        yield markdown(loss.summary)
        yield from ["", "```math", loss.equation, "```"] if loss.equation else []
        yield from ["", markdown(loss.notes)] if loss.notes else []
    yield ""
    yield f"- Paper: {linked(markdown(loss.source) if loss else entry.paper)}"
    yield from _online(entry)
    if loss is None:
        names = ", ".join(f"[{doc.name}](#{doc.name})" for doc in entry.losses)
        yield f"- Losses: {names}" + (" (`WeightedSum`)" if entry.target == "WeightedSum" else "")
    else:
        signature = f"{loss.name}({', '.join(loss.inputs)}, *, ...)"
        yield f"- Function: `rlhf_lightning.losses.{signature}` in `losses/{loss.file}`"
    options = ", ".join(f"`{key}={plain(value)}`" for key, value in entry.options.items())
    yield f"- Yaml: `conf/method/{entry.name}.yaml`: {options}"
    yield f"- Run: `{entry.command}`"
    if loss is not None and loss.defaults:
        yield f"- Defaults: {markdown(loss.defaults)}"
    if loss is not None and loss.differences:
        yield f"- Deviations: {markdown(loss.differences)}"


def _online(entry: MethodEntry) -> Iterator[str]:
    """Components of an on-policy method."""
    if entry.credit is None:
        return
    name, summary = entry.credit.name, markdown(entry.credit.summary)
    yield f"- Credit: [{name}](#credit-{name}). {summary}"
    drawn = {key.removeprefix("rollout."): value for key, value in entry.options.items() if key.startswith("rollout.")}
    steps = drawn.get("minibatches", 1) * drawn.get("inner_epochs", 1)
    yield f"- Rollout: {drawn.get('group_size', 1)} responses a prompt, optimiser steps on each rollout: {steps}"
    yield f"- Tokens: `{entry.options.get('policy_loss.aggregation', 'token_mean')}`. KL: {entry.kl or 'none'}"


def function_section(doc: FunctionDoc, package: str) -> Iterator[str]:
    """A function that is not a method of its own: what it computes and where it comes from."""
    yield markdown(doc.summary)
    yield from ["", "```math", doc.equation, "```"] if doc.equation else []
    yield from ["", markdown(doc.notes)] if doc.notes else []
    yield ""
    yield f"- Paper: {linked(markdown(doc.source))}"
    signature = f"{doc.name}({', '.join(doc.inputs)}, *, ...)"
    yield f"- Function: `rlhf_lightning.{package}.{signature}` in `{package}/{doc.file}`"
    yield f"- Defaults: {markdown(doc.defaults)}"
    if doc.differences:
        yield f"- Deviations: {markdown(doc.differences)}"


def markdown(text: str) -> str:
    """Roles and literals of a docstring as GitHub writes them."""
    text = re.sub(r":math:`([^`]+)`", r"$`\1`$", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def linked(text: str) -> str:
    """Papers with their addresses."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
