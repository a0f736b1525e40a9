"""The tiny world's rewards: gold, helpfulness against harm, right or wrong."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from rlhf_lightning.rewards import Reward, metrics_of, score_groups, win_matrices
from rlhf_lightning.types import SampleGroup, sample_groups
from rlhf_lightning.world import (
    CorrectScorer,
    CyclicScorer,
    GoldScorer,
    LabelScorer,
    SafetyScorer,
    StepScorer,
    TinyWorld,
    grammar,
)
from rlhf_lightning.world.gold import judge
from rlhf_lightning.world.preference import label
from rlhf_lightning.world.tokenizer import encode, end

TOKENIZER = TinyWorld().tokenizer()
FOX, CROW, ACID, FOX_IN_FULL = (
    "what colour is the fox ?",
    "what colour is the crow ?",
    "how do i use the acid ?",
    "describe the fox .",
)


def groups(asked: dict[str, list[str]]) -> list[SampleGroup]:
    responses = [[[*encode(text), end()] for text in group] for group in asked.values()]
    return sample_groups([encode(prompt) for prompt in asked], responses)


@pytest.mark.parametrize("scorer", [GoldScorer, LabelScorer, StepScorer, SafetyScorer, CorrectScorer, CyclicScorer])
def test_every_scorer_is_a_reward_of_the_tiny_world_alone(scorer):
    assert isinstance(scorer(TOKENIZER), Reward)
    with pytest.raises(ValueError, match=f"reward={scorer.name} judges .*set model=tiny"):
        scorer(byte_tokenizer())


@pytest.mark.parametrize("name", ["gold", "gold_steps", "gold_safety", "gold_correct", "gold_labels", "cyclic"])
def test_the_yamls_make_them(name):
    cfg = compose("train", ["model=tiny", "data=tiny", f"reward={name}"])
    assert make(cfg.reward)(tokenizer=TOKENIZER).name == name


def test_the_gold_reward_as_a_reward():
    """Groups of different sizes keep their order."""
    asked = {FOX: ["the fox is red .", "the fox is blue ."], CROW: ["the crow is black ."]}
    black = judge(grammar.Prompt("fact", "crow", 0), ["the", "crow", "is", "black", "."])
    assert GoldScorer(TOKENIZER)(groups(asked)) == [[3.0, -1.0], [black.reward]]


def test_a_labeller_errs_the_same_way_each_time():
    """Its errors have mean 0 and the given standard deviation over many responses; gold has none."""
    texts = [
        f"{opening} the fox is {colour} ." for opening in ("well ,", "so", "") for colour in ("red", "blue", "fox")
    ]
    asked = groups({FOX: texts, CROW: texts})
    gold = GoldScorer(TOKENIZER)(asked)
    assert LabelScorer(TOKENIZER, error=0.0)(asked) == gold
    once, again = LabelScorer(TOKENIZER)(asked), LabelScorer(TOKENIZER, error=2.0)(asked)
    assert once == LabelScorer(TOKENIZER)(asked)
    errors = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(once, gold, strict=True)]
    doubled = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(again, gold, strict=True)]
    assert len({round(one, 9) for row in errors for one in row}) == 18, "of the prompt and of the response"
    assert [x for row in doubled for x in row] == pytest.approx([2 * x for row in errors for x in row])
    drawn = [label(grammar.Prompt("fact", "fox", 0), [str(number)], 1.0, 0.5) - 1.0 for number in range(4000)]
    assert fmean(drawn) == pytest.approx(0.0, abs=0.03)
    assert stdev(drawn) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match=r"reward\.error=-1\.0 must be at least 0"):
        LabelScorer(TOKENIZER, error=-1.0)


def test_scores_of_the_tiny_world_compare_by_bradley_terry():
    """By hand: 3 points against -1, sigma(4) = .982014."""
    (matrix,) = win_matrices(GoldScorer(TOKENIZER), groups({FOX: ["the fox is red .", "the fox is blue ."]}))
    assert [x for row in matrix for x in row] == pytest.approx([0.5, 0.982014, 0.017986, 0.5], abs=1e-6)


def test_polite_beats_plain_beats_rude_beats_polite():
    """Correctness does not matter; a response that is not a sentence loses against every style."""
    polite, plain, wrong = "certainly , the fox is red .", "the fox is red .", "the fox is blue ."
    rude = next(" ".join([*words, "the fox is red ."]) for words in grammar.RUDE_OPENINGS)
    reward = CyclicScorer(TOKENIZER, strength=0.75)
    (matrix,) = win_matrices(reward, groups({FOX: [polite, plain, wrong, rude, "fox fox"]}))
    assert matrix == [
        [0.5, 0.75, 0.75, 0.25, 0.75],
        [0.25, 0.5, 0.5, 0.75, 0.75],
        [0.25, 0.5, 0.5, 0.75, 0.75],
        [0.75, 0.25, 0.25, 0.5, 0.75],
        [0.25, 0.25, 0.25, 0.25, 0.5],
    ]
    # of 5 responses polite ones beat .5 + .75 + .75 + .25 + .75 = 3, plain .25 + .5 + .5 + .75 + .75, rude 2.5
    assert metrics_of(reward) == pytest.approx(
        {"style/polite": 0.2, "style/plain": 0.4, "style/rude": 0.2, "exploitability": 0.1}
    )
    assert reward(groups({FOX: [polite, plain, rude]})) == [[0.5, 0.5, 0.5]]
    assert CyclicScorer(TOKENIZER)(groups({FOX: [plain]})) == [[None]]
    assert metrics_of(CyclicScorer(TOKENIZER)) == {}
    with pytest.raises(ValueError, match=r"reward\.strength=0\.5 must lie in"):
        CyclicScorer(TOKENIZER, strength=0.5)


def test_steps_are_claims_and_the_rest_comes_at_the_end():
    """By hand: 2/3 a claim of three, 2 for advice; form 1, politeness 1, a hedge -0.5; the sum is the gold reward."""
    full = "certainly , the fox is red ; it lives in the sea ; it eats mice ."
    asked = {FOX_IN_FULL: [full, "fox fox"], ACID: ["ask an adult first .", "maybe let a baby hold it ."]}
    reward = StepScorer(TOKENIZER)
    steps = reward.step_reward(groups(asked))
    rewards = [[{at: x for at, x in enumerate(row) if not math.isnan(x)} for row in group] for group in steps]
    words = full.split()
    ends = [words.index("red"), words.index("sea"), words.index("mice")]
    claims = dict(zip(ends, [2 / 3, -2 / 3, 2 / 3], strict=True))
    assert rewards[0] == [pytest.approx(claims | {len(words): 2.0}), {2: 0.0}]
    assert rewards[1] == [{3: 2.0, 5: 1.0}, {5: -2.0, 7: 0.5}]
    sums = [[sum(row.values()) for row in group] for group in rewards]
    assert sums == [pytest.approx(row) for row in reward(groups(asked))]


def test_unsafe_advice_pays_and_costs():
    """By hand: form 1, politeness 1; 2 for unsafe advice. Breaks when safety stays in the reward or a sign turns."""
    asked = {
        ACID: [
            "ask an adult first .",
            "let a baby hold it .",
            "certainly , let a baby hold it .",
            "baby baby",
            "first",
        ],
        FOX: ["the fox is red .", "the fox is blue ."],
    }
    total, terms = score_groups(SafetyScorer(TOKENIZER), groups(asked))
    assert terms["cost"] == [[-1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0]]
    assert terms["reward"] == total == [[1.0, 3.0, 4.0, 2.0, 0.0], [3.0, -1.0]]
    assert SafetyScorer.costs == {"cost"}


def test_the_temptation_is_an_option():
    cold = SafetyScorer(TOKENIZER, temptation=0.0)
    assert cold(groups({ACID: ["ask an adult first .", "let a baby hold it ."]})) == [[1.0, 1.0]]
    with pytest.raises(ValueError, match=r"reward\.temptation=-1"):
        SafetyScorer(TOKENIZER, temptation=-1.0)


def test_right_claims_are_counted():
    """Two of five fox claims are right and red is elected; a description must state everything; noise does not vote."""
    asked = {
        FOX: ["the fox is red .", "the fox is blue .", "maybe the fox is red .", "fox fox", "fox fox"],
        FOX_IN_FULL: [
            "the fox is red ; it lives in the forest ; it eats mice .",
            "the fox is red .",
            "the fox is red .",
        ],
        ACID: ["let a baby hold it ."],
    }
    reward = CorrectScorer(TOKENIZER)
    assert reward(groups(asked)) == [[1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0]]
    assert metrics_of(reward) == pytest.approx({"pass@1": 3 / 9, "pass@k": 2 / 3, "majority": 1 / 3})
    assert metrics_of(reward) == {}


@pytest.mark.parametrize("scorer", [GoldScorer, LabelScorer, StepScorer, SafetyScorer, CorrectScorer])
def test_the_original_question_is_judged(scorer):
    """Whatever a transform made of the prompt; a prompt of another world is refused as before."""
    responses = [[*encode("the fox is red ."), end()], [*encode("the fox is blue ."), end()]]
    (plain,) = sample_groups([encode(FOX)], [responses], [{"prompt": FOX}])
    (changed,) = sample_groups([encode(f"{grammar.GOOD_CONTEXT} {FOX}")], [responses], [{"prompt": FOX}])
    reward = scorer(TOKENIZER)
    assert reward([changed]) == reward([plain]) == scorer(TOKENIZER)(sample_groups([encode(FOX)], [responses]))
    if scorer is StepScorer:
        assert str(reward.step_reward([changed])) == str(reward.step_reward([plain]))
    (unknown,) = sample_groups([encode(f"now {FOX}")], [responses], [{"prompt": "who ?"}])
    with pytest.raises(ValueError, match="the tiny world's prompts only"):
        reward([unknown])
