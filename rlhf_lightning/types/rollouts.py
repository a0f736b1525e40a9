"""Data that generation, rewards and credit assignment exchange: samples, episodes, credit, rollout batches.

``prompts -> RolloutEngine -> Sample -> Reward -> scores -> Episodes -> credit -> Credit -> RolloutBatch -> loss``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.types.batches import PackedBatch
from rlhf_lightning.types.host import HostLayout
from rlhf_lightning.types.prompt_form import PromptForm
from rlhf_lightning.types.ragged import Ragged

#: Reason why a response ended: a token that ends responses, or the length limit.
Finish = Literal["stop", "length"]
#: Source of a response: the policy, the reference, the mixture of both token by token, or the data's own row.
Source = Literal["policy", "reference", "mixture", "data"]


@dataclass(frozen=True)
class Sampling:
    """Options of drawing responses from the policy.

    Attributes:
        max_new_tokens: most tokens of a response, EOS included.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: sample from the smallest set of tokens whose probability reaches this, in (0, 1].
        top_k: sample from the most likely tokens only; 0: all.
        min_new_tokens: tokens before which a response cannot end.
        ignore_eos: continue to ``max_new_tokens`` whatever is drawn.
        stop: token ids that end a response, in addition to the model's own.
        source: whose distribution tokens are drawn from: the policy's, the reference's, or the geometric mixture of
            both, whose logits are ``mix`` times the reference's and ``1 - mix`` times the policy's. Log-probs of the
            samples are of that distribution.
        mix: weight of the reference in the mixture.
        form: of the prompts, where a transform made them: texts that end a response, and the beginning that all share.
        guided: whether the engine's guidance decides too, where it has one; log-probs are then not the policy's.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[int, ...] = ()
    source: Source = field(default="policy", repr=False)  # another one is named in Draw
    mix: float = field(default=0.0, repr=False)
    form: PromptForm = field(default=PromptForm(), repr=False)  # determined by the prompts' tokens and options
    guided: bool = field(default=False, repr=False)  # determined by the job's options

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be at least 1, and min_new_tokens={self.min_new_tokens} "
                "between 0 and it"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"temperature={self.temperature} must be >= 0, top_p={self.top_p} in (0, 1] and top_k={self.top_k} >= 0"
            )


@dataclass(frozen=True)
class Draw:
    """One source of responses to a prompt; a round may have several.

    Attributes:
        source: whose responses. Those of ``data`` are the row's own, which nothing draws.
        n: responses a prompt.
        temperature: of the samples; 0: the most likely tokens.
        mix: weight of the reference's logits in a mixture with the policy's, in [0, 1].
    """

    source: Source = "policy"
    n: int = 1
    temperature: float = 1.0
    mix: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 1 or self.temperature < 0 or not 0 <= self.mix <= 1:
            raise ValueError(
                f"draws: n={self.n} must be at least 1, temperature={self.temperature} at least 0 and mix={self.mix} "
                "in [0, 1]"
            )
        if self.mix and self.source != "mixture":
            raise ValueError(f"draws: mix={self.mix} is of source=mixture, not of source={self.source}")
        if self.source == "data" and self.n != 1:
            raise ValueError(f"draws: a row has one response of its own, so source=data has n=1, not n={self.n}")


class Remote(Sequence[Any]):
    """Tokens or numbers that another process holds; this one has their number alone."""

    __slots__ = ("_length",)

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not self._length:
            return ()[index]
        raise RuntimeError("these tokens are in the process that drew them: fetch them first (rounds.exchange)")


@dataclass(frozen=True)
class Sample:
    """One response as an engine drew it; its ids are never made from text again."""

    ids: Remote | Sequence[int]  #: at least one token, with what ended it
    #: of each id under the engine's distribution at the sampling temperature, before top-p and top-k, nats;
    #: empty where the engine cannot say
    log_probs: Remote | Sequence[float]
    finish: Finish
    version: int = 0  #: optimiser steps that the weights had taken


def ended_by_text(sample: Sample, sampling: Sampling) -> Sample:
    """A sample without the text that ends it, where the prompts' form has such texts."""
    form = sampling.form
    kept = form.kept(sample.ids) if form.stops or form.trailing else len(sample.ids)
    if kept == len(sample.ids):
        return sample
    return replace(sample, ids=sample.ids[:kept], log_probs=sample.log_probs[:kept], finish="stop")


@dataclass(frozen=True)
class SampleGroup:
    """A prompt with its samples: what a reward sees."""

    prompt: Remote | Sequence[int]
    samples: list[Sample]
    #: the row's columns as the data has them (gold answers, tests, references, the prompt's own text or messages)
    columns: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""  #: "file:row" of the prompt
    index: int = 0  #: of the prompt in the data set

    @property
    def responses(self) -> list[list[int]]:
        """Token ids of each sample."""
        return [cast("list[int]", sample.ids) for sample in self.samples]


