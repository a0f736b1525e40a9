"""A scorer as a sequence-classification folder: transformers gives the numbers that were trained, and we get them."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from rlhf_lightning.chat_templates import exported_tokenizer
from rlhf_lightning.data import AlignmentDataModule, DataSpec
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.export.classification import check_scorer_export, export_scorer, is_classifier, load_whole
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import ARCHITECTURES, Pretrained, TinyRandom
from rlhf_lightning.types import Example
from tests.helpers.rows import Rows

PROMPTS = ["Why?", "Say nothing at all, please."]
RESPONSES = [["Because.", "I do not know why it is so."], ["", "All right"]]
CLASSIFIABLE = sorted(set(ARCHITECTURES) - {"mamba"})


def padded_with_eos() -> PreTrainedTokenizerBase:
    """A tokenizer as SmolLM2's: padding is the end of a turn. Another special token is there to take its place."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def groups(tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Responses of different lengths that end with EOS."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return [
        Example([tokenizer.bos_token_id, *ids(prompt)], [[*ids(text), tokenizer.eos_token_id] for text in responses])
        for prompt, responses in zip(PROMPTS, RESPONSES, strict=True)
    ]


def by_transformers(folder: Path, model: torch.nn.Module | None = None) -> Tensor:
    """Scores by plain transformers of the same texts: one padded batch, the folder's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model or AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [
        tokenizer.bos_token + prompt + response + tokenizer.eos_token
        for prompt, responses in zip(PROMPTS, RESPONSES, strict=True)
        for response in responses
    ]
    batch = tokenizer(rows, add_special_tokens=False, padding=True, return_tensors="pt")
    assert len({int(row.sum()) for row in batch["attention_mask"]}) > 2
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def built(source: TinyRandom, adapter: Lora | None = None, **options: object) -> Models:
    return ModelBuilder(source, adapter, "none")(partial(Scorer, seed=1, **options))


def ours(models: Models, examples: list[Example]) -> Tensor:
    with torch.no_grad():
        return models.policy.eval()(pack(examples))


@pytest.mark.parametrize("architecture", CLASSIFIABLE)
def test_transformers_gives_the_same_scores(architecture: str, tmp_path: Path) -> None:
    """Fails when padding is EOS: transformers would then read a score before the end of the response."""
    models = built(TinyRandom(architecture=architecture))
    tokenizer = prepare_tokenizer(padded_with_eos())
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    expected = ours(models, groups(tokenizer))
    export_scorer(models.policy, tokenizer, tmp_path)
    torch.testing.assert_close(by_transformers(tmp_path)[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_a_tokenizer_that_pads_with_eos_is_refused(tmp_path: Path) -> None:
    models = built(TinyRandom())
    with pytest.raises(ValueError, match=r"model\.pad_token"):
        export_scorer(models.policy, padded_with_eos(), tmp_path)


def test_reading_one_token_early_is_another_score(tmp_path: Path) -> None:
    """The mistake that the refusal prevents shows in the numbers."""
    models = built(TinyRandom())
    export_scorer(models.policy, models.tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    right = by_transformers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": models.tokenizer.eos_token_id}))
    assert (by_transformers(tmp_path) - right).abs().max() > 1e-2


def conversations() -> list[list[dict[str, str]]]:
    """The groups as messages, one list a response."""
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response or "No."}]
        for prompt, responses in zip(PROMPTS, RESPONSES, strict=True)
        for response in responses
    ]


def test_clients_that_know_nothing_of_us_read_our_score(tmp_path: Path) -> None:
    """Fails with a template that renders a line break behind the end of a turn: the score is then read there.

    Three ways of other software: transformers' pipeline on rendered text, ids from ``apply_chat_template``, and the way
    of TRL's trainers with a reward model (text, then ids without special tokens, padded on the right, first logit).
    """
    models = built(TinyRandom())
    exported = exported_tokenizer(models.tokenizer, ends_at_score=True)
    export_scorer(models.policy, exported, tmp_path)
    rows = Rows(*({"chosen": a, "rejected": b} for a, b in zip(*[iter(conversations())] * 2, strict=True)))
    data = AlignmentDataModule(rows, models.tokenizer, spec=DataSpec(cache=False, on_bad_row="exclude"))
    data.setup("fit")
    expected = ours(models, list(data.train_examples))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    texts = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations()]
    with torch.no_grad():
        one_by_one = [
            model(torch.tensor([tokenizer.apply_chat_template(turns, return_dict=False)])).logits[0, 0]
            for turns in conversations()
        ]
        padded = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt")
        like_trl = model(**padded).logits[:, 0]
    piped = pipeline("text-classification", model=str(tmp_path), function_to_apply="none")
    by_pipeline = [entry["score"] for entry in piped(texts, batch_size=3, add_special_tokens=False)]
    for scores in (torch.stack(one_by_one), like_trl, torch.tensor(by_pipeline)):
        torch.testing.assert_close(scores, expected.flatten(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"unit_rows": True}, {"language_model": True}, {"pool": "before_eos"}], ids=str
)
def test_what_is_loaded_scores_as_what_was_exported(options: dict, tmp_path: Path) -> None:
    models = built(TinyRandom(), **options)
    policy = models.policy
    policy.mean, policy.std = 0.5, 2.0
    if options.get("bias"):
        torch.nn.init.constant_(policy.head.bias, 3.0)
    expected = policy.normalized(ours(models, groups(models.tokenizer)))
    export_scorer(policy, models.tokenizer, tmp_path)
    assert is_classifier(tmp_path)
    again = ModelBuilder(Pretrained(str(tmp_path)), None, "none")(Scorer)
    torch.testing.assert_close(
        again.policy.normalized(ours(again, groups(again.tokenizer))), expected, atol=1e-5, rtol=1e-5
    )
    assert again.policy.backend == "packed"
    assert again.policy.pool == options.get("pool", "eos")


def loaded_as_documented(folder: Path) -> torch.nn.Module:
    """The model that the code in an adapter's README loads."""
    code = (folder / "README.md").read_text().rpartition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"folder": folder}
    exec(code, names)
    return names["model"]


