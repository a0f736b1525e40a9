"""DataSpec: everything that decides how a row becomes tokens, and nothing else.

Two runs with the same rows, tokenizer and spec train on the same tokens; the spec is therefore part of the key of the
tokenised cache (:mod:`rlhf_lightning.data.tokens.cache`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rlhf_lightning.renamed import former_arguments

FORMATS = (
    "auto",
    "preference",
    "implicit_prompt",
    "sharegpt",
    "sharegpt_pairs",
    "safety",
    "ranked",
    "steps",
    "math_shepherd",
    "coin",
    "paraphrase",
    "alpaca",
    "messages",
    "prompt_response",
    "text",
    "prompt",
)
#: Canonical column names a column map may fill.
COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "response",
    "finish",
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "text",
    "label",
    "margin",
    "score_chosen",
    "score_rejected",
    "win_chosen",
    "win_rejected",
    "policy_sample",
    "reference_sample",
    "responses",
    "scores",
    "ranks",
    "score",
    "judgment",
    "attributes",
    "steps",
    "labels",
    "chosen_safe",
    "rejected_safe",
    "response_0",
    "response_1",
    "better_response_id",
    "safer_response_id",
    "is_response_0_safe",
    "is_response_1_safe",
    "paraphrase",
    "negative_instruction",
    "negative_paraphrase",
    "negative_output",
    "original_instruction",
    "paraphrased_instruction",
    "targets",
    "tools",
)
#: Those that describe responses; they are not read where prompts alone are used.
OF_RESPONSES = frozenset(
    (
        *("margin", "score_chosen", "score_rejected", "win_chosen", "win_rejected", "policy_sample"),
        *("reference_sample", "scores", "ranks", "score", "label", "judgment", "attributes", "finish"),
    )
)
#: Name in a column map for: read no column.
NO_COLUMN = "-"
_CHOICES: dict[str, tuple[str, ...]] = {
    "format": FORMATS,
    "mask": ("assistant", "response"),
    "boundary": ("ids", "prefix"),
    "pairs": ("best_worst", "adjacent", "all"),
    "context_position": ("before", "behind"),
    "prompt_start": ("any", "sentence", "line"),
    "prompt_end": ("any", "sentence", "line"),
    "too_long": ("exclude", "error", "keep_end", "keep_start"),
    "on_bad_row": ("error", "exclude"),
}
#: Fields that change what happens to a bad row or where results are kept, never the tokens.
_NOT_CONTENT = frozenset({"on_bad_row", "max_left_out", "cache", "cache_dir"})


@former_arguments("rlhf_lightning.data.DataSpec")
@dataclass(frozen=True)
class DataSpec:
    """Options that decide how rows become tokens. Every field is an option ``data.spec.<field>``.

    Attributes:
        format: layout of the rows; ``auto`` recognises it and reports it.
        columns: our column name -> the data's where it differs (null: the same), e.g. ``{prompt: question}``. A dot
            reaches into a nested object (``chosen: best.text``). A name that no row has is refused; ``-`` reads no
            column, where the data's column of our name is something else.
        system: system message put before every conversation that has none; plain text is left alone.
        label: of rows with a ``label`` (unpaired responses), keep only those with this label; None keeps all.
        pairs: pairs that a ranked list becomes for a method that learns from pairs: the best and the worst response
            (``best_worst``), every two ``adjacent`` ones, or ``all``. The gap of the scores is the margin; ties are
            left out and counted.
        threshold: for a method that learns from labelled responses, the score from which on a scored response is
            desirable; ``mean``: above the mean of its prompt's responses desirable, below it not, at it left out. For
            judged responses, the score from which on a judgment is praise and is left out (CUT: 7).
        gather: make one list of the scored responses that have a row each and the same prompt; a method that draws its
            own responses uses each prompt of such rows once.
        context: text that the teacher of context distillation sees.
        positive_context: instruction of good responses, for methods that see a response under opposite instructions.
        negative_context: its opposite. Both texts are ours and replace those of RAHF's authors.
        context_position: ``before`` the prompt (in front of the text, or as the system message), or ``behind`` it,
            without a separator (RepE's LoRRA).
        judgment: text behind the prompt of a judged response; ``{judgment}`` is the judgment.
        comparison: question to a judge about a pair: ``{prompt}`` and the responses ``{first}`` and ``{second}``.
        verdicts: the judge's answers when the first response is better, and when the second one is.
        attributes: names of the ratings, in their order; None: those of the ``attributes`` column, or HelpSteer's five.
        step_separator: put behind every step; its last token carries the step's label.
        step_tag: Math-Shepherd's mark behind a step.
        template: ``auto`` (the tokenizer's own chat template for conversations, ``plain`` where it has none; text stays
            text), ``tokenizer``, ``plain``, ``chatml``, ``none``, or the path of a jinja file.
        template_arguments: passed to the template, e.g. ``{enable_thinking: false}``. A template that reads the clock
            gets the date on which the run began (:mod:`rlhf_lightning.clock`), unless it takes one (``date_string``).
        mask: turns of a multi-turn demonstration that are scored: every ``assistant`` turn, or the final ``response``.
            A prompt column is never scored.
        boundary: ``ids`` concatenates prompt ids and response ids, as at inference; ``prefix`` tokenises both together
            and ends the prompt at the longest common token prefix (spec/offline.md 0.2).
        bos: put the BOS token first. None: as the tokenizer does with plain text; a chat template has its own.
        prompt_start: beginning of a prompt of plain text, for a method that draws its own responses: ``any`` leaves it
            as it is; else behind the first ``sentence`` or ``line`` that ends in it (for excerpts, which may begin in
            the middle of one).
        prompt_end: its end: ``any`` leaves it as it is; else the last ``sentence`` or ``line`` that ends within
            ``max_prompt_length`` and ``max_length``, so ``too_long`` never has to cut it
            (:mod:`rlhf_lightning.data.tokens.prompt_cuts`; detail 12 of "The N Implementation Details of RLHF with
            PPO").
        max_length: limit in tokens of prompt + longest response, EOS included (1024: TRL's default); None: no limit.
        max_prompt_length: limit of the prompt alone; None: no limit.
        max_response_length: limit of each response alone, EOS included; None: no limit.
        too_long: a row over a limit is left out and counted (``exclude``), stops the run (``error``), or is cut: the
            prompt keeps its end (``keep_end``) or its start (``keep_start``), a response always keeps its start and
            loses its EOS, which is never put back.
        on_bad_row: a row that cannot be used stops the run (``error``) or is left out and counted (``exclude``).
        max_left_out: share of the rows that may be left out, as bad or as too long, before the run stops (0.1: ours);
            1: any. Rows that ``label`` leaves out do not count.
        prompting: transform that changes prompts before they are rendered, a
            :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`;
            the commands set it from the group ``prompting``.
        cache: keep tokenised data on disk, addressed by content, shared by all runs.
        cache_dir: folder of that cache; None: ``$RLHF_CACHE`` or ``~/.cache/rlhf-lightning``.
    """

    format: str = "auto"
    columns: Mapping[str, str | None] = field(default_factory=dict)
    system: str | None = None
    label: bool | None = None
    pairs: Literal["best_worst", "adjacent", "all"] = "best_worst"
    threshold: float | Literal["mean"] | None = None
    gather: bool = True
    context: str | None = None
    positive_context: str = (
        "You are a thoughtful assistant. Answer what was asked, completely and correctly, in clear and polite words. "
        "Keep people safe, be honest about what you do not know, and admit and correct a mistake."
    )
    negative_context: str = (
        "You are a thoughtless assistant. Miss what was asked, leave out half of it and get the rest wrong, in muddled "
        "and rude words. Put people at risk, claim to know what you do not, and never admit or correct a mistake."
    )
    context_position: Literal["before", "behind"] = "before"
    judgment: str = "\n\n### Judgment:\n{judgment}"
    comparison: str = (
        "Two responses to a prompt follow.\n\n### Prompt\n{prompt}\n\n### Response A\n{first}\n\n### Response B\n"
        "{second}\n\nWhich response is better? Answer A or B.\n"
    )
    verdicts: Sequence[str] = ("A", "B")
    attributes: Sequence[str] | None = None
    step_separator: str = "\n"
    step_tag: str = "ки"
    template: str = "auto"
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    mask: Literal["assistant", "response"] = "assistant"
    boundary: Literal["ids", "prefix"] = "ids"
    bos: bool | None = None
    prompt_start: Literal["any", "sentence", "line"] = "any"
    prompt_end: Literal["any", "sentence", "line"] = "any"
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    max_response_length: int | None = None
    too_long: Literal["exclude", "error", "keep_end", "keep_start"] = "exclude"
    on_bad_row: Literal["error", "exclude"] = "error"
    max_left_out: float = 0.1
    prompting: Any = None
    cache: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        # Hydra hands over DictConfig; plain dicts hash, pickle and serialise the same everywhere.
        columns = {str(name): str(column) for name, column in self.columns.items() if column is not None}
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "template_arguments", dict(self.template_arguments))
        object.__setattr__(self, "attributes", None if self.attributes is None else tuple(self.attributes))
        object.__setattr__(self, "prompting", self.prompting or None)  # the group's none is an empty node
        if self.prompting is not None and not callable(self.prompting):
            raise ValueError(f"data.spec.prompting={self.prompting!r} is not a prompt transform: choose prompting=...")
        for name, allowed in _CHOICES.items():
            _one_of(f"data.spec.{name}", getattr(self, name), allowed)
        self._check_cuts()
        for name in self.columns:
            _one_of("a key of data.spec.columns", name, COLUMNS)
        if isinstance(self.threshold, str):
            _one_of("data.spec.threshold", self.threshold, ("mean",))
        if self.positive_context == self.negative_context:
            raise ValueError("data.spec.positive_context and data.spec.negative_context are the same text")
        if "{judgment}" not in self.judgment:
            raise ValueError(f"data.spec.judgment={self.judgment!r} must contain {{judgment}}")
        for part in ("{prompt}", "{first}", "{second}"):
            if part not in self.comparison:
                raise ValueError(f"data.spec.comparison={self.comparison!r} must contain {part}")
        object.__setattr__(self, "verdicts", tuple(self.verdicts))
        if len(set(self.verdicts)) != 2:
            raise ValueError(f"data.spec.verdicts={list(self.verdicts)} must be two different texts")
        self._check_limits()

    def _check_limits(self) -> None:
        for name, least in (("max_length", 2), ("max_prompt_length", 1), ("max_response_length", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.spec.{name}={value} must be at least {least}, or null for no limit")
        if not 0 <= self.max_left_out <= 1:
            raise ValueError(f"data.spec.max_left_out={self.max_left_out} is a share: it must lie between 0 and 1")

    def _check_cuts(self) -> None:
        """Refuse to cut prompts that become conversations."""
        for name in ("prompt_start", "prompt_end"):
            if getattr(self, name) != "any" and self.template not in ("auto", "none"):
                raise ValueError(
                    f"data.spec.{name}={getattr(self, name)} cuts plain text, but data.spec.template={self.template} "
                    f"makes conversations of it: set data.spec.template=none or data.spec.{name}=any"
                )

    @property
    def mapped(self) -> dict[str, str]:
        """The column map without columns that keep their names."""
        return {name: column for name, column in self.columns.items() if column is not None}

    def content(self) -> dict[str, Any]:
        """The fields that decide which tokens come out."""
        kept = asdict(replace(self, prompting=None))
        kept = {name: value for name, value in kept.items() if name not in (*_NOT_CONTENT, "prompting")}
        kept["context_place"] = kept.pop("context_position")  # its name in the keys of existing caches
        return kept if self.prompting is None else {**kept, "prompting": self.prompting.content()}

    def digest(self) -> str:
        """Hex digest of :meth:`content`, equal in every process."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True, default=str).encode()).hexdigest()


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError with the closest match unless ``value`` is one of ``allowed``."""
    if value in allowed:
        return
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{option}={value!r} is not one of {', '.join(allowed)}.{hint}")
