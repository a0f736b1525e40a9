"""The date that chat templates see: one for a run, whenever and in whichever process it is asked for.

Some templates write today's date into every prompt (Llama 3.2's, Mistral's). Read from the clock it would change at
midnight and with every resume, and so would tokens, cached data and what an evaluation shows the model. A run keeps the
date it began on in its folder; its resumes, its other processes, evaluations of it and the jobs of a sweep take it from
there. Templates get the date alone: their clock stands at midnight, and days and months have their English names.
"""

from __future__ import annotations

import os
from datetime import date, datetime, time
from pathlib import Path

from filelock import FileLock

#: In the folder of a run or a sweep: its date.
FILE = "date.txt"
#: Environment variable with the date of runs that have none yet; without it, the day they begin on.
VARIABLE = "RLHF_DATE"
#: Directives of ``strftime`` that are numbers, whatever the locale.
_NUMERIC = "CdfGgHIjmMSuUVwWyY"
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)

_date: date | None = None


def today() -> date:
    """The date of the run at hand; where none has begun, that of this process's first question."""
    global _date
    if _date is None:
        _date = _new()
    return _date


def begin(folder: Path) -> date:
    """Begin or resume the run (or the sweep) of a folder: its date, from now on that of :func:`today`.

    Of several processes that begin the run together, one decides, also around midnight.

    Args:
        folder: made when it is missing; it keeps the date.

    Raises:
        ValueError: the folder's file, or the environment variable, holds no date.
    """
    global _date
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{FILE}.lock"):
        _date = recorded(folder)
        if _date is None:
            _date = _new()
            (folder / FILE).write_text(f"{_date.isoformat()}\n", encoding="utf-8")
    return _date


def recorded(folder: Path) -> date | None:
    """The date of a run's folder; None where an older version has left none.

    Raises:
        ValueError: the file holds no date.
    """
    file = folder / FILE
    return _parsed(file.read_text(encoding="utf-8").strip(), str(file)) if file.exists() else None


def take_over(folder: Path) -> None:
    """Let :func:`today` be the date of an earlier run: of the one that is evaluated, or whose policy responds."""
    global _date
    _date = recorded(folder)


def directives(day: date) -> dict[str, str]:
    """Texts that ``strftime`` writes for its directives at a day's midnight, ``%d``, ``%-d``, ``%B`` and so on.

    Args:
        day: such as :func:`today`.

    Returns:
        Text by directive, the same in every locale and time zone. The flags of the C library are among the directives:
        ``-`` takes leading zeros off, ``_`` makes spaces of them, ``^`` writes capitals.
    """
    midnight = datetime.combine(day, time())
    texts = {letter: midnight.strftime(f"%{letter}") for letter in _NUMERIC}
    weekday, month = _DAYS[day.weekday()], _MONTHS[day.month - 1]
    texts |= {"A": weekday, "a": weekday[:3], "B": month, "b": month[:3], "h": month[:3], "p": "AM"}
    texts |= {"%": "%", "n": "\n", "t": "\t", "z": "", "Z": "", "k": " 0", "l": "12", "e": f"{day.day:2}"}
    texts |= {"D": f"{day:%m/%d/%y}", "F": f"{day:%Y-%m-%d}", "R": "00:00", "T": "00:00:00", "r": "12:00:00 AM"}
    texts |= {"x": texts["D"], "X": texts["T"], "c": f"{texts['a']} {texts['b']} {texts['e']} {texts['T']} {day:%Y}"}
    flagged: dict[str, str] = {}
    for letter, text in texts.items():
        bare = text.lstrip("0 ") or "0" if text.strip().isdigit() else text
        forms = {"": text, "-": bare, "_": bare.rjust(len(text)), "0": bare.rjust(len(text), "0"), "^": text.upper()}
        flagged |= {f"%{flag}{letter}": form for flag, form in forms.items()}
    return flagged


def _new() -> date:
    text = os.environ.get(VARIABLE)
    return _parsed(text, VARIABLE) if text else date.today()


def _parsed(text: str, source: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{source} holds {text!r} and must hold a date such as 2026-01-31") from None
