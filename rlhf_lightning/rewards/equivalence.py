"""Mathematical equivalence by math-verify, with its time limits where they work."""

from __future__ import annotations

import functools
import threading
from typing import Any

from rlhf_lightning.rewards.answers import normalized


class Equivalence:
    """Check of two answers for mathematical equality by math-verify (HuggingFace).

    Its time limits are alarms, which Python delivers to the main thread alone, so off the main thread there is no
    limit: a response is only read up to ``max_chars`` of its end there as everywhere.

    Args:
        seconds: for reading one text and for one comparison, on the main thread; 0: no limit.
        max_chars: of a text that are read, the last ones.

    Raises:
        ImportError: math-verify is not installed.
    """

    def __init__(self, seconds: int = 5, max_chars: int = 20_000) -> None:
        try:
            import math_verify  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "mathematical equivalence needs math-verify: pip install 'rlhf-lightning[math]'"
            ) from error
        self.seconds, self.max_chars = seconds, max_chars
        self.timeouts = 0  #: since the beginning
        self._parse_answer = functools.lru_cache(maxsize=4096)(self._answer)

    def parsed(self, text: str) -> list[Any]:
        """Mathematical objects and their text, found where a text states its answer; [] where there is none."""
        from math_verify import parse
        from math_verify.errors import TimeoutException

        try:
            objects: list[Any] = parse(
                text[-self.max_chars :],
                parsing_timeout=self._limit(),
                raise_on_error=True,
            )
        except TimeoutException:
            self.timeouts += 1
            return []
        except Exception:  # whatever sympy and the grammar raise on nonsense
            return []
        return objects

    def answer(self, text: str) -> list[Any]:
        r"""The same of a bare answer such as ``1/2`` or ``\frac{1}{2}``; kept, since answers repeat."""
        return self._parse_answer(text.strip())

    def equal(self, answer: list[Any], extracted: list[Any]) -> bool:
        """Check whether an extracted answer equals the gold answer; the order matters to math-verify."""
        from math_verify import verify
        from math_verify.errors import TimeoutException

        try:
            return bool(verify(answer, extracted, timeout_seconds=self._limit(), raise_on_error=True))
        except TimeoutException:
            self.timeouts += 1
        except Exception:  # whatever sympy raises while it compares
            return False
        return False

    def same(self, one: str, other: str) -> bool:
        """Check whether two bare answers are equal: as normalised texts, or as mathematical objects."""
        return normalized(one) == normalized(other) or self.equal(self.answer(one), self.answer(other))

    def _answer(self, text: str) -> list[Any]:
        if "\\" in text and "$" not in text and "boxed" not in text:
            text = f"${text}$"
        return self.parsed(text)

    def _limit(self) -> int | None:
        on_main = threading.current_thread() is threading.main_thread()
        return self.seconds if on_main and self.seconds > 0 else None
