"""Interface of rewards: checks, plain functions, weighted sums."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from rlhf_lightning.rewards import (
    Composite,
    ExactMatch,
    FunctionReward,
    LengthReward,
    Reward,
    SelfConfidence,
    as_reward,
    metrics_of,
    score_groups,
)
from tests.rewards.groups import TOKENIZER, group, groups


class Fixed:
    """Gives what it was told to."""

    def __init__(self, *scores: list[float | None], name: str = "fixed") -> None:
        self.scores, self.name = list(scores), name

    def __call__(self, groups: Any) -> list[list[float | None]]:
        return self.scores


TWO = groups([["a", "b"], ["c"]])


# scored


def test_a_reward_without_terms_is_its_only_term():
    """A nan is no score."""
    total, terms = score_groups(Fixed([1, math.nan], [None]), TWO)
    assert total == [[1.0, None], [None]]
    assert terms == {"fixed": total}
    assert metrics_of(Fixed()) == {}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[1.0, 2.0]], "scores of 1 groups for 2"),
        ([[1.0], [1.0]], "1 scores for 2 responses"),
        ([[1.0, math.inf], [1.0]], "infinite score"),
    ],
)
def test_scores_of_another_shape(scores: list[list[float | None]], message: str):
    with pytest.raises(ValueError, match=f"'fixed'.*{message}"):
        score_groups(Fixed(*scores), TWO)


# Functions


def first_letter(prompt: str, response: str, letter: str) -> float | None:
    return None if not response else float(response[0] == letter)


def counted(prompt: str, response: str, **columns: Any) -> float:
    return float(len(columns))


def test_a_function_gets_the_columns_that_it_names():
    reward = as_reward(first_letter, TOKENIZER)
    assert isinstance(reward, FunctionReward)
    assert isinstance(reward, Reward)
    assert reward.name == "first_letter"
    assert reward(groups([["ab", "ba", ""]], [{"letter": "a", "other": 1}])) == [[1.0, 0.0, None]]
    assert metrics_of(reward) == {"unscored": pytest.approx(1 / 3)}
    assert metrics_of(reward) == {}  # counted since the last call


def test_a_function_with_open_columns_gets_all_but_prompt_and_response():
    row = {"a": 1, "b": 2, "response": "of the data", "prompt": "Why?"}
    assert as_reward(counted, TOKENIZER)([group(["x"]), group(["x"])]) == [[0.0], [0.0]]
    made = groups([["x"]], [{"a": 1, "b": 2}])
    made[0] = type(made[0])(made[0].prompt, made[0].samples, row)
    assert as_reward(counted, TOKENIZER)(made) == [[2.0]]


def test_an_option_that_was_chosen_is_not_a_column():
    reward = as_reward(functools.partial(first_letter, letter="b"), TOKENIZER)
    assert reward(groups([["ab", "ba"]], [{"letter": "a"}])) == [[0.0, 1.0]]


def test_the_prompt_is_the_datas_text_or_what_the_tokens_say():
    def prompts(prompt: str, response: str) -> float:
        return float(prompt == "Why?")

    reward = as_reward(prompts, TOKENIZER)
    one = group(["x"])
    other = type(one)(one.prompt, one.samples, {"prompt": "What?"})
    turns = type(one)(one.prompt, one.samples, {"prompt": [{"role": "user", "content": "Why?"}]})
    assert reward([one, other, turns]) == [[1.0], [0.0], [1.0]]


def test_a_column_that_is_missing():
    reward = as_reward(first_letter, TOKENIZER)
    with pytest.raises(ValueError, match=r"'first_letter' needs the column 'letter'.*has: latter; did you mean"):
        reward(groups([["a"]], [{"latter": "a"}]))
    with pytest.raises(ValueError, match="needs the column 'letter'"):
        reward.check_columns(["prompt"])
    reward.check_columns(["letter"])


def test_errors_of_a_function_are_raised_or_counted():
    def broken(prompt: str, response: str) -> float:
        return 1 / len(response)

    with pytest.raises(
        ValueError, match=r"'broken' raised ZeroDivisionError: .* for the response ''.*on_error=none"
    ) as e:
        as_reward(broken, TOKENIZER)([group([""])])
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    reward = FunctionReward(TOKENIZER, function=broken, on_error="none")
    assert reward([group(["ab", ""])]) == [[0.5, None]]
    assert reward.metrics() == {"errors": 0.5, "unscored": 0.5}
    with pytest.raises(ValueError, match=r"reward\.on_error='skip'"):
        FunctionReward(TOKENIZER, function=broken, on_error="skip")  # type: ignore[arg-type]


def test_a_function_takes_prompt_and_response_by_name():
    for wrong in (len, lambda text: 1.0, lambda prompt, answer: 1.0):
        with pytest.raises(
            ValueError, match=r"called as f\(prompt=..., response=.*name its parameters prompt and resp"
        ):
            as_reward(wrong, TOKENIZER)
    assert as_reward(lambda **arguments: float(len(arguments["response"])), TOKENIZER)([group(["ab"])]) == [[2.0]]


def test_what_becomes_a_reward():
    made = as_reward(functools.partial(ExactMatch, extract="final"), TOKENIZER)
    assert isinstance(made, ExactMatch)
    assert as_reward(made) is made
    for thing in (3, ExactMatch):
        with pytest.raises(TypeError, match="neither a reward nor a function"):
            as_reward(thing, TOKENIZER)
    with pytest.raises(ValueError, match="give it the policy's tokenizer"):
        as_reward(counted)


# Composite


def test_a_weighted_sum():
    """Golden: 2 * clip(3, -1, 1) + 0.5 * (-4) = 0; 2 * 0.5 + 0.5 * 2 = 2. Breaks when the clip comes after the weight,
    or terms are logged after clipping."""
    reward = Composite(
        terms={"one": Fixed([3.0, 0.5], [0.0]), "two": Fixed([-4.0, 2.0], [1.0]), "log": Fixed([9.0, 9.0], [9.0])},
        weights={"one": 2.0, "two": 0.5, "log": 0.0},
        clip={"one": [-1.0, 1.0]},
    )
    total, terms = score_groups(reward, TWO)
    assert total == [[0.0, 2.0], [0.5]]
    assert terms == {"one": [[3.0, 0.5], [0.0]], "two": [[-4.0, 2.0], [1.0]], "log": [[9.0, 9.0], [9.0]]}
    assert reward(TWO) == total
    assert isinstance(reward, Reward)


def test_a_clip_may_be_open():
    reward = Composite(terms={"one": Fixed([3.0, -3.0], [0.0])}, clip={"one": [None, 1.0]})
    assert reward(TWO) == [[1.0, -3.0], [0.0]]


def test_normalised_terms_have_the_same_weight():
    """Golden: (1, 3, None) has mean 2 and unbiased deviation sqrt 2, so -+0.70706; one response, or no spread,
    gives 0. Breaks with the biased deviation (1) or when None counts as 0."""
    three = groups([["a", "b", "c"], ["d"], ["e", "f"]])
    reward = Composite(terms={"one": Fixed([1.0, 3.0, None], [5.0], [2.0, 2.0])}, normalize="group")
    first, second, third = reward(three)
    assert first[:2] == pytest.approx([-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4)])
    assert first[2] is None
    assert (second, third) == ([0.0], [0.0, 0.0])


@pytest.mark.parametrize(("missing", "expected"), [("skip", [[1.0, None], [3.0]]), ("none", [[None, None], [3.0]])])
def test_terms_that_have_no_score(missing: Any, expected: list[list[float | None]]):
    terms = {"one": Fixed([1.0, None], [1.0]), "two": Fixed([None, None], [2.0])}
    assert Composite(terms=terms, missing=missing)(TWO) == expected


def test_costs_are_no_part_of_the_sum():
    reward = Composite(terms={"help": Fixed([1.0, 2.0], [3.0]), "harm": Fixed([5.0, 5.0], [5.0])}, costs=["harm"])
    total, terms = score_groups(reward, TWO)
    assert total == [[1.0, 2.0], [3.0]]
    assert terms["harm"] == [[5.0, 5.0], [5.0]]
    assert reward.costs == {"harm"}
    only = Composite(terms={"harm": Fixed([5.0, 5.0], [5.0])}, costs=["harm"])
    assert only(TWO) == [[0.0, 0.0], [0.0]]


def test_a_sum_in_a_sum_shows_its_parts():
    inner = Composite(terms={"a": Fixed([1.0, 2.0], [3.0])}, weights={"a": 10.0})
    total, terms = score_groups(Composite(terms={"inner": inner, "b": Fixed([1.0, 1.0], [1.0])}), TWO)
    assert total == [[11.0, 21.0], [31.0]]
    assert set(terms) == {"inner", "inner/a", "b"}


def test_what_terms_count_and_ask_is_passed_on():
    class Asks(Fixed):
        policy: Any = None

    asks = Asks([1.0, 1.0], [1.0])
    reward = Composite(TOKENIZER, terms={"asks": asks, "right": ExactMatch(TOKENIZER), "free": first_letter})
    reward.policy = "the module"
    assert asks.policy == reward.policy == "the module"
    with pytest.raises(ValueError, match="needs the column 'letter'"):
        reward.check_columns(["answer"])
    reward(groups([["a", "b"], ["c"]], [{"answer": "a", "letter": "a"}, {"answer": None, "letter": "a"}]))
    assert metrics_of(reward) == {"right/unscored": pytest.approx(1 / 3), "free/unscored": 0.0}


def test_rewards_of_steps_come_from_one_term():
    class Steps(Fixed):
        def step_reward(self, groups: Any) -> list[list[list[float]]]:
            return [[[math.nan, 0.5], [0.25, 1.0]], [[1.0]]]

    one, two = Steps([1.0, 1.0], [1.0]), Steps([1.0, 1.0], [1.0])
    rewards = Composite(terms={"one": one, "flat": LengthReward()}, weights={"one": 2.0}).step_reward(TWO)
    assert rewards is not None
    assert math.isnan(rewards[0][0][0])
    assert rewards[0][0][1:] + rewards[0][1] + rewards[1][0] == [1.0, 0.5, 2.0, 2.0]
    assert Composite(terms={"flat": LengthReward()}).step_reward(TWO) is None
    with pytest.raises(ValueError, match="come from one term"):
        Composite(terms={"one": one, "two": two}).step_reward(TWO)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {}}, "has no terms"),
        ({"weights": {"leng": 1.0}}, r"reward\.weights names \['leng'\]"),
        ({"clip": {"length": [1.0, -1.0]}}, r"reward\.clip\.length"),
        ({"clip": {"length": [1.0]}}, r"reward\.clip\.length"),
        ({"costs": ["length"], "weights": {"length": 0.5}}, r"reward\.costs=\['length'\]"),
        ({"normalize": "batch"}, r"reward\.normalize='batch'"),
        ({"missing": "zero"}, r"reward\.missing='zero'"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str):
    """Before a term is made: this one would fail."""

    def never(**_: Any) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        Composite(**{"terms": {"length": functools.partial(type("T", (), {"__init__": never}))}, **options})


# Confidence


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", -3.0), ("mean", -1.5), ("product", math.exp(-3)), ("geometric_mean", math.exp(-1.5))],
)
def test_confidence(reduction: Any, expected: float):
    """Log-probs -1 and -2. Breaks when product and geometric mean are swapped."""
    one = group(["a", "b"])
    samples = [type(s)(s.ids, log_probs, "stop") for s, log_probs in zip(one.samples, [[-1.0, -2.0], []], strict=True)]
    reward = SelfConfidence(reduction=reduction)
    assert reward([type(one)(one.prompt, samples)]) == [[pytest.approx(expected), None]]
    assert reward.metrics() == {"unscored": 0.5}
    with pytest.raises(ValueError, match=r"reward\.reduction='max'"):
        SelfConfidence(reduction="max")  # type: ignore[arg-type]


def wordy(prompt: str, response: str) -> str:
    return "good"


def test_a_function_that_returns_no_number_is_named() -> None:
    sample = group(["Yes."])
    with pytest.raises(ValueError, match=r"reward 'wordy' returned 'good' for the response 'Yes\.': it must return"):
        FunctionReward(TOKENIZER, function=wordy)([sample])  # type: ignore[arg-type]
