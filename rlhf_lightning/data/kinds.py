"""Kinds of data, each declared once: the slots of a group, its names, the methods its rows serve, its batch.

A *method* learns from one kind (``AlignmentModule.kind``). A *row* has its own kind: a ranked list stays a ranked list,
whatever it is used for. A new kind is an entry of :data:`KINDS` and a reader in ``data.rows.kind_readers``; all other
code reads the entry. Nothing here imports torch, so ``rlhf methods`` and tab completion are fast.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class DataKind:
    """A kind of data.

    Attributes:
        noun: name of several groups.
        singular: name of one group.
        slots: names of the responses; none: lists whose responses are ``RANKED_SLOT`` and a number.
        needs: the columns that make a row one of this kind.
        batch: class of its batches, a name of ``rlhf_lightning.types``.
        feeds: the other kinds of methods that its rows serve. ``data.rows.kind_readers`` reads them so, or
            ``data.tokens.converters`` makes groups of that kind of them.
        rows: name of the users' rows, where it differs from that of the groups; empty: ``noun``.
        mapped: an example of an entry of ``data.spec.columns``.
        has_responses: whether the rows have responses; without them they are prompts for the policy.
        ordered: whether responses are ordered from the better to the worse one, as rewards are compared with.
        worse: the slots of worse responses.
        labels: inputs of a loss that only this kind has.
        optional: a column that some rows may lack, and not all; the first slot is then empty.
        gathered: whether single scored responses, a row each, become one group where they have the same prompt.
        named_numbers: whether the data names the numbers of a response, with the same names in every row.
        identity: index of the prompt that groups are identified by: those with the same one stay on one side of a split
            into training and validation.
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
        """True where a group is a better and a worse response to one prompt."""
        return self.ordered and len(self.slots) == 2

    @property
    def brought(self) -> str:
        """Name of the users' rows, in the plural."""
        return self.rows or self.noun

    def named(self, count: int) -> str:
        """Name of so many groups: 12 ``pairs``, 1 ``pair``."""
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
        "any layout with a prompt; responses are ignored",
        "RolloutBatch",
        feeds=(),
        has_responses=False,
        gathered=True,
    ),
}
#: The kind of rows whose responses the policy draws.
PROMPTS = "prompt"


def kind_of(name: str) -> DataKind:
    """The kind of a name.

    Raises:
        ValueError: there is no such kind.
    """
    if name not in KINDS:
        close = difflib.get_close_matches(name, KINDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no kind of data {name!r}.{hint} There are {', '.join(KINDS)}")
    return KINDS[name]


def serves(row: str, method: str) -> bool:
    """Return whether rows of a kind can be used by a method that learns from a kind."""
    return row == method or method in KINDS[row].feeds


def fed_by(method: str) -> list[str]:
    """The kinds of rows that a method of a kind can use, the method's kind first."""
    return [method, *(row for row in KINDS if row != method and serves(row, method))]


def slot_names(kind: str, slots: int) -> list[str]:
    """Names of the responses of a group."""
    names = KINDS[kind].slots if kind in KINDS else ()
    return list(names) if len(names) == slots else [f"{RANKED_SLOT} {number}" for number in range(1, slots + 1)]


def kind_of_labels(needs: frozenset[str], otherwise: str) -> str:
    """The kind whose labels a loss needs.

    Args:
        needs: inputs of the loss.
        otherwise: the kind of a loss that needs no label.
    """
    return next((name for name, kind in KINDS.items() if needs & set(kind.labels)), otherwise)
