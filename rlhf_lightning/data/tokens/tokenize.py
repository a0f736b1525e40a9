"""Tokenisation of rows, with a report that accounts for every row.

``tokenize`` never raises for a single row: a row that cannot be used is left out and counted in the report, and
``report.enforce(spec)`` decides whether a run may continue. Only problems of the whole data set are errors here.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.kinds import KINDS, serves
from rlhf_lightning.data.rows.formats import convert, unrecognised, used_columns
from rlhf_lightning.data.rows.problems import DataError, DataReport, Problem, ProblemKind, RowError, check_ids
from rlhf_lightning.data.rows.records import Record, as_json
from rlhf_lightning.data.sources.base import Row, Source, for_kind, using
from rlhf_lightning.data.sources.mapped_columns import MappedColumns
from rlhf_lightning.data.spec import OF_RESPONSES, DataSpec
from rlhf_lightning.data.tokens import cache, prompt_cuts
from rlhf_lightning.data.tokens.conversations import Rendered
from rlhf_lightning.data.tokens.converters import Converter
from rlhf_lightning.data.tokens.encode import Encoded, Encoder, fit
from rlhf_lightning.data.tokens.example_columns import Columns
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.data.tokens.groups import check_text, check_unicode, make_equal, step_labels, with_negatives
from rlhf_lightning.data.tokens.optional_numbers import OptionalNumbers
from rlhf_lightning.data.tokens.prompt_transforms import changed, turns_in
from rlhf_lightning.data.tokens.report_notes import PLAIN_TEXT, note_counts, note_template, wrong_kind
from rlhf_lightning.data.tokens.templates import ChatTemplate, render, resolve
from rlhf_lightning.data.tokens.token_rows import TOKEN_IDS, group_of, has_tokens
from rlhf_lightning.types import Example

log = logging.getLogger(__name__)

_CHUNK = 512  #: rows rendered and tokenised at a time
_COMPARED = 512  #: rows whose boundary is checked against joint tokenisation
_LOG_EVERY = 100_000  #: rows between two lines of progress in the log
#: What tokenizers raise on text that they cannot take.
_REFUSED = (TypeError, ValueError, ArithmeticError, RecursionError)


_RenderedRow = tuple[Row, Record, list[Rendered | None]]


@dataclass(frozen=True)
class Tokenized:
    """A tokenised data set and its report."""

    examples: Examples
    report: DataReport

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, group: int) -> Example:
        return self.examples[group]


def tokenize(source: Source, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, kind: str) -> Tokenized:
    """Turn a source's rows into tokenised examples, or read them from the cache.

    Args:
        source: where the rows come from.
        tokenizer: of the model that will be trained.
        spec: layout, template, limits and the rest of ``data.spec``.
        kind: what the method learns from (``kinds.KINDS``). Rows of another kind are converted where it is clear how
            (``DataKind.feeds``): of pairs ``supervised`` takes the chosen responses, ``unpaired`` makes labelled ones.

    Returns:
        The examples, and a report that accounts for every row. Nothing is enforced: call
        ``report.enforce(spec)`` before training.

    Raises:
        DataError: the template or the tokenizer cannot be used, or no row fits the format or the kind.
        ValueError: there is no such kind.
    """
    started = time.perf_counter()
    source = using(for_kind(source, kind), used_columns(spec, kind))
    prompt_cuts.check_kind(spec, kind)
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


def split(
    examples: Examples, fraction: float, seed: int = 0, *, identity: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions for training and for validation.

    A group's side follows from a hash of its prompt: groups with the same prompt stay together, so no validation
    prompt is trained on, and a group keeps its side when rows are added, removed or reordered. Groups whose prompt is
    a single token (plain text) are hashed whole. At least one group is on each side.

    Args:
        examples: at least two groups.
        fraction: expected share of validation groups, in (0, 1).
        seed: another seed draws another split.
        identity: of groups with several prompts, the one that is hashed.

    Raises:
        DataError: the fraction is outside (0, 1), there are fewer than two groups, or all of them share one prompt.
    """
    if not 0 < fraction < 1:
        raise DataError(f"data.validation={fraction} must lie between 0 and 1, or be a separate source; null: none")
    drawn = np.empty(len(examples), dtype=np.float64)
    cuts = examples.by_prompt[identity :: examples.prompts]
    for group, (start, prompt_end, *_, end) in enumerate(cuts.tolist()):
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
        kind: str,
        template: ChatTemplate | None,
    ) -> None:
        self.spec, self.kind, self.layout = spec, kind, KINDS[kind]
        self.template = template
        if spec.prompting is not None:
            spec.prompting.begin(tokenizer)
        self.encoder = Encoder(tokenizer, spec, template)
        self.report = DataReport(name, kind, template=template.name if template else "none")
        #: Text becomes a conversation when the user chose a template for it.
        self.conversation = spec.template not in ("auto", "none")
        self.expected: str | None = None
        self.hopeless: DataError | None = None
        unread = frozenset() if self.layout.has_responses else OF_RESPONSES
        self.mapped = MappedColumns({name: column for name, column in spec.mapped.items() if name not in unread})
        self.unread: set[str] = set()  #: fields of turns that the template does not show
        self.first_seen: dict[bytes, str] = {}
        self.optional = OptionalNumbers(kind)
        self.names: set[str] | None = None  #: of the numbers that a response has, as in the first row
        self.unknown = tokenizer.unk_token_id
        if self.unknown in self.encoder.special.ends:
            self.unknown = None
        plain = spec.prompting is not None and spec.prompting.plain  # turns would become text again
        self.could_be_turns = bool(tokenizer.chat_template) and template is not None and not plain
        self.templated = False  #: whether any row went through the template

    def run(self, rows: Iterable[Row]) -> tuple[Examples, DataReport]:
        """All usable rows as examples, and the report."""
        converter = Converter(self.kind, self.spec)
        columns = Columns()
        for example in converter(with_negatives(self._rows(iter(rows)))):
            self._add(columns, example)
        self.mapped.check(self.report.source)
        examples = self.optional.joined(Examples(**columns.finished()), self.report)
        converter.account(self.report, len(examples))
        note_counts(self.report, examples, self.spec)
        if self.templated and self.template is not None:
            note_template(self.report, self.template, self.encoder.special.ends, self.unread)
        return examples, self.report

    def _rows(self, rows: Iterator[Row]) -> Iterator[tuple[Row, Record, Example]]:
        """Every usable row with its group, before conversions."""
        while chunk := list(islice(rows, _CHUNK)):
            yield from self._token_rows(row for row in chunk if has_tokens(row.values, self.kind))
            chunk = [row for row in chunk if not has_tokens(row.values, self.kind)]
            rendered = [(row, *pair) for row, record in self._records(chunk) if (pair := self._render(row, record))]
            if self.expected is None and self.hopeless is not None:
                raise self.hopeless
            for (row, record, parts), made in zip(rendered, self._encoded(rendered), strict=True):
                try:
                    if isinstance(made, RowError):
                        raise made
                    example = self._example(row, record, made)
                except RowError as error:
                    self._problem(row, error)
                    continue
                self._count(row, record, example, made, parts)
                yield row, record, example
            if self.report.rows % _LOG_EVERY < len(chunk) and self.report.rows >= _LOG_EVERY:
                log.info("%s: %d rows tokenised", self.report.source, self.report.rows)

    def _token_rows(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Record, Example]]:
        """Rows that have the tokens of their group; the limits hold for them too."""
        for row in rows:
            self.report.rows += 1
            try:
                made, numbers, margin = group_of(row.values)
                cut = fit(made, self.spec, self.encoder.special.bos)
            except RowError as error:
                self._problem(row, error)
                continue
            if cut:
                self.report.add(Problem(row.id, ProblemKind.TRUNCATED, cut))
            record = Record("", (), TOKEN_IDS, margin, self.kind, numbers)
            example = self._example(row, record, [made])
            self.report.formats[record.format] = self.report.formats.get(record.format, 0) + 1
            self._count(row, record, example, [made], [])
            yield row, record, example

    def _encoded(self, rendered: list[_RenderedRow]) -> Iterator[list[Encoded | None] | RowError]:
        """Ids of every row; a text that the tokenizer refuses is a problem of its row alone."""
        compare = self.report.boundary_checked < _COMPARED
        texts = [text for _, _, parts in rendered for text in parts if text is not None]
        try:
            encoded = iter(self.encoder.encode(texts, compare=compare))
        except _REFUSED as error:
            if len(rendered) == 1:
                yield RowError(ProblemKind.BROKEN, f"the tokenizer refuses its text: {type(error).__name__}: {error}")
                return
            for alone in rendered:
                yield from self._encoded([alone])
            return
        for _, _, parts in rendered:
            yield [None if text is None else next(encoded) for text in parts]

    def _add(self, columns: Columns, example: Example) -> None:
        """Add an example; numbers that some rows may lack are kept apart."""
        try:
            columns.add(self.optional.without(example))
        except ValueError as error:
            self.report.kept -= 1
            self.report.add(Problem(example.row, ProblemKind.BROKEN, str(error)))
        else:
            self.optional.add(example)

    def _problem(self, row: Row, error: RowError) -> None:
        self.report.add(Problem(row.id, error.kind, error.message))
        if row.part:
            self.report.count_part(row.part, problem=error.message)

    def _records(self, rows: Iterable[Row]) -> Iterable[tuple[Row, Record]]:
        """Rows with their records; a prompt transform sees all of them first."""
        records = ((row, record) for row in rows if (record := self._read(row)) is not None)
        if self.spec.prompting is None:
            return records
        read = list(records)
        self.spec.prompting.prepare([turns_in(record) for _, record in read])
        return read

    def _read(self, row: Row) -> Record | None:
        """A row as a record; None when it is filtered or cannot be used, which is then in the report."""
        self.report.rows += 1
        if row.part:
            self.report.count_part(row.part, rows=1)
        try:
            if row.error is not None:
                raise RowError(ProblemKind.BROKEN, row.error)
            self.mapped.look(row)
            record = self._record(row)
            if record is None:
                self.report.filtered += 1
                return None
            self.report.formats[record.format] = self.report.formats.get(record.format, 0) + 1
            if not record.conversation and record.format != "text" and self.could_be_turns:
                self.report.note(PLAIN_TEXT)
            return record
        except RowError as error:
            self._problem(row, error)
            return None

    def _render(self, row: Row, record: Record) -> tuple[Record, list[Rendered | None]] | None:
        """A record as text, one a prompt; None when it cannot be used, which is then in the report."""
        try:
            record = record if self.spec.prompting is None else changed(record, self.spec.prompting)
            parts = [None if part is None else render(part, self.template) for part in record.parts or (record,)]
            check_unicode(row.values, parts)
            return record, parts
        except RowError as error:
            self._problem(row, error)
            return None

    def _record(self, row: Row) -> Record | None:
        """The converted row, of a kind that serves the method."""
        try:
            record = convert(
                row.values,
                self.spec,
                kind=self.kind,
                conversation=self.conversation,
                expected=self.expected,
                unmapped=row.unmapped,
            )
        except RowError as error:
            absent = self.mapped.absent(row) if error.kind in (ProblemKind.MISSING, ProblemKind.TYPE) else ""
            if self.expected is None and self.spec.format == "auto" and error.kind is ProblemKind.MISSING:
                self.hopeless = self.hopeless or unrecognised(list(map(str, row.values)), self.kind, absent)
            raise RowError(error.kind, f"{absent}; {error.message}") if absent else error from None
        if record is None:
            return None
        if not serves(record.kind, self.kind):
            self.hopeless = self.hopeless or wrong_kind(self.report.source, record, self.kind, self.mapped.absent(row))
            raise RowError(ProblemKind.MISSING, f"a row of format {record.format} gives {KINDS[record.kind].noun} only")
        self.expected = record.format
        self.names = set(record.numbers) if self.names is None else self.names
        if KINDS[record.kind].named_numbers and set(record.numbers) != self.names:
            raise RowError(
                ProblemKind.MISSING, "it has other attributes than earlier rows; list all in data.spec.attributes"
            )
        for part in record.parts or (record,):
            if part is not None:
                check_text(part)
        return prompt_cuts.cut(record, self.spec, self.encoder.prompt_length)

    def _example(self, row: Row, record: Record, made: list[Encoded | None]) -> Example:
        """The group of a row; ``made`` has an entry a prompt."""
        given = record.format == TOKEN_IDS
        cuts = [None if given else self._checked(record, part) for part in made if part is not None]
        if any(cuts):
            self.report.add(Problem(row.id, ProblemKind.TRUNCATED, "; ".join(filter(None, cuts))))
        if self.layout.same_response:
            make_equal([part for part in made if part is not None])
        parts = [Encoded([], [[]], [[]]) if part is None else part for part in made]
        prompts = [part.prompt for part in parts]
        responses = [response for part in parts for response in part.responses]
        masks = [mask for part in parts for mask in part.masks]
        labels = columns = None
        has_responses = KINDS[record.kind].has_responses
        if not has_responses:
            responses, masks = [[]], [[]]
            columns = self._columns(row, record)
        if record.steps:
            masks, labels = step_labels(record, parts[0])
        if has_responses or not record.numbers:  # prompts with a score are gathered
            self._check_duplicate(row, prompts, responses)
        loss_mask = None if all(map(all, masks)) else masks
        numbers = {name: list(values) for name, values in record.numbers.items()}
        return Example(
            prompts[0], responses, loss_mask, row.id, record.margin, tuple(prompts[1:]), numbers, labels, columns
        )

    def _columns(self, row: Row, record: Record) -> str:
        """The row's columns as JSON, with the prompt as the record has it; what JSON cannot hold is noted."""
        text, lost = as_json({**row.values, "prompt": record.prompt})
        for name in lost:
            self.report.note(f"the column {name!r} holds a value that JSON cannot represent, so rewards do not see it")
        return text

    def _checked(self, record: Record, made: Encoded) -> str | None:
        """Bring a prompt with its responses within the limits and check it; a message about a cut, else None."""
        special = self.encoder.special
        cut = fit(made, self.spec, special.bos)
        open_end = cut is not None or bool(record.steps) or any(record.cut_off)
        pair = KINDS[record.kind].pair
        check_ids(made.prompt, made.responses, made.masks, special, cut=open_end, pair=pair)
        return cut

    def _check_duplicate(self, row: Row, prompts: list[list[int]], responses: list[list[int]]) -> None:
        content = repr((prompts, responses)).encode()
        first = self.first_seen.setdefault(hashlib.blake2b(content, digest_size=8).digest(), row.id)
        if first != row.id:  # a mixture may repeat a row on purpose: that is no duplicate
            self.report.add(Problem(row.id, ProblemKind.DUPLICATE, f"the same tokens as {first}"))

    def _count(
        self, row: Row, record: Record, example: Example, made: list[Encoded | None], parts: list[Rendered | None]
    ) -> None:
        report = self.report
        report.kept += 1
        if row.part:
            report.count_part(row.part, kept=1)
        report.cut_prompts += record.cut > 0
        report.conversations += any(text is not None and text.conversation for text in parts)
        report.cut_characters += record.cut
        for text in parts:
            if text is not None:
                report.unscored_turns += text.unscored_turns
                report.hidden_reasoning += text.hidden_reasoning
                self.unread |= text.unread
                self.templated = self.templated or text.templated
        if self.unknown is not None:
            report.unknown_tokens += sum(ids.count(self.unknown) for ids in example.responses)
        merges = [part.merges for part in made if part is not None and part.merges is not None]
        report.boundary_checked += bool(merges)
        report.boundary_mismatched += any(merges)
