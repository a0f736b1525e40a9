"""Ratings that a judge is expected to give: the mean digit of its next token, without sampling."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import ExpectedRating, RatingJudge, Reward, metrics_of
from rlhf_lightning.rewards.expected_rating import digit_ids, expected_digit
from rlhf_lightning.rewards.questions import QUESTIONS
from tests.rewards.groups import TOKENIZER, groups


def test_the_mean_of_the_digits() -> None:
    """P(0, 1, 2) = .1, .2, .1 of a whole vocabulary: mean 1, mass .4; the second row has all on 2."""
    table = torch.tensor([[0.1, 0.2, 0.1], [1e-9, 1e-9, 1.0]], dtype=torch.float64).log()
    rating, mass = expected_digit(table, 0)
    assert rating.tolist() == pytest.approx([1.0, 2.0])
    assert mass.tolist() == pytest.approx([0.4, 1.0])
    assert expected_digit(table, 3)[0].tolist() == pytest.approx([4.0, 5.0])


@pytest.fixture(scope="module")
def actor() -> Actor:
    return Actor(TinyRandom().load()).train()


def asked(actor: Actor, **options: Any) -> ExpectedRating:
    rating = {"least_mass": 0.0, **options.pop("rating", {})}
    reward = ExpectedRating(TinyRandom().tokenizer(), rating=rating, **options)
    reward.policy = SimpleNamespace(policy=actor)
    return reward


def test_the_policy_rates_itself_in_one_forward_pass(actor: Actor) -> None:
    """The score is that of the digits' log-probs behind the rendered question, taken from the plain model."""
    reward = asked(actor, question="{{ item.prompt }} {{ sample.output_text }}")
    assert isinstance(reward, Reward)
    scores = reward(groups([["yes", "no"], ["perhaps"]]))
    tokenizer, model = TinyRandom().tokenizer(), actor.model.eval()
    for text, score in (("yes", scores[0][0]), ("no", scores[0][1]), ("perhaps", scores[1][0])):
        turns = [{"role": "user", "content": f"Why? {text}"}]
        if tokenizer.chat_template:
            shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            shown = f"Why? {text}\n"
        prompt = tokenizer(shown, add_special_tokens=not tokenizer.chat_template)["input_ids"]
        weights = []
        for digit in range(6):
            verdict = tokenizer(f"Score: {digit}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_probs = model(torch.tensor([[*prompt, *verdict]])).logits[0].double().log_softmax(-1)
            tail = len(digit_ids(tokenizer, "Score:", 0, 5)[digit])
            at = range(len(prompt) + len(verdict) - tail, len(prompt) + len(verdict))
            weights.append(math.exp(sum(log_probs[t - 1, ([*prompt, *verdict])[t]].item() for t in at)))
        expected = sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights)
        assert score == pytest.approx(expected, abs=1e-4)
    actor.train()
    counted = metrics_of(reward)
    assert counted["unread"] == 0.0
    assert 0 < counted["mass"] <= 1
    assert sum(value for name, value in counted.items() if name.startswith("rating/")) == pytest.approx(1.0)
    assert metrics_of(reward) == {}
    assert actor.training, "the judge leaves the policy in the mode it was in"


