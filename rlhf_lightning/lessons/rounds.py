"""Options of a job that learns from groups of its own samples, as the config group ``rounds`` sets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import torch

from rlhf_lightning.options import Count, PositiveShare, Range, WholeNumber, option_values
from rlhf_lightning.selection.options import least_samples, needs, sources, validate
from rlhf_lightning.types import Draw, RolloutOptions, Selected, Source

#: Policy that a round's loss compares with: that of the run's start, of this round's, of the round before, or an
#: average over rounds.
RoundReference = Literal["initial", "round_start", "previous_round", "ema"]
#: Earlier rounds that are trained on again, in addition to the current one.
Carry = Literal["none", "previous", "all"]
LengthUnit = Literal["tokens", "characters"]


@dataclass(frozen=True, kw_only=True)
class Rounds(RolloutOptions):
    """Options of learning from groups that a selector makes of a method's own samples.

    Attributes:
        selector: which samples of a round become which groups; a function of ``selection`` or a partial of one.
        draws: sources of responses to each prompt; the responses of all draws are scored together.
        reference: what the loss compares with: the policy of the run's start (``initial``), of the round's start, of
            the start of the round before, or an average over the starts of rounds (``ema``).
        ema_weight: of a round's start in that average.
        parent: what the policy was trained from, which a reward that compares with ``previous_round`` needs in the
            first round: folder or hub id, or ``model``: the run's own model without the adapter of ``adapter.path`` or
            the weights of ``ckpt_path``; None: the policy of the run's start.
        carry: rounds whose groups are trained on again with the new ones.
        replay: share of a round's groups that are the data's own, in [0, 1); see ``lessons.replay``.
        judge_pairs: held-out pairs of the data that the reward is tested on as each round begins, logged as
            ``judge/accuracy``, ties counting half; 0: none.
        length_unit: of the lengths that a selector sees.
        loss_options: real-valued options of the loss by name, each with its value in every round, of which the last
            is kept for all later ones: ``{beta: [0.1, 0.1, 0.1, 5.0]}``. Validation has the method's own.
        minibatches: optimiser steps of a pass; a round has ``minibatches * data.batch_size`` prompts.
        inner_epochs: passes over a round.
        max_refills: times that other prompts are drawn for those without a group; what is missing then is left out.
        max_empty: rounds in a row without a group that end the run; fewer are skipped.
        top_p: see ``RolloutOptions``; so are the other options that are not named here.

    Raises:
        ValueError: an option is unknown or out of its range, or a selector needs more samples than are drawn.
    """

    selector: Callable[..., Selected] = field(repr=False)
    draws: Sequence[Draw] = (Draw(n=4),)  # type: ignore[assignment]
    reference: RoundReference = field(default="initial", repr=False)
    ema_weight: PositiveShare = field(default=0.5, repr=False)
    parent: str | None = field(default=None, repr=False)
    carry: Carry = field(default="none", repr=False)
    replay: Annotated[float, Range("[0, 1)")] = field(default=0.0, repr=False)
    judge_pairs: WholeNumber = field(default=0, repr=False)
    length_unit: LengthUnit = field(default="tokens", repr=False)
    loss_options: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    minibatches: Count = 1
    inner_epochs: Count = 1
    max_refills: WholeNumber = 0

    group_size: int = field(default=1, init=False)
    temperature: float = field(default=1.0, init=False)
    keep: int | None = field(default=None, init=False)
    dynamic_filter: bool = field(default=False, init=False)
    greedy_baseline: bool = field(default=False, init=False)
    mask_truncated: bool = field(default=False, init=False)
    validation_samples: int = field(default=1, init=False)
    validation_temperature: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        draws = tuple(draw_of(number, draw) for number, draw in enumerate(self.draws))
        if not draws:
            raise ValueError("rounds.draws is empty: name a source of responses, such as {source: policy, n: 4}")
        object.__setattr__(self, "draws", draws)
        object.__setattr__(self, "group_size", sum(draw.n for draw in draws))
        for name, allowed in (("reference", RoundReference), ("carry", Carry), ("length_unit", LengthUnit)):
            if (value := getattr(self, name)) not in get_args(allowed):
                raise ValueError(f"rounds.{name}={value!r} can be {', '.join(get_args(allowed))}")
        if not 0 < self.ema_weight <= 1:
            raise ValueError(f"rounds.ema_weight={self.ema_weight} must be in (0, 1]")
        if not 0 <= self.replay < 1:
            raise ValueError(f"rounds.replay={self.replay} must be in [0, 1): the share of groups that are the data's")
        for name in ("minibatches", "inner_epochs", "max_empty"):
            if getattr(self, name) < 1:
                raise ValueError(f"rounds.{name}={getattr(self, name)} must be at least 1")
        for name in ("max_refills", "judge_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"rounds.{name}={getattr(self, name)} must be at least 0")
        self._check_loss_options()
        validate(self.selector)
        self._check_selector()

    def _check_loss_options(self) -> None:
        for name, values in self.loss_options.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"rounds.loss_options.{name}={values!r} must list a value for every round: [0.1, 5.0]")

    def _check_selector(self) -> None:
        least, drawn = least_samples(self.selector), self.group_size
        if drawn < least:
            raise ValueError(
                f"rounds.draws gives {drawn} response{'s' if drawn > 1 else ''} a prompt, and the selector needs at "
                f"least {least}: set rounds.draws.0.n={least - drawn + self.draws[0].n}"
            )

        for number, allowed in enumerate(sources(self.selector)):
            if number >= len(self.draws):
                raise ValueError(
                    f"the selector compares the samples of two draws, and rounds.draws has one: add {{source: "
                    f"{next(iter(allowed))}}}"
                )
            if (source := self.draws[number].source) not in allowed:
                raise ValueError(
                    f"rounds.draws.{number}.source={source}: the selector takes draw {number} for responses of another "
                    f"source: set rounds.draws.{number}.source={' or '.join(allowed)}"
                )

    @property
    def node(self) -> str:
        """Name of these options in a configuration, for messages."""
        return "rounds"

    @property
    def compared(self) -> bool:
        """All draws of a prompt are scored as one group."""
        return True

    @property
    def needs_wins(self) -> bool:
        """Return whether the selector reads who beats whom."""
        return "preference" in self.needs

    @property
    def reads_reward(self) -> bool:
        """Return whether the selector reads scores or who beats whom."""
        return self.needs_wins or "score" in self.needs

    @property
    def keeps_cut_off(self) -> bool:
        """Return whether the selector treats samples that were cut off as finished ones."""
        return option_values(self.selector, "cut_off") == ["keep"]

    @property
    def validation_draws(self) -> tuple[Draw, ...]:
        """Nothing is drawn for validation: it is on the data's own groups."""
        return ()

    @property
    def needs(self) -> frozenset[str]:
        """Inputs of a round that the selector reads."""
        return needs(self.selector)

    @property
    def numbers(self) -> frozenset[str]:
        """Names of the numbers that the selector gives its groups; it is called with made-up samples."""
        score = torch.arange(float(self.group_size), dtype=torch.float64).repeat(2, 1)
        inputs: dict[str, Any] = {
            "score": score,
            "truncated": torch.zeros_like(score, dtype=torch.bool),
            "length": score + 1,
            "preference": (score[:, :, None] - score[:, None, :]).sigmoid(),
            "same_as": score.long(),
            "source": torch.tensor([number for number, draw in enumerate(self.draws) for _ in range(draw.n)]),
            "generator": torch.Generator().manual_seed(0),
        }
        return frozenset(self.selector(**{name: inputs[name] for name in self.needs}).numbers)

    def loss_options_of(self, number: int) -> dict[str, float]:
        """Options of the loss in a round that replace the method's, by name.

        Args:
            number: of the round, from 0; rounds that were skipped count.
        """
        return {name: float(values[min(number, len(values) - 1)]) for name, values in self.loss_options.items()}

    @property
    def needs_reference(self) -> bool:
        """Return whether responses are drawn from the reference."""
        return any(draw.source in ("reference", "mixture") for draw in self.draws)


def draw_of(number: int, draw: Draw | Mapping[str, Any]) -> Draw:
    """A draw as a yaml gives it.

    Args:
        number: of the draw, for messages.
        draw: its options by name.

    Raises:
        ValueError: an option is unknown or out of its range.
    """
    if isinstance(draw, Draw):
        return draw
    options = tuple(Draw.__dataclass_fields__)
    if unknown := sorted(set(draw) - set(options)):
        raise ValueError(f"rounds.draws.{number}.{unknown[0]} is no option of a draw. There are {', '.join(options)}")
    if (source := draw.get("source", "policy")) not in get_args(Source):
        raise ValueError(f"rounds.draws.{number}.source={source} can be {', '.join(get_args(Source))}")
    try:
        return Draw(**draw)
    except ValueError as error:
        raise ValueError(f"rounds.draws.{number}: {error}") from error
