"""The ``rlhf`` command. Imports neither torch nor Hydra, so help and completion respond at once."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rlhf_lightning.cli.cpu_defaults import set_cpu_defaults
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.processes import launch
from rlhf_lightning.signals import exit_on_sigterm

#: command -> (module with main(arguments) -> exit code, one line of help)
COMMANDS = {
    "train": ("rlhf_lightning.cli.launch", "train a model with any method; -m sweeps"),
    "game": ("rlhf_lightning.cli.game", "train models in turn, each on outputs of the others"),
    "chain": ("rlhf_lightning.cli.chain", "run the stages of a recipe, each on outputs of earlier ones; -m sweeps"),
    "evaluate": ("rlhf_lightning.cli.launch", "score a run, a checkpoint or a model on held-out data"),
    "generate": ("rlhf_lightning.cli.generate", "respond to prompts, or chat, with a model or a run"),
    "export": (
        "rlhf_lightning.cli.export",
        "write the trained weights of a run for transformers or PEFT: adapter or merged",
    ),
    "push": ("rlhf_lightning.cli.push", "put an export, with its model card, on the Hugging Face hub"),
    "optimize_prompt": ("rlhf_lightning.cli.optimize_prompt", "search the text that makes responses score higher"),
    "steer": (
        "rlhf_lightning.cli.steer",
        "build: make steering vectors for model.steering; show: what a file of them holds",
    ),
    "show": ("rlhf_lightning.cli.show", "what a run was, what it changed, its files and the commands that follow"),
    "report": ("rlhf_lightning.cli.report", "compare runs: one page with table, reward and KL, curves, samples"),
    "data": ("rlhf_lightning.cli.data", "inspect: show what a data set becomes, and every problem in it"),
    "plan": ("rlhf_lightning.cli.plan", "cost of a job before it starts: memory, tokens a second, what fits"),
    "methods": ("rlhf_lightning.cli.methods", "list the methods: paper, data and reference they need"),
    "claims": ("rlhf_lightning.cli.claims", "what papers claim of their methods, and what shows of it here"),
    "quickstart": ("rlhf_lightning.cli.quickstart", "align SmolLM2-135M in a few minutes and show what changed"),
    "schema": ("rlhf_lightning.cli.editor_schema", "write JSON Schema of the yaml files, for editors"),
    "env": ("rlhf_lightning.cli.environment", "versions, machine and variables, to paste into a report of a fault"),
    "completion": ("rlhf_lightning.cli.complete", "print a shell's tab completion: rlhf completion bash"),
}
#: Of these, what writes files and is one process.
_ALONE = ("game", "chain", "claims", "generate", "export", "push", "optimize_prompt", "quickstart", "steer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``rlhf``.

    Args:
        arguments: without the program's name; None: the command line's.

    Returns:
        0; 1 when something broke; 2 when the user can mend it; 143 after SIGTERM.
    """
    set_cpu_defaults()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--full-error" in given:
        os.environ["RLHF_DEBUG"] = "1"
        given = [argument for argument in given if argument != "--full-error"]
    try:
        with exit_on_sigterm(), _brief_warnings():
            return _dispatch(given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, `| head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last line of defence: everything becomes a message and an exit code
        from rlhf_lightning.cli.console import report

        return report(error)


@contextmanager
def _brief_warnings() -> Iterator[None]:
    """Print warnings for users, such as that of a renamed option, as one line without the code that gave them."""
    as_before = warnings.formatwarning

    def brief(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        ours = category is FutureWarning and filename.startswith(os.path.dirname(__file__))
        return f"warning: {message}\n" if ours else as_before(message, category, filename, lineno, line)

    warnings.formatwarning = brief
    try:
        yield
    finally:
        warnings.formatwarning = as_before


def _dispatch(given: list[str]) -> int:
    from rlhf_lightning.cli import help as texts

    if not given or given[0] in ("-h", "--help", "help"):
        texts.show(texts.overview(COMMANDS))
        return 0
    if given[0] in ("-V", "--version", "version"):
        from rlhf_lightning.cli.versions import versions

        texts.show("  ".join(f"{name} {number}" for name, number in versions().items()))
        return 0
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        raise ConfigError(f"rlhf has no command {command!r}.{suggestion(command, COMMANDS)}")
    if command in _ALONE and launch().processes > 1:
        raise ConfigError(f"{launch().evidence}, and rlhf {command} is one process: start it by itself")
    if {"-h", "--help"} & set(rest) and command in texts.CONFIGURED:
        texts.show(texts.command(command, COMMANDS[command][1]))
        return 0
    if {"-h", "--help"} & set(rest) and command in texts.FIXED:
        texts.show(texts.FIXED[command])
        return 0
    module = importlib.import_module(COMMANDS[command][0])
    return int(module.main([command, *rest] if command in ("train", "evaluate") else rest) or 0)


if __name__ == "__main__":
    sys.exit(main())
