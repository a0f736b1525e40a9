"""Language models as judges: what is read as a verdict, what is not, and that places do not decide."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rlhf_lightning import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.rewards import ComparisonJudge, RatingJudge, Reward, metrics_of, why_unscored
from rlhf_lightning.rewards.asking import AskPolicy
from rlhf_lightning.rewards.verdicts import choice, rating
from rlhf_lightning.types import SampleGroup, sample_groups
from tests.helpers.fake_server import fake_server

TOKENIZER = prepare_tokenizer(byte_tokenizer())


class Judge:
    """Answers by a function of the last message."""

    def __init__(self, answer: Callable[[str], str | None]) -> None:
        self.answer, self.asked, self.options = answer, [], []

    def ask_each(self, conversations: Sequence[Any], **options: Any) -> list[str | None]:
        self.asked += conversations
        self.options.append(options)
        return [self.answer(conversation[-1]["content"]) for conversation in conversations]


def groups(*texts: list[str], **columns: Any) -> list[SampleGroup]:
    def ids(text: str) -> list[int]:
        return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])

    responses = [[[*ids(text), TOKENIZER.eos_token_id] for text in group] for group in texts]
    return sample_groups([ids("Why?")] * len(texts), responses, [columns] * len(texts))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('It is fine. {"score": 7}', 7.0),
        ('{"score": 3} no, rather {"score": 4.5}', 4.5),
        ('{"score": "8"}', 8.0),
        ('{"reasons": "2 of them", "score": 6}', 6.0),
        ("Two facts, 3 errors: 6", 6.0),
        ("7/10", 7.0),
        ("I give it 8 out of 10.", 8.0),
        ("Rating: 5.", 5.0),
        ("-1", None),
        ("11", None),
        ('{"score": 12} 5', None),
        ('{"score": true}', None),
        ('{"score": null}', None),
        ('{"score": [3]}', None),
        ('{"score": NaN}', None),
        ("v2 is 3rd", None),
        ("", None),
        ("excellent", None),
    ],
)
def test_ratings(text: str, value: float | None):
    assert rating(text, 0, 10) == value


def test_ratings_by_a_pattern():
    assert rating("Score: 3, of 9", 0, 10, pattern=r"Score: (\d+)") == 3
    assert rating("9", 0, 10, pattern=r"Score: (\d+)") is None, "nothing else is tried"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[[A]]", "A"),
        ("At first [[A]], but then [[B]]", "B"),
        ("[[ C ]]", "C"),
        ("B", "B"),
        ("The better one is B.", "B"),
        ("A or B", None),
        ("[[D]]", None),
        ("a", None),
        ("", None),
    ],
)
def test_choices(text: str, word: str | None):
    assert choice(text, ("A", "B", "C")) == word
    assert choice("Verdict=A [[B]]", ("A", "B"), pattern=r"Verdict=(\w)") == "A"


def test_ratings_of_responses():
    judge = Judge(lambda text: {"good": '{"score": 9}', "bad": "1", "odd": "well", "none": None}[question_text(text)])
    reward = RatingJudge(TOKENIZER, judge=judge, system="Be fair.", rating={"low": 1, "high": 9})
    assert isinstance(reward, Reward)
    assert reward(groups(["good", "bad"], ["odd", "none"])) == [[1.0, 0.0], [None, None]]
    assert metrics_of(reward) == {"unanswered": 0.25, "parse_failures": 0.25, "unscored": 0.5}
    assert judge.asked[0][0] == {"role": "system", "content": "Be fair."}
    assert "Why?" in judge.asked[0][1]["content"]
    assert '{"score": x}, where x is a number from 1 to 9' in judge.asked[0][1]["content"]
    assert RatingJudge(TOKENIZER, judge=judge, rating={"low": 1, "high": 9, "scaled": False})(groups(["good"])) == [
        [9.0]
    ]


def question_text(text: str) -> str:
    match = re.search(r"Answer:\n(\w+)", text)
    assert match
    return match[1]


def test_the_mean_of_several_judgments():
    answers = iter(["4", "8", "none", "2", "none", "none"])
    rating, writing = {"judgments": 3, "scaled": False}, {"temperature": 1.0}
    reward = RatingJudge(TOKENIZER, judge=Judge(lambda _: next(answers)), rating=rating, writing=writing)
    assert reward(groups(["a", "b"])) == [[4.0, 5.0]]  # a: 4, none, none; b: 8, 2, none
    assert metrics_of(reward) == pytest.approx({"unanswered": 0.0, "parse_failures": 0.5, "unscored": 0.0})


def test_judgments_have_seeds_of_their_own():
    judge = Judge(lambda _: "4")
    writing = {"temperature": 1.0, "seed": 5}
    RatingJudge(TOKENIZER, judge=judge, rating={"judgments": 3}, writing=writing)(groups(["a"]))
    assert [options["seed"] for options in judge.options] == [5, 6, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rating": {"low": 3.0, "high": 3.0}}, "reward.rating.low=3 must be below reward.rating.high=3"),
        ({"rating": {"judgments": 2}}, "set reward.writing.temperature"),
        ({"pattern": "score"}, "must have one group"),
        ({"question": "{{ sample.text }}"}, "reward.question: a sample has no field 'text'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        RatingJudge(TOKENIZER, judge=Judge(lambda _: ""), **options)


def test_columns_in_the_question():
    judge = Judge(lambda text: "10" if "4 against 4" in text else "0")
    reward = RatingJudge(TOKENIZER, judge=judge, question="{{ sample.output_text }} against {{ item.answer }}")
    with pytest.raises(ValueError, match=r"no column 'answer'. Did you mean item.answers\?"):
        reward.check_columns(["answers"])
    reward.check_columns(["answer"])
    assert reward(groups(["4", "5"], answer="4")) == [[1.0, 0.0]]


def shown(text: str) -> tuple[str, str]:
    match = re.search(r"Answer A:\n(\w+)\n\nAnswer B:\n(\w+)", text)
    assert match
    return match[1], match[2]


def longer(text: str) -> str:
    first, second = shown(text)
    return "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"


def test_comparisons():
    judge = Judge(longer)
    reward = ComparisonJudge(TOKENIZER, judge=judge)
    assert reward(groups(["a", "bbb", "cc"], ["dd", "ee"])) == [[0.0, 1.0, 0.5], [0.5, 0.5]]
    assert len(judge.asked) == 8
    assert {shown(question[0]["content"]) for question in judge.asked} >= {("a", "bbb"), ("bbb", "a")}
    assert metrics_of(reward) == {"unanswered": 0, "parse_failures": 0, "unscored": 0, "consistent": 1, "first": 0.5}


@pytest.mark.parametrize(("answer", "first"), [("[[A]]", 1.0), ("[[B]]", 0.0)])
def test_a_judge_that_looks_at_the_place_only_decides_nothing(answer: str, first: float):
    """With one order alone the first response would win every comparison."""
    reward = ComparisonJudge(TOKENIZER, judge=Judge(lambda _: answer))
    assert reward(groups(["a", "b", "c"])) == [[0.5, 0.5, 0.5]]
    counts = metrics_of(reward)
    assert (counts["consistent"], counts["first"]) == (0.0, first)


def test_a_pair_without_both_verdicts_is_left_out():
    reward = ComparisonJudge(TOKENIZER, judge=Judge(lambda text: "?" if shown(text) == ("a", "bbb") else longer(text)))
    assert reward(groups(["a", "bbb", "cc"])) == [[0.0, 1.0, 0.5]]
    assert metrics_of(reward)["parse_failures"] == pytest.approx(1 / 6)
    assert reward(groups(["a", "bbb"])) == [[None, None]]
    assert metrics_of(reward)["unscored"] == 1.0


def test_the_order_of_a_group_does_not_matter():
    reward = ComparisonJudge(TOKENIZER, judge=Judge(longer))
    texts = ["a", "dddd", "bb", "ccc"]
    assert reward(groups(texts))[0] == reward(groups(texts[::-1]))[0][::-1]


def test_equal_responses_are_not_asked_about():
    judge = Judge(longer)
    assert ComparisonJudge(TOKENIZER, judge=judge)(groups(["a", "a"])) == [[0.5, 0.5]]
    assert judge.asked == []


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match=r"method\.rollout\.group_size"):
        ComparisonJudge(TOKENIZER, judge=Judge(longer))(groups(["a"]))


def test_the_policy_as_its_own_judge():
    class Policy:
        def sample(self, prompts: list[list[int]], **options: Any) -> list[list[int]]:
            return [TOKENIZER(longer(TOKENIZER.decode(prompt)))["input_ids"] for prompt in prompts]

    reward = ComparisonJudge(TOKENIZER)
    with pytest.raises(ValueError, match="needs a model to ask"):
        reward(groups(["a", "bb"]))
    reward.policy = Policy()
    assert reward(groups(["a", "bb"])) == [[0.0, 1.0]]


def test_a_judgment_of_the_policy_does_not_depend_on_what_else_is_asked():
    """So it is the same however responses are shared out over processes."""

    class Policy:
        def sample(self, prompts: list[list[int]], **options: Any) -> list[list[int]]:
            self.streams = options["streams"]
            return prompts

    policy = Policy()
    first, second = ([{"role": "user", "content": text}] for text in ("Rate a.", "Rate b."))

    def streams(*questions: Any, seed: int = 0) -> list[tuple[int, int]]:
        AskPolicy(TOKENIZER, policy).ask_each(questions, max_tokens=4, temperature=1.0, seed=seed)
        return policy.streams

    assert streams(first, second) == [*streams(first), *streams(second)]
    assert len({*streams(first, second), *streams(first, second, seed=1)}) == 4


@pytest.mark.parametrize("choice_of", ["llm_judge", "llm_compare"])
def test_a_server_as_the_judge(choice_of: str):
    """From the config group through the client: one question fails for good and is counted."""
    with fake_server() as fake:
        fake.answers["/v1/chat/completions"] = lambda body: {
            "choices": [{"message": {"content": '{"score": 5}' if choice_of == "llm_judge" else "[[A]]"}}]
        }
        overrides = [f"reward={choice_of}", f"reward.judge.url={fake.url}", "reward.judge.model=fake"]
        cfg = compose(
            "train",
            ["model=tiny_random", *overrides, "reward.judge.requests.retries=0", "reward.judge.requests.concurrency=1"],
        )
        reward = make(cfg.reward)(tokenizer=TOKENIZER)
        assert reward(groups(["a", "bb"])) == [[0.5, 0.5]]
        fake.failures = [500]
        scores = reward(groups(["a", "bb"]))
        assert scores == ([[None, 0.5]] if choice_of == "llm_judge" else [[None, None]])
        body = fake.bodies("/v1/chat/completions")[0]
        assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.0, 512, 0)


@pytest.mark.parametrize(
    ("answer", "reason"), [("No idea.", r"no verdict .* 100% .*reward\.pattern"), (None, "got no reply")]
)
@pytest.mark.parametrize("kind", [RatingJudge, ComparisonJudge])
def test_a_judge_without_any_verdict_names_the_fix(kind: type, answer: str | None, reason: str):
    reward = kind(TOKENIZER, judge=Judge(lambda _: answer))
    assert reward(groups(["good", "bad"])) == [[None, None]]
    assert re.search(reason, why_unscored(metrics_of(reward)))


def test_the_counts_of_a_term_name_the_fix_too():
    assert "reward.pattern" in why_unscored({"rating/parse_failures": 1.0, "rating/unscored": 1.0})
    assert why_unscored({"unscored": 1.0}) == ""
