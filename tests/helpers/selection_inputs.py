"""A round's samples as numbers, for tests of selectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st

import rlhf_lightning.selection as selection
from rlhf_lightning.selection.terms import PromptStreams
from rlhf_lightning.types import DATA, Selected

Matrix = list[list[float]]
#: A group: its prompt, its slots, and its numbers by name.
Group = tuple[int, tuple[int, ...], dict[str, Any]]


@dataclass
class SampleRound:
    """Samples of a round; what is not given is harmless: length 1, nothing cut off, all texts different, two draws."""

    score: Matrix
    length: Matrix = field(default_factory=list)
    truncated: list[list[bool]] = field(default_factory=list)
    same_as: list[list[int]] = field(default_factory=list)
    preference: list[Matrix] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self.length = self.length or [[1.0 for _ in row] for row in self.score]
        self.truncated = self.truncated or [[False for _ in row] for row in self.score]
        count = len(self.score[0]) if self.score else 2
        self.source = self.source or [int(sample >= (count + 1) // 2) for sample in range(count)]
        self.same_as = self.same_as or [list(range(len(row))) for row in self.score]

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @property
    def streams(self) -> PromptStreams:
        """The random numbers that a selector draws, for its twin."""
        return PromptStreams(self.generator, len(self.score))

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """By the names that selectors ask for."""
        samples = len(self.score[0]) if self.score else 2
        shape = (len(self.score), samples)
        made: dict[str, Any] = {
            "score": torch.tensor(self.score, dtype=dtype).reshape(shape),
            "length": torch.tensor(self.length, dtype=dtype).reshape(shape),
            "truncated": torch.tensor(self.truncated, dtype=torch.bool).reshape(shape),
            "same_as": torch.tensor(self.same_as, dtype=torch.long).reshape(shape),
            "source": torch.tensor([*self.source, 1][:samples]),
            "generator": self.generator,
        }
        if self.preference or not self.score:
            made["preference"] = torch.tensor(self.preference, dtype=dtype).reshape(*shape, samples)
        return made

    def first(self, prompts: int) -> SampleRound:
        """The round's first prompts alone."""
        lists = ("score", "length", "truncated", "same_as", "preference")
        return replace(self, **{name: getattr(self, name)[:prompts] for name in lists})

    def permuted(self, order: Sequence[int]) -> SampleRound:
        """The samples of every prompt in another order."""
        lists = ("score", "length", "truncated", "same_as")
        moved = {name: [[row[i] for i in order] for row in getattr(self, name)] for name in lists}
        matrices = [[[matrix[i][j] for j in order] for i in order] for matrix in self.preference]
        return replace(self, **moved, preference=matrices)


def run(name: str, samples: SampleRound, dtype: torch.dtype = torch.float64, **options: Any) -> Selected:
    """Call a selector with the inputs that it asks for, and check what it gives against the round."""
    function = partial(getattr(selection, name), **options)
    selection.validate(function)
    inputs = samples.inputs(dtype)
    selected: Selected = function(**{key: inputs[key] for key in selection.needs(function)})
    selected.check(len(samples.score), len(samples.score[0]) if samples.score else 0)
    return selected


def groups(selected: Selected) -> list[Group]:
    """Group by group, in plain numbers."""
    numbers = {name: values.tolist() for name, values in selected.numbers.items()}
    return [
        (prompt, tuple(slots), {name: values[i] for name, values in numbers.items()})
        for i, (prompt, slots) in enumerate(zip(selected.prompt.tolist(), selected.slots.tolist(), strict=True))
    ]


def _round(seed: int, distinct: bool) -> SampleRound:
    """Up to four prompts with up to six samples each; ties are common, and some samples have no score."""
    random = Random(seed)
    count, samples = random.randint(0, 4), random.randint(1, 6)
    everything = range(samples)
    odd = [math.nan, math.nan, math.inf, -math.inf]

    def score() -> float:
        return random.choice(odd) if random.random() < 0.2 else random.randint(-4, 4) / 2

    def scores() -> list[float]:
        return [x / 2 for x in random.sample(range(-20, 20), samples)] if distinct else [score() for _ in everything]

    def chance() -> float:
        return math.nan if random.random() < 0.15 else random.randint(0, 4) / 4

    return SampleRound(
        score=[scores() for _ in range(count)],
        length=[[float(random.randint(1, 9)) for _ in everything] for _ in range(count)],
        truncated=[[random.random() < 0.25 for _ in everything] for _ in range(count)],
        same_as=[[random.choice([DATA, j, j, min(j, 1)]) for j in everything] for _ in range(count)],
        preference=[[[chance() for _ in everything] for _ in everything] for _ in range(count)],
        seed=random.randint(0, 3),
    )


