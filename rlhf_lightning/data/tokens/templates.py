"""Chat templates: the choice of the one that renders the rows, and its layout of a turn.

A template renders one exchange first, which shows its layout;
:mod:`rlhf_lightning.data.tokens.conversations` renders rows with it. Everything here is text;
:mod:`rlhf_lightning.data.tokens.encode` turns it into ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_lightning import clock
from rlhf_lightning.chat_templates import QUESTION, RESPONSE, TrainedTemplate, closing
from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.conversations import Conversation, Rendered, Segment, Tools

#: A dialogue as plain text, for models without a chat template (the layout of hh-rlhf).
PLAIN = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '\\n\\nHuman: ' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' + m['content'] }}"
    "{% else %}{{ ('' if loop.first else '\\n\\n') + m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAMED = {"plain": PLAIN, "chatml": CHATML}

#: What transformers calls the function that templates get today's date from.
_CLOCK = "strftime_now"
_DIRECTIVES = "date_directives"
#: The same function for the date of the run, in front of a template: transformers takes no functions as arguments. Its
#: last line break is swallowed, so that the template begins as it does alone.
_RUN_CLOCK = (
    f"{{%- macro {_CLOCK}(form) -%}}"
    "{%- set at = namespace(code='') -%}"
    "{%- for letter in form -%}"
    "{%- if not at.code and letter != '%' -%}{{- letter -}}"
    "{%- elif not at.code or letter in '-_0^' -%}{%- set at.code = at.code + letter -%}"
    f"{{%- else -%}}{{{{- {_DIRECTIVES}[at.code + letter] -}}}}{{%- set at.code = '' -%}}"
    "{%- endif -%}{%- endfor -%}{%- endmacro %}\n"
)
#: Two days that differ in every directive of a date.
_DAYS = (date(2001, 2, 3), date(2013, 12, 31))
#: Jinja's own sources of chance.
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")

#: What a template raises on turns that it does not expect: jinja's own errors, and Python's out of its expressions.
_REFUSED = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ChatTemplate:
    """A tokenizer's chat template or another one, with its layout."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, name: str, source: str | None) -> None:
        """Render a probe conversation and read the layout from it.

        Args:
            tokenizer: renders, and knows which strings are special tokens.
            spec: its ``template_arguments`` go to the template.
            name: of the template in reports.
            source: jinja source; None: the tokenizer's own.

        Raises:
            DataError: the template cannot render one exchange, or its responses do not begin with its generation
                prompt.
        """
        self.tokenizer, self.name, self.source = tokenizer, name, source
        self.arguments = dict(spec.template_arguments)
        # Only with a template without special tokens is the BOS as the tokenizer does with plain text.
        self.brings_bos = name != "plain"
        self._header = ""
        _refuse_chance(name, self.text)
        try:
            self._probe()
            #: The date may be in what is rendered: unless ``template_arguments`` take its place.
            self.reads_clock = _CLOCK in self.text and (self._asks_clock(self.arguments) or not self._asks_clock({}))
        except RowError as error:
            raise DataError(f"the template {name!r} cannot render a prompt and a response: {error.message}") from error

    @property
    def text(self) -> str:
        """Jinja source."""
        return self.source if self.source is not None else str(self.tokenizer.chat_template)

    def _asks_clock(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a question is rendered with the date; False where these arguments fail."""
        question = [{"role": "user", "content": QUESTION}]
        try:
            texts = {chat_text(self.tokenizer, question, source=self.source, day=day, **arguments) for day in _DAYS}
        except _REFUSED:
            return False
        return len(texts) > 1

    def _probe(self) -> None:
        question = [{"role": "user", "content": QUESTION}]
        exchange = [*question, {"role": "assistant", "content": RESPONSE}]
        bare, asked, full = self.render(question), self.render(question, generation=True), self.render(exchange)
        before, response, after = full.rpartition(RESPONSE)
        if not response:
            raise RowError(ProblemKind.TEMPLATE, "the response is not in the rendered text")
        if not before.startswith(asked):
            raise RowError(
                ProblemKind.TEMPLATE,
                f"its generation prompt ends with {asked[-40:]!r}, but responses begin with {before[-40:]!r}; "
                "pass data.spec.template_arguments, or another data.spec.template",
            )
        if bare == asked:  # no generation prompt: the model still gets the text before a response
            self._header = before[len(asked) :] if before[len(asked) :].strip() else ""
        self.ending, self.tail, self.end_token = closing(after, self.tokenizer)
        followed = self.render([*exchange, *question], generation=True)
        bos = self.tokenizer.bos_token
        #: The BOS token opens every turn (SmolLM2) or every exchange (Llama-2): then more than one is right.
        self.bos_marks_turns = bool(bos) and followed.count(cast("str", bos)) > 1

    def render(self, turns: Turns, *, generation: bool = False, tools: Tools = ()) -> str:
        """The template's text for some turns.

        Raises:
            RowError: the template refuses them.
        """
        given = {**self.arguments, "tools": [*tools]} if tools else self.arguments
        try:
            return chat_text(self.tokenizer, turns, generation=generation, source=self.source, **given)
        except _REFUSED as error:
            raise RowError(ProblemKind.TEMPLATE, f"{type(error).__name__}: {error}") from error

    def prompt(self, turns: Turns, tools: Tools = ()) -> str:
        """The model's input before it responds: the turns and the generation prompt."""
        return self.render(turns, generation=True, tools=tools) + self._header

    def record(self, record: Record) -> Rendered:
        """Render a conversation and find its scored parts; see :class:`Conversation`.

        Raises:
            RowError: the template refuses the turns, leaves out what they say, or shows the prompt differently once an
                response follows.
        """
        return Conversation(self, record).rendered()

    def trained(self, adds_bos: bool) -> TrainedTemplate:
        """Describe the template, for exports of weights that were trained on it.

        Args:
            adds_bos: whether a BOS token is put before prompts that have none.
        """
        shown = self.render([{"role": "user", "content": QUESTION}], generation=True)
        bos = adds_bos and not shown.startswith(str(self.tokenizer.bos_token))
        return TrainedTemplate(self.source, self.arguments, bos)

    def digest(self) -> str:
        """Digest of everything that decides the rendered text, the date of a template that reads the clock too."""
        date = (clock.today().isoformat(),) if self.reads_clock else ()
        parts = (self.name, self.text, sorted(self.arguments.items()), *date)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    turns: Turns,
    *,
    generation: bool = False,
    source: str | None = None,
    day: date | None = None,
    **arguments: Any,
) -> str:
    """Turns as a chat template renders them, with the run's date where it asks for today's.

    Args:
        tokenizer: with the template.
        turns: of the conversation.
        generation: end with the beginning of an assistant's turn.
        source: jinja source of another template; None: the tokenizer's own.
        day: that the template's clock shows; None: the run's.
        arguments: for the template.
    """
    text = source if source is not None else str(tokenizer.get_chat_template())
    if _CLOCK in text:
        text, arguments = _RUN_CLOCK + text, {_DIRECTIVES: clock.directives(day or clock.today()), **arguments}
    rendered = tokenizer.apply_chat_template(
        turns, chat_template=text, tokenize=False, add_generation_prompt=generation, **arguments
    )
    return str(rendered)


