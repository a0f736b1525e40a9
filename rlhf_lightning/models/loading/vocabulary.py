"""Vocabularies of models that belong together: a model and its tokenizer, a policy and what is held against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from rlhf_lightning.models.loading.naming import ADDED_ROWS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def align_with_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell the model its tokenizer's special tokens, and give it rows for tokens that were added.

    Generation then stops at the tokenizer's EOS as well as at the model's own ends (Llama 3 has several).
    """
    if needs_rows(model, tokenizer):
        rows = cast("nn.Embedding", model.get_input_embeddings()).num_embeddings
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        setattr(model, ADDED_ROWS, range(rows, len(tokenizer)))
    generation = cast("Any", getattr(model, "generation_config", None))
    model.config.pad_token_id = tokenizer.pad_token_id
    if generation is None:  # a reward model
        return
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    ends = [tokenizer.eos_token_id, *(end for end in ends if end not in (None, tokenizer.eos_token_id))]
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    generation.pad_token_id = tokenizer.pad_token_id


def needs_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has tokens that the model has no embeddings for."""
    return len(tokenizer) > cast("nn.Embedding", model.get_input_embeddings()).num_embeddings


def difference(tokenizer: PreTrainedTokenizerBase, expected: PreTrainedTokenizerBase, name: str) -> str | None:
    """Difference between a vocabulary and the one that it should equal, as the rest of a sentence; None without one.

    Args:
        tokenizer: whose vocabulary is looked at.
        expected: whose it should equal.
        name: of the model of the latter.
    """
    ids, expected_ids = tokenizer.get_vocab(), expected.get_vocab()
    if ids == expected_ids:
        return None
    both = ids.keys() | expected_ids.keys()
    names = sorted(token for token in both if ids.get(token) != expected_ids.get(token))
    return (
        f"has another vocabulary than {name}: {len(ids)} tokens and {len(expected_ids)}, {len(names)} of them differ, "
        f"for example {names[0]!r}"
    )
