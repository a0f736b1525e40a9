"""Every method as its yaml file and its loss's docstring describe it; parsed, so that nothing waits for torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.docstrings import FunctionDoc, class_kinds, function_docs
from rlhf_lightning.cli.headers import options, read_yaml
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
    remarks: str = ""  #: other comment lines at the top of the yaml
    family: str = field(default="other", compare=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """Inputs besides the policy's log-probs, in the order of the signatures."""
        inputs = dict.fromkeys(name for loss in self.losses for name in loss.inputs)
        return tuple(name for name in inputs if name != "policy")

    @property
    def kl(self) -> str:
        """The penalty for leaving the reference, in words; empty where there is none."""
        placement, coef = self.options.get("kl.apply_to"), self.options.get("kl.coef")
        if placement not in ("reward", "loss") or not coef:
            return ""
        return f"{self.options['kl.estimator']} in the {placement}, times {coef:g}"

    @property
    def method_loss(self) -> FunctionDoc | None:
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


def needs_of(entry: MethodEntry) -> str:
    """Data first, then what else the loss asks for."""
    others = [name for name in entry.needs if name not in _IMPLIED] + (["reference"] if entry.kl else [])
    if entry.credit is not None:
        return ", ".join([_samples(entry.credit), *others])
    return ", ".join([KINDS[entry.kind].brought, *others])


def _samples(credit: FunctionDoc) -> str:
    """Learning signal of a method that draws its own responses."""
    if "step_reward" in credit.inputs:
        return "prompts and rewards of steps"
    return "prompts and a reward" if {"reward", "token_reward"} & set(credit.inputs) else "prompts"
