"""Every selector on generated rounds: its plain-loop twin, and what must hold for each group."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlhf_lightning.selection as selection
from rlhf_lightning.types import DATA, NONE
from tests.helpers import reference_selection
from tests.helpers.selection_inputs import OPTIONS, SampleRound, groups, run, sample_rounds
from tests.selection.test_golden import NAMES

#: Where chance or the round's other prompts enter, with the options that make them.
RANDOM = {"random_pair", "rejection_sampling"}
#: Whose groups hang on the draw of each sample.
OF_DRAWS = {"policy_vs_reference", "win_rates"}


def of_whole_round(name: str, options: dict[str, Any]) -> bool:
    """Return whether a prompt's groups depend on the others."""
    return (
        (name == "length_calibrated" and options.get("alpha") is None)
        or (name == "best_of_n" and options.get("keep") == "top")
        or (name == "threshold" and (options.get("balance", False) or options.get("quantile") is not None))
    )


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_twin_and_keeps_the_rules(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(sample_rounds(), OPTIONS[name])
    def check(samples: SampleRound, options: dict[str, Any]) -> None:
        selected = run(name, samples, **options)
        given, expected = groups(selected), list(getattr(reference_selection, name)(samples, **options))
        assert [group[:2] for group in given] == [group[:2] for group in expected]
        for (_, _, numbers), (_, _, wanted) in zip(given, expected, strict=True):
            assert numbers.keys() == wanted.keys()
            assert all(numbers[key] == pytest.approx(wanted[key], abs=1e-6) for key in wanted)
        check_rules(name, samples, options, given)
        again = run(name, samples, torch.float32, **options)
        assert groups(again) == given

    check()


def check_rules(name: str, samples: SampleRound, options: dict[str, Any], given: list[Any]) -> None:
    """No sample without a score, and no winner or loser that was cut off unless it is allowed."""
    uses_scores = name != "data_vs_policy" and not (
        name in ("win_probability", "win_rates") and options.get("judge") != "scores"
    )
    for prompt, slots, numbers in given:
        assert numbers.get("margin", 1) > 0 or options.get("ties") == "keep"
        for slot, sample in enumerate(slots):
            if sample in (DATA, NONE):
                continue
            assert math.isfinite(samples.score[prompt][sample]) or not uses_scores
            wins = numbers.get("desirable", numbers.get("score", [len(slots) == 2, 0]))[slot]
            cut_off = options.get("cut_off", "drop")
            if cut_off == "drop" or (cut_off == "lose" and wins):
                assert not samples.truncated[prompt][sample]


@pytest.mark.parametrize("name", sorted(set(NAMES) - RANDOM - OF_DRAWS))
def test_permuted_samples_give_permuted_groups(name: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(sample_rounds(distinct=True), OPTIONS[name], st.randoms(use_true_random=False))
    def check(samples: SampleRound, options: dict[str, Any], random: Any) -> None:
        if name == "threshold":
            options = {**options, "balance": False}
        if (name, options.get("judge", "matrix")) == ("win_probability", "matrix") or options.get("other") == "random":
            return  # ties are common; the first other sample is another one
        if name == "best_and_another" and "other" not in options:
            return
        order = list(range(len(samples.score[0]) if samples.score else 2))
        random.shuffle(order)
        moved = [
            (p, tuple(s if s < 0 else order[s] for s in slots), numbers)
            for p, slots, numbers in groups(run(name, samples.permuted(order), **options))
        ]
        if name in ("length_penalised", "length_calibrated") and tied_lengths(samples):
            return
        assert sorted(moved, key=str) == sorted(groups(run(name, samples, **options)), key=str)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_kept_samples_that_were_cut_off_count_as_finished_ones(name: str) -> None:
    """Groups, numbers and metrics are those of the round with nothing cut off, whose share is counted all the same."""

    @settings(max_examples=40, deadline=None)
    @given(sample_rounds(), OPTIONS[name])
    def check(samples: SampleRound, options: dict[str, Any]) -> None:
        finished = replace(samples, truncated=[[False for _ in row] for row in samples.score])
        kept, whole = (run(name, one, **{**options, "cut_off": "keep"}) for one in (samples, finished))
        assert groups(kept) == groups(whole)
        cut = [one for row in samples.truncated for one in row]
        assert kept.metrics == {**whole.metrics, "cut_off_rate": sum(cut) / max(len(cut), 1)}

    check()


def tied_lengths(samples: SampleRound) -> bool:
    """Return whether a price on length may make two of a prompt's distinct scores equal."""
    return any(len(set(row)) < len(row) or len(row) > 1 for row in samples.length)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_do_not_see_one_another(name: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(sample_rounds(), OPTIONS[name], st.integers(0, 4))
    def check(samples: SampleRound, options: dict[str, Any], kept: int) -> None:
        if not of_whole_round(name, options):
            whole = [group for group in groups(run(name, samples, **options)) if group[0] < kept]
            assert groups(run(name, samples.first(kept), **options)) == whole

    check()


SHIFTED = sorted(set(NAMES) - {"threshold", "data_vs_policy"})


@pytest.mark.parametrize("name", SHIFTED)
def test_a_constant_added_to_a_prompts_scores_changes_nothing(name: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(sample_rounds(), OPTIONS[name], st.lists(st.integers(-8, 8), min_size=4, max_size=4))
    def check(samples: SampleRound, options: dict[str, Any], shifts: list[int]) -> None:
        if options.get("keep") != "top":
            moved = [[s + shift for s in row] for row, shift in zip(samples.score, shifts, strict=False)]
            changed = SampleRound(moved, samples.length, samples.truncated, samples.same_as, samples.preference)
            changed.seed = samples.seed
            assert groups(run(name, changed, **options)) == groups(run(name, samples, **options))

    check()


def test_inputs_are_left_as_they_are() -> None:
    samples = SampleRound([[1.0, math.nan, 3.0, 2.0]] * 3, preference=[[[0.5] * 4] * 4] * 3)
    for name in NAMES:
        function, inputs = getattr(selection, name), samples.inputs(torch.float64)
        before = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        options = {"penalty": 1.0} if name == "length_penalised" else {}
        function(**{key: inputs[key] for key in selection.needs(function)}, **options)
        assert all(torch.equal(before[key].nan_to_num(9), inputs[key].nan_to_num(9)) for key in before)
