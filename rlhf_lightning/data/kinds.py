"""Kinds of data, each declared once: what a group holds, what people call it, what its rows serve, its batch.

The kind is what a *method* learns from (``AlignmentModule.kind``). What a *row* gives is its own kind: a ranked list is
one whatever it is used for. A new kind is an entry of :data:`KINDS` and a reader in ``data.rows.kind_readers``;
everything else reads the entry. Nothing here imports torch, so that ``rlhf methods`` and tab completion answer at once.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class DataKind:
    """A kind of data.

    Attributes:
        noun: what several groups are called.
        singular: what one group is called.
        slots: what each response is called; none: lists whose responses are ``RANKED_SLOT`` and a number.
        needs: the columns that make a row one of this kind.
        batch: class of its batches, a name of ``rlhf_lightning.types``.
        feeds: the other kinds of methods that its rows serve. ``data.rows.kind_readers`` reads them so, or
            ``data.tokens.converters`` makes groups of that kind of them.
        rows: what people bring, where groups are made of something of another name; empty: ``noun``.
        mapped: an example of ``data.spec.columns`` that may be missing.
        has_responses: whether the rows bring responses; without any they are prompts for the policy to answer.
        ordered: whether responses stand from the better to the worse one, so that a reward can be held against them.
        worse: the slots of worse responses.
        labels: inputs of a loss that only this kind has.
        optional: a column that some rows may lack, and not all; the first slot is then empty.
        gathered: whether single responses with a score, a row each, belong together where they have the same prompt.
        named_numbers: whether the numbers of a response are named by the data, the same in every row.
        identity: the prompt that says which groups belong together: they stay on one side of a split into training and
            validation.
        same_response: whether every slot holds the same response, after another prompt.
    """

    noun: str
    singular: str
    slots: tuple[str, ...]
    needs: str
    batch: str
    feeds: tuple[str, ...] = ("supervised", "prompt")
    rows: str = ""
    mapped: str = "prompt=question"
    has_responses: bool = True
    ordered: bool = False
    worse: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    optional: str = ""
    gathered: bool = False
    named_numbers: bool = False
    identity: int = 0
    same_response: bool = False

    @property
    def pair(self) -> bool:
        """Whether a group is a better and a worse response to one prompt."""
        return self.ordered and len(self.slots) == 2

    @property
    def brought(self) -> str:
        """What people bring, in the plural."""
        return self.rows or self.noun

    def named(self, count: int) -> str:
        """What so many groups are called: 12 ``pairs``, 1 ``pair``."""
        return self.singular if count == 1 else self.noun


RANKED_SLOT = "response"

#: By name, in the order in which messages list them.
KINDS: dict[str, DataKind] = {
    "supervised": DataKind(
        "demonstrations",
        "demonstration",
        ("response",),
        "any layout: of several responses the best one",
        "SupervisedBatch",
        feeds=("prompt",),
    ),
    "preference": DataKind(
        "pairs",
        "pair",
        ("chosen", "rejected"),
        "prompt, chosen, rejected",
        "PreferenceBatch",
        feeds=("supervised", "unpaired", "ranked", "prompt"),
        mapped="rejected=worse",
        ordered=True,
        worse=(1,),
    ),
    "safety": DataKind(
        "safety-labelled pairs",
        "safety-labelled pair",
        ("safer", "less safe"),
        "prompt, response_0, response_1, safer_response_id, is_response_0_safe, is_response_1_safe (PKU-SafeRLHF); or "
        "prompt, chosen (the safer), rejected, chosen_safe, rejected_safe",
        "SafetyBatch",
        feeds=("supervised", "preference", "unpaired", "ranked", "prompt"),
        mapped="safer_response_id=safer",
        ordered=True,
        worse=(1,),
        labels=("safe",),
    ),
    "unpaired": DataKind(
        "labelled responses",
        "labelled response",
        ("response",),
        "a demonstration with a column label: true or false",
        "UnpairedBatch",
        mapped="label=good",
        labels=("desirable",),
    ),
    "ranked": DataKind(
        "ranked lists",
        "ranked list",
        (),
        "prompt, responses and scores (higher is better) or ranks (1 is best); or a demonstration with a column score",
        "RankedBatch",
        feeds=("supervised", "preference", "unpaired", "prompt"),
        mapped="score=rating",
        ordered=True,
        gathered=True,
    ),
    "judged": DataKind(
        "judged responses",
        "judged response",
        ("response after the judgment", "response"),
        "a demonstration with a column judgment, null where there is none",
        "JudgedBatch",
        mapped="judgment=critique",
        optional="judgment",
        identity=1,
        same_response=True,
    ),
    "paraphrase": DataKind(
        "paraphrased instructions",
        "paraphrased instruction",
        ("response", "response to the paraphrase", "negative response", "negative response to the paraphrase"),
        "instruction, paraphrase, output, and optionally negative_instruction, negative_paraphrase, negative_output; "
        "or original_instruction, paraphrased_instruction, targets, every second row the hard negative of the one "
        "before it (CoIN)",
        "ParaphraseBatch",
        mapped="paraphrase=rewording",
        worse=(2, 3),
    ),
    "context": DataKind(
        "responses in two contexts",
        "response in two contexts",
        ("response after the context", "response"),
        "a demonstration; the context is data.spec.context",
        "ContextBatch",
        rows="demonstrations and a context",
        identity=1,
        same_response=True,
    ),
    "instruction": DataKind(
        "responses under opposite instructions",
        "response under opposite instructions",
        ("response under the positive instruction", "response under the negative instruction", "response"),
        "prompt, chosen, rejected; or a demonstration; the instructions are data.spec.positive_context and "
        "data.spec.negative_context",
        "InstructionBatch",
        rows="pairs or demonstrations",
        labels=("desirable",),
        identity=2,
        same_response=True,
    ),
    "steps": DataKind(
        "solutions in steps",
        "solution in steps",
        ("solution",),
        "prompt, steps (or completions), labels: a text and a label each step; or Math-Shepherd's input and label",
        "StepsBatch",
        mapped="labels=ratings",
        labels=("step_label",),
    ),
    "attributes": DataKind(
        "rated responses",
        "rated response",
        ("response",),
        "a demonstration with a column attributes {name: number}, with HelpSteer's five columns, or with the columns "
        "that data.spec.attributes names",
        "AttributesBatch",
        mapped="attributes=ratings",
        labels=("attributes",),
        named_numbers=True,
    ),
    "comparison": DataKind(
        "comparisons",
        "comparison",
        ("right verdict", "wrong verdict", "right verdict, swapped", "wrong verdict, swapped"),
        "prompt, chosen, rejected",
        "ComparisonBatch",
        rows="pairs",
        worse=(1, 3),
    ),
    "prompt": DataKind(
        "prompts",
        "prompt",
        ("response",),
        "any layout with a prompt; responses are left aside",
        "RolloutBatch",
        feeds=(),
        has_responses=False,
        gathered=True,
    ),
}
#: The kind of rows whose responses are still to be drawn.
PROMPTS = "prompt"


def kind_of(name: str) -> DataKind:
    """The kind of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in KINDS:
        close = difflib.get_close_matches(name, KINDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no kind of data {name!r}.{hint} There are {', '.join(KINDS)}")
    return KINDS[name]


def serves(row: str, method: str) -> bool:
    """Whether rows of a kind can be given to a method that learns from a kind."""
    return row == method or method in KINDS[row].feeds


def fed_by(method: str) -> list[str]:
    """The kinds of rows that a method of a kind can be given, its own first."""
    return [method, *(row for row in KINDS if row != method and serves(row, method))]


def slot_names(kind: str, slots: int) -> list[str]:
    """What each response of a group is called."""
    names = KINDS[kind].slots if kind in KINDS else ()
    return list(names) if len(names) == slots else [f"{RANKED_SLOT} {number}" for number in range(1, slots + 1)]


def kind_of_labels(needs: frozenset[str], otherwise: str) -> str:
    """The kind whose labels a loss asks for.

    Args:
        needs: inputs of the loss.
        otherwise: the kind of a loss that asks for no label.
    """
    return next((name for name, kind in KINDS.items() if needs & set(kind.labels)), otherwise)
