"""Graders as a reward."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_lightning.rewards.asking import Ask, asker
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.graders.base import Grade
from rlhf_lightning.rewards.graders.multi import Means, make_grader
from rlhf_lightning.rewards.graders.sandbox import Limits
from rlhf_lightning.rewards.graders.templates import Context
from rlhf_lightning.rewards.text_reward import TextReward
from rlhf_lightning.types import Sample, SampleGroup
from rlhf_lightning.yaml_text import read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: What a failure is counted as.
_COUNTED = {"error": "errors", "timeout": "timeouts", "parse": "parse_failures"}


class GraderReward(TextReward):
    """Score of each response by a grader; a failure is 0 and counted, so that causing one never pays.

    A spec is a mapping in the form of OpenAI's graders, or a JSON or YAML file with one. Every grader within it is a
    term of the reward, logged by its path of names, ``train/reward/<name>``; counted are ``errors``, ``timeouts`` and
    ``parse_failures`` as shares of the responses, of the whole and of each grader, and ``passed``, the share that
    reaches a ``pass_threshold``.

    Source: the graders of OpenAI's reinforcement fine-tuning, https://developers.openai.com/api/docs/guides/graders.

    Args:
        tokenizer: of whoever made the token ids.
        spec: the grader, or a file with it.
        judge: whom ``score_model`` graders ask (:class:`~rlhf_lightning.rewards.asking.Ask`), or a partial that makes
            one; None: the policy that is trained.
        clip: lowest and highest reward; None: the grader's own range.
        limits: of a call of a python grader: ``cpu_seconds``, ``seconds``, ``memory`` in bytes.
        name: what its numbers are logged under.

    Raises:
        ValueError: the spec is wrong; the message names the field.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        spec: Mapping[str, Any] | str,
        judge: Any = None,
        clip: Sequence[float] | None = None,
        limits: Mapping[str, Any] | None = None,
        name: str = "grader",
    ) -> None:
        super().__init__(tokenizer, name)
        self.policy: Any = None  #: set by the training loop
        self._tokenizer, self._judge = tokenizer, judge
        if clip is not None and (len(clip) != 2 or not clip[0] < clip[1]):
            raise ValueError(f"reward.clip={list(clip)} must be [lowest, highest]")
        self._clip = None if clip is None else (float(clip[0]), float(clip[1]))
        self.grader = make_grader(read_spec(spec), "reward.spec", Means(self._ask, Limits(**(limits or {}))))
        self._reported: set[str] = set()

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return self.combine(self.terms(groups))

    def terms(self, groups: Sequence[SampleGroup]) -> dict[str, Scores]:
        """Scores of the whole grader under the reward's name, and of those within it by their paths."""
        contexts = [self._context(group, sample) for group in groups for sample in group.samples]
        grades = self.grader(contexts)
        self._count(grades)
        scores_by_name = {self.name: [grade.score for grade in grades]}
        scores_by_name |= {
            self._term(path): [grade.parts[path].score for grade in grades] for path in self.grader.parts
        }
        return {name: _grouped(scores, groups) for name, scores in scores_by_name.items()}

    @property
    def term_names(self) -> frozenset[str]:
        """Names under which :meth:`terms` gives scores."""
        return frozenset({self.name, *map(self._term, self.grader.parts)})

    def combine(self, terms: Mapping[str, Scores]) -> Scores:
        """The whole grader's scores, clipped."""
        if self._clip is None:
            return terms[self.name]
        low, high = self._clip
        return [[None if s is None else min(max(s, low), high) for s in row] for row in terms[self.name]]

    @property
    def reads_columns(self) -> bool:
        """Templates may show any column."""
        return True

    def check_columns(self, columns: Collection[str]) -> None:
        """Hold every template against the columns of the data.

        Raises:
            ValueError: a column is missing; the message names the template and the closest column.
        """
        self.grader.check(columns)

    def close(self) -> None:
        """End the processes of python graders."""
        self.grader.close()

    def _ask(self) -> Ask:
        if callable(self._judge) and not isinstance(self._judge, Ask):
            self._judge = self._judge()
        return asker(self._judge, self._tokenizer, self.policy, "a score_model grader")

    def _context(self, group: SampleGroup, sample: Sample) -> Context:
        text = self.texts.text(sample.ids)
        try:
            parsed, broken = json.loads(text, parse_constant=_refuse), False
        except (ValueError, RecursionError):
            parsed, broken = None, True
        fields = {"output_text": text, "output_json": parsed, "finish_reason": sample.finish}
        return Context(fields, group.columns, group.row, broken)

    def _term(self, path: str) -> str:
        return path if path != self.name else f"{path}/{path}"

    def _count(self, grades: Sequence[Grade]) -> None:
        counts: Counter[str] = Counter(responses=len(grades))
        for grade in grades:
            for path, one in _all(grade):
                prefix = f"{self._term(path)}/" if path else ""
                if one.failure is not None:
                    counts[prefix + _COUNTED[one.failure]] += 1
                    self._say(path or self.name, one)
        # A failure within is a failure of the whole, once.
        inside = [{part.failure for part in grade.parts.values() if part.failure} for grade in grades]
        for grade, failures in zip(grades, inside, strict=True):
            for failure in failures - {grade.failure}:
                counts[_COUNTED[failure]] += 1
        if self.grader.pass_threshold is not None:
            counts["passed"] = sum(grade.score >= self.grader.pass_threshold for grade in grades)
        self.count(**dict.fromkeys(_COUNTED.values(), 0.0) | {k: float(v) for k, v in counts.items()})

    def _say(self, path: str, grade: Grade) -> None:
        """Warn of the first failure of each kind of each grader; the counts say how many there were."""
        kind = f"{path}: {grade.failure}"
        if kind not in self._reported:
            self._reported.add(kind)
            log.warning("grader %s: %s (further ones are counted, not reported)", kind, grade.message)


def read_spec(spec: Mapping[str, Any] | str) -> Mapping[str, Any]:
    """A grader's spec, out of a JSON or YAML file where it is a path.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not isinstance(spec, str):
        return spec
    file = Path(spec).expanduser()
    if not file.is_file():
        raise ValueError(f"reward.spec={spec!r}: there is no such file")
    try:
        contents = read_yaml(file)  # which reads JSON too
    except yaml.YAMLError as error:
        raise ValueError(f"reward.spec={spec!r} is neither JSON nor YAML: {error}") from error
    if not isinstance(contents, Mapping):
        raise ValueError(f"reward.spec={spec!r} must hold one mapping, the grader")
    return contents


def _all(grade: Grade) -> Iterator[tuple[str, Grade]]:
    yield "", grade
    yield from grade.parts.items()


def _grouped(scores: Sequence[float], groups: Sequence[SampleGroup]) -> Scores:
    values = iter(scores)
    return [[next(values) for _ in group.samples] for group in groups]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
