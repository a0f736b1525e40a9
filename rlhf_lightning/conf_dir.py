"""Where the yaml files are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder that holds ``train.yaml`` and the config groups.

    A wheel carries it inside the package. In a checkout (or an editable install) it stays at the top level, beside the
    package, so that edits are seen at once. The package's own file decides, never ``importlib.resources``: an editable
    install also leaves a frozen copy of the folder in site-packages.

    Raises:
        FileNotFoundError: when neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no train.yaml in {package / 'conf'} or {package.parent / 'conf'}: the installation is incomplete. "
        "Install the package again: pip install --force-reinstall rlhf-lightning"
    )
