"""``rlhf methods``: what there is to choose from, read from the yaml files and the losses' docstrings.

Docstrings are parsed, not imported, so nothing here waits for torch. METHODS.md is written from the same entries::

    rlhf methods                # a table
    rlhf methods ipo            # one method: equation, source, defaults, differences to other implementations
    rlhf methods --write METHODS.md
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.docstrings import FunctionDoc, class_kinds, function_docs
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.headers import options, plain, read_yaml
from rlhf_lightning.cli.prompt_methods import prompt_entries, prompt_lines, prompt_page
from rlhf_lightning.cli.round_methods import rounds_entries, rounds_lines, rounds_page
from rlhf_lightning.cli.selectors import selection_page, selector_lines, selectors
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.data.kinds import KINDS, kind_of_labels

LOSSES, CREDIT, METHODS = (Path(__file__).resolve().parents[1] / package for package in ("losses", "credit", "methods"))
#: Inputs of a loss that the data or the policy itself brings, so that they need no mention beside the kind of data.
_IMPLIED = {
    *("policy", "desirable", "score", "present", "weight", "embedding", "values"),
    *("step_label", "attributes", "safe", "prefix", "length"),
    *("reward", "token_reward", "step_reward", "rating", "overlap", "verdict", "verdict_swapped"),
    *("old", "advantage", "value", "returns", "cost_value", "cost_returns"),
}


@dataclass(frozen=True)
class MethodEntry:
    """One yaml of conf/method with the losses behind it."""

    name: str
    title: str
    paper: str
    command: str
    kind: str  #: of data that it learns from
    options: Mapping[str, Any]  #: defaults of the yaml by their key below ``method.``
    losses: tuple[FunctionDoc, ...]
    target: str  #: what the yaml names as its loss
    credit: FunctionDoc | None = None  #: what makes advantages of rewards
    remarks: str = ""  #: further comment lines at the top of the yaml
    family: str = field(default="other", compare=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """Inputs besides the policy's log-probs, in the order of the signatures."""
        inputs = dict.fromkeys(name for loss in self.losses for name in loss.inputs)
        return tuple(name for name in inputs if name != "policy")

    @property
    def kl(self) -> str:
        """The penalty for leaving the reference, in words; empty where there is none."""
        place, coef = self.options.get("kl.place"), self.options.get("kl.coef")
        if place not in ("reward", "loss") or not coef:
            return ""
        return f"{self.options['kl.estimator']} in the {place}, times {coef:g}"

    @property
    def own_loss(self) -> FunctionDoc | None:
        """The loss of the same name, unless the yaml is a variation or a sum of other methods' losses."""
        return next((loss for loss in self.losses if loss.name == self.name and loss.name == self.target), None)


def catalogue() -> list[MethodEntry]:
    """All methods, family by family as the package ``losses`` lists them.

    Raises:
        ConfigError: a yaml's first line is not ``# title (paper). command``.
    """
    docs = {doc.name: doc for doc in function_docs(LOSSES)}
    credit = {doc.name: doc for doc in function_docs(CREDIT)}
    families = _families()
    order = {name: position for position, (name, _) in enumerate(families)}
    by_loss = dict(families)
    kinds = class_kinds(METHODS)
    entries = [_entry(path, docs, credit, by_loss, kinds) for path in sorted((conf_dir() / "method").glob("*.yaml"))]
    return sorted(entries, key=lambda entry: (order.get(entry.target, len(order)), entry.name != entry.target))


def _families() -> list[tuple[str, str]]:
    """(loss, family) in the order of the list in the docstring of ``rlhf_lightning.losses``."""
    text = ast.get_docstring(ast.parse((LOSSES / "__init__.py").read_text(encoding="utf-8"))) or ""
    families = re.findall(r"^\* ([^:\n]+): ``([^`]+)``", text, flags=re.MULTILINE)
    return [(name, family) for family, names in families for name in names.split()]


def _entry(
    path: Path,
    docs: Mapping[str, FunctionDoc],
    credit: Mapping[str, FunctionDoc],
    families: Mapping[str, str],
    kinds: Mapping[str, str],
) -> MethodEntry:
    header, body = read_yaml(path, f"rlhf train method={path.stem}")
    loss: dict[str, Any] = body.get("loss", {})
    target = str(loss.get("_target_", "")).rpartition(".")[2]
    losses = tuple(docs[name] for name in _targets(loss) if name in docs)
    of_class = kinds.get(str(body.get("_target_", "")).rpartition(".")[2], "")
    return MethodEntry(
        name=path.stem,
        title=header.title,
        paper=header.paper,
        command=header.command,
        kind=kind_of_labels(frozenset(name for doc in losses for name in doc.inputs), of_class),
        options=dict(options(body)),
        losses=losses,
        target=target,
        credit=credit.get(str((body.get("advantage") or {}).get("_target_", "")).rpartition(".")[2]),
        remarks=" ".join(header.remarks),
        family=families.get(target, "other"),
    )


