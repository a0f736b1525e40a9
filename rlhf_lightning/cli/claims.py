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
from rlhf_lightning.cli.claims_run import ArmError, measured
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.prompt_methods import prompt_entries
from rlhf_lightning.cli.round_methods import rounds_entries

RECORD, PAGE = Path("docs/claims.json"), Path("docs/claims.md")


def papers() -> dict[str, list[str]]:
    """Every paper that the first line of a method, of rounds, of a prompt or of a search names -> what names it."""
    found: dict[str, list[str]] = {}
    headers = [(entry.name, entry.paper) for entry in catalogue()]
    headers += [(f"rounds={name}", entry.header.paper) for name, entry in rounds_entries().items()]
    headers += [(f"{entry.group}={entry.name}", entry.header.paper) for entry in prompt_entries().values()]
    for name, paper in headers:
        for key in re.findall(r"arXiv:\d{4}\.\d{5}", paper) or [paper]:
            found.setdefault(key, []).append(name)
    return found


def run(chosen: Sequence[Claim], file: Path) -> int:
    """Run what claims lack or what is stale, and write it into the record after every arm.

    Args:
        chosen: claims whose arms are run.
        file: the record.

    Returns:
        0; 1 when a job failed.
    """
    from rlhf_lightning.cli.console import ERR, say

    failed = 0
    arms = list(dict.fromkeys(arm for claim in chosen for arm in claim.arms))
    for number, arm in enumerate(arms, start=1):
        recorded = read(file)
        metrics = metrics_of(arm, claims())
        before = recorded.get(arm.command)
        if is_current(arm, metrics, before):
            continue
        say(f"[bold]arm {number} of {len(arms)}[/]  {arm.command}")
        try:
            recorded[arm.command] = measured(arm, metrics, before)
        except (ArmError, ConfigError) as error:
            ERR.print(str(error), style="red", markup=False)
            failed = 1
            continue
        save(file, recorded)
    return failed


def is_current(arm: Arm, metrics: set[str], before: Measurement | None) -> bool:
    """Whether a measurement has all that is needed and follows from today's code."""
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
    """
    parser = argparse.ArgumentParser(prog="rlhf claims", description=__doc__)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args(arguments)
    if given.names[:1] == ["run"]:
        return run(chosen_claims(given.names[1:]), RECORD)
    return 0
