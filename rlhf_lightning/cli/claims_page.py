"""The board of claims as a table of the terminal and as docs/claims.md, both from verdicts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.claims.case import GOLD
from rlhf_lightning.claims.claim import BASE, RUN, START, Arm, Check
from rlhf_lightning.claims.record import Measurement
from rlhf_lightning.claims.verdict import ERRORS, NOT_RUN, NOT_SHOWN, SHOWN, UNTESTABLE, Estimate, Outcome, Verdict
from rlhf_lightning.cli.method_sections import linked

STALE = " (stale)"
_STATES = (SHOWN, NOT_SHOWN, UNTESTABLE, NOT_RUN)
_STYLES = {SHOWN: "green", NOT_SHOWN: "red", UNTESTABLE: "dim", NOT_RUN: "yellow"}
_NAMES = {GOLD: "gold reward", "val/gold/kl": "KL to the base", "val/gold/length": "tokens a response"}
_KL = "val/gold/kl"

_INTRODUCTION = f"""# Claims

Written by `rlhf claims --write` from [claims.json](claims.json), which `rlhf claims run` makes; nothing is typed by
hand but the claims themselves (`rlhf_lightning/claims/papers`), which are our one-line readings of the papers.

```
rlhf claims                      # this board, in the terminal
rlhf claims simpo                # one paper, with its commands
rlhf claims run                  # runs what is missing or stale; rlhf claims run simpo 2402.01306: of some papers
rlhf claims --write              # this page
```

**What the verdicts mean.** Every miniature is one or more comparisons of jobs in the tiny world (`experiment=tiny`, 64
steps of 32 pairs unless its options say otherwise): a model of half a million parameters, a language of a few dozen
words, a gold reward that a program computes. A comparison holds when the difference, in the claimed direction and less
what the claim asks for, is more than {ERRORS:g} standard errors; a claim is *shown* when all of its comparisons hold.
The standard error of a mean is the larger of the standard deviation over seeds and the sampling error of one run, over
the square root of the number of seeds (`rlhf_lightning/claims/verdict.py`). *Not shown* is no refutation: it is what
happened here, with these settings, none of which were tuned for the claim. Among many comparisons at two standard
errors a few hold by chance. Methods that share a learning rate end at different distances from the base, and much of a
difference in gold reward is a difference in KL, so gold rewards are given with it, in nats.

*Not testable here* has its reason; *not run yet* has its jobs declared, or is measured elsewhere. A row is *stale* when
code that its jobs depend on has changed since they ran: any yaml that their options choose, or any module that the
`_target_`s in these reach by imports (`rlhf_lightning/claims/code.py`). `rlhf claims run` runs one seed of a stale
comparison, and all of them where its numbers are not the same to the bit.
"""


def header(verdicts: Sequence[Verdict]) -> str:
    """Numbers of claims in each state."""
    counts = Counter(verdict.state for verdict in verdicts)
    parts = ", ".join(f"{counts[state]} {state}" for state in _STATES)
    stale = sum(verdict.stale for verdict in verdicts)
    return f"{len(verdicts)} papers: {parts}" + (f"; {stale} stale" if stale else "")


def table(verdicts: Sequence[Verdict], named: Mapping[str, Sequence[str]]) -> Any:
    """The board as a rich table.

    Args:
        verdicts: its rows.
        named: by paper what names it.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0))
    for column, width in (("paper", 24), ("claim", 52), ("here", 10), ("numbers", 50)):
        drawn.add_column(column, overflow="fold", max_width=width)
    for verdict in verdicts:
        state = Text(verdict.state + (STALE if verdict.stale else ""), style=_STYLES[verdict.state])
        paper = Text("\n".join([", ".join(named.get(verdict.claim.paper, ())), verdict.claim.paper]).strip())
        drawn.add_row(paper, Text(verdict.claim.sentence), state, Text("\n".join(numbers(verdict))))
    return drawn


