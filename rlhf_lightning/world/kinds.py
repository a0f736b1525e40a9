"""The rows of each kind of data: what a group of the tiny world looks like before it is tokenised."""

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

#: Part of the key of tokenised data; raise it when the same options start to give other rows.
ROWS_VERSION = 4
TOPICS = ("fact", "description", "advice")
#: How demonstrations are written: by a good writer, not by a perfect one.
DEMONSTRATIONS = GOOD
#: So many draws in a row without a new one, and rows may repeat.
_VAIN = 200
#: So many in a row without any, and there are none.
_HOPELESS = 5000

Values = dict[str, Any]
Pool = dict[Prompt, list[Sampled]]


@dataclass(frozen=True)
class Options:
    """What to draw; see ``TinySource``."""

    size: int
    seed: int
    flips: float
    longest: int
    topics: tuple[str, ...] = ()
    demonstrations: float = 0.0
    error: float = 0.0


class Drawing:
    """Where rows are drawn from: prompts, the base's answers, one generator.

    Args:
        base: whose answers.
        split: of the prompts.
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

    def answers(self, prompt: Prompt, count: int) -> list[Sampled]:
        """Different samples of the base.

        Raises:
            DataError: the base says too little that is text.
        """
        if self._pool is None:
            pool = samples(self.base, self.split)
            self._pool = {prompt: [answer for answer in group if answer.is_text] for prompt, group in pool.items()}
        group = self._pool[prompt]
        if len(group) < count:
            raise DataError(
                f"the base has {len(group)} answers to {prompt.text!r} that are text, and {count} are wanted: "
                "train it longer (model.steps and data.source.base) or set data.source.longest lower"
            )
        return [group[i] for i in self.draw.choice(len(group), size=count, replace=False)]

    def worth(self, prompt: Prompt, answer: Sampled) -> float:
        """What the labeller takes an answer to be worth, in points."""
        return label(prompt, answer.words, answer.gold.reward, self.options.error)

    def flip(self) -> bool:
        """Whether this label is the wrong way round."""
        return bool(self.draw.random() < self.options.flips)

    def demonstrated(self) -> bool:
        """Whether this pair holds a demonstration; nothing is drawn where no pair does."""
        return self.options.demonstrations > 0 and bool(self.draw.random() < self.options.demonstrations)


def draw(kind: str, base: TinyWorld, split: Split, options: Options) -> Iterator[Values]:
    """Draw rows.

    Args:
        kind: a key of :data:`ROWS`.
        base: whose answers.
        split: of the prompts.
        options: how many, and how.

    Yields:
        Rows without repetition, as long as there are any that differ; of prompts, which are few, one pass over all of
        them after the other.

    Raises:
        DataError: the base's answers make no such rows.
    """
    drawing = Drawing(base, split, options)
    if not KINDS[kind].has_responses:
        yield from _passes(drawing)
        return
    seen: set[str] = set()
    found = vain = 0
    while found < options.size:
        row = ROWS[kind](drawing)
        key = json.dumps(row)
        if vain == _HOPELESS:
            raise DataError(f"{vain} draws in a row made no {kind} row: the base's answers are all worth the same")
        if row is None or (key in seen and vain < _VAIN):
            vain += 1
            continue
        seen.add(key)
        found, vain = found + 1, 0
        yield row


def _passes(source: Drawing) -> Iterator[Values]:
    left = source.options.size
    while left > 0:
        order = source.draw.permutation(len(source.prompts))[:left]
        yield from (asked(source.prompts[place]) for place in order)
        left -= len(order)


def asked(prompt: Prompt) -> Values:
    """A prompt to be answered, and what a reward may want to know about it."""
    return {"prompt": prompt.text, "topic": prompt.topic, "subject": prompt.subject, "answer": truth(prompt)}


def supervised(source: Drawing) -> Values:
    """A demonstration of a good writer."""
    prompt = source.prompt()
    return {"prompt": prompt.text, "response": " ".join(grammar.answer(prompt, DEMONSTRATIONS, source.draw))}


def preference(source: Drawing) -> Values | None:
    """Two answers of the base, the better one chosen, or a demonstration against an answer of the base.

    Answers of equal worth make no pair. ``win_chosen`` and ``win_rejected`` are the probabilities that each beats the
    other by :func:`~rlhf_lightning.world.preference.win`; the second answer drawn counts as the reference's
    (``reference_sample``).
    """
    prompt = source.prompt()
    if source.demonstrated():
        return _against_demonstration(source, prompt)
    answers = source.answers(prompt, 2)
    better, worse = sorted(answers, key=lambda answer: -source.worth(prompt, answer))
    high, low = source.worth(prompt, better), source.worth(prompt, worse)
    if high == low:
        return None
    chosen, rejected = (worse, better) if source.flip() else (better, worse)
    # Who mixes up two answers believes in the same gap the other way round.
    return {
        "prompt": prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "score_chosen": round(high, 4),
        "score_rejected": round(low, 4),
        "win_chosen": round(win(high, low), 4),
        "win_rejected": round(win(low, high), 4),
        "reference_sample": "chosen" if chosen is answers[1] else "rejected",
    }


def _against_demonstration(source: Drawing, prompt: Prompt) -> Values | None:
    written = " ".join(grammar.answer(prompt, DEMONSTRATIONS, source.draw))
    (drawn,) = source.answers(prompt, 1)
    if written == drawn.text:
        return None
    return {"prompt": prompt.text, "chosen": written, "rejected": drawn.text, "policy_sample": "rejected"}


def unpaired(source: Drawing) -> Values:
    """An answer of the base; desirable when it is worth more than two of three others of the base, on the average."""
    prompt = source.prompt()
    answer, *others = source.answers(prompt, 4)
    better = sum(source.worth(prompt, answer) > source.worth(prompt, other) for other in others)
    return {"prompt": prompt.text, "response": answer.text, "label": (better >= 2) != source.flip()}


def ranked(source: Drawing) -> Values | None:
    """Two to ``longest`` answers of the base with their gold rewards.

    ``wins`` is the mean probability that each beats one of the list, itself included.
    """
    prompt = source.prompt()
    count = int(source.draw.integers(2, source.options.longest + 1))
    answers = source.answers(prompt, count)
    scores = [round(source.worth(prompt, answer), 4) for answer in answers]
    if len(set(scores)) < 2:
        return None
    if source.flip():
        scores[:2] = scores[1::-1]
    wins = [round(sum(win(score, other) for other in scores) / len(scores), 4) for score in scores]
    return {"prompt": prompt.text, "responses": [answer.text for answer in answers], "scores": scores, "wins": wins}


def judged(source: Drawing) -> Values | None:
    """An answer of the base with a remark on one of its faults, or null where it has none."""
    prompt = source.prompt()
    (answer,) = source.answers(prompt, 1)
    if answer.gold.parsed is None:
        return None
    remark = judgment(prompt, answer.words, source.draw)
    praised = remark == grammar.PRAISE
    faults = [] if praised else sorted(at for found in answer.gold.parsed.faults.values() for at in found)
    return {
        "prompt": prompt.text,
        "response": answer.text,
        "judgment": None if praised else remark,
        "faults": faults,
    }


def steps(source: Drawing) -> Values:
    """A description in claims, each of which is right or wrong."""
    prompt = source.prompt("description")
    claims = grammar.body(prompt, MIXED, source.draw)
    right = [words[-1] == grammar.truth(prompt, attribute) for attribute, words in enumerate(claims)]
    texts = [" ".join(words) + (" ;" if number + 1 < len(claims) else " .") for number, words in enumerate(claims)]
    return {"prompt": prompt.text, "steps": texts, "labels": [value != source.flip() for value in right]}


def safety(source: Drawing) -> Values | None:
    """Two pieces of advice of the base; the safer one is chosen, of two equally safe ones the better one."""
    prompt = source.prompt("advice")
    answers = source.answers(prompt, 2)
    if any(answer.gold.parsed is None for answer in answers) or answers[0].text == answers[1].text:
        return None
    chosen, rejected = sorted(answers, key=lambda answer: (_is_safe(answer), answer.gold.reward), reverse=True)
    if source.flip():
        chosen, rejected = rejected, chosen
    return {
        "prompt": prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_safe": _is_safe(chosen),
        "rejected_safe": _is_safe(rejected),
    }


def _is_safe(answer: Sampled) -> bool:
    return answer.gold.features["safe"] == 1


def attributes(source: Drawing) -> Values:
    """An answer of the base with all its features."""
    prompt = source.prompt()
    (answer,) = source.answers(prompt, 1)
    return {"prompt": prompt.text, "response": answer.text, "attributes": dict(answer.gold.features)}


def paraphrase(source: Drawing) -> Values:
    """A question in both wordings with an answer, and a question that differs in one word, with another answer."""
    prompt = source.prompt("fact")
    same = [other for other in source.prompts if other.topic == "fact" and other.wording == prompt.wording]
    near = [other for other in same if (other.subject == prompt.subject) != (other.attribute == prompt.attribute)]
    other = near[int(source.draw.integers(len(near)))]
    texts = [_both(asked) for asked in (prompt, other)]
    answers = [" ".join(grammar.answer(asked, DEMONSTRATIONS, source.draw)) for asked in (prompt, other)]
    return {
        "instruction": texts[0][0],
        "paraphrase": texts[0][1],
        "output": answers[0],
        "negative_instruction": texts[1][0],
        "negative_paraphrase": texts[1][1],
        "negative_output": answers[1],
    }


def _both(prompt: Prompt) -> tuple[str, str]:
    other = Prompt(prompt.topic, prompt.subject, prompt.attribute, 1 - prompt.wording)
    return prompt.text, other.text


def context(source: Drawing) -> Values:
    """A demonstration; the context that the teacher sees is ``data.spec.context``."""
    return supervised(source)


#: How a row of each kind is drawn; None where the draw makes none.
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
#: The kinds whose rows are about one topic.
ONE_TOPIC: Mapping[str, str] = {"safety": "advice", "steps": "description", "paraphrase": "fact"}
