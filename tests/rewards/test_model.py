"""A reward model as a reward: the scores of the export, however groups are batched and whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import ClassifierReward, LengthReward, ModelReward, ProcessReward, Reward
from rlhf_lightning.types import Example, sample_groups

QUESTIONS = ["Why?", "Say nothing.", "Name three colours, and give a reason for each."]
RESPONSES = [["Because.", "I do not know."], ["Fine"], ["Red, green, blue.", "No.", "What a question!"]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Models]:
    models = ModelBuilder(TinyRandom(), None, "none")(partial(Scorer, seed=1))
    models.policy.mean, models.policy.std = 0.5, 2.0
    return export_scorer(models.policy.eval(), models.tokenizer, tmp_path_factory.mktemp("reward")), models


def encoded(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[list[int]]]]:
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompts = [
        ids(tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True))
        for q in QUESTIONS
    ]
    return prompts, [[[*ids(text), tokenizer.eos_token_id] for text in group] for group in RESPONSES]


def expected(models: Models) -> list[list[float]]:
    prompts, responses = encoded(models.tokenizer)
    with torch.no_grad():
        return [
            [float(models.policy.normalized(models.policy(pack([Example(prompt, [response])])))) for response in group]
            for prompt, group in zip(prompts, responses, strict=True)
        ]


def close(scores: Sequence[Sequence[float | None]], expected: list[list[float]]) -> bool:
    """Check that groups have the same sizes and scores."""
    return [*scores] == [pytest.approx(group, abs=1e-5) for group in expected]


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_batches_do_not_matter(trained: tuple[Path, Models], max_tokens: int) -> None:
    folder, models = trained
    reward = ModelReward(models.tokenizer, path=str(folder), max_tokens=max_tokens)
    assert isinstance(reward, Reward)
    assert not reward.texts.renders
    assert close(reward(sample_groups(*encoded(models.tokenizer))), expected(models))
    assert not any(p.requires_grad for p in reward.model.parameters())


def test_without_normalisation(trained: tuple[Path, Models]) -> None:
    folder, models = trained
    raw = ModelReward(path=str(folder), normalize=False)(sample_groups(*encoded(models.tokenizer)))
    assert close([[(value - 0.5) / 2 for value in group] for group in raw], expected(models))


def test_groups_without_responses_keep_their_place(trained: tuple[Path, Models]) -> None:
    folder, models = trained
    prompts, responses = encoded(models.tokenizer)
    scores = ModelReward(path=str(folder))(sample_groups([prompts[0], *prompts], [[], *responses]))
    assert close(scores, [[], *expected(models)])


def test_another_tokenizer_and_template(trained: tuple[Path, Models]) -> None:
    """Fails when ids of one tokenizer reach the model of another, or role marks end up in the prompt."""
    folder, models = trained
    other = byte_tokenizer()
    other.add_tokens(["Because", "question"])
    other = prepare_tokenizer(other, chat_template="zephyr")
    prompts, responses = encoded(other)
    assert prompts != encoded(models.tokenizer)[0]
    reward = ModelReward(other, path=str(folder))
    assert reward.texts.renders
    assert close(reward(sample_groups(prompts, responses)), expected(models))


def test_a_long_prompt_loses_its_beginning(trained: tuple[Path, Models]) -> None:
    folder, models = trained
    prompts, responses = encoded(models.tokenizer)
    longest = max(map(len, responses[0]))
    scores = ModelReward(path=str(folder), max_length=longest + 4)(sample_groups(prompts[:1], responses[:1]))
    with torch.no_grad():
        expected = models.policy.normalized(models.policy(pack([Example(prompts[0][-4:], responses[0])])))
    assert close(scores, [expected.tolist()])


def test_an_encoder_reads_texts(tmp_path: Path) -> None:
    """Any sequence-classification folder: here a random BERT with a byte tokenizer."""
    tokenizer = prepare_tokenizer(byte_tokenizer())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = ModelReward(tokenizer, path=str(tmp_path))
    assert not reward.decoder
    scores = reward(sample_groups(*encoded(tokenizer)))
    with torch.no_grad():
        expected = [
            [float(model(**tokenizer(q, a, return_tensors="pt")).logits[0, 0]) for a in group]
            for q, group in zip(QUESTIONS, RESPONSES, strict=True)
        ]
    assert close(scores, expected)
    assert len({round(value, 3) for group in scores for value in group}) > 3


def test_an_output_that_is_not_there(trained: tuple[Path, Models]) -> None:
    with pytest.raises(ValueError, match=r"reward\.output=1"):
        ModelReward(path=str(trained[0]), output=1)


def test_length() -> None:
    assert LengthReward(per_token=0.5)(sample_groups([[1]], [[[1, 2], [3]]])) == [[1.0, 0.5]]
    groups = sample_groups([[1]], [[[1, 2], [3], [1, 2, 3, 4]]])
    assert LengthReward(target=2, per_token=1.0)(groups) == [[0.0, -1.0, -2.0]]


@pytest.mark.parametrize("maker", [ModelReward, ClassifierReward, ProcessReward])
def test_a_language_model_is_no_reward_model(maker: Callable[..., Reward], tmp_path: Path) -> None:
    TinyRandom().load().save_pretrained(tmp_path)
    TinyRandom().tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"reward\.path=.*(no head for rewards|export a run)"):
        maker(path=str(tmp_path))


def test_an_encoder_without_its_classifier_is_refused(tmp_path: Path) -> None:
    """A pretrained encoder beside a configuration that calls it a classifier."""
    config = BertConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    model = BertForSequenceClassification(config)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(tmp_path, state_dict=weights)
    prepare_tokenizer(byte_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 weights are missing and would be random \(classifier\.bias"):
        ModelReward(path=str(tmp_path))
