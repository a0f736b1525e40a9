"""Chat templates as text: where a turn ends, and the template that goes out with exported weights.

Other software reads the score of a reward model at the last token of what the tokenizer's template renders. Most
templates put a line break behind the token that ends a turn, where nothing was trained, so the template of an exported
reward model stops at that token: ``apply_chat_template`` then gives the ids that were trained on, to the last one.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

QUESTION, RESPONSE = "qqprobequestionqq", "qqproberesponseqq"
_ASKED = [{"role": "user", "content": QUESTION}]
_EXCHANGE = [*_ASKED, {"role": "assistant", "content": RESPONSE}]
#: Name that holds what the original template rendered.
_RENDERED = "rendered_conversation"


@dataclass(frozen=True)
class TrainedTemplate:
    """Template and arguments by which training rows became text.

    Attributes:
        source: Jinja text; None: the tokenizer's own template.
        arguments: given to the template.
        bos: whether the tokenizer's BOS token was put before what the template renders.
    """

    source: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bos: bool = False


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Pattern of any added token of a tokenizer."""
    added = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    names = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def closing(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str | None]:
    """Split what a template renders behind a response.

    Returns:
        The part that the model has to write, up to and including its first special token; the part behind it; and that
        token, None where the turn ends without one.
    """
    special = special_pattern(tokenizer).search(after)
    cut = special.end() if special else len(after.rstrip())
    return after[:cut], after[cut:], special.group() if special else None


def exported_tokenizer(
    tokenizer: PreTrainedTokenizerBase, template: TrainedTemplate | None = None, *, ends_at_score: bool = False
) -> PreTrainedTokenizerBase:
    """Tokenizer to save beside exported weights: its template renders what the model was trained on.

    Args:
        tokenizer: of the model; not changed.
        template: of the training rows; None: the tokenizer's own, if it has one.
        ends_at_score: conversations that end with a response end at the token where its score is read, for reward
            models. A template without a special token at the end of a turn gets the tokenizer's EOS there.

    Returns:
        The tokenizer itself where nothing changes, else a copy with another template.
    """
    used = template or TrainedTemplate()
    source = used.source if used.source is not None else tokenizer.chat_template
    if not isinstance(source, str):  # none, or several by name
        return tokenizer
    bos = _bos_text(tokenizer) if used.bos else ""
    text = _defaults(used) + bos.replace(str(tokenizer.bos_token), "{{ bos_token }}") + source
    if ends_at_score:
        text = _ending_at_score(tokenizer, source, text, used, bos)
    if text == tokenizer.chat_template:
        return tokenizer
    exported = copy.copy(tokenizer)
    exported.chat_template = text
    return exported


def _defaults(used: TrainedTemplate) -> str:
    """Jinja text that sets each argument which a caller leaves out."""
    return "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in used.arguments.items()
    )


def _bos_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text that a tokenizer reads as its BOS before a text of its own; some put a space before each text."""

    def ids(text: str) -> list[int]:
        read: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(read)

    bos = str(tokenizer.bos_token)
    return next((text for text in (bos, f"{bos} ") if ids(text + QUESTION) == [*ids(bos), *ids(QUESTION)]), bos)


def _ending_at_score(
    tokenizer: PreTrainedTokenizerBase, source: str, text: str, used: TrainedTemplate, bos: str
) -> str:
    """A template whose conversations end with the token that ends the last response.

    Args:
        tokenizer: renders.
        source: the template that was trained on.
        text: the same with its arguments and its BOS, which is changed.
        used: arguments of ``source``.
        bos: text before what ``source`` renders.
    """
    try:
        full = _render(tokenizer, source, _EXCHANGE, used)
        _, shown, after = full.rpartition(RESPONSE)
        _, tail, end_token = closing(after, tokenizer)
        if not tail and end_token is not None:
            return text
        ending = "{{ eos_token }}" if end_token is None else ""
        rest = f"{_RENDERED}[:{_RENDERED}|length - {len(tail)}]" if tail else _RENDERED
        changed = (
            f"{{% set {_RENDERED} %}}{text.removesuffix(chr(10))}{{% endset %}}"
            f"{{% if not add_generation_prompt and messages and messages[-1]['role'] == 'assistant' "
            f"and {_RENDERED}.endswith({_literal(tail)}) %}}{{{{ {rest} }}}}{ending}"
            f"{{% else %}}{{{{ {_RENDERED} }}}}{{% endif %}}"
        )
        eos = str(tokenizer.eos_token) if end_token is None else ""
        expected = bos + full.removesuffix(tail) + eos
        asked = bos + _render(tokenizer, source, _ASKED, used, generation=True)
        right = bool(shown) and _render(tokenizer, changed, _EXCHANGE, used) == expected
        right = right and _render(tokenizer, changed, _ASKED, used, generation=True) == asked
    except (TemplateError, TypeError, ValueError) as error:
        right, tail = False, f"{type(error).__name__}: {error}"
    if not right:
        log.warning(
            "the exported chat template does not end where the score is read (%r): other software must cut what it "
            "renders behind the response's last special token",
            tail,
        )
        return text
    return changed


def _render(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    turns: list[dict[str, str]],
    used: TrainedTemplate,
    *,
    generation: bool = False,
) -> str:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation, **used.arguments}
    return str(tokenizer.apply_chat_template(turns, chat_template=source, **options))


def _literal(value: Any) -> str:
    """A value as Jinja writes it."""
    return "none" if value is None else json.dumps(value)
