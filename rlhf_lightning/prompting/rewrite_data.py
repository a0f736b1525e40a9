"""Prompts rewritten by a judge who saw a better and a worse response: what a rewriter is trained on (BPO).

What the judge writes is text: it is cut at its headings and never evaluated.
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
    """Rows ``{prompt, response}``: what a rewriter is asked about a prompt, and the judge's rewrite of it.

    Every verdict is appended to ``file`` as it comes; a command that was killed asks only what is missing there, and a
    pair that a new run reads again is not asked about again. Rows of several turns, and rewrites that cannot be read
    or that are out of bounds, are left out and counted in the log.

    Source: construction of the data in "Black-Box Prompt Optimization", arXiv:2311.04155, with the filters of
    thu-coai/BPO.
    Differences: the judge's question is our own wording, and its text is parsed and not evaluated.

    Args:
        source: of pairs.
        judge: makes who is asked, a client of a server.
        file: JSONL of the verdicts.
        columns: our column names -> the data's, as ``data.spec.columns``.
        context: column of the pairs that holds a context of the prompt; None: none.
        question: what the rewriter is asked, with ``{prompt}``: the same as ``prompting.question`` when it is used.
        max_tokens: of a verdict.
        temperature: of the judge (0.9: thu-coai/BPO).
        seed: of its draws, and of how contexts are joined.
        chunk: pairs that are asked about at a time.

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
        """Of the pairs."""
        return f"{self.source.name} rewritten"

    def fingerprint(self) -> None:
        """None: what the judge has yet to say is not known before."""

    def rows(self) -> Iterator[Row]:
        """A row for every pair with a rewrite that can be used."""
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
                given, wanted = joined(prompt, context, turn), joined(rewrite, context, turn, beside=prompt)
                question = self.question.replace("{prompt}", given)
                yield Row(row.file, row.number, {"prompt": question, "response": wanted})

    def _ask(self, pairs: Sequence[tuple[str, str, str, str]], journal: Journal) -> None:
        missing = [pair for pair in dict.fromkeys(pairs) if key_of(*pair) not in journal.rows]
        if not missing:
            return
        judge: Ask = self._judge() if callable(self._judge) else self._judge
        conversations = [[{"role": "user", "content": asked(*pair)}] for pair in missing]
        for pair, text in zip(missing, judge.ask_each(conversations, **self.options), strict=True):
            if text is not None:  # a server that failed is asked again the next time
                journal.add(key_of(*pair), {"prompt": pair[0], "text": text})

    def _pair(self, row: Row, counts: Counter[str]) -> tuple[str, str, str, str] | None:
        """Prompt, good and bad response, and context; None for a row that has none."""
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
    """The judge's question about a pair."""
    parts = {"prompt": prompt, "good": good, "bad": bad, "rewrite": REWRITE, "end": END, "note": ""}
    if context:
        parts["note"] = _CONTEXT_NOTE.replace("{context}", context)
    return re.sub(r"\{(prompt|good|bad|note|rewrite|end)\}", lambda match: parts[match[1]], _ASK)


def parsed(text: str) -> str | None:
    """The rewrite in what the judge wrote; None where it has no heading or nothing below it."""
    _, heading, after = text.partition(REWRITE)
    if not heading:
        return None
    return after.partition(END)[0].strip().strip(":").strip() or None


def out_of_bounds(prompt: str, rewrite: str, context: str = "") -> str | None:
    """Why a rewrite is left out; None: it is used. Rows with a context are not measured (thu-coai/BPO)."""
    if marked(rewrite):
        return "with a mark"
    if context:
        return None
    words = max(len(prompt.split()), 1), max(len(rewrite.split()), 1)
    if words[0] / words[1] > _SHORTENED:
        return "shortened"
    return "lengthened" if words[1] / words[0] > _LENGTHENED else None


def joined(text: str, context: str, turn: int, beside: str = "") -> str:
    """A prompt, or its rewrite, with the context.

    Args:
        text: either.
        context: empty: the text stays as it is, and so it does where it holds the context already.
        turn: a number that says how; the same for prompt and rewrite.
        beside: the other one of the two.
    """
    if not context or context in text:
        return text
    if "follow" in f"{text} {beside}".lower() or (beside or text).rstrip().endswith(":"):
        return f"{text}\n{context}"
    way, first = _JOINED[turn % len(_JOINED)], turn // len(_JOINED) % 2
    if way == "{} {}" or not first:
        return way.format(text, context)
    return way.format(context, text) if way == "{}\n{}" else f'"{context}" {text}'


def key_of(*parts: str) -> str:
    """Digest of texts."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()


def _only_text(part: str | Turns) -> str | None:
    """The text of a prompt or response of one turn; None for several."""
    if isinstance(part, str):
        return part
    return part[0]["content"] if len(part) == 1 else None
