"""Rewards of language models: log-probabilities, and a judge's tournament; rewards of steps."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data import DataSpec, Files
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.losses.judge import stated_preference
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.export.policy import export
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.rewards import (
    ImplicitReward,
    JudgeReward,
    LogProbReward,
    ProcessReward,
    Reward,
    implicit_rewards,
)
from rlhf_lightning.types import ComparisonBatch, Example, Ragged, sample_groups
from tests.rewards.test_model import QUESTIONS, RESPONSES, close, encoded

SPEC = DataSpec(comparison="{prompt}|{first}|{second}=", cache=False)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Models]:
    models = ModelBuilder(TinyRandom(), None, "none")()
    models.policy.eval()
    return export(models.policy, models.tokenizer, tmp_path_factory.mktemp("language")), models


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Models]:
    models = ModelBuilder(TinyRandom(), None, "none")(lambda model, **options: Scorer(model, bias=True, **options))
    with torch.no_grad():
        models.policy.head.bias.fill_(0.7)
    return export_scorer(models.policy.eval(), models.tokenizer, tmp_path_factory.mktemp("steps")), models


def other_tokenizer() -> PreTrainedTokenizerBase:
    other = byte_tokenizer()
    other.add_tokens(["Because", "question"])
    return prepare_tokenizer(other, chat_template="zephyr")


@torch.no_grad()
def log_probs(models: Models, prompts: list[list[int]], groups: list[list[list[int]]], how: str) -> list[list[float]]:
    """One pass a response, without batches."""
    return [
        [float(getattr(models.policy(pack([Example(prompt, [response])])), how)()) for response in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]


# Log-probabilities


@pytest.mark.parametrize("max_tokens", [1, 10_000])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_log_probs_of_whole_responses(language: tuple[Path, Models], reduction: str, max_tokens: int) -> None:
    """The EOS counts; a response whose EOS is left out, or a mean where a sum is wanted, gives other numbers."""
    folder, models = language
    reward = LogProbReward(models.tokenizer, path=str(folder), reduction=reduction, max_tokens=max_tokens)  # type: ignore[arg-type]
    assert isinstance(reward, Reward)
    prompts, groups = encoded(models.tokenizer)
    assert close(reward(sample_groups(prompts, groups)), log_probs(models, prompts, groups, reduction))


def test_mutual_information_takes_off_what_needs_no_question(language: tuple[Path, Models]) -> None:
    folder, models = language
    prompts, groups = encoded(models.tokenizer)
    empty = models.tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)[
        "input_ids"
    ]
    asked, alone = (log_probs(models, those, groups, "sum") for those in (prompts, [empty] * len(groups)))
    scores = LogProbReward(models.tokenizer, path=str(folder), mutual_information=True)(sample_groups(prompts, groups))
    assert close(scores, [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(asked, alone, strict=True)])
    unasked = sample_groups([empty], [groups[0]])
    assert LogProbReward(path=str(folder), mutual_information=True)(unasked)[0] == pytest.approx([0, 0])


def test_mutual_information_of_a_long_response(language: tuple[Path, Models]) -> None:
    """Two sums of 60,000 nats, each of which float32 would round to 0.004."""
    folder, models = language
    reward = LogProbReward(models.tokenizer, path=str(folder), mutual_information=True, max_tokens=100_000)
    alone = -4 * torch.rand(32_768, generator=torch.Generator().manual_seed(0))
    asked = alone + 1e-3
    log_probs = iter((asked, alone))
    reward.model = lambda batch: Ragged(next(log_probs), batch.sequence, 1)  # type: ignore[assignment]
    scores = reward(sample_groups([[1, 2]], [[[3] * 32_768]]))
    assert scores[0][0] == pytest.approx(float((asked.double() - alone.double()).sum()), abs=1e-6)


def test_the_implicit_reward_of_one_round_against_another(language: tuple[Path, Models]) -> None:
    """Models by their roles, as DICE compares them: 1 nat is worth 1, and in another round other models play them."""
    folder, models = language
    prompts, groups = encoded(models.tokenizer)
    samples = sample_groups(prompts, groups)
    other = Actor(TinyRandom(seed=5).load()).eval()
    reward = ImplicitReward(models.tokenizer, path="round_start", reference="previous_round", beta=1.0)
    assert reward.roles == {"round_start", "previous_round"}
    with pytest.raises(ValueError, match=r"compares with round_start, a model that only a run with rounds has"):
        reward(samples)
    reward.assign("round_start", lambda: nullcontext(models.policy.eval()), torch.device("cpu"))
    with pytest.raises(ValueError, match="compares with previous_round"):
        reward(samples)
    reward.assign("previous_round", lambda: nullcontext(other), torch.device("cpu"))
    parts = [log_probs(m, prompts, groups, "sum") for m in (models, SimpleNamespace(policy=other))]
    expected = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    assert close(reward(samples), expected)
    reward.assign("round_start", lambda: nullcontext(other), torch.device("cpu"))
    assert close(reward(samples), [[0.0 for _ in row] for row in expected])
    mixed = ImplicitReward(models.tokenizer, path="round_start", reference=str(folder), beta=0.5)
    mixed.assign("round_start", lambda: nullcontext(other), torch.device("cpu"))
    assert close(mixed(samples), [[-0.5 * value for value in row] for row in expected])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "round_start"}, r"reward\.path=round_start needs a model to compare with: set reward\.reference"),
        ({"path": "policy", "reference": "initial", "tokenizer": None}, r"initial, policy reads the policy's tokens"),
    ],
)
def test_roles_that_cannot_be_compared(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitReward(**({"tokenizer": TinyRandom().tokenizer()} | options))


def test_implicit_rewards_of_log_probs() -> None:
    """Ratios 1, -.5 and 2 nats; in half precision 1,000 tokens of -8 lose what tells two models apart."""
    sequence = torch.tensor([0, 0, 1])
    policy, reference = (Ragged(torch.tensor(x), sequence, 2) for x in ([-1.0, -2.0, -1.0], [-2.0, -1.5, -3.0]))
    assert implicit_rewards(policy, reference).tolist() == [0.5, 2.0]
    assert implicit_rewards(policy, reference, beta=0.1, reduction="mean").tolist() == pytest.approx([0.025, 0.2])
    long = torch.full((1000,), -8.0, dtype=torch.bfloat16)
    shifted = long.clone()
    shifted[:10] = -7.5
    one, other = (Ragged(token, torch.zeros(1000, dtype=torch.long), 1) for token in (shifted, long))
    assert implicit_rewards(one, other).tolist() == [5.0]


def test_log_probs_of_a_policy_with_another_tokenizer(language: tuple[Path, Models]) -> None:
    folder, models = language
    other = other_tokenizer()
    reward = LogProbReward(other, path=str(folder))
    assert reward.texts.renders
    assert close(reward(sample_groups(*encoded(other))), log_probs(models, *encoded(models.tokenizer), "sum"))


def test_an_unknown_reduction(language: tuple[Path, Models]) -> None:
    with pytest.raises(ValueError, match=r"reward\.reduction='max'"):
        LogProbReward(path=str(language[0]), reduction="max")  # type: ignore[arg-type]


# Implicit rewards


def test_implicit_rewards_are_differences_of_log_probs(language: tuple[Path, Models], tmp_path: Path) -> None:
    """The policy's minus the reference's, not the other way round; a model against itself has none."""
    folder, models = language
    other = ModelBuilder(TinyRandom(seed=7), None, "none")()
    export(other.policy.eval(), other.tokenizer, tmp_path)
    prompts, groups = encoded(models.tokenizer)
    reward = ImplicitReward(models.tokenizer, path=str(tmp_path), reference=str(folder), beta=0.5)
    assert isinstance(reward, Reward)
    pairs = zip(log_probs(other, prompts, groups, "sum"), log_probs(models, prompts, groups, "sum"), strict=True)
    expected = [[0.5 * (a - b) for a, b in zip(*pair, strict=True)] for pair in pairs]
    assert close(reward(sample_groups(prompts, groups)), expected)
    assert max(abs(value) for group in expected for value in group) > 0.01
    itself = ImplicitReward(path=str(folder), reference=str(folder), reduction="mean")
    assert close(itself(sample_groups(prompts, groups)), [[0.0] * len(group) for group in groups])


def test_the_reference_of_an_adapter_is_its_base(language: tuple[Path, Models], tmp_path: Path) -> None:
    folder, models = language
    trained = ModelBuilder(Pretrained(str(folder)), Lora(r=2, seed=0), "none")()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trained.policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=generator)
    export(trained.policy.eval(), trained.tokenizer, tmp_path)
    prompts, groups = encoded(models.tokenizer)
    pairs = zip(log_probs(trained, prompts, groups, "sum"), log_probs(models, prompts, groups, "sum"), strict=True)
    expected = [[0.1 * (a - b) for a, b in zip(*pair, strict=True)] for pair in pairs]
    assert close(ImplicitReward(path=str(tmp_path))(sample_groups(prompts, groups)), expected)
    assert max(abs(value) for group in expected for value in group) > 0.01
    with pytest.raises(ValueError, match=r"reward\.reference"):
        ImplicitReward(path=str(folder))


# A judge


def stated(models: Models, tmp_path: Path, question: str, first: str, second: str) -> float:
    """The preference for ``first``, by way of the data that a judge learns from."""
    row = {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": first}],
        "rejected": [{"role": "assistant", "content": second}],
    }
    (tmp_path / "pair.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    examples = tokenize(Files(str(tmp_path / "pair.jsonl")), models.tokenizer, SPEC, "comparison").examples
    batch = pack(examples, kind="comparison")
    assert isinstance(batch, ComparisonBatch)
    with torch.no_grad():
        return float(stated_preference(*batch.verdicts(models.policy(batch))))


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_a_judge_gives_the_mean_over_its_opponents(
    language: tuple[Path, Models], tmp_path: Path, max_tokens: int
) -> None:
    """The third group has three responses: R(a) = (P(a > b) + P(a > c)) / 2. Fails when a preference is credited to the
    wrong response, when one order alone is asked, or when the sum is not divided."""
    folder, models = language
    reward = JudgeReward(models.tokenizer, path=str(folder), spec=SPEC, max_tokens=max_tokens)
    assert isinstance(reward, Reward)
    prompts, groups = encoded(models.tokenizer)
    scores = reward(sample_groups([prompts[0], prompts[2]], [groups[0], groups[2]]))
    one = stated(models, tmp_path, QUESTIONS[0], *RESPONSES[0])
    a, b, c = RESPONSES[2]
    ab, ac, bc = (stated(models, tmp_path, QUESTIONS[2], *pair) for pair in ((a, b), (a, c), (b, c)))
    assert close(scores, [[one, 1 - one], [(ab + ac) / 2, (1 - ab + bc) / 2, (2 - ac - bc) / 2]])
    assert abs(one - 0.5) > 1e-3
    assert sum(scores[1]) / 3 == pytest.approx(0.5)


def test_a_judge_of_another_tokenizer(language: tuple[Path, Models]) -> None:
    folder, models = language
    other = other_tokenizer()
    expected = JudgeReward(path=str(folder), spec=SPEC)(
        sample_groups([encoded(models.tokenizer)[0][0]], [encoded(models.tokenizer)[1][0]])
    )
    scores = JudgeReward(other, path=str(folder), spec=SPEC)(
        sample_groups([encoded(other)[0][0]], [encoded(other)[1][0]])
    )
    assert close(scores, expected)


def test_a_judge_needs_two_responses(language: tuple[Path, Models]) -> None:
    reward = JudgeReward(path=str(language[0]), spec=SPEC)
    with pytest.raises(ValueError, match="group 1 has one"):
        reward(sample_groups([[1], [1]], [[], [[2]]]))
    assert reward(sample_groups([[1]], [[]])) == [[]]


# Steps


def wanted_steps(models: Models, question: str, pieces: list[str]) -> list[float]:
    """sigma of the logit behind each piece, one pass each: a later step cannot change an earlier one."""
    probabilities = []
    for count in range(1, len(pieces) + 1):
        ids = models.tokenizer("".join(pieces[:count]), add_special_tokens=False)["input_ids"]
        prompt = encoded(models.tokenizer)[0][QUESTIONS.index(question)]
        with torch.no_grad():
            probabilities.append(float(torch.sigmoid(models.policy(pack([Example(prompt, [ids])])))))
    return probabilities


AGGREGATED = {"mean": lambda p: sum(p) / len(p), "min": min, "product": math.prod, "last": lambda p: p[-1]}


@pytest.mark.parametrize("aggregate", AGGREGATED)
@pytest.mark.parametrize("renders", [False, True])
def test_steps_are_found_and_aggregated(steps: tuple[Path, Models], aggregate: str, renders: bool) -> None:
    """Fails without the head's bias, at another token than the separator's, or with blank lines as steps."""
    folder, models = steps
    tokenizer = other_tokenizer() if renders else models.tokenizer
    reward = ProcessReward(tokenizer, path=str(folder), aggregate=aggregate, spec=DataSpec(cache=False))  # type: ignore[arg-type]
    prompts, _ = encoded(tokenizer)
    eos = [tokenizer.eos_token_id]
    texts = ["1 + 1 = 2\n\nso 3 = 3", "no"]
    responses = [tokenizer(text, add_special_tokens=False)["input_ids"] + eos for text in texts]
    per_step = [
        wanted_steps(models, QUESTIONS[0], ["1 + 1 = 2\n", "so 3 = 3\n"]),
        wanted_steps(models, QUESTIONS[0], ["no\n"]),
    ]
    assert reward.steps(sample_groups(prompts[:1], [responses]))[0] == [
        pytest.approx(values, abs=1e-5) for values in per_step
    ]
    assert close(
        reward(sample_groups(prompts[:1], [responses])), [[AGGREGATED[aggregate](values) for values in per_step]]
    )


def test_steps_that_end_with_a_text_of_their_own(steps: tuple[Path, Models]) -> None:
    folder, models = steps
    reward = ProcessReward(path=str(folder), spec=DataSpec(step_separator="|", cache=False), step_end=".")
    ids = models.tokenizer("One. Two", add_special_tokens=False)["input_ids"]
    probabilities = reward.steps(sample_groups(encoded(models.tokenizer)[0][:1], [[ids]]))
    assert probabilities[0][0] == pytest.approx(wanted_steps(models, QUESTIONS[0], ["One.|", "Two|"]), abs=1e-5)


def test_rewards_of_steps_stand_where_steps_end(steps: tuple[Path, Models]) -> None:
    """At the token of each step's last character: a byte a token, so at the places of 2 and 3; nan everywhere else,
    EOS among them. Breaks when the separator's token, or the one before, has the number."""
    folder, models = steps
    prompts, _ = encoded(models.tokenizer)
    reward = ProcessReward(path=str(folder), spec=DataSpec(cache=False))
    text = "1 + 1 = 2\n\nso 3 = 3"
    ids = models.tokenizer(text, add_special_tokens=False)["input_ids"] + [models.tokenizer.eos_token_id]
    assert len(ids) == len(text) + 1
    groups = sample_groups(prompts[:1], [[ids, [models.tokenizer.eos_token_id]]])
    placed, empty = reward.step_reward(groups)[0]
    first, second = reward.steps(groups)[0][0]
    assert {at: value for at, value in enumerate(placed) if not math.isnan(value)} == {8: first, len(text) - 1: second}
    assert empty == reward.steps(groups)[0][1]


def test_an_empty_solution_is_one_step(steps: tuple[Path, Models]) -> None:
    folder, models = steps
    prompts, _ = encoded(models.tokenizer)
    reward = ProcessReward(path=str(folder), spec=DataSpec(cache=False))
    probabilities = reward.steps(sample_groups(prompts[:1], [[[models.tokenizer.eos_token_id]]]))
    assert probabilities[0][0] == pytest.approx(wanted_steps(models, QUESTIONS[0], ["\n"]), abs=1e-5)


def test_what_is_no_process_reward_model(steps: tuple[Path, Models], language: tuple[Path, Models]) -> None:
    with pytest.raises(ValueError, match="0 rewards"):
        ProcessReward(path=str(language[0]))
    with pytest.raises(ValueError, match=r"reward\.aggregate='max'"):
        ProcessReward(path=str(steps[0]), aggregate="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reward model"):
        LogProbReward(path=str(steps[0]))
