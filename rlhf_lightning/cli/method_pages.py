"""METHODS.md and the pages in ``docs/methods``, written from what ``rlhf methods`` shows.

METHODS.md says how to read them and finds a method by name, by data and by paper; each family of methods has a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rlhf_lightning.cli.catalogue import MethodEntry, needs_of
from rlhf_lightning.cli.method_sections import function_section, linked, section
from rlhf_lightning.cli.prompt_methods import prompt_page
from rlhf_lightning.cli.round_methods import rounds_page
from rlhf_lightning.cli.selectors import selection_page

INDEX, FOLDER = "METHODS.md", "docs/methods"

_INTRODUCTION = """# Methods

Written by `make docs` (`rlhf methods --write`) from `conf/method/*.yaml`, `conf/rounds/*.yaml` and the docstrings of
`rlhf_lightning/losses`, `credit` and `selection`; do not edit it by hand. A test compares it with them.

Below are all methods [by name](#by-name), [by what they learn from](#by-data) and [by paper](#by-paper). Which one to
begin with: [docs/learn/which_method.md](docs/learn/which_method.md). Beside them stand [credit](#credit-assignment),
[rounds](#rounds), [selectors](#selection) and [what trains nothing](#without-training).

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
`method.policy_loss.aggregation` says how tokens are added up.

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


def render_pages(entries: Sequence[MethodEntry]) -> dict[str, str]:
    """Path from the project's root -> text, of the index and of every page."""
    pages = {
        _slug(family): _family_page(family, entries) for family in dict.fromkeys(entry.family for entry in entries)
    }
    pages["credit"] = _page(_credit_lines(entries))
    pages["rounds"] = _page(rounds_page())
    pages["selection"] = _page(selection_page())
    pages["without_training"] = _page(prompt_page())
    homes = {anchor: name for name, text in pages.items() for anchor in _anchors(text)}
    written = {f"{FOLDER}/{name}.md": _resolved(text, homes, name, "") for name, text in pages.items()}
    return {INDEX: _resolved(_index(entries), homes, "", f"{FOLDER}/"), **written}


def write_pages(root: Path, entries: Sequence[MethodEntry]) -> None:
    """Write the index and every page, and remove pages of families that are gone.

    Args:
        root: of the project.
        entries: all of them.
    """
    pages = render_pages(entries)
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for stale in {file.relative_to(root).as_posix() for file in (root / FOLDER).glob("*.md")} - pages.keys():
        (root / stale).unlink()
    for path, text in pages.items():
        (root / path).write_text(text, encoding="utf-8")


def _index(entries: Sequence[MethodEntry]) -> str:
    """Introduction to the pages, and every method by family, by learning signal, and by paper."""
    lines = [_INTRODUCTION, "## By name", "", "| method | what | needs | paper | tests |", "|---|---|---|---|---|"]
    for entry in entries:
        tests = "golden, twin" + (", TRL" if entry.method_loss and entry.method_loss.compared_with_trl else "")
        cells = [f"[{entry.name}](#{entry.name})", entry.title, needs_of(entry), linked(entry.paper)]
        lines.append(f"| {' | '.join(cells)} | {tests if entry.method_loss else 'those of its losses'} |")
    lines += ["", "## By data", "", "| learns from | methods |", "|---|---|"]
    lines += _grouped((needs_of(entry).partition(", ")[0], entry.name) for entry in entries)
    lines += ["", "## By paper", "", "| paper | methods |", "|---|---|"]
    papers = [(paper, entry.name) for entry in entries for paper in re.findall(r"arXiv:\d{4}\.\d{5}", entry.paper)]
    lines += [linked(row) for row in _grouped(sorted(papers))]
    return "\n".join(lines) + "\n"


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Rows of a table: what methods have in common, and links to them."""
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(f"[{name}](#{name})")
    return [f"| {key} | {', '.join(links)} |" for key, links in groups.items()]


def _family_page(family: str, entries: Sequence[MethodEntry]) -> str:
    sections = [["", *section(entry)] for entry in entries if entry.family == family]
    return _page([f"## {family[0].upper()}{family[1:]}", *(line for lines in sections for line in lines)])


def _credit_lines(entries: Sequence[MethodEntry]) -> list[str]:
    used = {entry.credit.name: entry.credit for entry in entries if entry.credit}
    lines = ["## Credit assignment", "", _CREDIT]
    for name in sorted(used):
        lines += ["", f"### Credit: {name}", "", *function_section(used[name], "credit")]
    return lines


def _page(lines: Iterable[str]) -> str:
    """Lines as a page of its own: every heading one level up."""
    return re.sub(r"^#(#+ )", r"\1", "\n".join(lines).strip(), flags=re.MULTILINE) + "\n"


def _anchors(text: str) -> list[str]:
    """Anchors of a page's headings in links."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def _resolved(text: str, homes: Mapping[str, str], page: str, folder: str) -> str:
    """Links to headings of other pages with that page before them, and to other documents from where the page is."""

    def with_page(match: re.Match[str]) -> str:
        home = homes.get(match[1], page)
        return match[0] if home == page else f"]({folder}{home}.md#{match[1]})"

    text = re.sub(r"\]\(#([\w-]+)\)", with_page, text)
    return text if folder else text.replace("](docs/", "](../")


def _slug(family: str) -> str:
    return re.sub(r"\W+", "_", family.lower().replace("'", "")).strip("_")
