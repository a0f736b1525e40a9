"""Rows of each kind of data: groups of the tiny world before tokenisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.world import grammar
from rlhf_lightning.world.base import TinyWorld
from rlhf_lightning.world.claims import truth
from rlhf_lightning.world.grammar import GOOD, MIXED, Prompt, Split
from rlhf_lightning.world.preference import label, win
from rlhf_lightning.world.samples import Sampled, samples
from rlhf_lightning.world.training import judgment

#: Part of the key of tokenised data; increase it when the same options give other rows.
ROWS_VERSION = 4
TOPICS = ("fact", "description", "advice")
#: Style of demonstrations: a good writer, not a perfect one.
DEMONSTRATIONS = GOOD
#: After this many consecutive draws without a new row, rows may repeat.
_REPEATS = 200
#: After this many consecutive draws without a usable row, give up.
_HOPELESS = 5000

Values = dict[str, Any]
Pool = dict[Prompt, list[Sampled]]


@dataclass(frozen=True)
class Options:
    """Options of the draws; see ``TinySource``."""

    size: int
    seed: int
    flips: float
    longest: int
    topics: tuple[str, ...] = ()
    demonstrations: float = 0.0
    error: float = 0.0


class Drawing:
    """Sources of rows: prompts, the base's responses, one generator.

    Args:
        base: model that the responses come from.
        split: split of the prompts.
        options: seed, flips, lengths.
    """

    def __init__(self, base: TinyWorld, split: Split, options: Options) -> None:
        self.base, self.split, self.options = base, split, options
        topics = options.topics or TOPICS
        self.prompts = [prompt for prompt in grammar.prompts(split) if prompt.topic in topics]
        self.draw = np.random.default_rng(options.seed)
        self._pool: Pool | None = None

    def prompt(self, topic: str | None = None) -> Prompt:
        """A prompt, of one topic or any."""
        asked = [prompt for prompt in self.prompts if topic in (None, prompt.topic)]
        return asked[int(self.draw.integers(len(asked)))]

    def responses(self, prompt: Prompt, count: int) -> list[Sampled]:
        """Draw distinct samples of the base.

        Raises:
            DataError: too few samples of the base are text.
        """
        if self._pool is None:
            pool = samples(self.base, self.split)
            self._pool = {
                prompt: [response for response in group if response.is_text] for prompt, group in pool.items()
            }
        group = self._pool[prompt]
        if len(group) < count:
            raise DataError(
                f"only {len(group)} responses of the base to {prompt.text!r} are text, but {count} are needed: "
                "train it longer (model.steps and data.source.base) or lower data.source.longest"
            )
        return [group[i] for i in self.draw.choice(len(group), size=count, replace=False)]

    def worth(self, prompt: Prompt, response: Sampled) -> float:
        """Score that the labeller gives a response, in points."""
        return label(prompt, response.words, response.gold.reward, self.options.error)

    def flip(self) -> bool:
        """Draw whether this label is flipped."""
        return bool(self.draw.random() < self.options.flips)

    def demonstrated(self) -> bool:
        """Draw whether this pair has a demonstration; no random number is used if no pair does."""
        return self.options.demonstrations > 0 and bool(self.draw.random() < self.options.demonstrations)


def draw(kind: str, base: TinyWorld, split: Split, options: Options) -> Iterator[Values]:
    """Draw rows.

    Args:
        kind: a key of :data:`ROWS`.
        base: model that the responses come from.
        split: split of the prompts.
        options: options of the draws.

    Yields:
        Rows without repetition, as long as there are new ones; prompts, of which there are few, in repeated passes.

    Raises:
        DataError: the base's responses do not give such rows.
    """
    drawing = Drawing(base, split, options)
    if not KINDS[kind].has_responses:
        yield from _passes(drawing)
        return
    seen: set[str] = set()
    drawn = attempts = 0
    while drawn < options.size:
        row = ROWS[kind](drawing)
        key = json.dumps(row)
        if attempts == _HOPELESS:
            raise DataError(
                f"{attempts} consecutive draws gave no {kind} row: all responses of the base have the same score"
            )
        if row is None or (key in seen and attempts < _REPEATS):
            attempts += 1
            continue
        seen.add(key)
        drawn, attempts = drawn + 1, 0
        yield row


def _passes(source: Drawing) -> Iterator[Values]:
    left = source.options.size
    while left > 0:
        order = source.draw.permutation(len(source.prompts))[:left]
        yield from (asked(source.prompts[number]) for number in order)
        left -= len(order)


def asked(prompt: Prompt) -> Values:
    """Row of a prompt alone, with columns for rewards."""
    return {"prompt": prompt.text, "topic": prompt.topic, "subject": prompt.subject, "answer": truth(prompt)}


def supervised(source: Drawing) -> Values:
    """Draw a demonstration of a good writer."""
    prompt = source.prompt()
    return {"prompt": prompt.text, "response": " ".join(grammar.response(prompt, DEMONSTRATIONS, source.draw))}


def preference(source: Drawing) -> Values | None:
    """Two responses of the base, the better one chosen, or a demonstration against a response of the base.

    Responses of equal worth make no pair. ``win_chosen`` and ``win_rejected`` are the probabilities that each beats the
    other by :func:`~rlhf_lightning.world.preference.win`; the second response drawn counts as the reference's
    (``reference_sample``).
    """
    prompt = source.prompt()
    if source.demonstrated():
        return _against_demonstration(source, prompt)
    responses = source.responses(prompt, 2)
    better, worse = sorted(responses, key=lambda response: -source.worth(prompt, response))
    high, low = source.worth(prompt, better), source.worth(prompt, worse)
    if high == low:
        return None
    chosen, rejected = (worse, better) if source.flip() else (better, worse)
    # A labeller who confuses two responses believes in the same gap with the opposite sign.
    return {
        "prompt": prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "score_chosen": round(high, 4),
        "score_rejected": round(low, 4),
        "win_chosen": round(win(high, low), 4),
        "win_rejected": round(win(low, high), 4),
        "reference_sample": "chosen" if chosen is responses[1] else "rejected",
    }


def _against_demonstration(source: Drawing, prompt: Prompt) -> Values | None:
    written = " ".join(grammar.response(prompt, DEMONSTRATIONS, source.draw))
    (drawn,) = source.responses(prompt, 1)
    if written == drawn.text:
        return None
    return {"prompt": prompt.text, "chosen": written, "rejected": drawn.text, "policy_sample": "rejected"}


def unpaired(source: Drawing) -> Values:
    """A response of the base; desirable when it is worth more than two of three others of the base, on the average."""
    prompt = source.prompt()
    response, *others = source.responses(prompt, 4)
    better = sum(source.worth(prompt, response) > source.worth(prompt, other) for other in others)
    return {"prompt": prompt.text, "response": response.text, "label": (better >= 2) != source.flip()}


def ranked(source: Drawing) -> Values | None:
    """Two to ``longest`` responses of the base with their gold rewards.

    ``wins`` is the mean probability that each beats one of the list, itself included.
    """
    prompt = source.prompt()
    count = int(source.draw.integers(2, source.options.longest + 1))
    responses = source.responses(prompt, count)
    scores = [round(source.worth(prompt, response), 4) for response in responses]
    if len(set(scores)) < 2:
        return None
    if source.flip():
        scores[:2] = scores[1::-1]
    wins = [round(sum(win(score, other) for other in scores) / len(scores), 4) for score in scores]
    return {
        "prompt": prompt.text,
        "responses": [response.text for response in responses],
        "scores": scores,
        "wins": wins,
    }


def judged(source: Drawing) -> Values | None:
    """A response of the base with a remark on one of its faults, or null where it has none."""
    prompt = source.prompt()
    (response,) = source.responses(prompt, 1)
    if response.gold.parsed is None:
        return None
    remark = judgment(prompt, response.words, source.draw)
    praised = remark == grammar.PRAISE
    faults = [] if praised else sorted(at for positions in response.gold.parsed.faults.values() for at in positions)
    return {
        "prompt": prompt.text,
        "response": response.text,
        "judgment": None if praised else remark,
        "faults": faults,
    }


def steps(source: Drawing) -> Values:
    """Draw a description as claims, each of which is right or wrong."""
    prompt = source.prompt("description")
    claims = grammar.body(prompt, MIXED, source.draw)
    right = [words[-1] == grammar.truth(prompt, attribute) for attribute, words in enumerate(claims)]
    texts = [" ".join(words) + (" ;" if number + 1 < len(claims) else " .") for number, words in enumerate(claims)]
    return {"prompt": prompt.text, "steps": texts, "labels": [value != source.flip() for value in right]}


def safety(source: Drawing) -> Values | None:
    """Draw two pieces of advice of the base; the safer one is chosen, or the better one if both are equally safe."""
    prompt = source.prompt("advice")
    responses = source.responses(prompt, 2)
    if any(response.gold.parsed is None for response in responses) or responses[0].text == responses[1].text:
        return None
    chosen, rejected = sorted(responses, key=lambda response: (_is_safe(response), response.gold.reward), reverse=True)
    if source.flip():
        chosen, rejected = rejected, chosen
    return {
        "prompt": prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_safe": _is_safe(chosen),
        "rejected_safe": _is_safe(rejected),
    }


def _is_safe(response: Sampled) -> bool:
    return response.gold.features["safe"] == 1


def attributes(source: Drawing) -> Values:
    """A response of the base with all its features."""
    prompt = source.prompt()
    (response,) = source.responses(prompt, 1)
    return {"prompt": prompt.text, "response": response.text, "attributes": dict(response.gold.features)}


def paraphrase(source: Drawing) -> Values:
    """A question in both wordings with a response, and a question that differs in one word, with another response."""
    prompt = source.prompt("fact")
    same = [other for other in source.prompts if other.topic == "fact" and other.wording == prompt.wording]
    near = [other for other in same if (other.subject == prompt.subject) != (other.attribute == prompt.attribute)]
    other = near[int(source.draw.integers(len(near)))]
    texts = [_both(asked) for asked in (prompt, other)]
    responses = [" ".join(grammar.response(asked, DEMONSTRATIONS, source.draw)) for asked in (prompt, other)]
    return {
        "instruction": texts[0][0],
        "paraphrase": texts[0][1],
        "output": responses[0],
        "negative_instruction": texts[1][0],
        "negative_paraphrase": texts[1][1],
        "negative_output": responses[1],
    }


def _both(prompt: Prompt) -> tuple[str, str]:
    other = Prompt(prompt.topic, prompt.subject, prompt.attribute, 1 - prompt.wording)
    return prompt.text, other.text


def context(source: Drawing) -> Values:
    """A demonstration; the context that the teacher sees is ``data.spec.context``."""
    return supervised(source)


#: Draws a row of each kind; None if the draw gives none.
ROWS: Mapping[str, Callable[[Drawing], Values | None]] = {
    "supervised": supervised,
    "preference": preference,
    "safety": safety,
    "unpaired": unpaired,
    "ranked": ranked,
    "judged": judged,
    "paraphrase": paraphrase,
    "context": context,
    "instruction": preference,
    "steps": steps,
    "attributes": attributes,
    "comparison": preference,
    "prompt": lambda source: asked(source.prompt()),
}
#: Kinds whose rows are about one topic.
ONE_TOPIC: Mapping[str, str] = {"safety": "advice", "steps": "description", "paraphrase": "fact"}