def page(verdicts: Sequence[Verdict], named: Mapping[str, Sequence[str]], arms: Mapping[str, Measurement]) -> str:
    """docs/claims.md.

    Args:
        verdicts: its rows.
        named: by paper what names it.
        arms: measurements by command.
    """
    lines = [
        _INTRODUCTION,
        f"**{header(verdicts)}.**",
        "",
        "| paper | claim | here | numbers, or why |",
        "|---|---|---|---|",
    ]
    for verdict in verdicts:
        names = ", ".join(f"`{name}`" for name in named.get(verdict.claim.paper, ()))
        cells = [f"{linked(verdict.claim.paper)} {names}".strip(), verdict.claim.sentence, _marked(verdict)]
        lines.append(f"| {' | '.join(cells)} | {'; '.join(numbers(verdict))} |")
    lines += [
        "",
        "## Commands",
        "",
        "What was run, with the date and the commit; `runs/claims/start_...` is where a start lies.",
    ]
    lines += ["", "| command | date | commit | torch | seconds |", "|---|---|---|---|---|"]
    used = dict.fromkeys(arm.command for verdict in verdicts for arm in verdict.claim.arms if arm.command in arms)
    return "\n".join([*lines, *map(_command_row, used, map(arms.__getitem__, used))]) + "\n"


def without_staleness(text: str) -> str:
    """A page as it would be if nothing were stale: what a change of code alone does not alter."""
    lines = [
        line.partition("; ")[0] + ".**" if line.startswith("**") and " stale" in line else line
        for line in text.splitlines()
    ]
    return "\n".join(lines).replace(STALE, "")


def numbers(verdict: Verdict) -> list[str]:
    """Each check as a sentence, or the reason why there is none."""
    lines = [sentence(outcome) for outcome in verdict.outcomes]
    if verdict.claim.untestable:
        lines.append(verdict.claim.untestable)
    if verdict.claim.measured_by:
        lines.append(f"see {verdict.claim.measured_by}")
    return lines


def sentence(outcome: Outcome) -> str:
    """One comparison with its numbers, or what is to be compared where it has none."""
    check, metric = outcome.check, _NAMES.get(outcome.check.metric, outcome.check.metric)
    metric = f"size of {metric}" if check.magnitude else metric
    first, second = label(check.first, check), _against(check)
    asked = f"{'less' if check.falls else 'more'} is claimed"
    if check.least > 0:
        asked = f"at least {check.least:g} {asked}"
    elif check.least < 0:
        asked = f"at most {-check.least:g} {'more' if check.falls else 'less'} is claimed"
    if outcome.difference is None:
        return f"{metric}: {first} against {second} ({asked})"
    error = "no error bar" if outcome.error is None else f"{outcome.difference:+.2f} ± {outcome.error:.2f}"
    opposite = ", the opposite shows" if outcome.opposite else ""
    seeds = f"{len(check.first.seeds)} seed{'s' if len(check.first.seeds) > 1 else ''}"
    numbers_of = [f"{first} {_number(outcome.first)}", second]
    if not isinstance(check.second, float):
        numbers_of[1] += f" {_number(outcome.second)}"
    return f"{metric}: {', '.join(numbers_of)}: {error}{opposite} ({asked}; {seeds})"


def _against(check: Check) -> str:
    return f"{check.second:g}" if isinstance(check.second, float) else label(check.second, check)


def label(arm: Arm, check: Check) -> str:
    """Method and options in which an arm differs from the one that it is compared with."""
    if arm == BASE:
        return "the base"
    other = set() if BASE in check.arms else set.intersection(*(set(one.overrides) for one in check.arms))
    distinct = [override for override in arm.overrides if override not in other]
    if arm.start is None:
        return " ".join([arm.method, *distinct])
    return " ".join(
        [arm.method, *(one for one in distinct if START not in one and one != RUN), f"after {arm.start.method}"]
    )


def _number(value: Estimate | None) -> str:
    if value is None:
        return "(not finite)"
    kl = "" if value.kl is None else f" at {value.kl:.2f}"
    return (f"{value.mean:.2f}" if value.error is None else f"{value.mean:.2f} ± {value.error:.2f}") + kl


def _marked(verdict: Verdict) -> str:
    return (f"**{verdict.state}**" if verdict.state == SHOWN else verdict.state) + (STALE if verdict.stale else "")


def _command_row(command: str, measured: Measurement) -> str:
    commit, torch = measured.commit or "", measured.versions.get("torch", "")
    day = measured.date + (f", confirmed {measured.confirmed}" if measured.confirmed else "")
    return f"| `{command}` | {day} | {commit} | {torch} | {measured.seconds:.0f} |"


def details(verdict: Verdict, named: Sequence[str]) -> Iterator[str]:
    """One claim as lines of the terminal, with its commands.

    Args:
        verdict: of the claim.
        named: the methods of its paper.
    """
    claim = verdict.claim
    yield f"{claim.paper}  {', '.join(named)}"
    yield claim.sentence
    yield verdict.state + (STALE if verdict.stale else "")
    yield from (f"  {line}" for line in numbers(verdict))
    yield from (f"  {arm.command}" for arm in claim.arms)
