"""Output of a run: lines on the terminal, and the same with times in a file of the run."""

from __future__ import annotations

import logging
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_lightning.cli.errors import describe, exit_code, is_message, root_cause, want_traceback
from rlhf_lightning.cli.processes import rank

#: Where results go; messages go to standard error, so that output can be piped.
OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)

#: Loggers of libraries whose routine remarks say nothing to a user of ours.
_QUIET = ("lightning.pytorch", "lightning.fabric", "httpx", "fsspec", "matplotlib")
_HANDLERS: list[logging.Handler] = []


class _Repeated(logging.Filter):
    """Keeps from the terminal what the run's own summary says again."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not record.name.startswith("rlhf_lightning.data.")


def setup_logging(folder: Path | None = None, name: str = "run", *, brief: bool = False) -> None:
    """Send our log records to the terminal and to ``<folder>/<name>.log``. Calling it again replaces the handlers.

    Warnings of the libraries beneath go to the file alone (to the terminal too with ``RLHF_DEBUG=1``). Processes other
    than the first of a multi-process job log to a file of their own only.

    Args:
        folder: of the run; None: no file.
        name: of the log file, without its suffix.
        brief: only warnings and errors on the terminal, as in a sweep, where a job gets a line or two.
    """
    logger = logging.getLogger("rlhf_lightning")
    process = rank()
    foreign = logging.getLogger("py.warnings")
    reset_logging()
    if process == 0:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        terminal.addFilter(_Repeated())
        if brief and not want_traceback():
            terminal.setLevel(logging.WARNING)
        _HANDLERS.append(terminal)
        if want_traceback():
            foreign.addHandler(terminal)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        # Delayed: a command that leaves a finished run as it is leaves its log as it is.
        file = logging.FileHandler(folder / (f"{name}.log" if process == 0 else f"{name}.{process}.log"), delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        _HANDLERS.append(file)
        foreign.addHandler(file)
    for handler in _HANDLERS:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for quiet in _QUIET:
        logging.getLogger(quiet).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    foreign.propagate = False
    foreign.addHandler(logging.NullHandler())


def reset_logging() -> None:
    """Undo :func:`setup_logging`: close the run's log file and let go of the terminal."""
    for handler in _HANDLERS:
        for name in ("rlhf_lightning", "py.warnings"):
            logging.getLogger(name).removeHandler(handler)
        handler.close()
    _HANDLERS.clear()
    logging.getLogger("rlhf_lightning").propagate = True
    logging.captureWarnings(False)


def say(text: Any, **style: Any) -> None:
    """Print a result."""
    OUT.print(text, **style)


def say_error(message: str) -> None:
    """Print an error in red on standard error, further lines as they are."""
    first, _, rest = message.partition("\n")
    ERR.print(f"[bold red]error:[/] {_escape(first)}")
    for line in rest.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        width = ERR.width if ERR.is_terminal else 1 << 16
        ERR.print(_escape(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)))


def report(error: Exception, traceback_file: Path | None = None) -> int:
    """Say what went wrong: a message where it was written for people, a type and a place where it is a bug.

    Args:
        error: what was raised.
        traceback_file: where its traceback was written; None: nowhere.

    Returns:
        The exit code.
    """
    trace = "".join(traceback.format_exception(error))
    report_text(describe(error), trace, bug=not is_message(root_cause(error)), file=traceback_file)
    return exit_code(error)


def report_text(text: str, trace: str, *, bug: bool, file: Path | None = None) -> None:
    """Say what went wrong, in this process or in another one.

    Args:
        text: of the error.
        trace: its traceback.
        bug: the text was not written for people.
        file: where the traceback was written; None: nowhere.
    """
    say_error(text)
    if want_traceback():
        ERR.print(trace, markup=False)
    elif bug:
        where = f"The traceback is in {file}; RLHF_DEBUG=1 shows it here" if file else ""
        say_error(f"this looks like a bug. {where or 'RLHF_DEBUG=1 shows where it happened'}")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
