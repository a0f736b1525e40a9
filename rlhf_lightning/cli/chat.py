"""A conversation on the terminal: responses appear as they are drawn, Ctrl-C stops one, commands begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlhf_lightning.cli.console import ERR, OUT
from rlhf_lightning.cli.errors import ConfigError, describe, suggestion
from rlhf_lightning.files import write_atomically

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from rlhf_lightning.data.rows.messages import Turns

#: Decoded text that may still change: a character whose last bytes are in the next token.
_OPEN = "\N{REPLACEMENT CHARACTER}"
HELP = """\
/new                start over
/system TEXT        start over with this system prompt; without a text, with none
/temperature T      0 always takes the most likely token
/compare RUN        send each question to a second run too; without a run, to the first alone
/save FILE          append the conversation to a file, as a row that rlhf train data=json reads
/help, /quit        this list; the end, as Ctrl-D
Ctrl-C              stop a response; what was written stays"""


class Model(Protocol):
    """Interface of a model for a chat: ``cli.generate.Responder``."""

    cfg: DictConfig

    def respond(self, conversation: Turns, processor: Stream) -> str:
        """The response to a conversation."""
        ...

    def text(self, ids: list[int]) -> str:
        """Token ids as people read them."""
        ...


class Stream:
    """Shows a response while it is drawn: called with the ids so far before each token, it changes no logits.

    Args:
        text: of the token ids of a response.
        show: takes what is new; None: nothing is shown before the end.
    """

    def __init__(self, text: Callable[[list[int]], str], show: Callable[[str], None] | None) -> None:
        self._text, self._show = text, show
        self._start: int | None = None
        self.shown = ""

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Show what the last token added."""
        if self._start is None:
            self._start = ids.shape[1]
        self.advance(self._text(ids[0, self._start :].tolist()))
        return logits

    def advance(self, text: str) -> None:
        """Show what a longer text has beyond what was shown; a character that is not complete waits for its rest."""
        if self._show is not None and text.startswith(self.shown) and not text.endswith(_OPEN):
            self._show(text[len(self.shown) :])
            self.shown = text


class Chat:
    """A conversation with one model, or with two of them about the same turns.

    Args:
        model: the model whose responses the conversation continues with.
        load: another run's model by its folder.
        show: writes to the terminal without ending the line.
    """

    def __init__(self, model: Model, load: Callable[[str], Model], show: Callable[[str], None]) -> None:
        self.model, self._load, self._show = model, load, show
        self.other: tuple[str, Model] | None = None
        self.system: str | None = model.cfg.system
        self.turns: Turns = []
        self._commands = {
            "new": self._new, "system": self._new_system, "temperature": self._temperature, "compare": self._compare,
            "save": self._save, "help": self._help,
        }  # fmt: skip
        self._new("")

    def read(self, line: str) -> bool:
        """Handle a line: a command, or a turn of the user.

        Returns:
            True if the chat continues.
        """
        name, _, rest = line.removeprefix("/").partition(" ")
        if not line.startswith("/"):
            self.ask(line)
        elif name == "quit":
            return False
        elif name in self._commands:
            self._commands[name](rest.strip())
        else:
            ERR.print(f"there is no command /{name}.{suggestion(name, [*self._commands, 'quit'])}", markup=False)
        return True

    def ask(self, text: str) -> None:
        """Show the response until it ends or is stopped; with two models, each in turn under its name."""
        self.turns.append({"role": "user", "content": text})
        first = self._respond(self.model, "" if self.other is None else _name(self.model))
        if self.other is not None:
            self._respond(self.other[1], self.other[0])
        self.turns.append({"role": "assistant", "content": first})

    def _respond(self, model: Model, label: str) -> str:
        if label:
            OUT.print(f"[dim]{label}[/]")
        blocks = bool(model.cfg.get("guidance"))  # which may take back what it has written
        stream = Stream(model.text, None if blocks else self._show)
        try:
            response = model.respond(self.turns, stream)
        except KeyboardInterrupt:
            ERR.print("\n[dim]stopped[/]")
            return stream.shown
        if response.startswith(stream.shown):
            self._show(response[len(stream.shown) :] + "\n")
        else:  # a tokenizer that rewrites earlier characters once others follow
            self._show("\n" + response + "\n")
        return response

    def _new(self, _: str) -> None:
        self.turns = [{"role": "system", "content": self.system}] if self.system else []

    def _new_system(self, text: str) -> None:
        self.system = text or None
        self._new("")

    def _temperature(self, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            ERR.print(f"/temperature {text}: a number from 0 on is needed", markup=False)
            return
        for model in [self.model, *([] if self.other is None else [self.other[1]])]:
            model.cfg.temperature = value

    def _compare(self, folder: str) -> None:
        self.other = None
        if not folder:
            return
        try:
            self.other = (folder, self._load(folder))
        except (ConfigError, ValueError, OSError) as error:
            ERR.print(f"/compare {folder}: {describe(error)}", markup=False)

    def _save(self, path: str) -> None:
        if not path or len(self.turns) < 2:
            ERR.print("/save FILE: name a file, after a first question", markup=False)
            return
        file = Path(path).expanduser()
        try:
            before = file.read_text(encoding="utf-8") if file.exists() else ""
            row = json.dumps({"messages": self.turns}, ensure_ascii=False) + "\n"
            write_atomically(file, lambda temporary: temporary.write_text(before + row, encoding="utf-8"))
        except (OSError, ValueError) as error:
            ERR.print(f"/save {path}: {error}", markup=False)

    def _help(self, _: str) -> None:
        OUT.print(HELP, markup=False)


def chat(model: Model, load: Callable[[str], Model]) -> None:
    """Read lines from the terminal, or from a pipe, until they end."""
    terminal = sys.stdin.isatty()
    if terminal:
        ERR.print("[dim]/help lists commands, Ctrl-C stops a response, Ctrl-D ends[/]")
    conversation = Chat(model, load, _write)
    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            ERR.print("\n[dim]/quit or Ctrl-D ends[/]")
            continue
        if line and not conversation.read(line):
            return


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _name(model: Model) -> str:
    return str(model.cfg.run or "the model")
