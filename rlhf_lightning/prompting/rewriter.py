"""Another model's wording of the query: alignment of a model that cannot be trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.models.decoding.generation import sample
from rlhf_lightning.models.sources import Dtype
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.options import Count, NonNegative, PositiveShare, Seed
from rlhf_lightning.prompting.base import Transform, content_digest, model_location, query_of, with_query
from rlhf_lightning.types import Sampling

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor

#: Question to a rewriter, in training and in use.
QUESTION = "Rewrite this prompt so that an assistant gives the most helpful and harmless response to it:\n{prompt}"
#: Marks of the construction of its data that a rewriter may have learned to write (thu-coai/BPO).
MARKS = ("[PROTECT", "[KEEP", "[INSTRUCTION]")
#: Aggressive mode (thu-coai/BPO): samples, their temperature, and minimum extra tokens of a rewrite over the query.
_SAMPLES, _TEMPERATURE, _LONGER = 5, 0.9, 5


@dataclass
class Rewriter(Transform):
    """Black-box prompt optimization (BPO): a small model rewrites the last user turn, another one responds to it.

    The rewriter gets ``question`` in its own chat template. An empty rewrite leaves the query unchanged. With
    ``aggressive``, five samples at temperature 0.9 are drawn, each at least five tokens longer than the query and of
    one line; the first one without a mark of the construction is used, else the query stays.

    Source: "Black-Box Prompt Optimization: Aligning Large Language Models without Model Training", arXiv:2311.04155;
    settings of thu-coai/BPO.
    Differences: there the aggressive mode bans the marks token by token and shows all five;
    the question is our own wording, so the authors' weights need the authors' question.

    Args:
        path: folder of the run that trained the rewriter, of its weights or its adapter, or a hub id.
        question: question to the rewriter, with ``{prompt}``, as in its training.
        temperature: temperature of the rewrite; 0 is greedy.
        top_p: nucleus of the rewrite.
        max_new_tokens: maximum tokens of the rewrite.
        aggressive: use the aggressive mode, see above.
        batch_size: rewrites decoded together.
        seed: seed of the samples; a rewrite depends only on it and on the query.
        dtype: dtype of the weights.
        device: ``auto`` uses CUDA if it is available.

    Raises:
        ValueError: the question lacks ``{prompt}``, the folder does not exist, or the run has no export.
    """

    path: str
    question: str = QUESTION
    temperature: NonNegative = 0.6
    top_p: PositiveShare = 0.9
    max_new_tokens: Count = 1024
    aggressive: bool = False
    batch_size: Count = 16
    seed: Seed = 0
    dtype: Dtype = "float32"
    device: str = "auto"
    _rewritten: dict[str, str] = field(init=False, repr=False, default_factory=dict)
    _loaded: Any = field(init=False, repr=False, default=None)

    not_content: ClassVar[tuple[str, ...]] = ("batch_size", "device")

    def __post_init__(self) -> None:
        """Check the question."""
        if "{prompt}" not in self.question:
            raise ValueError(f"prompting.question={self.question!r} must contain {{prompt}}")
        self.path = model_location(self.path, "prompting.path")

    def __call__(self, turns: Turns) -> Turns:
        """Rewrite the query of the turns; the turns are unchanged if the rewrite equals the query."""
        query = turns[query_of(turns)]["content"]
        self.prepare([turns])
        return turns if self._rewritten[query] == query else with_query(turns, self._rewritten[query])

    def prepare(self, conversations: Sequence[Turns]) -> None:
        """Rewrite many queries together."""
        queries = dict.fromkeys(turns[query_of(turns)]["content"] for turns in conversations)
        missing = [query for query in queries if query not in self._rewritten]
        if missing:
            self._rewritten |= zip(missing, self.rewrites(missing), strict=True)

    def content(self) -> Mapping[str, Any]:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`.

        A folder of the rewriter counts by content.
        """
        kept = {name: value for name, value in super().content().items() if name not in self.not_content}
        return {**kept, "path": content_digest(self.path)}

    def rewrites(self, queries: Sequence[str]) -> list[str]:
        """Return one rewrite per query."""
        tokenizer, actor = self._model()
        asked = [self._asked(tokenizer, query) for query in queries]
        if self.aggressive:
            return [self._aggressive(tokenizer, actor, *pair) for pair in zip(queries, asked, strict=True)]
        drawn = sample(
            actor,
            asked,
            Sampling(self.max_new_tokens, self.temperature, self.top_p if self.temperature else 1.0),
            streams=[(stream_seed("rewriter", self.seed, *ids), 0) for ids in asked],
            batch_size=self.batch_size,
        )
        texts = [str(tokenizer.decode(one.ids, skip_special_tokens=True)) for one in drawn]
        # A copy changes nothing, white space around it included.
        return [
            query if text.strip() in ("", query.strip()) else text.strip()
            for query, text in zip(queries, texts, strict=True)
        ]

    def _aggressive(self, tokenizer: Any, actor: Actor, query: str, asked: list[int]) -> str:
        least = len(tokenizer(query, add_special_tokens=False)["input_ids"]) + _LONGER
        if least > self.max_new_tokens:
            return query
        line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
        seed = stream_seed("rewriter", self.seed, *asked)
        drawn = sample(
            actor,
            [asked] * _SAMPLES,
            Sampling(self.max_new_tokens, _TEMPERATURE, self.top_p, min_new_tokens=least, stop=(line_break,)),
            streams=[(seed, number) for number in range(_SAMPLES)],
        )
        texts = (str(tokenizer.decode(one.ids, skip_special_tokens=True)).strip() for one in drawn)
        return next((text for text in texts if text and not marked(text)), query)

    def _asked(self, tokenizer: Any, query: str) -> list[int]:
        from rlhf_lightning.rewards.asking import conversation_ids

        return conversation_ids(tokenizer, [{"role": "user", "content": self.question.replace("{prompt}", query)}])

    def _model(self) -> tuple[Any, Actor]:
        """Tokenizer and weights of the rewriter, loaded at the first query."""
        if self._loaded is None:
            from rlhf_lightning.rewards.log_prob import language_model

            cuda = self.device == "auto" and torch.cuda.is_available()
            device = torch.device("cuda" if cuda else "cpu" if self.device == "auto" else self.device)
            self._loaded = language_model(self.path, self.dtype, device)
        loaded: tuple[Any, Actor] = self._loaded
        return loaded


def marked(text: str) -> bool:
    """Check if a rewrite has a mark of the construction of the data."""
    return any(mark in text for mark in MARKS)