def sample_rounds(distinct: bool = False) -> st.SearchStrategy[SampleRound]:
    """Generated rounds; with ``distinct`` every sample has a score, and no two of a prompt are equal."""
    return st.integers(0, 2**32).map(lambda seed: _round(seed, distinct))


DROP_OR_KEEP, CUT_OFF = st.sampled_from(["drop", "keep"]), st.sampled_from(["drop", "lose", "keep"])
#: Options of each selector for generated tests.
OPTIONS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "best_and_worst": st.fixed_dictionaries({}, optional={"ties": DROP_OR_KEEP, "cut_off": CUT_OFF}),
    "best_and_another": st.fixed_dictionaries(
        {}, optional={"other": st.sampled_from(["random", "second"]), "ties": DROP_OR_KEEP, "cut_off": CUT_OFF}
    ),
    "length_penalised": st.fixed_dictionaries(
        {"penalty": st.sampled_from([0.0, 0.25, 1.0])},
        optional={"label": st.sampled_from(["score", "penalised"]), "ties": DROP_OR_KEEP, "cut_off": CUT_OFF},
    ),
    "length_calibrated": st.fixed_dictionaries(
        {"step": st.sampled_from([0.125, 0.25])},  # the default's grid has 1001 values
        optional={
            "alpha": st.sampled_from([None, 0.0, 0.5]),
            "least": st.integers(2, 4),
            "ties": DROP_OR_KEEP,
            "cut_off": DROP_OR_KEEP,
        },
    ),
    "all_pairs": st.fixed_dictionaries({}, optional={"cut_off": CUT_OFF}),
    "adjacent_pairs": st.fixed_dictionaries({}, optional={"cut_off": CUT_OFF}),
    "best_of_n": st.fixed_dictionaries(
        {},
        optional={
            "keep": st.sampled_from(["local", "top"]),
            "fraction": st.sampled_from([0.2, 0.5, 1.0]),
            "ties": DROP_OR_KEEP,
            "cut_off": DROP_OR_KEEP,
        },
    ),
    "threshold": st.fixed_dictionaries(
        {},
        optional={
            "above": st.sampled_from([-0.5, 0.0, 0.25]),
            "quantile": st.sampled_from([None, 0.25, 0.7]),
            "undesirable": st.sampled_from(["drop", "keep"]),
            "balance": st.booleans(),
            "cut_off": CUT_OFF,
        },
    ),
    "data_vs_policy": st.fixed_dictionaries({}, optional={"equal": DROP_OR_KEEP, "cut_off": CUT_OFF}),
    "policy_vs_reference": st.fixed_dictionaries({}, optional={"ties": DROP_OR_KEEP, "cut_off": CUT_OFF}),
    "win_rates": st.fixed_dictionaries(
        {}, optional={"judge": st.sampled_from(["matrix", "scores"]), "cut_off": CUT_OFF}
    ),
    "random_pair": st.fixed_dictionaries(
        {}, optional={"label": st.sampled_from(["score", "random"]), "cut_off": CUT_OFF}
    ),
    "win_probability": st.fixed_dictionaries(
        {},
        optional={
            "judge": st.sampled_from(["matrix", "scores"]),
            "include_self": st.booleans(),
            "target": st.sampled_from(["policy", "pair"]),
            "ties": DROP_OR_KEEP,
            "cut_off": CUT_OFF,
        },
    ),
    "rejection_sampling": st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(2, 5),
            "beta": st.sampled_from([0.0, 0.5, 2.0]),
            "sampler": st.sampled_from(["sweep", "exact"]),
            "pairing": st.sampled_from(["first_round", "tournament"]),
            "cut_off": CUT_OFF,
        },
    ),
}
