"""The majority of a group as its label: test-time reinforcement learning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from rlhf_lightning.rewards.answers import Extractor, accepted, normalized
from rlhf_lightning.rewards.equivalence import Equivalence
from rlhf_lightning.rewards.text_reward import TextReward
from rlhf_lightning.types import SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MajorityVote(TextReward):
    r"""1 for the responses whose answer is the most common one of their group, else 0; no labels are read.

    .. math:: R(y_i) = 1\big[a_i \equiv \hat a\big],\quad \hat a = \operatorname{mode}(a_1, \dots, a_n)

    A response without an answer does not vote and gets 0. Of answers with equally many votes the one that was sampled
    first wins. A group without any answer has no label and no scores.

    Where the data has an answer it is used for :meth:`metrics` alone.

    Source: "TTRL: Test-Time Reinforcement Learning", arXiv:2504.16084, and its code.
    Differences: that code counts votes for texts and compares with equivalence afterwards; here answers are normalised
    before they vote, and ``cluster=math`` lets equivalent ones vote together. There, responses without an answer vote
    for "", which can win.

    Args:
        tokenizer: of whoever made the token ids.
        extract: where the answer stands: ``final`` is the paper's order (:mod:`rlhf_lightning.rewards.answers`); others
            and functions as in :class:`~rlhf_lightning.rewards.ExactMatch`.
        cluster: answers vote together if their normalised spellings are equal (``normalized``), or also if they are
            the same mathematical object (``math``, which needs math-verify).
        column: of the data, with the true answer, where there is one.
        name: what its numbers are logged under.

    Raises:
        ValueError: an unknown ``extract`` or ``cluster``.
        ImportError: ``cluster=math`` without math-verify.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        extract: str | Callable[..., str | None] = "final",
        cluster: Literal["normalized", "math"] = "normalized",
        column: str = "answer",
        name: str = "majority",
    ) -> None:
        if cluster not in ("normalized", "math"):
            raise ValueError(f"reward.cluster={cluster!r} is neither normalized nor math")
        super().__init__(tokenizer, name)
        self.extract, self.answer = Extractor(extract), column
        self.same: Callable[[str, str], bool] = Equivalence().same if cluster == "math" else _same_spelling

    @property
    def reads_columns(self) -> bool:
        """The true answer is read where it is there."""
        return True

    def group(self, group: SampleGroup) -> list[float | None]:
        """1 for the majority, 0 for the others, None where nobody answered."""
        prompt = self.prompt(group)
        answers = [self.extract(prompt, self.texts.text(ids), group.columns) for ids in group.responses]
        votes = self.clusters(answers)
        counts = Counter(vote for vote in votes if vote is not None)
        # The first of the largest: a Counter keeps the order in which answers were met.
        winner = max(counts, key=counts.__getitem__) if counts else None
        voted = [vote is not None and vote == winner for vote in votes]
        self.count(groups=1, responses=len(votes), no_answer=votes.count(None), no_label=winner is None)
        if winner is not None:
            self.count(labelled=1, majority_ratio=sum(voted) / len(votes), distinct=len(counts) / len(votes))
            self._hold_against(accepted(group.columns.get(self.answer)), answers, voted)
        return [None if winner is None else float(vote) for vote in voted]

    def clusters(self, answers: Sequence[str]) -> list[int | None]:
        """For each answer the number of the first one that it equals; None for one that is empty."""
        firsts: dict[int, str] = {}
        numbers: list[int | None] = []
        for number, answer in enumerate(answers):
            if not normalized(answer):
                numbers.append(None)
                continue
            home = next((first for first, other in firsts.items() if self.same(other, answer)), number)
            firsts.setdefault(home, answer)
            numbers.append(home)
        return numbers

    def metrics(self) -> dict[str, float]:
        """Means over the groups since the last call.

        Returns:
            ``majority_ratio``: share of the responses that agree with the label; ``distinct``: different answers a
            response; ``no_answer``: share of the responses; ``no_label``: share of the groups. Where the data has true
            answers: ``label_accuracy``: share of the groups whose label is right; ``reward_accuracy``: share of the
            responses whose reward is what the true answer would give; it is the larger one, since wrong answers that
            differ from a wrong label are rightly given 0; ``ground_truth_ratio``: share of the responses that are
            right; ``pass@N``: share of the groups with a right response.
        """
        counts, self._counts = self._counts, Counter()
        if not counts["groups"]:
            return {}
        means = {"no_answer": counts["no_answer"] / max(counts["responses"], 1)}
        means["no_label"] = counts["no_label"] / counts["groups"]
        for count, names in (
            ("labelled", ("majority_ratio", "distinct")),
            ("judged", ("label_accuracy", "reward_accuracy", "ground_truth_ratio", "pass@N")),
        ):
            if counts[count]:
                means |= {name: counts[name] / counts[count] for name in names}
        return means

    def _hold_against(self, truths: list[str], answers: Sequence[str], voted: Sequence[bool]) -> None:
        if not truths:
            return
        right = [bool(answer) and any(self.same(truth, answer) for truth in truths) for answer in answers]
        self.count(
            **{
                "judged": 1,
                "label_accuracy": right[voted.index(True)],
                "reward_accuracy": sum(a == b for a, b in zip(right, voted, strict=True)) / len(right),
                "ground_truth_ratio": sum(right) / len(right),
                "pass@N": any(right),
            }
        )


def _same_spelling(one: str, other: str) -> bool:
    return normalized(one) == normalized(other)
