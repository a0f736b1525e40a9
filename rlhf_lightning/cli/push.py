"""``rlhf push RUN ORG/NAME``: put an export, with its model card, on the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.cli.card import write_card
from rlhf_lightning.cli.console import OUT
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.results import short

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def main(arguments: Sequence[str]) -> int:
    """``rlhf push RUN ORG/NAME [--which last|best] [--private] [--message TEXT]``.

    Raises:
        ConfigError: no export is there, or the name is none; nothing was sent by then.
    """
    parser = argparse.ArgumentParser(
        prog="rlhf push",
        description="Put an export of a run, with its model card, on the Hugging Face hub; hf auth login gives access.",
        epilog="example: rlhf push runs/first my-org/my-model --private",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("name", metavar="ORG/NAME", help="the model's name on the hub; made when it is new")
    parser.add_argument("--which", default="last", help="which export of the run (default: last)")
    parser.add_argument("--private", action="store_true", help="make a new model private")
    parser.add_argument("--message", default=None, help="of the commit")
    given = parser.parse_args(arguments)
    if not _NAME.fullmatch(given.name):
        raise ConfigError(f"{given.name} is no name on the hub: give ORG/NAME")
    run = Path(given.run).expanduser()
    export = export_of(run, given.which)
    write_card(export, run)
    OUT.print(f"[bold]{push(export, given.name, private=given.private, message=given.message)}[/]")
    return 0


def export_of(run: Path, which: str) -> Path:
    """The folder of an export.

    Raises:
        ConfigError: there is none of that name; the text has those that there are, or the command that writes one.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is not the folder of a run (no config.yaml)")
    exports = sorted({file.parent.name for file in run.glob("export/*/*config.json")})
    if not exports:
        raise ConfigError(f"{run} has no export: rlhf export run={run} writes one")
    if which not in exports:
        raise ConfigError(f"{run} has no export {which!r}; it has {', '.join(exports)}")
    return run / "export" / which


def push(export: Path, name: str, *, private: bool, message: str | None) -> str:
    """Upload a folder as a model.

    Args:
        export: what to upload.
        name: ``organisation/name``.
        private: whether a new model is private; one that exists stays as it is.
        message: of the commit; None: says what was uploaded.

    Returns:
        The model's address.

    Raises:
        ConfigError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The hub's own error is one of its HTTP client's, whichever that is: its bases are what a lost connection raises.
    unreachable = tuple(
        kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception
    )
    api = HfApi(library_name="rlhf-lightning")
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=export, commit_message=message or f"Upload {short(export)}")
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"nothing was sent to {name}: HF_HUB_OFFLINE is set") from error
    except unreachable as error:
        first = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{name} could not be written: {first} (hf auth login, or HF_TOKEN, gives access)") from error
    return str(url)
