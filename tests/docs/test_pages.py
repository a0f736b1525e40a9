"""Pages for readers: links lead somewhere, commands compose as they are written, the site builds."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.chain import chain_of
from rlhf_lightning.cli.chain_run import Planner
from rlhf_lightning.cli.chain_stages import OF_CHAIN
from rlhf_lightning.cli.compose import compose, sweep_points
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.stages import Command

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
#: Commands whose lines are composed, longest first: as written -> the configuration it composes.
COMMANDS = {"data inspect": "data", "steer build": "steer"} | {
    name: name for name in ("train", "evaluate", "generate", "optimize_prompt", "export", "chain", "game")
}
#: Pages whose commands are composed in the default suite; the others' in the slow one.
FIRST = ("index.md", "which_method.md", "ppo_or_dpo.md", "own_data.md")
#: What a command may lack: a value that the text around it names, and a module of the reader's own.
LEFT_TO_THE_READER = re.compile(
    r"(?:stage \w+: )?\S+ has no value and needs one: \S+"
    r"|\S+: my_\S+ cannot be imported: no package 'my_\w+' is installed"
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """Names of headings in links."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?![a-z]+:)([^)\s#]*)(?:#([^)\s]+))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), f"{target}#{anchor}"


def commands_of(page: Path) -> list[str]:
    """Commands of the page's code blocks that are complete: nothing in them is left to the reader or to a run."""
    blocks = re.findall(
        r"^```(?:bash|sh)?(?: run)?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.sub(r"^\$ ", "", line) for line in lines]
    return [
        line
        for line in commands
        if line.startswith(tuple(f"rlhf {name} " for name in COMMANDS))
        and not re.search(r"<|\.\.\.", line)
        and not re.match(r"rlhf evaluate .*\brun=", line)  # its options are those of the run
    ]


def _case(page: Path, command: str) -> object:
    name = f"{page.relative_to(ROOT).as_posix()}: {command}"
    return pytest.param(command, id=name, marks=() if page.name in FIRST else pytest.mark.slow)


ALL = [_case(page, command) for page in PAGES for command in dict.fromkeys(commands_of(page))]


def refusal(name: str, overrides: list[str], folder: Path) -> str:
    """Message that refuses options; empty where they are fine."""
    try:
        if name == "chain":  # options of its stages are no options of the chain's own configuration
            shared = [one for one in overrides if one.split("=")[0] in ("experiment", "size", "paths.output_dir")]
            cfg = compose(name, shared)
            options = [one for one in overrides if one not in shared]
            Planner(folder, Command.of("chain", [], OF_CHAIN)).check(chain_of(cfg, options))
        else:
            compose(name, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", ALL)
def test_commands_compose(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = next(written for written in COMMANDS if command.startswith(f"rlhf {written} "))
    given = [word for word in shlex.split(command.removeprefix(f"rlhf {written}"), comments=True) if word != "-m"]
    name = COMMANDS[written]
    for point in sweep_points(given):
        message = refusal(name, point, tmp_path)
        assert all(LEFT_TO_THE_READER.fullmatch(line) for line in message.splitlines()), message


def test_there_are_commands():
    assert len(ALL) > 30


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mkdocs", path=Path(sys.executable).parent) is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path):
    """Strict: a page that is not in the navigation, a link that leads nowhere, a docstring that is not there."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "losses.html").read_text(encoding="utf-8")
    assert r"\[-\log\sigma(\beta h)\]" in reference
    assert ":math:" not in reference
    assert not list(re.finditer(r'href="[^"]*\.md"', (tmp_path / "site" / "index.html").read_text(encoding="utf-8")))
