"""Errors for people: short text that names the option and the fix, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_FAILED = 1
EXIT_USER = 2
EXIT_SIGTERM = 143

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: Packages whose exceptions carry text for people.
_OURS_AND_HYDRAS = ("rlhf_lightning", "hydra", "omegaconf")


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


@dataclass(frozen=True)
class Failure:
    """A kind of exception that is no bug of ours, and what people are told of it.

    Attributes:
        sentence: with ``{file}`` or ``{module}`` that the exception names, and ``{text}``, the first line of its text.
        classes: dotted names of its classes or of their bases; none: any class. Names, since torch is imported late.
        errnos: of an OSError, those that are of this kind.
        pattern: searched for in its text.
        raised_in: searched for in the path of the file that raised it.
        code: exit code of the program.
    """

    sentence: str
    classes: tuple[str, ...] = ()
    errnos: tuple[int, ...] = ()
    pattern: str = ""
    raised_in: str = ""
    code: int = EXIT_USER

    def fits(self, error: BaseException) -> bool:
        """Check whether an exception is of this kind."""
        names = {f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__}
        frames = traceback.extract_tb(error.__traceback__)
        return (
            (not self.classes or not names.isdisjoint(self.classes))
            and (not self.errnos or getattr(error, "errno", None) in self.errnos)
            and re.search(self.pattern, str(error), re.IGNORECASE) is not None
            and (not self.raised_in or (bool(frames) and re.search(self.raised_in, frames[-1].filename) is not None))
        )

    def say(self, error: BaseException) -> str:
        """Message for an exception of this kind."""
        text = str(error).strip() or type(error).__name__
        names = (getattr(error, "filename", None), getattr(error, "filename2", None))
        file = " -> ".join(str(name) for name in names if name is not None) or "a file"
        return self.sentence.format(file=file, module=getattr(error, "name", None), text=text.splitlines()[0])


_DISK_FULL = (
    "the disk is full ({text}): free space, or move to another disk what is written: results (paths.output_dir, "
    "paths.runs), cached rows and weights (RLHF_CACHE), temporary files (TMPDIR)"
)
_READ_ONLY = (
    "{file} may not be read or written here ({text}): choose another folder (paths.output_dir, paths.runs, "
    "RLHF_CACHE), or change who may use this one"
)
_LOGIN = (
    "the server refused this user ({text}): accept the terms on the repository's page, then log in with hf auth login, "
    "or set HF_TOKEN (of a judge: the variable that its api_key_env names)"
)
_MEMORY = (
    "memory ran out ({text}): a smaller data.max_tokens, or a larger trainer.accumulate_grad_batches, makes "
    "micro-batches smaller; model.gradient_checkpointing=true and adapter=lora take less for each"
)
_STATUS = (
    "httpx.HTTPStatusError",
    "httpx2.HTTPStatusError",
    "huggingface_hub.errors.HfHubHTTPError",
    "requests.exceptions.HTTPError",
    "urllib.error.HTTPError",
)
_SAFETENSORS = ("safetensors_rust.SafetensorError", "safetensors._safetensors_rust.SafetensorError")

#: The first that fits counts. Whatever else a library raises is taken for a bug.
FAILURES = (
    Failure(_DISK_FULL, errnos=(errno.ENOSPC, errno.EDQUOT), code=EXIT_FAILED),
    Failure(
        _DISK_FULL,
        pattern=r"no space left on device|os error 28|disk quota|PytorchStreamWriter|file write failed|unexpected pos",
        code=EXIT_FAILED,
    ),
    Failure(_READ_ONLY, errnos=(errno.EACCES, errno.EPERM, errno.EROFS)),
    Failure("{file} is a file, or below one, where a folder is wanted", errnos=(errno.ENOTDIR,)),
    Failure("{file} is there already, most likely a file where a folder is wanted", errnos=(errno.EEXIST,)),
    Failure("{file} is a folder, where a file is wanted", errnos=(errno.EISDIR,)),
    Failure("there is no file or folder {file}", errnos=(errno.ENOENT,)),
    Failure("the name of {file} is too long for this disk", errnos=(errno.ENAMETOOLONG,)),
    Failure("too many files are open ({text}): raise the limit with ulimit -n", errnos=(errno.EMFILE, errno.ENFILE)),
    Failure("{file} cannot be read or written ({text}): look at the disk", errnos=(errno.EIO, errno.ESTALE)),
    Failure(
        "a file's name holds a character that none may have: {text}", ("builtins.ValueError",), pattern="null byte"
    ),
    Failure(_LOGIN, ("huggingface_hub.errors.GatedRepoError",)),
    Failure(_LOGIN, _STATUS, pattern=r"\b40[13]\b"),
    Failure("a server refused or failed ({text}): try again, or look at its address", _STATUS),
    Failure(
        "no server answers ({text}): check the address and the network (HF_HUB_OFFLINE, HF_ENDPOINT)",
        (
            "builtins.ConnectionError",
            "httpx.NetworkError",
            "httpx.TimeoutException",
            "httpx2.NetworkError",
            "httpx2.TimeoutException",
            "huggingface_hub.errors.OfflineModeIsEnabled",
            "requests.exceptions.ConnectionError",
            "socket.gaierror",
            "urllib.error.URLError",
        ),
        code=EXIT_FAILED,
    ),
    Failure(_MEMORY, ("torch.OutOfMemoryError", "builtins.MemoryError"), code=EXIT_FAILED),
    Failure(_MEMORY, ("builtins.RuntimeError",), pattern="can't allocate memory|not enough memory", code=EXIT_FAILED),
    Failure(
        "a file of weights is damaged, cut off, or of another kind ({text}): load it from where it came from again",
        (*_SAFETENSORS, "_pickle.UnpicklingError", "zipfile.BadZipFile", "builtins.EOFError"),
    ),
    Failure(
        "a file of weights is damaged, cut off, or of another kind ({text}): load it from where it came from again",
        ("builtins.RuntimeError",),
        pattern="PytorchStreamReader|zip archive",
    ),
    Failure(
        "the weights are of another model, adapter or head than these options make: {text}",
        ("builtins.RuntimeError",),
        pattern=r"error\(s\) in loading state_dict|size mismatch for",
    ),
    Failure("trainer, strategy: {text}", ("lightning.fabric.utilities.exceptions.MisconfigurationException",)),
    Failure(
        "trainer, strategy: {text}",
        ("builtins.ValueError", "builtins.TypeError"),
        raised_in=r"lightning/(pytorch|fabric)/.*(connector|/trainer/|precision|accelerators|loops)",
    ),
    Failure(
        "these options cannot be composed: {text}",
        ("builtins.ValueError", "builtins.TypeError", "builtins.AssertionError", "builtins.RecursionError"),
        raised_in=r"/(hydra|omegaconf|antlr4)/",
    ),
    Failure("the package {module} is not installed: pip install {module}", ("builtins.ModuleNotFoundError",)),
)


def failure_of(error: BaseException) -> Failure | None:
    """The kind of an exception that is no bug; None of the others, and of text that was written for people."""
    if type(error).__module__.partition(".")[0] in _OURS_AND_HYDRAS or extra_for(error):
        return None
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name or "").partition(".")[0]
        if not package or package == "rlhf_lightning" or package in sys.stdlib_module_names:
            return None
    return next((kind for kind in FAILURES if kind.fits(error)), None)


class ConfigError(ValueError):
    """A configuration that cannot run; the text says which option, why, and what is allowed."""


def closest(name: str, options: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The option that ``name`` is most likely a misspelling of, if they are as alike as ``cutoff`` (1: equal) wants."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=cutoff)
    return close[0] if close else None


def suggestion(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: ``Did you mean x?``, and on the next line ``options: x, y, z``."""
    names = sorted(options)
    close = closest(name, names)
    hint = f" Did you mean {prefix}{close}?" if close else ""
    return f"{hint}\n  options: {', '.join(names)}" if names else hint