def _targets(node: Any) -> Iterator[str]:
    """Names of everything that a config node instantiates, outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"]).rpartition(".")[2]
        for value in node.values():
            yield from _targets(value)


# ---- on the terminal


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
        table.add_row(entry.name, entry.title, _needs(entry), entry.paper)
    return table


def _needs(entry: MethodEntry) -> str:
    """Data first, then what else the loss asks for."""
    others = [name for name in entry.needs if name not in _IMPLIED] + (["reference"] if entry.kl else [])
    if entry.credit is not None:
        return ", ".join([_samples(entry.credit), *others])
    return ", ".join([KINDS[entry.kind].brought, *others])


def _samples(credit: FunctionDoc) -> str:
    """What a method learns from that draws its own responses."""
    if "step_reward" in credit.inputs:
        return "prompts and rewards of steps"
    return "prompts and a reward" if {"reward", "token_reward"} & set(credit.inputs) else "prompts"


# ---- METHODS.md

_INTRODUCTION = """# Methods

Written by `rlhf methods --write METHODS.md` from `conf/method/*.yaml`, `conf/rounds/*.yaml` and the docstrings of
`rlhf_lightning/losses`, `credit` and `selection`; do not edit it by hand. A test compares it with them.

A method is a yaml that names a loss, and a loss is a pure function of per-token log-probs whose positional parameters
are its inputs. `reference`: log-probs of a reference model (`reference=frozen|adapter_off|cached`; without this input
none is loaded). `margin`: the score gap of each pair, from the data (`data.spec.columns.margin`). `collision`: a
statistic of the policy's own distribution, computed on demand. `top_k`: its most likely tokens where a rejected or
undesirable response stands, computed there alone. `running`: statistics of earlier steps, kept by the
method and saved in checkpoints (`method.running_decay`). `kl`: KTO's reference point, from mismatched prompts and
responses that the data loader adds. Labels and scores of responses come with the kind of data. Every option is changed
on the command line: `rlhf train method=ipo method.loss.beta=0.05`.

