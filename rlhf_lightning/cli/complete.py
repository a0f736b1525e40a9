"""Tab completion: ``eval "$(rlhf completion bash)"``. It reads the files in conf/, without Hydra or torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.help import CONFIGURED, options
from rlhf_lightning.cli.plan_options import OPTIONS
from rlhf_lightning.conf_dir import conf_dir

_BASH = """\
_rlhf() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local last="${line##* }"
    COMPREPLY=($(rlhf completion words "${line#* }"))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    # readline takes = for a word break: only what follows it is replaced
    [[ $last == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
    return 0
}
complete -o default -F _rlhf rlhf
"""
_FISH = """\
function __rlhf_words
    set -l line (string replace -r '^\\S+\\s?' '' -- (commandline -cp))
    rlhf completion words "$line"
end
complete -c rlhf -a '(__rlhf_words)'
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH
#: What stands behind the name of a command that does several things.
_ACTIONS = {"data": ("inspect",), "steer": ("build", "show")}
SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def main(arguments: Sequence[str]) -> int:
    """``rlhf completion bash|zsh|fish`` prints the shell's part; ``rlhf completion words LINE`` is what that calls."""
    kind = arguments[0] if arguments else ""
    if kind == "words":
        line = arguments[1] if len(arguments) > 1 else ""
        sys.stdout.write("\n".join(complete(line)) + "\n")
        return 0
    if kind not in SHELLS:
        raise ConfigError(f"rlhf completion {kind}: which shell?{suggestion(kind, SHELLS)}")
    sys.stdout.write(SHELLS[kind])
    return 0


def complete(line: str) -> list[str]:
    """Completions of the last word of a command line.

    Args:
        line: what stands after ``rlhf``, up to the cursor.
    """
    from rlhf_lightning.cli.main import COMMANDS

    words = re.split(r"\s+", line.lstrip())
    command, word = words[0], words[-1]
    if len(words) == 1:
        return [name for name in COMMANDS if name.startswith(word)]
    if command in _ACTIONS and len(words) == 2:
        return [action for action in _ACTIONS[command] if action.startswith(word)]
    if command == "report":
        return _report(words[1:])
    if command == "plan":
        return [f"{name}=" for name in OPTIONS if name.startswith(word)] + complete(line.replace("plan", "train", 1))
    if command not in CONFIGURED:
        return []
    chosen = dict(re.findall(r"(\w+)=([\w-]+)", line))
    return sorted(candidate for candidate in _candidates(command, word, chosen) if candidate.startswith(word))


def _report(words: list[str]) -> list[str]:
    """Flags of ``rlhf report``, the values of those that have a few; folders are the shell's own part."""
    from rlhf_lightning.cli.report import parser

    flags = {flag: action.choices for action in parser()._actions for flag in action.option_strings}
    before, word = (words[-2] if len(words) > 1 else ""), words[-1]
    options = list(flags.get(before) or (flags if word.startswith("-") else ()))
    return sorted(option for option in options if option.startswith(word))


def _candidates(command: str, word: str, chosen: dict[str, str]) -> list[str]:
    groups, keys = _root(command)
    key, equals, value = word.partition("=")
    if equals:
        done, comma, _ = value.rpartition(",")  # method=dpo,<tab>: the values of a sweep
        return [f"{key}={done}{comma}{option}" for option in options(key)] if key in groups else []
    if "." in key:
        group = key.partition(".")[0]
        return keys_of(group, chosen.get(group, groups.get(group, "default")))
    candidates = [f"{group}=" for group in groups] + [f"{group}." for group in groups if group == key]
    return [*candidates, *(f"{name}=" for name in keys)]


def _root(command: str) -> tuple[dict[str, str], list[str]]:
    text = (conf_dir() / f"{command}.yaml").read_text()
    groups = dict(re.findall(r"^  - (?:optional )?(\w+): (\w+)", text, re.MULTILINE))
    return groups, re.findall(r"^(\w+): ", text, re.MULTILINE)


def keys_of(group: str, name: str) -> list[str]:
    """Dotted keys that a group's file and the files it starts from set."""
    import yaml

    keys: dict[str, None] = {}
    pending, seen = [name], set()
    while pending:
        file = conf_dir() / group / f"{pending.pop()}.yaml"
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        node = yaml.safe_load(Path(file).read_text()) or {}
        pending += [entry for entry in node.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
        keys.update(dict.fromkeys(_dotted(node, group)))
    return list(keys)


def _dotted(node: dict[str, object], prefix: str) -> list[str]:
    keys: list[str] = []
    for name, value in node.items():
        if str(name).startswith("_"):
            continue
        full = f"{prefix}.{name}"
        keys += _dotted(value, full) if isinstance(value, dict) and value else [f"{full}="]
    return keys