def _refuse_chance(name: str, source: str) -> None:
    """Raise DataError for a template whose text differs every time, so that its tokens could never be cached."""
    if match := _CHANCE.search(source):
        raise DataError(
            f"the template {name!r} draws at random ({match.group().strip()}), so the same row would have other tokens "
            "every time; pass another data.spec.template or model.chat_template"
        )


def resolve(tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> ChatTemplate | None:
    """The template that ``data.spec.template`` names; None for ``none``.

    Raises:
        DataError: the tokenizer has no template of its own, the file is missing, or the template does not work.
    """
    choice = spec.template
    if choice == "none":
        return None
    has_template = bool(tokenizer.chat_template)
    if choice == "tokenizer" or (choice == "auto" and has_template):
        if not has_template:
            raise DataError(
                "data.spec.template=tokenizer, but the tokenizer has no chat template; "
                "use data.spec.template=plain, chatml or the path of a jinja file"
            )
        return ChatTemplate(tokenizer, spec, "tokenizer", None)
    if choice == "auto":
        return ChatTemplate(tokenizer, spec, "plain", PLAIN)
    if choice in NAMED:
        return ChatTemplate(tokenizer, spec, choice, NAMED[choice])
    file = Path(choice).expanduser()
    if not file.is_file():
        names = ", ".join(("auto", "tokenizer", *NAMED, "none"))
        raise DataError(f"data.spec.template={choice!r} is neither one of {names} nor a file")
    return ChatTemplate(tokenizer, spec, choice, file.read_text(encoding="utf-8"))


def render(record: Record, template: ChatTemplate | None) -> Rendered:
    """A record as text: conversations through the template, text as it stands.

    Raises:
        RowError: a conversation without a template, or one that the template refuses.
    """
    if record.conversation and template is None:
        raise RowError(ProblemKind.TEMPLATE, "the row is a conversation, and data.spec.template=none renders text only")
    if record.tools and not record.conversation:
        raise RowError(
            ProblemKind.TEMPLATE,
            "the row has tools, which plain text does not show: make the prompt a user turn with data.spec.template="
            "tokenizer, or ignore them with data.spec.columns.tools=-",
        )
    if record.steps:
        return _stepwise(record, template)
    if template is not None and record.conversation:
        return template.record(record)
    responses = [[(cast("str", response), True)] for response in record.responses]
    closed = list(record.cut_off) or [False] * len(responses)
    return Rendered(cast("str", record.prompt), responses, closed, templated=False)


def _stepwise(record: Record, template: ChatTemplate | None) -> Rendered:
    """The prompt as usual and each step as one piece, without an end of turn, because the last label is at a step."""
    templated = template is not None and record.conversation
    prompt = cast("ChatTemplate", template).record(replace(record, responses=())).prompt if templated else record.prompt
    steps: list[Segment] = [(text, True) for text, _ in record.steps]
    brings_bos = templated and cast("ChatTemplate", template).brings_bos
    return Rendered(cast("str", prompt), [steps], [True], brings_bos, conversation=templated)
