"""Rules retrieved for the query and put before it: preferences that are edited in a file instead of trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.options import Count
from rlhf_lightning.prompting.base import Transform, content_digest, existing_file, query_of, with_query
from rlhf_lightning.prompting.retrieval import Embeddings, Index, TfIdf, nearest

_TEMPLATE = "Keep to these rules where they apply:\n{rules}\n\n{prompt}"


@dataclass
class Rules(Transform):
    """Retrieved rules (OPO): the rules closest to the last turn of the user, within a budget of tokens.

    The rules are filtered first: with ``field``, a rule is kept if its value of that field is in ``always``, occurs in
    the query as a word, or is missing. The ``top_k`` closest of these that have anything in common with the query are
    listed, closest first, each as ``source: text``, as many as fit completely into ``max_tokens``. A query without
    matching rules is not changed.

    Source: "Align on the Fly: Adapting Chatbot Behavior to Established Norms", arXiv:2312.15907 (there OPO, a name
    that later papers have for something else).
    Differences: the authors' code takes the nearest 1536 rules and filters
    then, which can leave none of a rare field; its 200 rules are cut at 1000 tokens in mid-rule; embeddings there are
    ada-002's, and here tf-idf by default.

    Args:
        file: file of rules: JSONL rows with ``text``, and optionally ``source`` and other fields; or .txt, one per
            line.
        top_k: maximum rules of a prompt.
        max_tokens: maximum length of the list of rules in the model's tokens; None: any (1000: GAIR-NLP/OPO).
        field: field of the rules to look for in the query, such as ``region``; None: none.
        always: values of the field that apply to every query, such as ``national``.
        template: template of the turn, with ``{rules}`` and ``{prompt}``.
        embedder: name or folder of a sentence-transformers model; None: tf-idf.

    Raises:
        ValueError: there is no rule, a row is not a rule, no rule has the field, or the template lacks a part.
    """

    files: ClassVar[tuple[str, ...]] = ("file",)

    file: str
    top_k: Count = 5
    max_tokens: Count | None = 1000
    field: str | None = None
    always: Sequence[str] = ()
    template: str = _TEMPLATE
    embedder: str | None = None

    def __post_init__(self) -> None:
        """Read the rules."""
        for part in ("{rules}", "{prompt}"):
            if part not in self.template:
                raise ValueError(f"prompting.template={self.template!r} must contain {part}")
        self.always = tuple(map(str, self.always))
        self._rules = read_rules(self.file)
        if self.field is not None and not any(self.field in rule for rule in self._rules):
            raise ValueError(f"prompting.field={self.field}: no rule of {self.file} has such a field")
        if self.always and self.field is None:
            raise ValueError(
                "prompting.always lists values of a field of the rules: name that field in prompting.field"
            )

    def begin(self, tokenizer: Any) -> None:
        """Set the tokenizer that counts.

        Raises:
            ValueError: a single rule exceeds the budget.
        """
        if tokenizer is self.tokenizer:
            return
        super().begin(tokenizer)
        limit = self.max_tokens
        for number, rule in enumerate(self._rules, start=1):
            if limit is not None and (length := self._length(shown(rule))) > limit:
                raise ValueError(
                    f"prompting.max_tokens={limit} is too small for rule {number} of {self.file}, which has {length} "
                    "tokens: raise it, or shorten the rule"
                )

    def __call__(self, turns: Turns) -> Turns:
        """Add rules before the query of the turns."""
        query = turns[query_of(turns)]["content"]
        listed = self.listed(query)
        if not listed:
            return turns
        parts = {"rules": "\n".join(listed), "prompt": query}
        return with_query(turns, re.sub(r"\{(rules|prompt)\}", lambda match: parts[match[1]], self.template))

    def content(self) -> Mapping[str, Any]:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`.

        A folder of an embedder counts by content.
        """
        return {**super().content(), "embedder": self.embedder and content_digest(self.embedder)}

    def listed(self, query: str) -> list[str]:
        """List the rules of a query, as they appear in the prompt."""
        allowed = [number for number, rule in enumerate(self._rules) if self._applies(rule, query)]
        lines: list[str] = []
        for number in nearest(self._index.similarities(query), allowed, self.top_k):
            lines.append(shown(self._rules[number]))
            if self.max_tokens is not None and self._length("\n".join(lines)) > self.max_tokens:
                return lines[:-1]
        return lines

    def _applies(self, rule: Mapping[str, Any], query: str) -> bool:
        if self.field is None or (value := rule.get(self.field)) is None:
            return True
        return str(value) in self.always or re.search(rf"\b{re.escape(str(value))}\b", query, re.IGNORECASE) is not None

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _index(self) -> Index:
        texts = [shown(rule) for rule in self._rules]
        return TfIdf(texts) if self.embedder is None else Embeddings(texts, self.embedder)


def shown(rule: Mapping[str, Any]) -> str:
    """Format a rule for the prompt."""
    return f"{rule['source']}: {rule['text']}" if rule.get("source") else str(rule["text"])


def read_rules(path: str) -> list[dict[str, Any]]:
    """Read the rules of a file.

    Raises:
        ValueError: the file does not exist or has no rules, or a row has no text.
    """
    file = existing_file(path, "prompting.file")
    rules = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rule = {"text": line.strip()} if file.suffix == ".txt" else json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"prompting.file={path}:{number} is not JSON: {error}") from error
        if not isinstance(rule, dict) or not isinstance(rule.get("text"), str) or not rule["text"].strip():
            raise ValueError(f'prompting.file={path}:{number} must have a text under "text"')
        rules.append(rule)
    if not rules:
        raise ValueError(f"prompting.file={path} has no rules: write one per line, or set prompting=none")
    return rules
