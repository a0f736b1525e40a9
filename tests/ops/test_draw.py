"""Drawing a token: the distribution to within chance, the log-prob to rounding, and what is left out."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rlhf_lightning.ops.draw import draw
from rlhf_lightning.ops.streams import uniforms

#: Quantiles of chi-square at 1e-4 by degrees of freedom: a wrong distribution is far above, chance hardly ever.
CHI2 = {3: 21.1, 6: 27.9, 9: 33.7}


def _logits(vocabulary, rows=1, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def _counts(logits, draws, **options):
    uniform = uniforms([(11, 0)], draws)[0]
    ids, _ = draw(logits.expand(draws, -1).clone(), uniform, **options)
    return torch.bincount(ids, minlength=logits.shape[-1]).double()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_tokens_follow_the_softmax(temperature):
    logits, draws = _logits(10), 20_000
    expected = (logits[0].double() / temperature).softmax(-1) * draws
    counts = _counts(logits, draws, temperature=temperature)
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI2[9]


def test_tokens_follow_the_softmax_over_many_blocks():
    """600 tokens are two blocks and a short one; the counts are compared by parts that cross their borders."""
    logits, draws = _logits(600, scale=0.3), 30_000
    parts = torch.arange(600) * 7 // 600
    expected = torch.zeros(7, dtype=torch.float64).index_add_(0, parts, logits[0].double().softmax(-1)) * draws
    counts = torch.zeros(7, dtype=torch.float64).index_add_(0, parts, _counts(logits, draws))
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI2[6]


@pytest.mark.parametrize("vocabulary", [1, 5, 256, 257, 600, 49_152])
def test_the_smallest_and_the_largest_number_are_tokens_that_can_be(vocabulary):
    logits = _logits(vocabulary, rows=2)
    logits[:, 0], logits[:, -1] = (-torch.inf, -torch.inf) if vocabulary > 2 else (0.0, 0.0)
    uniform = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    ids, log_probs = draw(logits.clone(), uniform)
    probabilities = logits.softmax(-1)
    assert (probabilities.gather(1, ids[:, None]) > 0).all()
    assert log_probs.isfinite().all()
    if vocabulary > 2:
        assert ids.tolist() == [1, vocabulary - 2]


def test_a_token_is_where_the_cumulative_probability_passes_the_number():
    logits = _logits(700, rows=64, seed=3)
    uniform = uniforms([(0, 0)], 64)[0]
    ids, _ = draw(logits.clone(), uniform)
    reached = logits.double().softmax(-1).cumsum(-1)
    assert ids.tolist() == (reached <= uniform[:, None]).sum(-1).tolist()


@pytest.mark.parametrize("value", [-torch.inf, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}, {"top_k": 4}, {"forbidden": torch.tensor([2, 300])}])
def test_masked_tokens_are_never_drawn_and_the_others_keep_their_log_probs(value, temperature, options):
    """A whole block of 256, the first of the next and the last; what is left is a distribution of its own."""
    logits = _logits(700, rows=64, seed=2)
    logits[:, :257], logits[:, -1] = value, value
    ids, log_probs = draw(logits.clone(), uniforms([(3, 1)], 64)[0], temperature=temperature, **options)
    assert ids.min() >= 257
    assert ids.max() < 699
    expected = (logits.double() / (temperature or 1.0)).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.5}, {"top_k": 3}, {"forbidden": torch.tensor([2, 4])}])
def test_log_probs_are_of_the_whole_distribution(temperature, options):
    logits = _logits(300, rows=16)
    ids, log_probs = draw(logits.clone(), uniforms([(1, 1)], 16)[0], temperature=temperature, **options)
    expected = (logits.double() / (temperature or 1.0)).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), expected, atol=2e-6, rtol=0)
    assert log_probs.dtype == torch.float32


def test_half_precision_logits_are_computed_in_float32():
    logits = _logits(300, rows=8).bfloat16()
    ids, log_probs = draw(logits.clone(), uniforms([(1, 1)], 8)[0])
    expected = logits.double().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(log_probs.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("top_k", "top_p"), [(4, 1.0), (0, 0.6), (5, 0.7), (1, 1.0), (0, 1e-6), (50, 1.0)])
def test_top_k_and_top_p_leave_what_transformers_leaves(top_k, top_p):
    """Top-k comes first, and top-p counts the probabilities of what it left; mutation: top-p of the whole."""
    logits, draws, temperature = _logits(10, seed=5), 20_000, 0.8
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(min(top_k, 10))(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores[0].double().softmax(-1) * draws
    counts = _counts(logits, draws, temperature=temperature, top_k=top_k, top_p=top_p)
    kept = expected > 0
    assert (counts[~kept] == 0).all()
    assert float(((counts - expected)[kept] ** 2 / expected[kept]).sum()) < CHI2[9]


def test_top_p_stops_where_it_is_reached():
    """Probabilities 1/2, 1/4, 1/4: the first token alone reaches a half."""
    logits = torch.tensor([[4.0, 2.0, 2.0]]).log()
    ids, _ = draw(logits, torch.tensor([0.999], dtype=torch.float64), top_p=0.5)
    assert ids.tolist() == [0]


def test_top_p_is_a_share_of_the_whole_weight():
    """Ten tokens alike: 0.55 is reached by six of them; mutation: the weights as if they added up to 1."""
    uniform = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    ids, _ = draw(torch.zeros(50, 10), uniform, top_p=0.55)
    assert sorted(set(ids.tolist())) == [0, 1, 2, 3, 4, 5]


def test_forbidden_tokens_are_not_drawn_even_when_all_else_is_improbable():
    logits = torch.tensor([[200.0, 0.0, 1.0, -5.0]])
    counts = _counts(logits, 4000, forbidden=torch.tensor([0]))
    expected = torch.tensor([0.0, 1.0, 2.718281828, 0.006737947], dtype=torch.float64)
    expected = expected / expected.sum() * 4000
    assert counts[0] == 0
    assert float(((counts - expected)[1:] ** 2 / expected[1:]).sum()) < CHI2[3]


def test_greedy_takes_the_first_of_the_most_likely():
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 0.0, -1.0]])
    ids, _ = draw(logits, torch.zeros(2, dtype=torch.float64), temperature=0.0)
    assert ids.tolist() == [1, 0]
