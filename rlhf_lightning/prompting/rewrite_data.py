"""Training data of a rewriter (BPO): prompts rewritten by a judge that saw a better and a worse response.

The judge's text is cut at its headings and never evaluated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.data.rows.formats import convert
from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import DataError, RowError
from rlhf_lightning.data.sources.base import Row, Source
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.options import Count, NonNegative, Seed
from rlhf_lightning.prompting.jsonl import Journal
from rlhf_lightning.prompting.rewriter import QUESTION, marked
from rlhf_lightning.rewards.asking import Ask

log = logging.getLogger(__name__)

#: Headings that the judge is asked to write, and the mark behind the rewrite.
REWRITE, END = "### Rewritten prompt", "### End"
_CONTEXT_NOTE = """
The prompt came with the context below. It will be added again: leave it out of the rewrite.

### Context
{context}
"""
_ASK = """An assistant was given a prompt and gave two responses, a good one and a bad one.

### Prompt
{prompt}
{note}
### Good response
{good}

### Bad response
{bad}

First compare the responses: are they correct, and then, how helpful and how harmless are they? Then rewrite the \
prompt so that an assistant that has never seen these responses gives one like the good one. Keep everything that the \
prompt says, whatever stands between [PROTECT] marks to the letter. Do not put the content of a response into the \
prompt, and do not answer it. If it asks for something unsafe, make a safe prompt of it.

Write your comparison, then the line "{rewrite}", the rewritten prompt alone, and the line "{end}"."""
#: Prompts that are this many times longer than their rewrites, and rewrites that are longer than their prompts, are
#: left out (thu-coai/BPO).
_SHORTENED, _LENGTHENED = 2.0, 6.0
#: How prompt and context are joined, and how often of 8 (thu-coai/BPO): ``{0}`` and ``{1}`` in either order.
_JOINED = ("{}\n{}", "{}\n{}", "{}\n{}", "{}\n{}", "{} {}", '{} "{}"', '{} "{}"', '{} "{}"')


class PromptRewrites:
    """Rows ``{prompt, response}``: the rewriter's question about a prompt, and the judge's rewrite of the prompt.

    Every verdict is appended to ``file`` as it arrives. A command that is run again after a kill asks only for missing
    verdicts, and no pair is judged twice. Rows of several turns, and rewrites that cannot be read or are out of bounds,
    are left out and counted in the log.

    Source: construction of the data in "Black-Box Prompt Optimization", arXiv:2311.04155, with the filters of
    thu-coai/BPO.
    Differences: the judge's question is our own wording, and its text is parsed, not evaluated.

    Args:
        source: source of pairs.
        judge: makes the judge, a client of a server.
        file: JSONL file of the verdicts.
        columns: our column names -> the data's, as ``data.spec.columns``.
        context: column of the pairs that holds a context of the prompt; None: none.
        question: question to the rewriter, with ``{prompt}``: the same as ``prompting.question`` when it is used.
        max_tokens: maximum tokens of a verdict.
        temperature: temperature of the judge (0.9: thu-coai/BPO).
        seed: seed of its draws, and of the way contexts are joined.
        chunk: number of pairs sent to the judge at a time.

    Raises:
        ValueError: the question lacks ``{prompt}``.
    """

    def __init__(
        self,
        source: Source,
        judge: Any,
        file: str,
        *,
        columns: Mapping[str, str | None] | None = None,
        context: str | None = None,
        question: str = QUESTION,
        max_tokens: Count = 1024,
        temperature: NonNegative = 0.9,
        seed: Seed = 0,
        chunk: Count = 32,
    ) -> None:
        if "{prompt}" not in question:
            raise ValueError(f"data.source.question={question!r} must contain {{prompt}}")
        self.source, self.file = source, Path(file).expanduser()
        self._judge, self.context, self.question = judge, context, question
        self.spec = DataSpec(columns=columns or {}, cache=False)
        self.options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.seed, self.chunk = seed, chunk

    @property
    def name(self) -> str:
        """Name of the pairs."""
        return f"{self.source.name} rewritten"

    def fingerprint(self) -> None:
        """None, since the judge's verdicts are not known in advance."""

    def rows(self) -> Iterator[Row]:
        """Yield a row for every pair with a usable rewrite."""
        counts: Counter[str] = Counter()
        with Journal(self.file) as journal:
            rows = self.source.rows()
            while chunk := list(islice(rows, self.chunk)):
                yield from self._rewritten(chunk, journal, counts)
        left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()) if reason != "rewritten")
        log.info("%s: %d prompts rewritten%s", self.name, counts["rewritten"], left_out and f"; left out: {left_out}")

    def _rewritten(self, chunk: Sequence[Row], journal: Journal, counts: Counter[str]) -> Iterator[Row]:
        pairs = [(row, pair) for row in chunk if (pair := self._pair(row, counts)) is not None]
        self._ask([pair for _, pair in pairs], journal)
        for row, pair in pairs:
            prompt, context = pair[0], pair[3]
            text = journal.rows.get(key_of(*pair), {}).get("text")
            rewrite = None if text is None else parsed(text)
            if rewrite is None:
                counts["unanswered" if text is None else "unread"] += 1
                continue
            reason = out_of_bounds(prompt, rewrite, context)
            counts[reason or "rewritten"] += 1
            if reason is None:
                turn = int(key_of(*pair, str(self.seed)), 16)
                original, rewritten = joined(prompt, context, turn), joined(rewrite, context, turn, counterpart=prompt)
                question = self.question.replace("{prompt}", original)
                yield Row(row.file, row.number, {"prompt": question, "response": rewritten})

    def _ask(self, pairs: Sequence[tuple[str, str, str, str]], journal: Journal) -> None:
        missing = [pair for pair in dict.fromkeys(pairs) if key_of(*pair) not in journal.rows]
        if not missing:
            return
        judge: Ask = self._judge() if callable(self._judge) else self._judge
        conversations = [[{"role": "user", "content": asked(*pair)}] for pair in missing]
        for pair, text in zip(missing, judge.ask_each(conversations, **self.options), strict=True):
            if text is not None:  # failed requests are repeated the next time
                journal.add(key_of(*pair), {"prompt": pair[0], "text": text})

    def _pair(self, row: Row, counts: Counter[str]) -> tuple[str, str, str, str] | None:
        """Extract prompt, good and bad response, and context; None for a row without them."""
        try:
            record = None if row.error else convert(row.values, self.spec, kind="preference")
        except RowError as error:
            raise DataError(f"{row.id}: {error.message}; set data.source.columns") from error
        if record is None or len(record.responses) < 2:
            counts["no pair"] += 1
            return None
        texts = [_only_text(part) for part in (record.prompt, record.responses[0], record.responses[-1])]
        if any(text is None for text in texts):
            counts["of several turns"] += 1
            return None
        context = row.values.get(self.context) if self.context is not None else None
        return str(texts[0]), str(texts[1]), str(texts[2]), context if isinstance(context, str) else ""


