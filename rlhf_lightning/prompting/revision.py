"""Critique and revision of a model's own responses under principles: preference pairs without a labeller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.records import say
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.options import Count
from rlhf_lightning.prompting.base import texts_of
from rlhf_lightning.prompting.revision_texts import PRINCIPLES, REVISION_ONLY

Form = TypeVar("Form", "Principle", "Example")
#: Responses to conversations, one each.
Respond = Callable[[Sequence[Turns]], Sequence[str]]


@dataclass(frozen=True)
class Principle:
    """A principle: a request for a critique and a request for a revision."""

    name: str
    critique: str
    revise: str


@dataclass(frozen=True)
class Example:
    """A worked example of the whole chain, shown in front of every conversation."""

    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str

    def turns(self) -> Turns:
        """Turns of the whole conversation."""
        users = (self.prompt, self.critique_request, self.revision_request)
        assistants = (self.response, self.critique, self.revision)
        spoken = zip(users, assistants, strict=True)
        return [turn for user, text in spoken for turn in (say("user", user), say("assistant", text))]


@dataclass
class Revised:
    """A response on its way through the chain."""

    turns: Turns
    response: str
    revision: str
    principles: list[Principle]
    critiques: list[str] = field(default_factory=list)

    @property
    def pair(self) -> bool:
        """True if the revision is not empty and differs from the response."""
        return self.revision.strip() not in ("", self.response.strip())

    def row(self) -> dict[str, Any]:
        """Preference row of turns: the revision is chosen, the first response rejected."""
        return {
            "prompt": self.turns,
            "chosen": [say("assistant", self.revision)],
            "rejected": [say("assistant", self.response)],
            "principles": [one.name for one in self.principles],
            "critiques": self.critiques,
        }


@dataclass
class Revision:
    """Let a model critique its responses under a principle each and revise them.

    A conversation grows by two exchanges for each revision: the critique requested by the principle, then the revision.
    The next revision starts from the last one, under another principle. Principles are drawn without replacement, from
    a random stream of the seed and the prompt, so they do not depend on the other prompts.

    Source: "Constitutional AI: Harmlessness from AI Feedback", arXiv:2212.08073, section 3.1 (critiques, revisions,
    a principle drawn for each). The texts are ours. Differences: the paper's model is no chat model and reads the chain
    as one text with worked examples in front; here each request is a turn, and examples are an option.

    Args:
        revisions: number of revisions of a response; the paper makes four.
        file: JSONL rows with ``name``, ``critique`` and ``revise``, the two requests; null: eight principles of ours.
        examples: JSONL rows with ``prompt``, ``response``, ``critique_request``, ``critique``, ``revision_request`` and
            ``revision``, whole chains that are shown in front of every conversation; null: none.

    Raises:
        ValueError: a file is missing or lacks a text, or there are more revisions than principles.
    """

    revisions: Count = 1
    file: str | None = None
    examples: str | None = None

    def __post_init__(self) -> None:
        """Read the files."""
        self.principles = _records(Principle, self.file, "revision.file") or [Principle(*texts) for texts in PRINCIPLES]
        self.shown = _records(Example, self.examples, "revision.examples")
        if self.revisions > len(self.principles):
            raise ValueError(
                f"revision.revisions={self.revisions} needs a principle for each revision, but there are only "
                f"{len(self.principles)}: lower it, or give more in revision.file"
            )

    def __call__(
        self, conversations: Sequence[Turns], responses: Sequence[str], respond: Respond, seed: int
    ) -> list[Revised]:
        """Revise responses; every step asks for all of them at once.

        Args:
            conversations: turns of the conversations, one per response.
            responses: the first responses.
            respond: the model.
            seed: seed of the principles.
        """
        seen: Counter[str] = Counter()
        states = []
        for turns, text in zip(conversations, responses, strict=True):
            key = repr(turns)
            states.append(Revised(turns, text, text, self.drawn(key, seen[key], seed)))
            seen[key] += 1
        for at in range(self.revisions):
            asked = [self._critique_turns(state, state.principles[at]) for state in states]
            critiques = respond(asked)
            pairs = zip(asked, critiques, states, strict=True)
            asked = [_revision_turns(turns, critique, state.principles[at]) for turns, critique, state in pairs]
            for state, critique, revision in zip(states, critiques, respond(asked), strict=True):
                state.critiques.append(critique)
                state.revision = revision
        return states

    def drawn(self, prompt: str, sample: int, seed: int) -> list[Principle]:
        """Draw the principles of a response in the order of its revisions.

        Args:
            prompt: key of the conversation.
            sample: number of the response among those to the same prompt.
            seed: seed of the draws.
        """
        keys = {one.name: stream_seed("revision", seed, prompt, sample, one.name) for one in self.principles}
        return sorted(self.principles, key=lambda one: keys[one.name])[: self.revisions]

    def _critique_turns(self, state: Revised, principle: Principle) -> Turns:
        shown = [turn for one in self.shown for turn in one.turns()]
        system, rest = _split_system(state.turns)
        return [*system, *shown, *rest, say("assistant", state.revision), say("user", principle.critique)]


def _split_system(turns: Turns) -> tuple[Turns, Turns]:
    """Split turns into the system message, if there is one, and the others."""
    start = 1 if turns and turns[0]["role"] == "system" else 0
    return turns[:start], turns[start:]


def _revision_turns(asked: Turns, critique: str, principle: Principle) -> Turns:
    request = f"{principle.revise}\n\n{REVISION_ONLY}"
    return [*asked, say("assistant", critique), say("user", request)]


def _records(form: type[Form], path: str | None, option: str) -> list[Form]:
    """Read the rows of a file as a dataclass; empty without a file."""
    names = [one.name for one in fields(form)]
    return [] if path is None else [form(*texts) for texts in texts_of(path, option, names)]