@dataclass
class ScoredGroup:
    """A prompt's samples and their scores by the reward.

    ``None`` stands for a response that the reward could not score.
    """

    position: int  #: in the stream of prompts
    group: SampleGroup  #: the samples of every draw, draw after draw
    score: list[float | None]
    terms: dict[str, list[float | None]] = field(default_factory=dict)
    #: of every token of each response, nan where no step ends; empty: no process reward
    steps: Sequence[Sequence[float]] = field(default_factory=list)
    draw: list[int] = field(default_factory=list)  #: which draw of the round each sample is from; empty: all the first
    #: probability that sample i beats sample j, None without a verdict; empty: they were not compared
    wins: list[list[float | None]] = field(default_factory=list)
    holder: int = 0  #: rank of the process that has the tokens and the columns; elsewhere they are ``Remote``
    #: what a lesson reads of tokens and texts, by name, one number a sample; computed by the holder
    facts: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = self.draw or [0] * len(self.group.samples)

    def of_draw(self, number: int) -> slice:
        """The samples of a draw among all."""
        first = self.draw.index(number)
        return slice(first, first + self.draw.count(number))

    @property
    def informative(self) -> bool:
        """Return whether at least two responses of the first draw were scored differently."""
        return len({score for score in self.score[self.of_draw(0)] if score is not None}) > 1


@dataclass(frozen=True)
class RolloutOptions:
    """Options of a method's use of samples; the config group ``rollout`` chooses the engine that draws them.

    Attributes:
        group_size: responses a prompt.
        temperature: of the samples and of the log-probs that are trained on.
        top_p: of the samples; below 1 they are off-policy, since log-probs are of the whole distribution.
        top_k: the same; 0: all.
        minibatches: optimiser steps of a pass; a rollout has ``minibatches * data.batch_size`` prompts.
        inner_epochs: passes over a rollout.
        keep: samples of each group that are trained on, the first ones, after all of them were scored; None: all.
        dynamic_filter: leave out groups whose responses all have the same reward and draw others for them.
        max_refills: times that others are drawn; what is missing then is filled with groups that were left out.
        max_empty: rollouts in a row without a response to learn from that end the run; fewer are skipped.
        greedy_baseline: also draw each prompt's most likely response; its reward is the group's baseline.
        mask_truncated: tokens of responses that were cut off are not trained on.
        ignore_eos: sample to the length limit whatever is drawn.
        truncate_after: token id at which a response is cut once it is ``truncate_from`` tokens long; None: nowhere.
        truncate_from: see ``truncate_after``.
        validation_samples: responses to each validation prompt.
        validation_temperature: of those; None: ``temperature``; 0: the most likely tokens.
    """

    group_size: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    minibatches: int = 1
    inner_epochs: int = 1
    keep: int | None = None
    dynamic_filter: bool = False
    max_refills: int = 10
    max_empty: int = field(default=5, repr=False)  # no part of what a rollout is a function of
    greedy_baseline: bool = False
    mask_truncated: bool = False
    ignore_eos: bool = False
    truncate_after: int | None = None
    truncate_from: int = 0
    validation_samples: int = 1
    validation_temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("group_size", "minibatches", "inner_epochs", "max_empty", "validation_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.rollout.{name}={getattr(self, name)} must be at least 1")
        if self.temperature <= 0:
            raise ValueError(f"method.rollout.temperature={self.temperature} must be positive: a policy is sampled")
        if self.keep is not None and not 1 <= self.keep <= self.group_size:
            raise ValueError(
                f"method.rollout.keep={self.keep} must lie between 1 and group_size={self.group_size}, or be null"
            )
        if self.max_refills < 0 or self.truncate_from < 0:
            raise ValueError(
                f"method.rollout.max_refills={self.max_refills} and truncate_from={self.truncate_from} must be >= 0"
            )

    @property
    def node(self) -> str:
        """Name of these options in a configuration, for messages."""
        return "method.rollout"

    @property
    def draws(self) -> tuple[Draw, ...]:
        """Draws for each prompt of training; the first one is trained on."""
        samples = Draw("policy", self.group_size, self.temperature)
        return (samples, Draw("policy", 1, 0.0)) if self.greedy_baseline else (samples,)

    @property
    def validation_draws(self) -> tuple[Draw, ...]:
        """Draws for each prompt of validation."""
        temperature = self.temperature if self.validation_temperature is None else self.validation_temperature
        return (Draw("policy", self.validation_samples, temperature),)

    @property
    def compared(self) -> bool:
        """Return whether all draws of a prompt are scored as one group; else each draw is a group of its own."""
        return False

    @property
    def needs_wins(self) -> bool:
        """Return whether the reward has to compare the responses to a prompt pair by pair."""
        return False

    @property
    def judge_pairs(self) -> int:
        """Held-out pairs that the reward is tested on before each round is drawn."""
        return 0

    @property
    def kept(self) -> int:
        """Samples of each group that are trained on."""
        return self.keep or self.group_size