Methods that need *prompts and a reward* draw their own responses (`rollout=...`), score them (`reward=...`) and turn
rewards into advantages by a [credit function](#credit-assignment); their loss is one number a token, and
`method.aggregation` says how tokens are added up.

**Notation.** w is the chosen and l the rejected response; $`\\ell`$ sums log-probs over a response's scored tokens, of
which the end-of-sequence token is one; n counts them; $`\\bar\\ell = \\ell/n`$;
$`\\rho = \\ell - \\ell_\\mathrm{ref}`$ is the log-ratio to the reference, $`h = \\rho_w - \\rho_l`$,
$`\\bar\\rho = \\rho/n`$; $`r = \\beta\\rho`$ is the implicit reward; $`\\sigma`$ is the logistic function.
Everything is in nats.

**Tests** (`tests/losses`). Every loss has hand-worked golden values, its value and gradient where policy and reference
are equal, and an independent plain-loop twin that it must equal on generated batches with generated options; gradients
are compared with finite differences, and values and gradients stay finite at margins of 10,000 nats. "TRL" means that
loss and gradient are also compared, to 1e-5, with what the code of TRL 1.16 computed on the same log-probs
(`benchmarks/trl_loss_values.py`), or that the documented difference is asserted.

TRL drops methods from release to release. By the files of its wheels PPO was in 1.12 and not in 1.13; BCO, process
reward models, Nash-MD, XPO, token-level GSPO and GRPO with a replay buffer were in 1.13 and not in 1.14; MiniLLM was in
1.14 and not in 1.15.
"""


_CREDIT = """What makes advantages of the rewards of a rollout, over all of its responses on all processes. $`R_i`$ is
the reward of response i of the $`G`$ responses to a prompt, after shaping and, where the KL penalty is in the reward,
less the penalty; $`r_t`$ the same of a token. Choose another with
`method.advantage._target_=rlhf_lightning.credit.rloo`, or a function of your own (`allow_targets`)."""


def render_markdown(entries: Sequence[MethodEntry]) -> str:
    """The text of METHODS.md."""
    out = [_INTRODUCTION, "| method | what | needs | paper | tests |", "|---|---|---|---|---|"]
    for entry in entries:
        tests = "golden, twin" + (", TRL" if entry.own_loss and entry.own_loss.compared_with_trl else "")
        if entry.own_loss is None:
            tests = "those of its losses"
        out.append(
            f"| [{entry.name}](#{entry.name}) | {entry.title} | {_needs(entry)} | {_linked(entry.paper)} | {tests} |"
        )
    family = ""
    for entry in entries:
        if entry.family != family:
            family = entry.family
            out += ["", f"## {family[0].upper()}{family[1:]}"]
        out += ["", *_section(entry)]
    used = {entry.credit.name: entry.credit for entry in entries if entry.credit}
    out += ["", "## Credit assignment", "", _CREDIT]
    for name in sorted(used):
        out += ["", f"### Credit: {name}", "", *_function_section(used[name], "credit")]
    out += rounds_page(_linked)
    out += selection_page(_function_section)
    out += prompt_page(_linked, _markdown)
    return "\n".join(out) + "\n"


def _section(entry: MethodEntry) -> Iterator[str]:
    """One method: equation, paper, function, yaml, deviations."""
    loss = entry.own_loss
    yield f"### {entry.name}"
    yield ""
    if loss is None:
        yield f"{entry.title}."
        yield from (["", entry.remarks] if entry.remarks else [])
    else:
        yield _markdown(loss.summary)
        yield from ["", "```math", loss.equation, "```"] if loss.equation else []
        yield from ["", _markdown(loss.notes)] if loss.notes else []
    yield ""
    yield f"- Paper: {_linked(_markdown(loss.source) if loss else entry.paper)}"
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
        yield f"- Defaults: {_markdown(loss.defaults)}"
    if loss is not None and loss.differences:
        yield f"- Deviations: {_markdown(loss.differences)}"


def _online(entry: MethodEntry) -> Iterator[str]:
    """How an on-policy method puts its parts together."""
    if entry.credit is None:
        return
    name, summary = entry.credit.name, _markdown(entry.credit.summary)
    yield f"- Credit: [{name}](#credit-{name}). {summary}"
    drawn = {key.removeprefix("rollout."): value for key, value in entry.options.items() if key.startswith("rollout.")}
    steps = drawn.get("minibatches", 1) * drawn.get("inner_epochs", 1)
    yield f"- Rollout: {drawn.get('group_size', 1)} responses a prompt, optimiser steps on each rollout: {steps}"
    yield f"- Tokens: `{entry.options.get('aggregation', 'token_mean')}`. KL: {entry.kl or 'none'}"


def _function_section(doc: FunctionDoc, package: str) -> Iterator[str]:
    """A function that is not a method of its own: what it computes and where it comes from."""
    yield _markdown(doc.summary)
    yield from ["", "```math", doc.equation, "```"] if doc.equation else []
    yield from ["", _markdown(doc.notes)] if doc.notes else []
    yield ""
    yield f"- Paper: {_linked(_markdown(doc.source))}"
    signature = f"{doc.name}({', '.join(doc.inputs)}, *, ...)"
    yield f"- Function: `rlhf_lightning.{package}.{signature}` in `{package}/{doc.file}`"
    yield f"- Defaults: {_markdown(doc.defaults)}"
    if doc.differences:
        yield f"- Deviations: {_markdown(doc.differences)}"


def _markdown(text: str) -> str:
    """Roles and literals of a docstring as GitHub writes them."""
    text = re.sub(r":math:`([^`]+)`", r"$`\1`$", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """``rlhf methods [NAME] [--write [FILE]]``.

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
    parser.add_argument("--write", metavar="FILE", nargs="?", const="METHODS.md", help="write METHODS.md")
    given = parser.parse_args(arguments)
    entries = catalogue()
    if given.write:
        Path(given.write).write_text(render_markdown(entries), encoding="utf-8")
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
        lines += _section(entry)
    if entry is not None and entry.credit is not None:
        lines += ["", f"### Credit: {entry.credit.name}", "", *_function_section(entry.credit, "credit")]
    if name in rounds:
        lines += ["", *rounds_lines(rounds[name], _linked)]
    if name in selectors():
        lines += selector_lines(name, _function_section)
    if (prompts := prompt_entries()) and name in prompts:
        lines += ["", *prompt_lines(prompts[name], _linked, _markdown)]
    if not lines:
        names = [*(entry.name for entry in entries), *rounds, *selectors(), *prompts]
        raise ConfigError(f"no method {name!r}.{suggestion(name, names)}")
    text = "\n".join(lines).replace("$`", "`").replace("`$", "`").replace("```math", "```tex")
    Console(highlight=False).print(Markdown(text, hyperlinks=False))


if __name__ == "__main__":
    sys.exit(main())
