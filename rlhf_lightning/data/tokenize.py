"""Rows to tokenised examples, with an account of every row.

``tokenize`` never raises for a single row: what cannot be used is left out and stands in the report, and
``report.enforce(spec)`` decides whether a run may go on. Only what makes the whole data set unusable is an error here.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data import cache
from rlhf_lightning.data.checks import DataError, Kind, Problem, Report, RowError, check_ids
from rlhf_lightning.data.encode import Encoded, Encoder, fit
from rlhf_lightning.data.examples import Examples
from rlhf_lightning.data.formats import FORMATS, Record, convert, unrecognised
from rlhf_lightning.data.sources import Row, Source
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.templates import ChatTemplate, Rendered, render, resolve
from rlhf_lightning.types import Example

log = logging.getLogger(__name__)

DataKind = Literal["supervised", "preference"]
#: Responses an example of each kind holds.
SLOTS: dict[str, int] = {"supervised": 1, "preference": 2}

_CHUNK = 512  #: rows rendered and tokenised at a time
_COMPARED = 512  #: rows whose boundary is checked against joint tokenisation
_SAY_EVERY = 100_000  #: rows between two lines of progress in the log


@dataclass(frozen=True)
class Tokenized:
    """A tokenised data set and the account of how it came about."""

    examples: Examples
    report: Report

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, group: int) -> Example:
        return self.examples[group]


def tokenize(source: Source, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, kind: DataKind) -> Tokenized:
    """Turn a source's rows into tokenised examples, from the cache where they are there already.

    Args:
        source: where the rows come from.
        tokenizer: of the model that will be trained.
        spec: layout, template, limits and the rest of ``data.spec``.
        kind: ``preference`` makes pairs; ``supervised`` one response a row, of pairs the chosen one.

    Returns:
        The examples, and a report that accounts for every row. Nothing is enforced: call
        ``report.enforce(spec)`` before training.

    Raises:
        DataError: the template or the tokenizer cannot be used, or no row fits the format or the kind.
    """
    started = time.perf_counter()
    template = resolve(tokenizer, spec)
    fingerprint = source.fingerprint() if spec.cache else None
    pipeline = _Pipeline(source.name, tokenizer, spec, kind, template)
    if fingerprint is None:
        made = Tokenized(*pipeline.run(source.rows()))
    else:
        parts = (fingerprint, cache.tokenizer_digest(tokenizer), template.digest() if template else "", spec.digest())
        key = hashlib.sha256(
            repr((*parts, source.name, kind, cache.TOKENISE_VERSION, cache.COLUMNS)).encode()
        ).hexdigest()
        folder = Path(spec.cache_dir).expanduser() if spec.cache_dir else cache.default_folder()
        made = Tokenized(*cache.cached(folder, key, lambda: pipeline.run(source.rows())))
    log.info("%s (%.1f s)", made.report.summary(), time.perf_counter() - started)
    for remark in made.report.notes:
        log.warning("%s: %s", made.report.source, remark)
    return made


def split(examples: Examples, fraction: float, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions for training and for validation.

    A group's side follows from a hash of its prompt: groups with the same prompt stay together, so no validation
    prompt is trained on, and a group keeps its side when rows are added, removed or reordered. Groups whose prompt is
    a single token (plain text) are hashed whole. At least one group is on each side.

    Args:
        examples: at least two groups.
        fraction: expected share of validation groups, in (0, 1).
        seed: another seed draws another split.

    Raises:
        DataError: the fraction is outside (0, 1), there are fewer than two groups, or all of them share one prompt.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.validation={fraction} must lie between 0 and 1, or be a source of its own")
    drawn = np.empty(len(examples), dtype=np.float64)
    for group, (start, prompt_end, *_, end) in enumerate(examples.bounds.tolist()):
        hashed = examples.tokens[start : prompt_end if prompt_end - start > 1 else end].astype(np.int32)
        digest = hashlib.blake2b(hashed.tobytes(), digest_size=8, key=seed.to_bytes(8, "little", signed=True))
        drawn[group] = int.from_bytes(digest.digest(), "little") / 2**64
    if len(np.unique(drawn)) < 2:
        raise DataError(f"data.validation={fraction}: {len(examples)} rows with one prompt cannot be split in two")
    threshold = float(np.clip(fraction, np.nextafter(drawn.min(), 1), drawn.max()))
    return np.flatnonzero(drawn >= threshold), np.flatnonzero(drawn < threshold)


class _Pipeline:
    """One pass over the rows of a source."""

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        spec: DataSpec,
        kind: DataKind,
        template: ChatTemplate | None,
    ) -> None:
        self.spec, self.slots = spec, SLOTS[kind]
        self.template = template
        self.encoder = Encoder(tokenizer, spec, template)
        self.report = Report(name, kind, template=template.name if template else "none")
        #: Text becomes a conversation when the user chose a template for it.
        self.conversation = spec.template not in ("auto", "none")
        self.expected: str | None = None
        self.hopeless: DataError | None = None
        self.first_seen: dict[bytes, str] = {}
        self.margins: list[float] = []
        self.unknown = tokenizer.unk_token_id
        if self.unknown in self.encoder.special.ends:
            self.unknown = None
        self.has_own_template = bool(tokenizer.chat_template)
        self.templated = False  #: whether any row went through the template

    def run(self, rows: Iterable[Row]) -> tuple[Examples, Report]:
        """All usable rows as examples, and the report."""
        examples = Examples.build(self._examples(iter(rows)))
        examples = replace(examples, margin=self._margin())
        self._notes()
        return examples, self.report

    def _examples(self, rows: Iterator[Row]) -> Iterator[Example]:
        while chunk := list(islice(rows, _CHUNK)):
            rendered = [(row, *pair) for row in chunk if (pair := self._render(row)) is not None]
            if self.expected is None and self.hopeless is not None:
                raise self.hopeless
            compare = self.report.boundary_checked < _COMPARED
            encoded = self.encoder.encode([text for _, _, text in rendered], compare=compare)
            for (row, record, text), made in zip(rendered, encoded, strict=True):
                try:
                    example = self._example(row, made)
                except RowError as error:
                    self._problem(row, error)
                    continue
                self._count(example, made, text)
                self.margins.append(float("nan") if record.margin is None else record.margin)
                yield example
            if self.report.rows % _SAY_EVERY < len(chunk) and self.report.rows >= _SAY_EVERY:
                log.info("%s: %d rows tokenised", self.report.source, self.report.rows)

    def _problem(self, row: Row, error: RowError) -> None:
        self.report.add(Problem(row.id, error.kind, error.message))

    def _render(self, row: Row) -> tuple[Record, Rendered] | None:
        """A row as text; None when it is filtered or cannot be used, which is then in the report."""
        self.report.rows += 1
        try:
            if row.error is not None:
                raise RowError(Kind.BROKEN, row.error)
            record = self._record(row)
            if record is None:
                self.report.filtered += 1
                return None
            self.report.formats[record.format] = self.report.formats.get(record.format, 0) + 1
            if not record.conversation and record.format != "text" and self.has_own_template:
                self._note_plain_text()
            return record, render(record, self.template)
        except RowError as error:
            self._problem(row, error)
            return None

    def _record(self, row: Row) -> Record | None:
        """The converted row with as many responses as the kind of data has."""
        try:
            record = convert(row.values, self.spec, conversation=self.conversation, expected=self.expected)
        except RowError as error:
            if self.expected is None and self.spec.format == "auto" and error.kind is Kind.MISSING:
                self.hopeless = self.hopeless or unrecognised(list(map(str, row.values)))
            raise
        if record is None:
            return None
        if len(record.responses) < self.slots:
            self.hopeless = self.hopeless or _needs_pairs(self.report.source, record.format)
            raise RowError(Kind.MISSING, f"a row of format {record.format} has no rejected response")
        self.expected = record.format
        _check_text(record)
        margin = record.margin if self.slots == SLOTS["preference"] else None
        return replace(record, responses=record.responses[: self.slots], margin=margin)

    def _example(self, row: Row, made: Encoded) -> Example:
        special = self.encoder.special
        cut = fit(made, self.spec, special.bos)
        check_ids(made.prompt, made.responses, made.scored, special, cut=cut is not None)
        if cut is not None:
            self.report.add(Problem(row.id, Kind.TRUNCATED, cut))
        self._check_duplicate(row, made)
        plain = all(map(all, made.scored))
        return Example(made.prompt, made.responses, None if plain else made.scored, row.id)

    def _check_duplicate(self, row: Row, made: Encoded) -> None:
        content = repr((made.prompt, made.responses)).encode()
        first = self.first_seen.setdefault(hashlib.blake2b(content, digest_size=8).digest(), row.id)
        if first != row.id:  # a mixture may repeat a row on purpose: that is no duplicate
            self.report.add(Problem(row.id, Kind.DUPLICATE, f"the same tokens as {first}"))

    def _count(self, example: Example, made: Encoded, text: Rendered) -> None:
        report = self.report
        report.kept += 1
        report.prompt_tokens += len(example.prompt)
        report.response_tokens += sum(map(len, example.responses))
        report.scored_tokens += sum(map(sum, made.scored))
        report.unscored_turns += text.unscored_turns
        self.templated = self.templated or text.templated
        if self.unknown is not None:
            report.unknown_tokens += sum(ids.count(self.unknown) for ids in example.responses)
        if made.mismatch is not None:
            report.boundary_checked += 1
            report.boundary_mismatched += made.mismatch

    def _margin(self) -> NDArray[np.float32] | None:
        """Margins of all examples, or None when some have none."""
        margins = np.asarray(self.margins, dtype=np.float64)
        absent = int(np.isnan(margins).sum())
        if 0 < absent < len(margins):
            self.report.note(f"{absent} of {len(margins)} rows have no margin, so margins are not used")
        return None if absent or not len(margins) else margins.astype(np.float32)

    def _note_plain_text(self) -> None:
        self.report.note(
            "prompts are plain text and stay so, although the tokenizer has a chat template; "
            "data.spec.template=tokenizer makes each prompt a user turn"
        )

    def _notes(self) -> None:
        """Remarks about the data set as a whole."""
        report, template = self.report, self.template
        if report.boundary_mismatched:
            report.note(
                f"in {report.mismatch_rate:.1%} of {report.boundary_checked} rows tokens would merge across the "
                f"boundary of prompt and response (data.spec.boundary={self.spec.boundary})"
            )
        if report.unscored_turns:
            report.note(
                f"{report.unscored_turns} assistant turns are not scored: the template shows them differently once "
                "other turns follow"
            )
        if report.unknown_tokens:
            report.note(f"{report.unknown_tokens} response tokens are the tokenizer's unknown token")
        if self.templated and template is not None and len(self.encoder.special.ends) > 1:
            report.note(
                f"answers end with {template.end_token!r}, not with the tokenizer's EOS: generation must stop there"
            )


def _check_text(record: Record) -> None:
    """Raise RowError when a prompt or a response says nothing."""
    prompt = record.prompt if isinstance(record.prompt, str) else "".join(turn["content"] for turn in record.prompt)
    if not prompt.strip() and record.format != "text":
        raise RowError(Kind.EMPTY_PROMPT, "the prompt is empty")
    for number, response in enumerate(record.responses):
        last = {"content": response} if isinstance(response, str) else response[-1]
        if not last["content"].strip() and not last.get("tool_calls"):
            which = ("chosen", "rejected")[number] if len(record.responses) == 2 else "response"
            raise RowError(Kind.EMPTY_RESPONSE, f"{which} is empty")


def _needs_pairs(source: str, found: str) -> DataError:
    needs = "\n".join(f"  {name}: {form.needs}" for name, form in FORMATS.items() if form.responses == 2)
    return DataError(
        f"this method learns from pairs, and {source} holds one response a row (format {found}). "
        f"Pairs come as:\n{needs}\nUse method=sft for demonstrations, or map columns with data.spec.columns"
    )