def asked(prompt: str, good: str, bad: str, context: str) -> str:
    """Format the judge's question about a pair."""
    parts = {"prompt": prompt, "good": good, "bad": bad, "rewrite": REWRITE, "end": END, "note": ""}
    if context:
        parts["note"] = _CONTEXT_NOTE.replace("{context}", context)
    return re.sub(r"\{(prompt|good|bad|note|rewrite|end)\}", lambda match: parts[match[1]], _ASK)


def parsed(text: str) -> str | None:
    """Extract the rewrite from the judge's text; None if it has no heading or nothing below it."""
    _, heading, after = text.partition(REWRITE)
    if not heading:
        return None
    return after.partition(END)[0].strip().strip(":").strip() or None


def out_of_bounds(prompt: str, rewrite: str, context: str = "") -> str | None:
    """Reason for leaving out a rewrite; None: it is used. Rows with a context are not measured (thu-coai/BPO)."""
    if marked(rewrite):
        return "with a mark"
    if context:
        return None
    words = max(len(prompt.split()), 1), max(len(rewrite.split()), 1)
    if words[0] / words[1] > _SHORTENED:
        return "shortened"
    return "lengthened" if words[1] / words[0] > _LENGTHENED else None


def joined(text: str, context: str, turn: int, counterpart: str = "") -> str:
    """Join a prompt, or its rewrite, with the context.

    Args:
        text: the prompt or the rewrite.
        context: the context; if it is empty or already part of the text, the text does not change.
        turn: number that chooses the way of joining; the same for prompt and rewrite.
        counterpart: the prompt of a rewrite.
    """
    if not context or context in text:
        return text
    if "follow" in f"{text} {counterpart}".lower() or (counterpart or text).rstrip().endswith(":"):
        return f"{text}\n{context}"
    way, first = _JOINED[turn % len(_JOINED)], turn // len(_JOINED) % 2
    if way == "{} {}" or not first:
        return way.format(text, context)
    return way.format(context, text) if way == "{}\n{}" else f'"{context}" {text}'


def key_of(*parts: str) -> str:
    """Compute a digest of texts."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _only_text(part: str | Turns) -> str | None:
    """Text of a prompt or response of one turn; None for several turns."""
    if isinstance(part, str):
        return part
    return part[0]["content"] if len(part) == 1 else None