@pytest.mark.parametrize("form", ["auto", "adapter", "merged"])
def test_an_adapter_and_its_head(form: str, tmp_path: Path) -> None:
    """The base pads with EOS: a loader that took that from it would read a score one token early."""
    base, model = tmp_path / "base", TinyRandom().load()
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(base)
    TinyRandom().tokenizer().save_pretrained(base)
    models = ModelBuilder(Pretrained(str(base)), Lora(r=4, seed=0, init=False), "none")(partial(Scorer, seed=1))
    models.policy.mean = 0.25
    before = copy.deepcopy(models.policy.state_dict())
    expected = ours(models, groups(models.tokenizer))
    folder = export_scorer(models.policy, models.tokenizer, tmp_path / form, form=form)
    assert all(torch.equal(value, before[name]) for name, value in models.policy.state_dict().items())
    if form == "adapter":
        scores = by_transformers(folder, loaded_as_documented(folder))
        assert not (folder / "model.safetensors").exists()
    else:
        scores = by_transformers(folder)
    torch.testing.assert_close(scores[:, 0], expected, atol=1e-4, rtol=1e-4)
    again = ModelBuilder(Pretrained(str(folder)), None, "none")(Scorer)
    torch.testing.assert_close(ours(again, groups(again.tokenizer)), expected, atol=1e-4, rtol=1e-4)
    assert again.policy.mean == 0.25
    assert all(parameter.requires_grad for parameter in again.policy.parameters())  # not the head alone


@pytest.mark.parametrize(("outputs", "padded"), [(1, True), (3, True), (1, False)])
def test_an_adapter_of_other_software(outputs: int, padded: bool, tmp_path: Path) -> None:
    """PEFT writes no configuration beside an adapter: outputs are the head's, the padding token is the tokenizer's."""
    base, model = tmp_path / "base", TinyRandom().load()
    tokenizer = TinyRandom().tokenizer()
    model.config.pad_token_id = tokenizer.pad_token_id if padded else None
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    options = {"num_labels": outputs, "pad_token_id": tokenizer.pad_token_id}
    classifier = AutoModelForSequenceClassification.from_pretrained(base, **options)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4, init_lora_weights=False)
    foreign = get_peft_model(classifier, config)
    expected = by_transformers(base, foreign)
    foreign.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    source = Pretrained(str(tmp_path / "adapter"))
    if outputs == 1:
        again = ModelBuilder(source, None, "none")(Scorer)
        torch.testing.assert_close(ours(again, groups(again.tokenizer)), expected[:, 0], atol=1e-4, rtol=1e-4)
    loaded = load_whole(source.name, {"dtype": torch.float32})
    assert (loaded.config.num_labels, loaded.config.pad_token_id) == (outputs, tokenizer.pad_token_id)
    torch.testing.assert_close(by_transformers(base, loaded), expected, atol=1e-4, rtol=1e-4)


def test_a_reward_model_continues_training_with_lora(tmp_path: Path) -> None:
    models = built(TinyRandom())
    export_scorer(models.policy, models.tokenizer, tmp_path)
    again = ModelBuilder(Pretrained(str(tmp_path)), Lora(r=2, seed=0), "none")(Scorer)
    torch.testing.assert_close(ours(again, groups(again.tokenizer)), ours(models, groups(models.tokenizer)))
    again.policy.train()(pack(groups(again.tokenizer))).sum().backward()
    trained = {name for name, p in again.policy.named_parameters() if p.grad is not None}
    assert "head.weight" in trained
    assert any("lora_" in name for name in trained)
    assert not any("score" in name for name in trained)


def test_the_first_of_several_outputs(tmp_path: Path) -> None:
    models = built(TinyRandom(), outputs=2)
    expected = ours(models, groups(models.tokenizer))
    export_scorer(models.policy, models.tokenizer, tmp_path / "one", outputs=1)
    torch.testing.assert_close(by_transformers(tmp_path / "one")[:, 0], expected[:, 0], atol=1e-4, rtol=1e-4)
    export_scorer(models.policy, models.tokenizer, tmp_path / "both")
    torch.testing.assert_close(by_transformers(tmp_path / "both"), expected, atol=1e-4, rtol=1e-4)


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    models = built(TinyRandom())
    export_scorer(models.policy, models.tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"holds a reward model.*method=bradley_terry"):
        ModelBuilder(Pretrained(str(tmp_path)), None, "none")(Actor)
    with pytest.raises(ValueError, match="start from a language model"):
        ModelBuilder(Pretrained(str(tmp_path)), None, "none")(partial(Scorer, language_model=True))


def test_a_family_without_a_classifier_is_named(tmp_path: Path) -> None:
    from tests.helpers.tiny_models import tiny_model

    with pytest.raises(ValueError, match=r"granite.*callbacks\.export=null"):
        export_scorer(Scorer(tiny_model("granite")), prepare_tokenizer(byte_tokenizer()), tmp_path)
    with pytest.raises(ValueError, match="granite"):
        check_scorer_export(Scorer(tiny_model("granite")), prepare_tokenizer(byte_tokenizer()))