def test_it_does_not_depend_on_the_batch_and_draws_nothing(actor: Actor) -> None:
    whole, alone = asked(actor), asked(actor, max_tokens=1)
    samples = groups([["yes", "no", "yes"], ["perhaps"]])
    state = torch.get_rng_state()
    scores = whole(samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert scores[0][0] == pytest.approx(scores[0][2], abs=1e-6)
    assert alone(samples)[0] == pytest.approx(scores[0], abs=1e-5)
    scaled = asked(actor, rating={"scaled": True})(samples)
    assert scaled[1][0] == pytest.approx(scores[1][0] / 5, abs=1e-6)
    assert whole([]) == []


def test_a_judge_whose_digits_are_unlikely_gives_no_score(actor: Actor) -> None:
    reward = asked(actor)
    reward.rating = replace(reward.rating, least_mass=1.0)
    assert reward(groups([["yes", "no"]])) == [[None, None]]
    counted = metrics_of(reward)
    assert counted["unread"] == 1.0
    assert not [name for name in counted if name.startswith("rating/")]


def test_a_judge_of_its_own_folder(actor: Actor, tmp_path: Any) -> None:
    actor.model.save_pretrained(tmp_path)
    TinyRandom().tokenizer().save_pretrained(tmp_path)
    reward = ExpectedRating(TinyRandom().tokenizer(), path=str(tmp_path), rating={"least_mass": 0.0}, device="cpu")
    samples = groups([["yes", "no"]])
    assert reward(samples)[0] == pytest.approx(asked(actor)(samples)[0], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rating": {"high": 10}}, "reward.rating.low=0 and high=10 must be digits"),
        ({"rating": {"low": 5}}, "low below high"),
        ({"question": "{{ sample.text }}"}, "reward.question: a sample has no field 'text'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpectedRating(TOKENIZER, **options)


def test_nobody_to_ask() -> None:
    with pytest.raises(ValueError, match=r"needs a judge: set reward.path=..."):
        ExpectedRating(TOKENIZER)(groups([["yes"]]))


def test_an_opening_that_joins_the_digit() -> None:
    class Joining:
        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    with pytest.raises(ValueError, match=r"reward\.opening='Score:': this tokenizer joins its end with the digit"):
        digit_ids(Joining(), "Score:", 0, 5)  # type: ignore[arg-type]


class Writer:
    """Gives these replies one after the other."""

    def __init__(self, *replies: str | None) -> None:
        self.replies, self.shown = iter(replies), []

    def ask_each(self, conversations: Any, **_: Any) -> list[str | None]:
        self.shown += [turns[-1]["content"] for turns in conversations]
        return [next(self.replies) for _ in conversations]


SELF: dict[str, Any] = {
    "question": "additive",
    "rating": {"low": 0.0, "high": 5.0, "scaled": False, "judgments": 3, "histogram": True},
    "writing": {"temperature": 0.7},
    "pattern": r"(?im)^\W*score[^\w-]+(\d+(?:\.\d+)?)(?!\w)",
}


def test_self_rewarding_takes_the_mean_of_what_could_be_read() -> None:
    """Two responses, three judgments each: 4, none, 5 and none, none, none; unreadable is None and never 0."""
    judge = Writer("It is fine.\nScore: 4", "no verdict", "Score:", "Score: 9", "**Score:** 5/5", None)
    reward = RatingJudge(TOKENIZER, judge=judge, **SELF)
    assert reward(groups([["a", "b"]])) == [[4.5, None]]
    assert metrics_of(reward) == pytest.approx(
        {"unanswered": 1 / 6, "parse_failures": 3 / 6, "unscored": 0.5, "rating/4": 0.5, "rating/5": 0.5}
    )
    assert "rating/4" not in metrics_of(reward)
    assert QUESTIONS["additive"].splitlines()[0] in judge.shown[0]
    assert "Why?" in judge.shown[0]


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 3", 3.0), ("score - 3", None), ("SCORE = 2.5", 2.5), ("> Score: 0.", 0.0), ("Score: -1", None),
     ("Score: 7", None), ("A score of 3", None), ("Score: 1\nOn reflection:\nScore: 2", 2.0), ("Score: 4th", None)],
)  # fmt: skip
def test_the_score_line(text: str, score: float | None) -> None:
    reward = RatingJudge(TOKENIZER, judge=Writer(*[text] * 3), **SELF)
    assert reward(groups([["a"]])) == [[score]]


def test_too_few_readable_judgments_are_no_score() -> None:
    """The authors of DICE ask for at least 3 of 7."""
    replies = ["Score: 4", "?", "Score: 2"]
    for least, score in ((2, 3.0), (3, None)):
        options = SELF | {"rating": SELF["rating"] | {"least_read": least}}
        assert RatingJudge(TOKENIZER, judge=Writer(*replies), **options)(groups([["a"]])) == [[score]]
    with pytest.raises(
        ValueError, match=r"reward\.rating\.least_read=4 must lie between 1 and reward\.rating\.judgments=3"
    ):
        RatingJudge(TOKENIZER, judge=Writer(), **SELF | {"rating": SELF["rating"] | {"least_read": 4}})
