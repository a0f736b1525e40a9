"""Settings that a model takes from its tokenizer: special tokens, and rows for tokens that were added."""

from __future__ import annotations

from rlhf_lightning.models.loading.vocabulary import align_with_tokenizer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from tests.models.pairs import pairs


def test_model_and_tokenizer_agree_on_special_tokens():
    model, tokenizer = TinyRandom().load(), TinyRandom().tokenizer()
    model.generation_config.eos_token_id = [77, 3]
    model.config.pad_token_id = model.generation_config.pad_token_id = 3
    align_with_tokenizer(model, tokenizer)
    assert model.generation_config.eos_token_id == [3, 77]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id == 0


def test_an_added_padding_token_gets_a_row(tmp_path):
    TinyRandom().load().save_pretrained(tmp_path)
    TinyRandom().tokenizer().save_pretrained(tmp_path)
    policy = ModelBuilder(Pretrained(str(tmp_path), pad_token="<|new|>"), None, "none")().policy
    assert policy.base.get_input_embeddings().weight.shape[0] == 261
    assert policy(pairs()).token.isfinite().all()
