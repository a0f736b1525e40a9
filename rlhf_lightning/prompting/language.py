"""The task of a prompt search: a language model responds to prompts with the text, and a reward scores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.data.rows.formats import convert
from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import DataError, RowError
from rlhf_lightning.data.sources.base import Source, for_kind
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.conversations import Rendered
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.prompt_transforms import prompt_text, turns_in
from rlhf_lightning.data.tokens.templates import ChatTemplate
from rlhf_lightning.models.sources import Dtype
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.options import Seed
from rlhf_lightning.prompting.base import model_location
from rlhf_lightning.prompting.instruction import Instruction, Position
from rlhf_lightning.prompting.search import Optimizer, Trial
from rlhf_lightning.rewards.asking import Ask, AskPolicy
from rlhf_lightning.rewards.base import Reward, score_groups
from rlhf_lightning.types import Sample, SampleGroup

#: Token ids of prompts -> a response to each.
Respond = Callable[[Sequence[Sequence[int]]], Sequence[Sample]]


@dataclass(frozen=True)
class Query:
    """A row of the data: the query and its columns."""

    turns: Turns
    columns: Mapping[str, Any]
    row: str


def queries_of(source: Source, spec: DataSpec) -> list[Query]:
    """Read the prompts of a source.

    Raises:
        DataError: a row cannot be read or has no prompt.
    """
    queries = []
    for row in for_kind(source, "prompt").rows():
        if row.error is not None:
            raise DataError(f"{row.id}: {row.error}")
        try:
            record = convert(row.values, spec, kind="prompt", unmapped=row.unmapped)
        except RowError as error:
            raise DataError(f"{row.id}: {error.message}") from error
        if record is not None:
            queries.append(Query(turns_in(record), {**row.values, "prompt": record.prompt}, row.id))
    return queries


class LanguageTask:
    """Rows of the data, a model that responds to them, and a reward.

    Args:
        queries: the examples.
        respond: the model, with greedy decoding.
        reward: reward of the responses; it sees the columns of the rows.
        encoder: encoder of the model's prompts.
        template: template of the prompts; None: the last turn's text.
        position: position of texts in a query.
        answer: column with the answer that is shown to the optimiser.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        respond: Respond,
        reward: Reward,
        encoder: Encoder,
        template: ChatTemplate | None,
        position: Position = "Q_end",
        answer: str = "answer",
    ) -> None:
        self.queries, self.respond, self.reward = queries, respond, reward
        self.encoder, self.template, self.position, self.answer = encoder, template, position, answer

    def __len__(self) -> int:
        return len(self.queries)

    def trials(self, text: str, examples: Sequence[int]) -> list[Trial]:
        """See :class:`~rlhf_lightning.prompting.search.Task`."""
        instruction = Instruction(text=text, position=self.position)
        prompts = [self._ids(instruction(self.queries[example].turns)) for example in examples]
        groups = [
            SampleGroup(list(ids), [sample], self.queries[example].columns, self.queries[example].row, example)
            for ids, sample, example in zip(prompts, self.respond(prompts), examples, strict=True)
        ]
        decode = self.encoder.tokenizer.decode
        responses = [str(decode(group.responses[0], skip_special_tokens=True)).strip() for group in groups]
        scores = score_groups(self.reward, groups)[0] if groups else []
        return [Trial(score, text) for (score,), text in zip(scores, responses, strict=True)]

    def shown(self, example: int, placeholder: str) -> tuple[str, str]:
        """See :class:`~rlhf_lightning.prompting.search.Task`."""
        query = self.queries[example]
        turns = Instruction(text=placeholder, position=self.position)(query.turns)
        lines = [turn["content"] if turn["role"] == "user" else f"{turn['role']}: {turn['content']}" for turn in turns]
        answer = query.columns.get(self.answer)
        return "\n".join(lines), "" if answer is None else str(answer)

    def _ids(self, turns: Turns) -> list[int]:
        templated = self.template is not None and self.template.brings_bos
        text = prompt_text(turns, self.template)
        return list(self.encoder.encode([Rendered(text, [], [], templated)])[0].prompt)


@dataclass(frozen=True)
class Temperature:
    """Temperature of proposals that changes linearly over the steps of a search.

    In step i of n, counted from 0, it is start + i / n (end - start): read in ``opro/optimization/opt_utils.py`` of
    google-deepmind/opro, whose ``linear_increase`` this is; its default is a constant. A falling one is our addition.

    Args:
        start: temperature of the first step.
        end: target; the last of n steps has gone (n - 1) / n of the way to it.
        steps: steps of the search.
    """

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        """Temperature of a step, counted from 1."""
        return self.start + (step - 1) / max(self.steps, 1) * (self.end - self.start)


class LocalModel:
    """A language model in this process that writes new prompts.

    Args:
        path: folder of a run, of weights or of an adapter, or a hub id.
        dtype: dtype of the weights.
        device: ``auto`` uses CUDA if it is available.
    """

    def __init__(self, path: str, *, dtype: Dtype = "float32", device: str = "auto") -> None:
        self.path, self.dtype, self.device = model_location(path, "proposer.path"), dtype, device
        self._ask: Ask | None = None

    def ask_each(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], *, max_tokens: int, temperature: float, seed: int
    ) -> Sequence[str | None]:
        """See :class:`~rlhf_lightning.rewards.asking.Ask`."""
        if self._ask is None:
            from rlhf_lightning.rewards.log_prob import language_model
            from rlhf_lightning.rewards.texts import chosen_device

            tokenizer, actor = language_model(self.path, self.dtype, chosen_device(self.device))
            self._ask = AskPolicy(tokenizer, Sampler(actor))
        return self._ask.ask_each(conversations, max_tokens=max_tokens, temperature=temperature, seed=seed)


@dataclass(frozen=True)
class Sampler:
    """An actor that replies to questions, as needed by :class:`~rlhf_lightning.rewards.asking.AskPolicy`."""

    policy: Any

    def sample(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """Sample one response to each prompt; see :func:`~rlhf_lightning.models.decoding.generation.generate`."""
        from rlhf_lightning.models.decoding.generation import generate

        return generate(self.policy, prompts, **options)


def optimizer_of(proposer: Ask, temperature: float | Temperature, max_tokens: int) -> Optimizer:
    """Make the optimiser of a search: several replies to one question, each with its own seed.

    Args:
        proposer: the model that replies.
        temperature: temperature of the replies: a number, or a schedule over the steps.
        max_tokens: maximum tokens of a reply.
    """

    def answers(question: str, count: int, seed: Seed, step: int = 1) -> list[str]:
        now = temperature if isinstance(temperature, float | int) else temperature(step)
        conversation = [{"role": "user", "content": question}]
        seeds = [stream_seed("proposal", seed, number) % 2**31 for number in range(count)]
        written = [
            proposer.ask_each([conversation], max_tokens=max_tokens, temperature=now, seed=each)[0] for each in seeds
        ]
        return [text for text in written if text is not None]

    return answers
