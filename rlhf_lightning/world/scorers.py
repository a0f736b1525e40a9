"""Rewards of the tiny world: its gold reward, safety as a cost, right claims, and a cyclic preference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_lightning.types import SampleGroup
from rlhf_lightning.world.base import TinyWorld
from rlhf_lightning.world.claims import stated, truth
from rlhf_lightning.world.evaluator import TinyEvaluator
from rlhf_lightning.world.gold import WEIGHTS, Gold, Parsed
from rlhf_lightning.world.preference import STYLES, cyclic_win, exploitability, label, style, win
from rlhf_lightning.world.tokenizer import VOCABULARY, encode, end, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scores = list[list[float | None]]


class GoldScorer:
    """The gold reward as a reward, ``reward=gold``; it is then no longer hidden from the method.

    Args:
        tokenizer: the policy's, which must be the tiny world's.
        base: whose world; None: the default one.

    Raises:
        ValueError: another tokenizer.
    """

    name = "gold"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, base: TinyWorld | None = None) -> None:
        if len(tokenizer) != len(VOCABULARY) or tokenizer.eos_token_id != end():
            raise ValueError(
                f"reward={self.name} judges only the tiny world's words: set model=tiny, or choose another reward"
            )
        self.world = TinyEvaluator(base)

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """Gold rewards of whole groups, in points."""
        return [[gold.reward for gold in group] for group in self._judged(groups)]

    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]]:
        """Win probabilities by the Bradley-Terry model; see :func:`rlhf_lightning.rewards.win_matrices`."""
        points = [[0.0 if score is None else score for score in row] for row in self(groups)]
        return [[[win(one, other) for other in row] for one in row] for row in points]

    def _judged(self, groups: Sequence[SampleGroup]) -> list[list[Gold]]:
        return [[self.world.gold(self.question(group), ids) for ids in group.responses] for group in groups]

    def question(self, group: SampleGroup) -> list[int]:
        """Original prompt: the row's prompt if ``prompting=...`` gave the model another one."""
        asked = group.columns.get("prompt")
        ids = encode(asked) if isinstance(asked, str) else []
        return ids if ids and self.world.knows(ids) else [*group.prompt]


class LabelScorer(GoldScorer):
    """Scores of an erring labeller, ``reward=gold_labels``, so that gold remains a measure that no run trains on.

    The error of a response is always the same, and the same as in pairs, lists and labels drawn with
    ``data.source.error``.

    Args:
        tokenizer: the policy's, which must be the tiny world's.
        base: whose world; None: the default one.
        error: its standard deviation, in points; 1, our choice, flips the label of one in six pairs of the base.

    Raises:
        ValueError: another tokenizer, or a negative error.
    """

    name = "gold_labels"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, base: TinyWorld | None = None, *, error: float = 1.0
    ) -> None:
        super().__init__(tokenizer, base)
        if error < 0:
            raise ValueError(f"reward.error={error} must be at least 0: it is the standard deviation of the labels")
        self.error = error

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """Labels of whole groups, in points."""
        return [
            [
                self._label(self.question(group), ids, gold.reward)
                for ids, gold in zip(group.responses, judged, strict=True)
            ]
            for group, judged in zip(groups, self._judged(groups), strict=True)
        ]

    def _label(self, prompt: Sequence[int], response: Sequence[int], gold: float) -> float:
        return label(self.world.prompt(prompt), words_of(list(response)), gold, self.error)


class StepScorer(GoldScorer):
    """The gold reward by steps, ``reward=gold_steps``.

    Each claim or advice is a step whose reward is its part of the features ``correct`` and ``safe``; the rest (manners,
    length, form) is given at the last token, so that the steps add up to the gold reward.

    Args:
        tokenizer: the policy's, which must be the tiny world's.
        base: whose world; None: the default one.

    Raises:
        ValueError: another tokenizer.
    """

    name = "gold_steps"

    def step_reward(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]]:
        """Points of each step at the token that ends it; nan elsewhere."""
        return [[self._steps(self.question(group), ids) for ids in group.responses] for group in groups]

    def _steps(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        gold, asked = self.world.gold(prompt, response), self.world.prompt(prompt)
        steps, parsed = [math.nan] * len(response), gold.parsed or Parsed()
        for position in parsed.ends:
            wrong = any(position in parsed.faults.get(name, ()) for name in ("correct", "safe"))
            points = WEIGHTS["safe"] if asked.topic == "advice" else WEIGHTS["correct"] / len(asked.asked)
            steps[position] = -points if wrong else points
        earned = math.fsum(points for points in steps if not math.isnan(points))
        last = 0.0 if math.isnan(steps[-1]) else steps[-1]
        steps[-1] = last + gold.reward - earned
        return steps


class SafetyScorer(GoldScorer):
    """Helpfulness as a reward and harm as a cost that pull in opposite directions, ``reward=gold_safety``.

    The term ``reward`` is the gold reward without the feature ``safe``, plus a temptation: unsafe advice earns points.
    The term ``cost`` is 1 for unsafe advice, -1 for safe advice and 0 where there is none, so its sign is the safety
    label, like that of the cost model of Safe RLHF (arXiv:2310.12773, section 3.2). Maximising the reward alone leads
    to unsafe advice; a limit on the mean cost works against it.

    Args:
        tokenizer: the policy's, which must be the tiny world's.
        base: whose world; None: the default one.
        temptation: points that unsafe advice earns; 2, our choice, is what the gold reward gives for safe advice.

    Raises:
        ValueError: another tokenizer, or a negative temptation.
    """

    name = "gold_safety"
    costs = frozenset({"cost"})
    term_names = frozenset({"reward", "cost"})

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, base: TinyWorld | None = None, *, temptation: float = 2.0
    ) -> None:
        super().__init__(tokenizer, base)
        if temptation < 0:
            raise ValueError(f"reward.temptation={temptation} must be at least 0: it is the reward of unsafe advice")
        self.temptation = temptation

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """The term ``reward`` alone."""
        return self.combine(self.terms(groups))

    def terms(self, groups: Sequence[SampleGroup]) -> dict[str, Scores]:
        """``reward``, in points, and ``cost``, in [-1, 1], of each response."""
        judged = self._judged(groups)
        return {
            "reward": [[self._helpful(gold) for gold in group] for group in judged],
            "cost": [[_cost(gold) for gold in group] for group in judged],
        }

    def combine(self, terms: Mapping[str, Scores]) -> Scores:
        """Return the reward; the cost is not part of it and is left to methods that limit it."""
        return terms["reward"]

    def _helpful(self, gold: Gold) -> float:
        harmless = gold.reward - WEIGHTS["safe"] * (gold.features["safe"] or 0.0)
        return harmless + self.temptation * max(_cost(gold), 0.0)


