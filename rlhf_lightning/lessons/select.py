"""The lesson of selectors: samples of a round become groups of the method's kind, with the reference's log-probs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlhf_lightning.data.kinds import kind_of, slot_names
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.data.tokens.selected_groups import by_response, leave_out_equal, response_of, rows_of, same_as
from rlhf_lightning.lessons.base import Fetch, at_hand
from rlhf_lightning.lessons.chosen import SelectedRound, joined
from rlhf_lightning.lessons.replay import Replay, prompt_tokens, prompts_among
from rlhf_lightning.lessons.rounds import Rounds
from rlhf_lightning.lessons.tokens import IntArray, examples_of, floats
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.types import DATA, Example, PackedBatch, Sample, SampleGroup, ScoredGroup, Selected, Trained

log = logging.getLogger(__name__)
#: Advice against samples that were cut off.
_LONGER = "raise rollout.max_new_tokens (rounds.selector.cut_off=keep where responses are meant to have its length)"


@dataclass
class SelectLesson:
    """Groups that a selector makes of a round, and the reference's log-probs of them.

    Attributes:
        options: of the rounds.
        method: returns the method that is trained; called when a round is made.
        kind: of data that the method learns from.
        seed: of the selector's random numbers.
        responses: the data's own groups, by row; for selectors that name their first responses.
        replay: adds groups of the data; None: none are added.
        carried: rounds that are trained on again.
    """

    phase: ClassVar[str] = "select"
    score_name: ClassVar[str] = "score"

    options: Rounds
    method: Callable[[], Trained]
    kind: str
    seed: int = 0
    responses: Mapping[str, Example] | None = None
    replay: Replay | None = None
    carried: tuple[SelectedRound, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """The reference's log-probs, where the loss asks for them."""
        wanted = "reference" in self.method().needs
        return frozenset({"reference_log_probs"}) if wanted else frozenset()

    @property
    def temperature(self) -> float:
        """Losses on groups compare log-probs of the whole distribution."""
        return 1.0

    def facts(self, group: SampleGroup) -> dict[str, list[int]]:
        """Lengths, and for each sample the first equal one, by text (``same_as``) and by tokens (``equal``)."""
        needs, facts = self.options.needs, dict[str, list[int]]()
        of_data = None if self.responses is None else self.responses.get(group.row)
        if "length" in needs:
            in_tokens = self.options.length_unit == "tokens"
            facts["length"] = [len(ids if in_tokens else self._text(ids)) for ids in group.responses]
        if "same_as" in needs:
            expected = None if of_data is None else self._text(of_data.responses[0])
            facts["same_as"] = same_as([[self._text(ids) for ids in group.responses]], [expected])[0].tolist()
        if kind_of(self.kind).pair:
            tokens = None if of_data is None else tuple(of_data.responses[0])
            facts["equal"] = same_as([[tuple(ids) for ids in group.responses]], [tokens])[0].tolist()
        return facts

    def informative(self, number: int, drawn: Sequence[ScoredGroup]) -> list[bool]:
        """Prompts with at least one group; where none is drawn again, all."""
        if not self.options.max_refills:
            return [True] * len(drawn)
        chosen = set(self.select(drawn, number).prompt.tolist())
        return [number in chosen for number in range(len(drawn))]

    def select(self, drawn: Sequence[ScoredGroup], number: int) -> Selected:
        """Groups that the selector makes of some prompts.

        Args:
            drawn: the prompts with their scored samples.
            number: of the round, for random numbers.
        """
        for one in drawn:
            one.facts = one.facts or self.facts(one.group)
        inputs: dict[str, Callable[[], Any]] = {
            "score": lambda: torch.tensor([_numbers(group.score) for group in drawn], dtype=torch.float64),
            "preference": lambda: torch.tensor([_matrix(group) for group in drawn], dtype=torch.float64),
            "truncated": lambda: _table(drawn, lambda sample: sample.finish == "length", torch.bool),
            "length": lambda: _facts(drawn, "length").double(),
            "same_as": lambda: _facts(drawn, "same_as"),
            "source": lambda: torch.tensor(drawn[0].draw),
            "generator": lambda: torch.Generator().manual_seed(stream_seed("selection", self.seed, number)),
        }
        selected = self.options.selector(**{name: inputs[name]() for name in self.options.needs})
        selected.check(len(drawn), len(drawn[0].score))
        return leave_out_equal(selected, _facts(drawn, "equal")) if kind_of(self.kind).pair else selected

    def begin(self, number: int, cursor: int, groups: Sequence[ScoredGroup], fetch: Fetch = at_hand) -> SelectedRound:
        """The groups of this round, and those of the rounds that are carried along."""
        selected = self.select(groups, number)
        warn_of_few(number, groups, set(selected.prompt.tolist()), keeps_cut_off=self.options.keeps_cut_off)
        fetch(groups, self._wanted(selected, len(groups)))
        chosen = [groups[at].group for at in selected.prompt.tolist()]
        slots, margin = selected.slots.tolist(), selected.numbers.get("margin")
        filled = [
            response_of(group, slot, self._data_group) for group, row in zip(chosen, slots, strict=True) for slot in row
        ]
        examples = replace(
            examples_of(chosen, [ids for ids, _ in filled], selected.slots.shape[1], [mask for _, mask in filled]),
            numbers=by_response(selected),
            margin=None if margin is None else margin.numpy(),
        )
        index = np.array([group.index for group in chosen], dtype=np.int64)
        followed = self.options.loss_options_of(number)
        new = SelectedRound(number, cursor, examples, index, kind=self.kind, selected=selected, loss_options=followed)
        if (drawn := self._log_probs(chosen, slots)) is not None and not self.carried:
            new.tokens["rollout_log_probs"] = drawn
        new.metrics = {f"select/{name}": value for name, value in selected.metrics.items()}
        new.metrics |= {"select/groups": float(len(selected)), "round/number": float(number)}
        new.metrics |= {f"round/{name}": value for name, value in followed.items()}
        whole = self._with_others(new, groups) if len(selected) else new
        if "kl" in self.method().needs:
            whole = whole.with_reference_point()
        if len(selected):
            self._refresh("ema")
            self._carry(new)
        return whole

    def _wanted(self, selected: Selected, count: int) -> dict[int, set[int]]:
        """By the number of a prompt the samples that are trained on; replay compares prompts without any, too."""
        wanted: dict[int, set[int]] = {} if self.replay is None else {at: set() for at in range(count)}
        for at, slots in zip(selected.prompt.tolist(), selected.slots.tolist(), strict=True):
            wanted.setdefault(at, set()).update(slot for slot in slots if slot >= 0)
        return wanted

    def _with_others(self, new: SelectedRound, groups: Sequence[ScoredGroup]) -> SelectedRound:
        """A round with those that are carried along, and its share of the data's own groups."""
        whole = joined([new, *self.carried]) if self.carried else new
        if self.replay is None:
            return whole
        made = len(whole.examples)
        drawn = {prompt_tokens(one.group.prompt) for one in groups}
        rows = self.replay.take(made, drawn | prompts_among(whole.examples, np.arange(made)))
        offline = self.replay.examples.select(rows).compact()
        whole = joined([whole, replace(new, examples=offline, index=rows, selected=None)]) if len(rows) else whole
        whole.metrics |= {"round/replayed": float(len(rows)), "round/replay_share": len(rows) / (made + len(rows))}
        return whole

    def prepare(self, prompts: Examples, first: IntArray) -> None:
        """Read the groups that are replayed, and refuse data with too few of them."""
        if self.replay is not None:
            self.replay.prepare(prompts_among(prompts, first))

    def why_empty(self, groups: Sequence[ScoredGroup]) -> str | None:
        """A selector leaves out what it cannot compare."""
        if all(score is None for group in groups for score in group.score):
            return None
        if self.options.keeps_cut_off:
            state, longer = "tied or unscored", ""
        else:
            state, longer = "tied, cut off or unscored", f", or {_LONGER}"
        return (
            f"the selector made no group of its samples, which are all {state}: draw more (rounds.draws.0.n), refill "
            f"(rounds.max_refills){longer}"
        )

    def scores(self, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Log-probs of the round's reference."""
        module: Any = self.method()
        reference = module.policy if self.options.reference == "round_start" else module.placed_reference()
        return {"reference_log_probs": reference(batch).token}

    def learn(self, learned: SelectedRound, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Complete the round: where asked for, the policy as it is now becomes the reference of the next one."""
        learned.tokens.pop("rollout_log_probs", None)
        self._refresh("previous_round")
        self._refresh_earlier()
        return learned.metrics

    def columns(self, learned: SelectedRound, groups: Sequence[ScoredGroup]) -> dict[int, list[dict[str, Any]]]:
        """Slots that each sample fills."""
        selected = learned.selected
        assert selected is not None, "the round is from a checkpoint, and was written when it was made"
        names = slot_names(self.kind, selected.slots.shape[1])
        by_position: dict[int, list[dict[str, Any]]] = {
            group.position: [{"kept": []} for _ in group.score] for group in groups
        }
        for at, row in zip(selected.prompt.tolist(), selected.slots.tolist(), strict=True):
            for slot, sample in enumerate(row):
                if sample >= 0:
                    by_position[groups[at].position][sample]["kept"].append(names[slot])
        return {
            position: [{"trained": bool(row["kept"]), **row} for row in rows] for position, rows in by_position.items()
        }

    def rows(self, learned: SelectedRound, groups: Sequence[ScoredGroup]) -> Iterator[dict[str, Any]]:
        """The new groups as rows, which ``data=json`` reads back to the same tokens and numbers."""
        assert learned.selected is not None
        decode = functools.partial(self.method().tokenizer.decode, skip_special_tokens=False)
        return rows_of([one.group for one in groups], learned.selected, self.kind, decode, self._data_group)

    # Checkpoints

    def restore(self, state: Mapping[str, Any]) -> SelectedRound:
        """The round that a checkpoint held."""
        restored = SelectedRound.from_state_dict(state)
        return replace(restored, loss_options=self.options.loss_options_of(restored.number))

    def state_dict(self) -> dict[str, Any]:
        """State of the rounds that are carried along and of the replay; plain containers and tensors."""
        replay = {} if self.replay is None else {"replay": self.replay.state_dict()}
        return {"carried": [one.state_dict() for one in self.carried], **replay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.carried = tuple(map(SelectedRound.from_state_dict, state.get("carried", ())))
        if self.replay is not None and "replay" in state:
            self.replay.load_state_dict(state["replay"])

    # Inside

    def _refresh(self, when: str) -> None:
        """Move the reference to the policy as it is now, where its rule is this one; works on shards."""
        if self.options.reference == when:
            module: Any = self.method()
            module.reference.refresh(module.policy, self.options.ema_weight if when == "ema" else 1.0)

    def _refresh_earlier(self) -> None:
        """Keep the policy as it is now for rewards that compare the next round with this one; works on shards."""
        module = self.method()
        copy = module.earlier.get("previous_round")
        if copy is not None and copy is not module.reference:
            copy.refresh(module.policy)

    def _carry(self, new: SelectedRound) -> None:
        """Keep a round for the next ones."""
        if self.options.carry != "none":
            before = self.carried if self.options.carry == "all" else ()
            self.carried = (*before, replace(new, tokens={}, metrics={}, selected=None))

    def _data_group(self, group: SampleGroup) -> Example:
        """The data's own group of a prompt.

        Raises:
            ValueError: it has none.
        """
        if self.responses is None or group.row not in self.responses:
            raise ValueError(f"{group.row}: rounds.selector names the response of the data's row, and it has none")
        return self.responses[group.row]

    def _log_probs(self, groups: Sequence[SampleGroup], slots: Sequence[Sequence[int]]) -> Tensor | None:
        """The engine's log-probs of every kept token, where all are the policy's at temperature 1."""
        if any(draw.source != "policy" or draw.temperature != 1.0 for draw in self.options.draws):
            return None
        if any(slot == DATA for row in slots for slot in row):
            return None
        kept = [group.samples[slot] for group, row in zip(groups, slots, strict=True) for slot in row if slot >= 0]
        if any(len(sample.log_probs) != len(sample.ids) for sample in kept):
            return None
        return floats([sample.log_probs for sample in kept])

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.method().tokenizer.decode(list(ids), skip_special_tokens=True))


def warn_of_few(
    number: int, groups: Sequence[ScoredGroup], with_group: set[int], *, keeps_cut_off: bool = False
) -> None:
    """Warn when most prompts of a round have no group because most of their samples were cut off or not scored.

    Args:
        number: of the round.
        groups: its prompts with their scored samples.
        with_group: positions of prompts that have one.
        keeps_cut_off: whether cut-off samples count as finished ones, and are no reason.
    """
    without = [group for at, group in enumerate(groups) if at not in with_group]
    if 2 * len(without) <= len(groups):
        return
    unscored = np.mean([score is None for group in without for score in group.score])
    cut_off = np.mean([sample.finish == "length" for group in without for sample in group.group.samples])
    cut_off *= not keeps_cut_off
    if cut_off + unscored > 0.5:
        reason = "" if keeps_cut_off else f"{100 * cut_off:.0f} % were cut off at the length limit ({_LONGER}), "
        log.warning(
            "round %d: %d of %d prompts have no group, and the round is trained on the others alone. Of their samples "
            "%s%.0f %% have no score",
            *(number, len(without), len(groups), reason, 100 * unscored),
        )


def _facts(drawn: Sequence[ScoredGroup], name: str) -> Tensor:
    """One fact a sample, (prompts, samples)."""
    return torch.tensor([one.facts[name] for one in drawn], dtype=torch.long)


def _table(drawn: Sequence[ScoredGroup], number: Callable[[Sample], float], dtype: torch.dtype) -> Tensor:
    """One number a sample, (prompts, samples)."""
    return torch.tensor([[number(sample) for sample in group.group.samples] for group in drawn], dtype=dtype)


def _matrix(group: ScoredGroup) -> list[list[float]]:
    return [_numbers(row) for row in group.wins]


def _numbers(scores: Sequence[float | None]) -> list[float]:
    return [torch.nan if score is None else score for score in scores]
