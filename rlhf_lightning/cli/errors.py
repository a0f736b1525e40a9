"""Errors for people: short text that names the option and the fix, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Iterable

EXIT_FAILED = 1
EXIT_USER = 2
EXIT_SIGTERM = 143

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


#: Modules that come with an extra of the package.
EXTRAS = {
    "bitsandbytes": "quantization",
    "hydra_joblib": "joblib",
    "hydra_ray": "ray",
    "hydra_submitit": "submitit",
    "mlflow": "mlflow",
    "optuna": "optuna",
    "rapidfuzz": "graders",
    "tensorboard": "tensorboard",
    "vllm": "vllm",
    "wandb": "wandb",
}


class ConfigError(ValueError):
    """A configuration that cannot run; the text says which option, why, and what is allowed."""


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option that ``name`` is most likely a misspelling of."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return close[0] if close else None


def suggestion(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: ``Did you mean x?``, and on the next line ``options: x, y, z``."""
    known = sorted(options)
    close = closest(name, known)
    hint = f" Did you mean {prefix}{close}?" if close else ""
    return f"{hint}\n  options: {', '.join(known)}" if known else hint


def want_traceback() -> bool:
    """Whether the user asked for tracebacks (``--full-error`` or ``RLHF_DEBUG=1``)."""
    return os.environ.get("RLHF_DEBUG", "0") not in ("", "0")


def root_cause(error: BaseException) -> BaseException:
    """The error behind the wrappers of Hydra's instantiate and compose."""
    while type(error).__module__.partition(".")[0] == "hydra" and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_message(error: BaseException) -> bool:
    """Whether the text was written for the user: by Hydra, by a class of ours, or by a line of ours that raised it."""
    if type(error).__module__.partition(".")[0] in ("rlhf_lightning", "hydra", "omegaconf") or extra_for(error):
        return True
    if not isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and os.path.abspath(frames[-1].filename).startswith(_PACKAGE)


def extra_for(error: BaseException) -> str | None:
    """The extra whose absence a ModuleNotFoundError is about."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    text = f"{error.name} {error}".lower()
    return next((extra for module, extra in EXTRAS.items() if module in text), None)


def describe(error: BaseException) -> str:
    """The message of an error, without its wrappers; a bug's message also says its type and where it was raised."""
    error = root_cause(error)
    text = re.sub(r"\n\s*(full_key|object_type|reference_type)(: |=).*", "", str(error)).strip()
    if (extra := extra_for(error)) is not None:
        return f"{text.splitlines()[0]}\n  It comes with an extra: pip install 'rlhf-lightning[{extra}]'"
    if is_message(error):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def exit_code(error: BaseException) -> int:
    """2 for options and data that the user can mend, 1 for the rest: bugs, and runs that failed on their way."""
    error = root_cause(error)
    return EXIT_FAILED if isinstance(error, RuntimeError) or not is_message(error) else EXIT_USER
