"""The majority vote: who wins, who votes, and what it says of itself."""

from __future__ import annotations

import pytest

from rlhf_lightning.rewards import MajorityVote
from tests.rewards.groups import TOKENIZER, group, groups


def vote(*responses: str, **options: object) -> list[float | None]:
    return MajorityVote(TOKENIZER, **options)([group(responses)])[0]  # type: ignore[arg-type]


def test_the_most_common_answer_wins():
    assert vote("it is 1", "it is 2", r"\boxed{2}") == [0.0, 1.0, 1.0]


def test_spellings_vote_together():
    """Breaks when texts vote before they are normalised: 7 has then as many votes as each spelling of 5."""
    assert vote("7", "5", "5.0", "$7$", r"\boxed{5}.") == [0.0, 1.0, 1.0, 0.0, 1.0]


def test_of_equal_votes_the_first_wins():
    assert vote("2", "1", "1", "2") == [1.0, 0.0, 0.0, 1.0]
    assert vote("1", "2", "2", "1") == [1.0, 0.0, 0.0, 1.0]
    assert vote("3", "1") == [1.0, 0.0]


def test_no_answer_has_no_vote():
    """Breaks when "" may win, as it may in the code of the paper."""
    assert vote("what?", "who?", "5") == [0.0, 0.0, 1.0]
    assert vote("what?", "who?") == [None, None]
    assert MajorityVote(TOKENIZER)([group([])]) == [[]]


def test_equivalent_answers_vote_together():
    answers = [r"\boxed{3}", r"\boxed{\frac{1}{2}}", r"\boxed{0.5}"]
    assert vote(*answers) == [1.0, 0.0, 0.0]
    assert vote(*answers, cluster="math") == [0.0, 1.0, 1.0]


def test_an_extractor_of_ones_own():
    def last_word(prompt: str, response: str, skip: str = "") -> str | None:
        word = response.split()[-1]
        return None if word == skip else word

    reward = MajorityVote(TOKENIZER, extract=last_word)
    assert reward([group(["a red", "a dog", "the dog"])]) == [[0.0, 1.0, 1.0]]
    assert reward([group(["a red", "a dog", "the dog"], skip="dog")]) == [[1.0, 0.0, 0.0]]


def test_what_a_vote_says_of_itself():
    """A lucky hit: answers 1 1 1 2 3 where 2 is right. The label is wrong, and the 0 of 3 is right all the same: of the
    rewards 1 1 1 0 0, where 0 0 0 1 0 would be right, one is. The other group's label is right: 4 4 5 and no answer
    where 4 is right, so all four rewards are."""
    reward = MajorityVote(TOKENIZER)
    rows = [{"answer": "2"}, {"answer": "... #### 4"}]
    reward(groups([["1", "1", "1", "2", "3"], ["4", "4.0", "5", "?"]], rows))
    assert reward.metrics() == {
        "majority_ratio": pytest.approx((0.6 + 0.5) / 2),
        "distinct": pytest.approx((0.6 + 0.5) / 2),
        "no_answer": pytest.approx(1 / 9),
        "no_label": 0.0,
        "label_accuracy": 0.5,
        "reward_accuracy": pytest.approx((0.2 + 1.0) / 2),
        "ground_truth_ratio": pytest.approx((0.2 + 0.5) / 2),
        "pass@N": 1.0,
    }
    assert reward.metrics() == {}


def test_rewards_do_not_depend_on_the_true_answer():
    responses = ["1", "2", "2"]
    reward = MajorityVote(TOKENIZER)
    assert reward([group(responses, answer="1")]) == reward([group(responses)]) == [[0.0, 1.0, 1.0]]
    reward.metrics()
    reward([group(["?"], answer="1"), group(["5"])])
    assert reward.metrics() == {"majority_ratio": 1.0, "distinct": 1.0, "no_answer": 0.5, "no_label": 0.5}


def test_options_of_a_vote():
    with pytest.raises(ValueError, match=r"reward\.cluster='sympy'"):
        MajorityVote(TOKENIZER, cluster="sympy")  # type: ignore[arg-type]
