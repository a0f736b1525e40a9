"""Commands without a run folder: errors as one short message and an exit code."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_lightning.cli.console import say_error
from rlhf_lightning.cli.errors import describe, exit_code, is_message, root_cause, want_traceback


def guarded(command: Callable[[], None]) -> int:
    """Run a command; what goes wrong is said in a line, with a traceback if the user asked for one.

    Returns:
        The exit code.
    """
    try:
        command()
    except Exception as error:  # the last line of defence: everything becomes a message and an exit code
        if want_traceback():
            raise
        say_error(describe(error))
        if not is_message(root_cause(error)):
            say_error("this looks like a bug; --full-error shows where it happened")
        return exit_code(error)
    return 0
