"""The evaluator: gold rewards of token ids, held-out responses of the base."""

from __future__ import annotations

import torch

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.world import TinyEvaluator, TinyWorld, grammar
from rlhf_lightning.world.tokenizer import encode, end

FOX = encode("what colour is the fox ?")
RIGHT, WRONG = ([*encode(f"the fox is {colour} ."), end()] for colour in ("red", "blue"))


def test_scores_of_ids_are_those_of_words():
    scores = TinyEvaluator().scores(FOX, RIGHT)
    assert scores == {"reward": 3.0, "correct": 1.0, "polite": 0.0, "brief": 0.0, "direct": 0.0, "form": 1.0}


def test_held_out_prompts_are_the_validation_split():
    assert TinyEvaluator().prompts() == [encode(prompt.text) for prompt in grammar.prompts("validation")]


def test_held_out_responses_have_their_own_numbers():
    """Log-probs and gold rewards belong to the responses of the batch: computed again, prompt by prompt."""
    batch, gold, log_probs = TinyEvaluator(responses=3).held_out()
    with torch.no_grad():
        again = Actor(TinyWorld().load())(batch).sum().reshape(-1, 3)
    torch.testing.assert_close(torch.tensor(log_probs), again, atol=1e-3, rtol=1e-4)
    asked = grammar.prompts("validation")
    world = TinyEvaluator()
    for prompt, row, spans in zip(asked, gold, batch.response_span.reshape(-1, 3, 2), strict=True):
        responses = [batch.ids[start:stop].tolist() for start, stop in spans]
        assert row == [world.gold(encode(prompt.text), response).reward for response in responses]