@dataclass
class Episodes:
    """Every response of a rollout over all processes, as credit assignment sees it: on the CPU, in float32.

    Every process holds the same episodes, so statistics over them need no communication.
    """

    group: Int[Tensor, " responses"]  #: the prompt of each response: 0 .. groups - 1, never decreasing
    reward: Float[Tensor, " responses"]  #: combined score, higher is better; nan where the reward gave none
    truncated: Bool[Tensor, " responses"]  #: cut off at the length limit
    #: tokens that are trained on: all, or none of a response without a score or one that is masked as cut off
    length: Int[Tensor, " responses"]
    #: by name, of every response token in the order of the responses: ``old_log_probs``, ``reference_log_probs``,
    #: ``reference_kl``, ``value``, ``cost_value``, ``rollout_log_probs``; those that the module computes and the engine
    #: gives
    tokens: dict[str, Ragged] = field(default_factory=dict)
    #: each term of the reward by name, before weighting; a cost is a term as well
    terms: dict[str, Float[Tensor, " responses"]] = field(default_factory=dict)
    baseline: Float[Tensor, " groups"] | None = None  #: reward of the greedy response to each prompt
    #: reward placed on tokens (process supervision), in the same order; None: at the end only
    step_reward: Ragged | None = None

    @property
    def groups(self) -> int:
        """Prompts."""
        return int(self.group[-1]) + 1 if len(self.group) else 0


@dataclass
class Credit:
    """Result of credit assignment for all episodes, in their order."""

    #: fields of :class:`RolloutBatch` by name, one number a response token: ``advantage``, ``returns``, ...
    tokens: dict[str, Ragged]
    #: numbers to log by name (``reward/mean``, ``kl/reference``, ...), scalars
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class RolloutBatch(PackedBatch):
    """K samples a prompt with the rollout's numbers of each token.

    Fields of response tokens stand in the order of ``target``. A field that a method did not compute is None.
    """

    #: of the policy that the rollout was drawn from, by the trainer's own forward; None: the step is the first on
    #: its samples, so they are the policy's own, detached
    old_log_probs: Float[Tensor, " response_tokens"] | None = None
    rollout_log_probs: Float[Tensor, " response_tokens"] | None = None  #: the engine's
    advantage: Float[Tensor, " response_tokens"] | None = None
    value: Float[Tensor, " response_tokens"] | None = None  #: the critic's at the rollout
    returns: Float[Tensor, " response_tokens"] | None = None
    cost_value: Float[Tensor, " response_tokens"] | None = None
    cost_returns: Float[Tensor, " response_tokens"] | None = None
    score: Float[Tensor, " responses"] | None = None  #: combined reward of each response
    truncated: Bool[Tensor, " responses"] | None = None
    rollout: int = 0  #: number of the rollout, from 0
    #: mean and standard deviation of the advantages of the whole optimiser step (biased), for whitening by step
    advantage_moments: tuple[float, float] = (0.0, 1.0)
    #: pretraining text of this micro-batch, with the denominators of its own step; None: none is mixed in
    ptx: PackedBatch | None = None
    TOKEN_FIELDS: ClassVar[tuple[str, ...]] = (
        "old_log_probs",
        "rollout_log_probs",
        "reference_log_probs",
        "advantage",
        "value",
        "returns",
        "cost_value",
        "cost_returns",
    )

    def _host_layout(self) -> HostLayout:
        engine = self.rollout_log_probs
        tokens = 0 if engine is None else len(engine) - int(engine.isnan().sum())
        return replace(super()._host_layout(), engine_tokens=tokens)


def sample_groups(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    columns: Sequence[Mapping[str, Any]] = (),
) -> list[SampleGroup]:
    """Groups of responses that no engine drew, such as those of a data set, for a reward.

    Args:
        prompts: token ids of each prompt.
        responses: for each prompt its responses as token ids.
        columns: of each prompt's row; empty: none.
    """
    rows = columns or [{}] * len(prompts)
    return [
        SampleGroup(list(prompt), [Sample(list(ids), [], "stop") for ids in group], row)
        for prompt, group, row in zip(prompts, responses, rows, strict=True)
    ]
