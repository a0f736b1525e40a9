"""The template beside exported weights renders the ids that were trained on, to the last token."""

from __future__ import annotations

import pytest

from rlhf_lightning.chat_templates import exported_tokenizer
from rlhf_lightning.data import AlignmentDataModule, DataSpec
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

STYLES = {**tokenizers.STYLES, "bytes": byte_tokenizer}
#: Has a switch, as templates with reasoning do.
SWITCHED = "{% if brief is defined and brief %}{{ 'Be brief.\n' }}{% endif %}" + tokenizers.CHATML


def pairs(turns=1):
    exchange = [{"role": "user", "content": "hi?"}, {"role": "assistant", "content": "so it is."}]
    history = exchange * (turns - 1)
    chosen, rejected = ([*history, exchange[0], {"role": "assistant", "content": text}] for text in ("Yes.", "hi hi"))
    return Rows(*[{"chosen": chosen, "rejected": rejected}] * 2), (chosen, rejected)


def trained_and_rendered(tokenizer, turns=1, *, ends_at_score=True, **options):
    """Ids of both responses with their prompt, as they are trained, and as the exported template gives them."""
    source, conversations = pairs(turns)
    data = AlignmentDataModule(source, tokenizer, spec=DataSpec(cache=False, **options))
    data.setup("fit")
    example = data.train_examples[0]
    exported = exported_tokenizer(tokenizer, data.trained_template(), ends_at_score=ends_at_score)
    rendered = [exported.apply_chat_template(turns, return_dict=False) for turns in conversations]
    return [[*example.prompt, *response] for response in example.responses], rendered, exported


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("style", STYLES)
def test_conversations_end_where_the_score_is_read(style, turns):
    tokenizer = STYLES[style]()
    before = tokenizer.chat_template
    trained, rendered, exported = trained_and_rendered(tokenizer, turns, boundary="prefix")
    assert rendered == trained
    assert tokenizer.chat_template == before
    assert exported.eos_token == tokenizer.eos_token


@pytest.mark.parametrize("style", STYLES)
def test_prompts_stay_as_they_were(style):
    """Generation starts from the same prompt with and without the changed ending."""
    tokenizer = STYLES[style]()
    source, (chosen, _) = pairs()
    data = AlignmentDataModule(source, tokenizer, spec=DataSpec(cache=False))
    data.setup("fit")
    plain, ending = (exported_tokenizer(tokenizer, data.trained_template(), ends_at_score=end) for end in (False, True))
    for turns in (chosen[:1], [*chosen, chosen[0]]):
        first, second = (
            t.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for t in (plain, ending)
        )
        assert first == second


def test_the_template_of_the_data_goes_out():
    """data.spec.template is what was trained on, whatever the tokenizer came with."""
    trained, rendered, exported = trained_and_rendered(tokenizers.llama_like(), template="chatml")
    assert rendered == trained
    assert "<|im_start|>" in exported.chat_template
    trained, rendered, _ = trained_and_rendered(tokenizers.llama_like(), template="plain", boundary="prefix")
    assert rendered == trained
    assert trained[0][0] == tokenizers.BOS


def test_arguments_of_the_template_become_its_defaults():
    options = {"template_arguments": {"brief": True}}
    trained, rendered, exported = trained_and_rendered(tokenizers.qwen_like(SWITCHED), **options)
    assert rendered == trained
    turns = [{"role": "user", "content": "a"}]
    assert "Be brief." in exported.apply_chat_template(turns, tokenize=False)
    assert "Be brief." not in exported.apply_chat_template(turns, tokenize=False, brief=False)


def test_a_bos_that_the_data_asked_for():
    tokenizer = tokenizers.default_system()
    trained, rendered, _ = trained_and_rendered(tokenizer, bos=True)
    assert rendered == trained
    tokenizer = tokenizers.llama_like(tokenizers.CHATML)
    trained, rendered, _ = trained_and_rendered(tokenizer, bos=True)
    assert rendered == trained
    assert trained[0][:2].count(tokenizers.BOS) == 1


def test_a_policy_keeps_the_template_of_its_tokenizer():
    """Nothing is rewritten that need not be: the text of the template is the model maker's."""
    tokenizer = tokenizers.qwen_like()
    _, _, exported = trained_and_rendered(tokenizer, ends_at_score=False)
    assert exported is tokenizer


def test_rows_of_plain_text_leave_the_template_alone():
    source = Rows({"prompt": "a", "chosen": "b", "rejected": "c"})
    data = AlignmentDataModule(source, tokenizers.gpt2_like(), spec=DataSpec(cache=False))
    data.setup("fit")
    assert data.trained_template() is None


def test_a_template_that_cannot_be_changed_is_reported(caplog):
    """It renders another conversation than it is given, so nobody can say where a response ends."""
    tokenizer = tokenizers.qwen_like("{{ messages | length }}")
    assert exported_tokenizer(tokenizer, ends_at_score=True) is tokenizer
    assert "does not end where the score is read" in caplog.text
