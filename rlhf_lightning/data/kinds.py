"""Kinds of data: what a group of each holds, what people call it, and which kinds can be made into which.

The kind is what a *method* eats (``AlignmentModule.kind``). What a *row* gives is its own kind: a ranked list is one
whatever it is used for. :data:`FEEDS` says which rows serve which method; ``data.converters`` does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DataKind = Literal[
    "supervised",
    "preference",
    "safety",
    "unpaired",
    "ranked",
    "judged",
    "paraphrase",
    "context",
    "steps",
    "attributes",
    "comparison",
    "prompt",
]


@dataclass(frozen=True)
class Layout:
    """A kind's group as people see it."""

    noun: str  #: what several groups are called
    slots: tuple[str, ...]  #: what each response is called; of ranked lists ``RANKED_SLOT`` and its number
    needs: str  #: the columns that make a row one of this kind
    mapped: str = "prompt=question"  #: an example of ``data.spec.columns`` that may be missing
    #: The prompt that says which groups belong together: they stay on one side of a split into training and validation.
    identity: int = 0
    same_response: bool = False  #: every slot holds the same response, after another prompt


RANKED_SLOT = "response"

#: By kind, in the order in which messages list them.
LAYOUTS: Mapping[str, Layout] = {
    "supervised": Layout("demonstrations", ("response",), "any layout: of several responses the best one"),
    "preference": Layout("pairs", ("chosen", "rejected"), "prompt, chosen, rejected", "rejected=worse"),
    "safety": Layout(
        "safety-labelled pairs",
        ("safer", "less safe"),
        "prompt, response_0, response_1, safer_response_id, is_response_0_safe, is_response_1_safe (PKU-SafeRLHF); or "
        "prompt, chosen (the safer), rejected, chosen_safe, rejected_safe",
        "safer_response_id=safer",
    ),
    "unpaired": Layout(
        "labelled answers", ("response",), "a demonstration with a column label: true or false", "label=good"
    ),
    "ranked": Layout(
        "ranked lists",
        (),
        "prompt, responses and scores (higher is better) or ranks (1 is best); or a demonstration with a column score",
        "score=rating",
    ),
    "judged": Layout(
        "judged answers",
        ("response after the judgment", "response"),
        "a demonstration with a column judgment, null where there is none",
        "judgment=critique",
        identity=1,
        same_response=True,
    ),
    "paraphrase": Layout(
        "paraphrased instructions",
        ("response", "response to the paraphrase", "negative response", "negative response to the paraphrase"),
        "instruction, paraphrase, output, and optionally negative_instruction, negative_paraphrase, negative_output; "
        "or original_instruction, paraphrased_instruction, targets, every second row the hard negative of the one "
        "before it (CoIN)",
        "paraphrase=rewording",
    ),
    "context": Layout(
        "answers in two contexts",
        ("response after the context", "response"),
        "a demonstration; the context is data.spec.context",
        identity=1,
        same_response=True,
    ),
    "steps": Layout(
        "solutions in steps",
        ("solution",),
        "prompt, steps (or completions), labels: a text and a label each step; or Math-Shepherd's input and label",
        "labels=ratings",
    ),
    "attributes": Layout(
        "rated answers",
        ("response",),
        "a demonstration with a column attributes {name: number}, with HelpSteer's five columns, or with the columns "
        "that data.spec.attributes names",
        "attributes=ratings",
    ),
    "comparison": Layout(
        "comparisons",
        ("right verdict", "wrong verdict", "right verdict, swapped", "wrong verdict, swapped"),
        "prompt, chosen, rejected",
    ),
    "prompt": Layout("prompts", ("response",), "any layout with a prompt; responses are left aside"),
}

#: What a method of each kind can be given, by the kind that the row itself is.
FEEDS: Mapping[str, tuple[str, ...]] = {
    "supervised": tuple(kind for kind in LAYOUTS if kind != "prompt"),
    "preference": ("preference", "safety", "ranked"),
    "safety": ("safety",),
    "unpaired": ("unpaired", "preference", "safety", "ranked"),
    "ranked": ("ranked", "preference", "safety"),
    "judged": ("judged",),
    "paraphrase": ("paraphrase",),
    "context": ("context",),
    "steps": ("steps",),
    "attributes": ("attributes",),
    "comparison": ("comparison",),
    "prompt": tuple(LAYOUTS),
}


def slot_names(kind: str, slots: int) -> list[str]:
    """What each response of a group is called."""
    names = LAYOUTS[kind].slots if kind in LAYOUTS else ()
    return list(names) if len(names) == slots else [f"{RANKED_SLOT} {number}" for number in range(1, slots + 1)]
