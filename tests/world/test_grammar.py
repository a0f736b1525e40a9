"""The language: its sentences, and that the parser reads every written sentence."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lightning.world import grammar
from rlhf_lightning.world.gold import parse
from rlhf_lightning.world.grammar import BAD, GOOD, MIXED, Style
from rlhf_lightning.world.samples import MAX_NEW_TOKENS
from rlhf_lightning.world.tokenizer import UNKNOWN, encode, end, tiny_tokenizer, words_of


def responses(style: Style, seed: int = 0, count: int = 4):
    draw = np.random.default_rng(seed)
    return [(prompt, grammar.response(prompt, style, draw)) for prompt in grammar.prompts() for _ in range(count)]


def test_no_subject_is_in_both_splits():
    training = {prompt.subject for prompt in grammar.prompts("train")}
    held_out = {prompt.subject for prompt in grammar.prompts("validation")}
    assert not training & held_out
    assert training | held_out == {*grammar.ANIMALS, *grammar.HAZARDS}
    assert len(grammar.prompts("train")) + len(grammar.prompts("validation")) == len(grammar.prompts())


def test_prompts_are_distinct():
    texts = [prompt.text for prompt in grammar.prompts()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("style", [MIXED, GOOD, BAD])
def test_every_response_can_be_read(style):
    """Breaks when the writer puts a part where the parser does not look for it, or a response outgrows the sampler."""
    for prompt, words in responses(style):
        assert parse(prompt, words) is not None, (prompt.text, words)
        assert len(words) + 1 <= MAX_NEW_TOKENS


def test_odds_are_those_of_the_style():
    """Means over 640 responses against the probabilities; breaks when an odd is read from the wrong field."""
    parsed_sentences = [(prompt, parse(prompt, words)) for prompt, words in responses(MIXED)]
    stated = [(p, i, value) for p, parsed in parsed_sentences for i, value in parsed.claims]
    right = np.mean([value == grammar.truth(p, i) for p, i, value in stated])
    assert right == pytest.approx(MIXED.right, abs=0.05)
    assert np.mean([parsed.hedged for _, parsed in parsed_sentences]) == pytest.approx(MIXED.hedged, abs=0.06)
    tails = np.mean([parsed.tails for _, parsed in parsed_sentences])
    assert tails == pytest.approx(sum(n * p for n, p in enumerate(MIXED.tails)), abs=0.1)
    advice = [parsed.safe for prompt, parsed in parsed_sentences if prompt.topic == "advice"]
    assert np.mean(advice) == pytest.approx(MIXED.safe, abs=0.15)


def test_faults_point_at_the_words_that_mark_them():
    prompt = next(p for p in grammar.prompts() if p.subject == "fox" and p.attribute == 0)
    words = [
        "listen",
        "fool",
        ",",
        "maybe",
        "the",
        "fox",
        "is",
        "blue",
        ",",
        "you",
        "know",
        ";",
        "now",
        "go",
        "away",
        ".",
    ]
    faults = parse(prompt, words).faults
    fault_words = {name: [words[at] for at in positions] for name, positions in faults.items()}
    assert fault_words == {"polite": ["fool", "away"], "direct": ["maybe"], "correct": ["blue"], "brief": ["know"]}


def test_ids_are_those_of_the_tokenizer():
    """In both directions, for all sentences; a word missing from the vocabulary would be unknown."""
    tokenizer = tiny_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN)
    texts = [prompt.text for prompt in grammar.prompts()] + [" ".join(words) for _, words in responses(MIXED, count=1)]
    texts += [grammar.GOOD_CONTEXT, grammar.BAD_CONTEXT, grammar.PRAISE]
    texts += [text.format("fool") for text in grammar.JUDGMENTS.values()]
    for text in texts:
        ids = encode(text)
        assert ids == tokenizer(text)["input_ids"]
        assert unknown not in ids
        assert " ".join(words_of([*ids, end(), ids[0]])) == text
        assert tokenizer.decode(ids) == text


def test_an_id_of_another_vocabulary_is_refused():
    """As when a gold reward judges the policy of another model."""
    with pytest.raises(ValueError, match=r"token 4000 is not one of the tiny world's .* words: .* Choose model=tiny"):
        words_of([end(), 4000])


def test_a_conversation_is_the_same_tokens_as_plain_text():
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": "describe the fox ."}, {"role": "assistant", "content": "the fox is red ."}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert rendered == [*encode("describe the fox . the fox is red ."), end()]
