"""Rewards that put a question to a judge: a template of one's own, or a question that has a name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from rlhf_lightning.rewards.graders.templates import Context, FieldError, Template
from rlhf_lightning.rewards.text_reward import TextReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_POINTS = """Judge an assistant's response to a user. Begin at 0 points and go through these five tests in order. Each
test that the response passes earns one point; stop at the first one that it fails.

1. It is about what the user asked, and some of it is of use, even if parts are missing or beside the point.
2. It covers a good part of the request, though it need not settle all of it.
3. It answers the heart of the request in a useful way, whoever may have written it.
4. It speaks to the user as an assistant should: direct, complete, well organised, with little left to improve.
5. It is made for this very request, shows expert knowledge, and holds nothing that could be left out.

User:
{{ item.prompt }}

Response:
{{ sample.output_text }}
"""

#: The additive scale of "Self-Rewarding Language Models", arXiv:2401.10020, in our own words. ``additive``: reasons
#: first, then a line with the score; ``additive_score``: the score alone, for judges whose next token is read.
QUESTIONS: Mapping[str, str] = {
    "additive": f"{_POINTS}\nGive your reasons in at most 100 words. Then end with one line, the number of points:\n"
    "Score: n",
    "additive_score": f"{_POINTS}\nGive the number of points, from 0 to 5, in one line and nothing else:\nScore: n",
}


def question_of(name: str) -> str:
    """The question of that name; a text that is no name is a question itself."""
    return QUESTIONS.get(name, name)


class QuestionReward(TextReward):
    """A reward that renders a question about responses, with the columns of the prompt's row.

    Args:
        tokenizer: of whoever made the token ids.
        name: what its numbers are logged under.
        question: a template or a name of :data:`QUESTIONS`.
        fields: fields of ``item`` that do not come from the data.

    Raises:
        ValueError: no tokenizer, or a broken template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, name: str, question: str, fields: Collection[str] = ("prompt",)
    ) -> None:
        super().__init__(tokenizer, name)
        self._template, self._fields = Template(question_of(question), "reward.question"), frozenset(fields)

    @property
    def reads_columns(self) -> bool:
        """The question may show any column."""
        return True

    def check_columns(self, columns: Collection[str]) -> None:
        """Hold the question against the columns of the data.

        Raises:
            ValueError: a column is missing; the message names it and the closest one.
        """
        self._template.check({*columns, *self._fields})

    def rendered(self, context: Context) -> str:
        """The question.

        Raises:
            ValueError: the data lacks what it shows.
        """
        try:
            return self._template.render(context)
        except FieldError as error:
            raise ValueError(f"reward {self.name!r} cannot ask its question: {error}") from error
