"""``rlhf claims``: what papers claim of their methods, and what shows of it in the tiny world."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.claims.claim import Arm, Claim
from rlhf_lightning.claims.papers import claims
from rlhf_lightning.claims.record import Measurement, code_of, read, write
from rlhf_lightning.claims.verdict import judge, metrics_of, plain
from rlhf_lightning.cli.catalogue import catalogue
from rlhf_lightning.cli.claims_page import details, header, page, table
from rlhf_lightning.cli.claims_run import ArmError, measured
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.prompt_methods import prompt_entries
from rlhf_lightning.cli.round_methods import rounds_entries

#: Papers that compare methods and bring none, with what is made after them.
COMPARISONS = {"arXiv:2404.14723": ["sweep=starts_and_sizes"]}
RECORD, PAGE = Path("docs/claims.json"), Path("docs/claims.md")
_NAMES = "papers (2405.14734) or methods to show; behind run: whose jobs to run, where they are missing or stale"


def papers() -> dict[str, list[str]]:
    """Every paper that the first line of a method, of rounds, of a prompt or of a search names -> what names it."""
    named = {paper: list(names) for paper, names in COMPARISONS.items()}
    headers = [(entry.name, entry.paper) for entry in catalogue()]
    headers += [(f"rounds={name}", entry.header.paper) for name, entry in rounds_entries().items()]
    headers += [(f"{entry.group}={entry.name}", entry.header.paper) for entry in prompt_entries().values()]
    for name, paper in headers:
        for key in re.findall(r"arXiv:\d{4}\.\d{5}", paper) or [paper]:
            named.setdefault(key, []).append(name)
    return named


def run(chosen: Sequence[Claim], file: Path) -> int:
    """Run what claims lack or what is stale, and write it into the record after every arm.

    Args:
        chosen: claims whose arms are run.
        file: the record.

    Returns:
        0; 1 when a job failed.
    """
    from rich.markup import escape

    from rlhf_lightning.cli.console import ERR, say

    failed = 0
    arms = list(dict.fromkeys(arm for claim in chosen for arm in claim.arms))
    for number, arm in enumerate(arms, start=1):
        metrics, before = metrics_of(arm, claims()), read(file).get(arm.command)
        if is_current(arm, metrics, before):
            continue
        say(f"[bold]arm {number} of {len(arms)}[/]  {escape(arm.command)}")
        try:
            one = measured(arm, metrics, before)
        except (ArmError, ConfigError) as error:
            ERR.print(str(error), style="red", markup=False)
            failed = 1
        else:  # the record is read again: another process may have written an arm meanwhile
            save(file, {**read(file), arm.command: one})
    return failed


def is_current(arm: Arm, metrics: set[str], before: Measurement | None) -> bool:
    """Tell whether a measurement has all that is needed and follows from today's code."""
    return before is not None and before.has(arm, metrics) and before.code == code_of(arm)


def save(file: Path, recorded: dict[str, Measurement]) -> None:
    """Write the record: measurements that the board still asks for, and its verdicts."""
    used = {arm.command for claim in claims() for arm in claim.arms}
    kept = {command: one for command, one in recorded.items() if command in used}
    write(file, kept, {claim.paper: plain(judge(claim, kept)) for claim in claims()})


def chosen_claims(names: Sequence[str]) -> list[Claim]:
    """Claims by paper, number of a paper, or method; all without names.

    Raises:
        ConfigError: there is no such paper or method.
    """
    named, by_name = papers(), {claim.paper: claim for claim in claims()}
    keys = {key.removeprefix("arXiv:"): key for key in by_name} | {key: key for key in by_name}
    keys |= {method: key for key, methods in named.items() for method in methods if key in by_name}
    if unknown := [name for name in names if name not in keys]:
        raise ConfigError(f"no paper or method {unknown[0]!r} on the board.{suggestion(unknown[0], keys)}")
    return list(dict.fromkeys(by_name[keys[name]] for name in names)) if names else list(claims())


def main(arguments: Sequence[str] | None = None) -> int:
    """``rlhf claims [NAME ...] [--write]`` and ``rlhf claims run [NAME ...]``.

    Args:
        arguments: without the program's name; None: the command line's.

    Raises:
        ConfigError: there is no such paper or method.
    """
    parser = argparse.ArgumentParser(prog="rlhf claims", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="[run] [NAME ...]", help=_NAMES)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE} and the verdicts in {RECORD}")
    given = parser.parse_args(arguments)
    running = given.names[:1] == ["run"]
    chosen = chosen_claims(given.names[running:])
    failed = run(chosen, RECORD) if running else 0
    if given.write:
        save(RECORD, read(RECORD))
        PAGE.write_text(written(RECORD), encoding="utf-8")
    elif not failed:
        _show(chosen, detailed=len(given.names) > running)
    return failed


def written(file: Path) -> str:
    """docs/claims.md as it should be.

    Args:
        file: the record.
    """
    recorded = read(file)
    return page([judge(claim, recorded) for claim in claims()], papers(), recorded)


def _show(chosen: Sequence[Claim], *, detailed: bool) -> None:
    from rich.console import Console

    if not RECORD.is_file():
        raise ConfigError(f"there is no {RECORD} here: go to a checkout of the project, or make one by rlhf claims run")
    recorded, named, console = read(RECORD), papers(), Console(highlight=False)
    verdicts = [judge(claim, recorded) for claim in chosen]
    if detailed:
        for verdict in verdicts:
            console.print("\n".join(details(verdict, named.get(verdict.claim.paper, ()))), markup=False, soft_wrap=True)
        return
    console.print(table(verdicts, named))
    console.print(header(verdicts), markup=False)
    console.print("Commands of one: rlhf claims NAME. Run what is missing or stale: rlhf claims run", style="dim")