def _cost(gold: Gold) -> float:
    return -(gold.features["safe"] or 0.0)


class CorrectScorer(GoldScorer):
    """1 for a response that claims what is true, 0 for any other, ``reward=gold_correct``.

    A description must state all three facts; advice must be safe. ``metrics`` counts over whole groups of k responses
    to a prompt: ``pass@1``, the share of right responses; ``pass@k``, the share of prompts with a right one;
    ``majority``, the share of prompts whose most frequent claim is right (of equally frequent ones the first).

    Args:
        tokenizer: the policy's, which must be the tiny world's.
        base: whose world; None: the default one.

    Raises:
        ValueError: another tokenizer.
    """

    name = "gold_correct"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, base: TinyWorld | None = None) -> None:
        super().__init__(tokenizer, base)
        self._sums: Counter[str] = Counter()

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """0 or 1 for each response."""
        return [self._checked(group) for group in groups]

    def _checked(self, group: SampleGroup) -> list[float | None]:
        prompt = self.world.prompt(self.question(group))
        claims = [stated(prompt, words_of(ids)) for ids in group.responses]
        right = [claim == truth(prompt) for claim in claims]
        votes = Counter(claim for claim in claims if claim is not None).most_common(1)
        elected = bool(votes) and votes[0][0] == truth(prompt)
        self._sums.update({"groups": 1, "responses": len(right), "right": sum(right)})
        self._sums.update({"pass@k": any(right), "majority": elected})
        return [float(is_right) for is_right in right]

    def metrics(self) -> dict[str, float]:
        """``pass@1``, ``pass@k`` and ``majority`` since the last call; empty when nothing was scored."""
        sums, self._sums = self._sums, Counter()
        if not sums["responses"]:
            return {}
        shares = {name: sums[name] / sums["groups"] for name in ("pass@k", "majority")}
        return {"pass@1": sums["right"] / sums["responses"], **shares}


class CyclicScorer(GoldScorer):
    """A preference without a best response, ``reward=cyclic``: polite beats plain, plain beats rude, rude beats polite.

    Methods of general preferences (SPPO, Nash-MD) learn from its win matrix; no score can represent it. As a reward, a
    response gets the mean probability of beating the others of its group. ``metrics`` has the share of each style and
    ``exploitability``, see :func:`~rlhf_lightning.world.preference.exploitability`: it is 0 for an even mixture of the
    three styles, the only policy that no other policy beats.

    Args:
        tokenizer: the policy's, which must be the tiny world's.
        base: whose world; None: the default one.
        strength: probability that the better style wins.

    Raises:
        ValueError: another tokenizer, or a strength that is no advantage.
    """

    name = "cyclic"
    smallest_group = 2

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, base: TinyWorld | None = None, *, strength: float = 0.9
    ) -> None:
        super().__init__(tokenizer, base)
        if not 0.5 < strength <= 1:
            raise ValueError(f"reward.strength={strength} must lie in (0.5, 1]: it is the win rate of the better style")
        self.strength = strength
        self._styles: list[str | None] = []

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """Compute the mean probability of beating another response of the group."""
        return [
            [(sum(row) - row[index]) / (len(row) - 1) if len(row) > 1 else None for index, row in enumerate(matrix)]
            for matrix in self.win_matrix(groups)
        ]

    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]]:
        """See :func:`rlhf_lightning.rewards.win_matrices`."""
        styles = [[style(gold) for gold in group] for group in self._judged(groups)]
        self._styles += [each for group in styles for each in group]
        return [[[cyclic_win(a, b, self.strength) for b in group] for a in group] for group in styles]

    def metrics(self) -> dict[str, float]:
        """Share of each style, and ``exploitability``, since the last call; empty when nothing was scored."""
        styles, self._styles = self._styles, []
        if not styles:
            return {}
        shares = {f"style/{name}": styles.count(name) / len(styles) for name in STYLES}
        return {**shares, "exploitability": exploitability(styles, self.strength)}
