"""A judge's verdicts as a reward: how often a response would win against the others of its group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.rows.judge_questions import compared
from rlhf_lightning.data.rows.records import Record, as_conversation
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.templates import render, resolve
from rlhf_lightning.losses.judge import stated_preference
from rlhf_lightning.models.sources import Dtype
from rlhf_lightning.options import Count
from rlhf_lightning.rewards.base import Scores, WinMatrix
from rlhf_lightning.rewards.log_prob import language_model
from rlhf_lightning.rewards.texts import Texts, batches, chosen_device
from rlhf_lightning.rewards.win_matrix import matrix_of, mean_wins
from rlhf_lightning.types import ComparisonBatch, Example, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class JudgeReward:
    r"""Expected score of a response in a tournament of its group, in [0, 1].

    .. math:: R(y_i) = \frac{1}{n - 1}\sum_{j \ne i} P(y_i \succ y_j)

    where P is the preference that a generative judge (``method=pairwise_judge``) states, the mean over both orders of
    the two responses. The scores of a group have mean 1/2; those of different groups say nothing of one another. With
    n responses a group is n (n - 1) questions.

    Source: the pairwise preference model of "RLHF Workflow: From Reward Modeling to Online RLHF", arXiv:2405.07863,
    section 2.2, which picks the best of n responses by a tournament.

    Args:
        tokenizer: of whoever made the token ids; None: the judge's own.
        path: folder (a run's ``export/last``) or hub id of a language model, or of an adapter for one.
        name: what its numbers are logged under.
        spec: ``comparison``, the question, ``verdicts``, its two verdicts, and the template: those that the judge was
            trained with. A judge whose tokenizer has a chat template is asked in a user's turn.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch.

    Raises:
        ValueError: the folder holds a reward model.
    """

    smallest_group = 2  #: responses that can be compared

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str,
        name: str = "judge",
        spec: DataSpec | None = None,
        dtype: Dtype = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
    ) -> None:
        self.name, self.max_tokens, self.spec = name, max_tokens, spec or DataSpec()
        self.device = chosen_device(device)
        self.model_tokenizer, self.model = language_model(path, dtype, self.device)
        self.texts = Texts(self.model_tokenizer, tokenizer)
        self.template = resolve(self.model_tokenizer, self.spec)
        self.conversation = bool(self.model_tokenizer.chat_template) and self.template is not None
        self.encoder = Encoder(self.model_tokenizer, self.spec, self.template)

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`.

        Raises:
            ValueError: a group of one response, which nothing can be compared with.
        """
        return [mean_wins(matrix) for matrix in self.win_matrix(groups)]

    @torch.no_grad()
    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[WinMatrix]:
        """See :func:`~rlhf_lightning.rewards.win_matrices`.

        Raises:
            ValueError: a group of one response, which nothing can be compared with.
        """
        for number, group in enumerate(groups):
            if len(group.samples) == 1:
                raise ValueError(
                    f"reward=judge compares the responses of a group, and group {number} has one: sample at least two"
                )
        questions = [
            (row, pair, question)
            for row, group in enumerate(groups)
            for pair, question in self._questions(group.prompt, group.responses)
        ]
        stated = self._preferences([question for _, _, question in questions])
        pairs: list[list[tuple[int, int, float | None]]] = [[] for _ in groups]
        for (row, (i, j), _), preference in zip(questions, stated, strict=True):
            pairs[row].append((i, j, preference))
        return [matrix_of(len(group.samples), each) for group, each in zip(groups, pairs, strict=True)]

    def _questions(self, prompt: Sequence[int], group: list[list[int]]) -> Iterator[tuple[tuple[int, int], Example]]:
        """Every two responses of a group, shown in both orders as the data of ``method=pairwise_judge`` shows them."""
        asked = self.texts.content(prompt)
        texts = [self.texts.text(response) for response in group]
        for pair in combinations(range(len(group)), 2):
            record = Record(asked, tuple(texts[at] for at in pair), "preference", kind="preference")
            parts = compared(as_conversation(record) if self.conversation else record, self.spec).parts
            both = [render(part, self.template) for part in parts if part is not None]
            first, swapped = self.encoder.encode(both)
            yield pair, Example(first.prompt, [*first.responses, *swapped.responses], more_prompts=(swapped.prompt,))

    def _preferences(self, questions: Sequence[Example]) -> list[float]:
        """The probability that the first response of each pair is better."""
        preferences = [0.5] * len(questions)
        for rows in batches(questions, self.max_tokens):
            batch = pack([questions[row] for row in rows], kind="comparison")
            assert isinstance(batch, ComparisonBatch)
            stated = stated_preference(*batch.to(self.device).verdicts(self.model(batch.to(self.device))))
            for row, value in zip(rows, stated.tolist(), strict=True):
                preferences[row] = value
        return preferences