def want_traceback() -> bool:
    """Check whether the user asked for tracebacks (``--full-error`` or ``RLHF_DEBUG=1``)."""
    return os.environ.get("RLHF_DEBUG", "0") not in ("", "0")


def root_cause(error: BaseException) -> BaseException:
    """The error behind the wrappers of Hydra's instantiate and compose."""
    while type(error).__module__.partition(".")[0] == "hydra" and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_message(error: BaseException) -> bool:
    """Check whether an exception has a message for the user: by Hydra, our classes or code, or its kind."""
    if type(error).__module__.partition(".")[0] in _OURS_AND_HYDRAS or extra_for(error) or failure_of(error):
        return True
    if not isinstance(error, (ValueError, TypeError, OSError, ImportError)) and type(error) is not RuntimeError:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not os.path.abspath(frames[-1].filename).startswith(_PACKAGE):
        return False
    # torch raises its RuntimeErrors from lines of ours that call it.
    return type(error) is not RuntimeError or str(frames[-1].line).startswith("raise ")


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
    if (kind := failure_of(error)) is not None:
        return kind.say(error)
    if is_message(error):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    location = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{location}"


def exit_code(error: BaseException) -> int:
    """2 for options and data that the user can mend, 1 for the rest: bugs, and runs that failed on their way."""
    error = root_cause(error)
    if (kind := failure_of(error)) is not None:
        return kind.code
    return EXIT_FAILED if isinstance(error, RuntimeError) or not is_message(error) else EXIT_USER
