"""Progress of work that comes in portions: a bar on a terminal, else a line each tenth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlhf_lightning.cli.console import ERR


@contextmanager
def counted(
    name: str, total: int, *, shown: bool = True, console: Console = ERR
) -> Iterator[Callable[[int], object] | None]:
    """Give a function that is called with the size of each portion that is done.

    Args:
        name: of what is counted.
        total: of it.
        shown: False shows nothing, and gives None.
        console: on which it is shown.
    """
    if not shown:
        yield None
        return
    if not console.is_terminal:
        yield _Lines(name, total, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.advance(task, done)


class _Lines:
    def __init__(self, name: str, total: int, console: Console) -> None:
        self.name, self.total, self.console = name, total, console
        self.done = self.reported = 0

    def __call__(self, done: int) -> None:
        self.done += done
        if self.done - self.reported >= self.total / 10 or self.done == self.total:
            self.reported = self.done
            self.console.print(f"{self.name} {self.done}/{self.total}", markup=False)
