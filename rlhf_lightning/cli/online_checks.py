"""Checks of an on-policy run before weights load, and warnings about options without effect."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig

from rlhf_lightning.cli.draws import draws
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.data.batches.packing import batch_of
from rlhf_lightning.data.kinds import kind_of
from rlhf_lightning.losses.options import validate
from rlhf_lightning.methods.unpaired import Unpaired
from rlhf_lightning.options import real_options
from rlhf_lightning.rewards.base import (
    ComposedReward,
    StepReward,
    WeightedTerms,
    roles_of,
    smallest_group,
    term_names,
)
from rlhf_lightning.rewards.win_matrix import COMPARING, without_comparing
from rlhf_lightning.selection.options import kinds as selected_kinds
from rlhf_lightning.types import PreferenceBatch, Rolled, RolloutOptions, Trained

if TYPE_CHECKING:
    from rlhf_lightning.data.module import AlignmentDataModule
    from rlhf_lightning.lessons.rounds import Rounds


def check(module: Rolled, reward: Any, prompts: AlignmentDataModule) -> None:
    """Refuse what could only fail in the first rollout, after weights were loaded, or what would do nothing there.

    Args:
        module: the method, without weights.
        reward: what scores, or None.
        prompts: the data.

    Raises:
        ConfigError: method, reward and data do not go together; the message says what to change.
    """
    _check_reward(module, reward)
    _check_no_roles(reward)
    _check_demonstrations(module, prompts)
    _check_costs(module, reward)
    _check_terms(module, reward)
    _check_groups(module.rollout, reward)
    _check_credit(module)


def check_rounds(rounds: Rounds, module: Trained, reward: Any, reference: str) -> None:
    """Refuse rounds that could only fail once responses were drawn, or whose groups the method cannot learn from.

    Args:
        rounds: their options.
        module: the method, without weights.
        reward: what scores, or None.
        reference: kind of the run's reference.

    Raises:
        ConfigError: they do not go together; the message says what to change.
    """
    made = selected_kinds(rounds.selector)
    _check_roles(rounds, reward)
    if module.draws:
        raise ConfigError(
            "rounds=... makes groups of samples, and this method learns from rollouts by itself: set rounds=none, or "
            "choose a method that learns from groups, such as method=dpo"
        )
    if made is not None and module.kind not in made:
        raise ConfigError(
            f"rounds.selector makes groups of kind {', '.join(sorted(made))}, and this method learns from "
            f"{module.kind} data: choose another method, or another of conf/rounds"
        )
    _check_numbers(rounds, module)
    _check_replay(rounds, module)
    _check_loss_options(rounds, module)
    if reward is None and "score" in rounds.needs:
        raise ConfigError(
            "reward=none, and rounds.selector compares scores of the policy's own responses: choose reward=model "
            "reward.path=..., reward=function reward.target=..., or another of conf/reward"
        )
    if isinstance(module, Unpaired) and module.density_ratio is not None:
        raise ConfigError(
            "method.density_ratio tells the prompts of both labels apart before training, and rounds label responses "
            "during training: set method.density_ratio=null"
        )
    if (fewest := smallest_group(reward)) > rounds.group_size:
        raise ConfigError(
            f"the reward {reward.name!r} compares the responses to a prompt and needs at least {fewest}: set "
            f"rounds.draws.0.n={fewest - rounds.group_size + rounds.draws[0].n}"
        )
    if rounds.needs_reference and reference == "none":
        raise ConfigError(
            "rounds.draws draws from the reference, and none is loaded: set reference=frozen, or reference=adapter_off "
            "with an adapter"
        )
    if rounds.reference != "initial" and "reference" not in module.needs:
        raise ConfigError(
            f"rounds.reference={rounds.reference}: this method compares with no reference: set rounds.reference=initial"
        )


def check_scorer(rounds: Rounds, scorer: Any) -> None:
    """Refuse a reward that compares no responses for a selector that reads who beats whom, before its weights load.

    Args:
        rounds: their options.
        scorer: what scores, or a partial that makes it; None: nothing does.

    Raises:
        ConfigError: it compares nothing; the message names rewards that do, and the option.
    """
    if rounds.needs_wins and (scorer_name := without_comparing(scorer)) is not None:
        raise ConfigError(
            f"{scorer_name}, and rounds.selector compares the responses to a prompt pair by pair: {COMPARING}, or turn "
            "scores into probabilities (rounds.selector.judge=scores)"
        )


def check_judge_pairs(rounds: Rounds, module: Trained, reward: Any, *, validates: bool) -> None:
    """Refuse to hold a reward against pairs that there are not, or one that cannot score them.

    Args:
        rounds: their options.
        module: the method, without weights.
        reward: what scores, or None.
        validates: whether there is validation data.

    Raises:
        ConfigError: there are none; the message names the option.
    """
    problem = ""
    if not validates:
        problem = "the run has no validation data: set data.validation"
    elif not kind_of(module.kind).pair:
        problem = f"the validation data of this method is {kind_of(module.kind).noun}: set rounds.judge_pairs=0"
    elif reward is None:
        problem = "there is no reward: choose reward=..., or set rounds.judge_pairs=0"
    elif smallest_group(reward) > len(kind_of(module.kind).slots):
        problem = f"the reward {reward.name!r} compares more than two responses: set rounds.judge_pairs=0"
    if rounds.judge_pairs and problem:
        raise ConfigError(
            f"rounds.judge_pairs={rounds.judge_pairs} holds the reward against held-out pairs, and {problem}"
        )


def _check_replay(rounds: Rounds, module: Trained) -> None:
    """Refuse to mix groups of the data into rounds that they could not stand in."""
    if not rounds.replay:
        return
    if not kind_of(module.kind).slots:
        raise ConfigError(
            f"rounds.replay mixes the data's own groups in, and lists ({module.kind}) may have other lengths than "
            "those of rounds: set rounds.replay=0"
        )
    if drawn_by := sorted(module.needs.intersection(PreferenceBatch.DRAWN_BY)):
        raise ConfigError(
            f"rounds.replay mixes the data's own groups in, and this method reads {', '.join(drawn_by)}, which only "
            "drawn responses have: set rounds.replay=0"
        )


def _check_loss_options(rounds: Rounds, module: Trained) -> None:
    """Refuse to let options follow the rounds that the loss does not have, or values out of their range."""
    allowed = real_options(module.loss)
    for name, values in rounds.loss_options.items():
        if name not in allowed:
            raise ConfigError(
                f"rounds.loss_options.{name}: method.loss has no real-valued option of this name."
                f"{suggestion(name, allowed)}"
            )
        for value in values:
            try:
                validate(functools.partial(module.loss, **{name: value}))
            except ValueError as error:
                raise ConfigError(f"rounds.loss_options.{name}: {error}") from error


def _check_numbers(rounds: Rounds, module: Trained) -> None:
    """Refuse groups that lack a number which the method reads, such as a win probability."""
    batch = batch_of(module.kind)
    read = set(batch.NUMBERS)
    if issubclass(batch, PreferenceBatch):
        read |= module.needs & {"margin", *batch.OPTIONAL}
    if missing := sorted(read - rounds.numbers):
        raise ConfigError(
            f"this method reads {', '.join(missing)} of each group, and rounds.selector gives "
            f"{', '.join(sorted(rounds.numbers)) or 'no number'}: choose another method, another of conf/rounds, or "
            "other options of the selector"
        )


def _check_reward(module: Rolled, reward: Any) -> None:
    """Refuse a method that learns from rewards without one, or from those of steps without them."""
    if reward is None and module.needs_reward:
        raise ConfigError(
            "reward=none, and this method learns from rewards of the policy's own responses: choose reward=model "
            "reward.path=..., reward=function reward.target=..., or another of conf/reward"
        )
    if "step_reward" in module.assignment.needs and not isinstance(reward, StepReward):
        raise ConfigError(
            f"this method learns from rewards of steps, and the reward {_name(reward)!r} gives one "
            "number a response: choose reward=process reward.path=..., or method=grpo"
        )


def _check_no_roles(reward: Any) -> None:
    """Refuse a reward that asks for models of a run with rounds in one without."""
    if names := sorted(roles_of(reward)):
        raise ConfigError(
            f"reward {reward.name!r} compares with {', '.join(names)}, which only a run with rounds has: choose "
            "rounds=... with a method that learns from groups, such as method=dpo rounds=dice, or give folders of "
            "models, reward.path=<the trained one> reward.reference=<what it was trained from>"
        )


def _check_roles(rounds: Rounds, reward: Any) -> None:
    """Refuse a reward whose two models are one and the same in the first round: every score is 0, and no round ends."""
    names = roles_of(reward)
    if (
        isinstance(reward, ComposedReward)
        or len(names) < 2
        or (rounds.parent is not None and "previous_round" in names)
    ):
        return
    remedy = (
        ": set rounds.parent=<folder or hub id of what the policy was trained from>, or rounds.parent=model where "
        "adapter.path or ckpt_path holds what was trained"
    )
    raise ConfigError(
        f"reward {reward.name!r} compares {' with '.join(sorted(names))}, and in the first round these are the same "
        f"policy, so every score is 0{remedy if 'previous_round' in names else ': let reward.reference be another'}"
    )


def _check_demonstrations(module: Rolled, prompts: AlignmentDataModule) -> None:
    """Refuse a weight of demonstrations without any."""
    weight = module.ptx_coef
    if weight and prompts.ptx is None:
        raise ConfigError(
            f"method.policy_loss.ptx_coef={weight} mixes demonstrations or text in, and there are none: name their "
            "data with +data@data.ptx=..., for example +data@data.ptx=ultrachat, or set method.policy_loss.ptx_coef=0"
        )


def _check_costs(module: Rolled, reward: Any) -> None:
    """Refuse a limit on a cost that is no term of the reward, or that the reward adds up."""
    costs = module.assignment.cost_terms
    if costs and not isinstance(reward, ComposedReward):
        raise ConfigError(
            f"this method limits the cost {sorted(costs)[0]!r}, a term of the reward, and the reward "
            f"{_name(reward)!r} has no terms: choose reward=composite with a cost model among its terms"
        )
    check_cost(module, term_names(reward))
    _check_cost_is_no_reward(module, reward)


def _check_terms(module: Rolled, reward: Any) -> None:
    """Refuse options of single terms where the reward has none, or where nothing reads them."""
    assignment = module.assignment
    if assignment.separate and not isinstance(reward, ComposedReward):
        raise ConfigError(
            "method.credit.multi_reward=normalize_then_sum standardises each term of a reward, and the reward "
            f"{_name(reward)!r} has no terms: choose reward=composite, or sum_then_normalize"
        )
    if assignment.weights and not assignment.separate:
        raise ConfigError(
            "method.credit.reward_weights are of multi_reward=normalize_then_sum: set that, or weigh the terms with "
            "reward.weights of reward=composite"
        )
    names = term_names(reward)
    for name in sorted(set(assignment.weights) - set(names or assignment.weights)):
        told = suggestion(name, names or ())
        raise ConfigError(f"method.credit.reward_weights.{name}: the reward has no such term.{told}")


def _check_credit(module: Rolled) -> None:
    """Refuse rollouts that could not teach: single responses for credit that compares those to a prompt."""
    options, assignment = module.rollout, module.assignment
    if options.greedy_baseline and "baseline" not in assignment.needs:
        raise ConfigError(
            "method.rollout.greedy_baseline=true decodes every prompt once more, and this method's credit function "
            "does not read it: choose method=remax, or set it to false"
        )
    apart: Mapping[str, Any] = {"reward": torch.tensor([0.0, 1.0]), "group": torch.arange(2)}
    if options.kept > 1 or assignment.needs != set(apart):
        return
    advantage: Callable[..., torch.Tensor] = assignment.advantage
    try:
        advantages = advantage(**apart)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not advantages.any():
        raise ConfigError(
            "this method compares the responses to a prompt, and there is one to learn from: its advantage is always "
            "0. Set method.rollout.group_size (and keep) to 2 or more, or choose method=reinforce"
        )


def _check_groups(options: RolloutOptions, reward: Any) -> None:
    """Refuse groups that are too small for a reward that compares the responses to a prompt."""
    fewest = smallest_group(reward)
    alone = {
        "method.rollout.group_size": options.group_size,
        "method.rollout.validation_samples": options.validation_samples,
    }
    small = [f"{name}={fewest}" for name, size in alone.items() if size < fewest]
    if small:
        raise ConfigError(
            f"the reward {reward.name!r} compares the responses to a prompt and needs at least {fewest}: set "
            f"{' '.join(small)} or more"
        )
    if options.greedy_baseline and fewest > 1:
        raise ConfigError(
            f"the reward {reward.name!r} compares the responses to a prompt, and the greedy response that is this "
            "method's baseline is scored alone: choose method=rloo or method=grpo"
        )


def _name(reward: Any) -> str | None:
    """Of what scores; None where nothing does."""
    return None if reward is None else str(reward.name)


def terms_to_make(scorer: Any) -> frozenset[str] | None:
    """Names of the terms that a composed reward's partial will make; None for any other reward."""
    terms = scorer.keywords.get("terms") if isinstance(scorer, functools.partial) else None
    return frozenset(terms) if isinstance(terms, Mapping) else None


def check_cost(module: Rolled, names: Collection[str] | None, *, inside: bool = False) -> None:
    """Refuse a cost that is none of the reward's terms.

    Args:
        module: the method.
        names: of the terms; None: they are not known before the reward scores.
        inside: a term may have terms of its own, ``term/part``, that are not among the names yet.
    """
    for cost in sorted(module.assignment.cost_terms):
        if names is None or (cost.partition("/")[0] if inside else cost) in names:
            continue
        raise ConfigError(
            f"method.credit.multiplier.cost={cost} is no term of the reward: set it to one of its terms, "
            f"or add the term, for example +reward@reward.terms.{cost}=cost reward.terms.{cost}.path=<cost model> "
            f"'reward.costs=[{cost}]'.{suggestion(cost, names)}"
        )


def _check_cost_is_no_reward(module: Rolled, reward: Any) -> None:
    """Refuse a cost that the reward adds up: it would be sought and limited at once."""
    weights = reward.weights if isinstance(reward, WeightedTerms) else {}
    for cost in sorted(module.assignment.cost_terms):
        if weights.get(cost, 0.0) > 0:
            raise ConfigError(
                f"the reward adds up its term {cost!r} with weight {weights[cost]:g}, and this method limits it as a "
                f"cost: set 'reward.costs=[{cost}]', which takes it out of the sum"
            )


def without_effect(cfg: DictConfig, module: Any, data: Any) -> Iterator[str]:
    """Say which options that were changed from their defaults change nothing in this run, one line each.

    Args:
        cfg: of the run.
        module: the method.
        data: the run's.
    """
    rolled = cast("Rolled", module) if module.draws else None
    if cfg.data.get("ptx") is not None and not (rolled and rolled.ptx_coef):
        yield "data.ptx: this method gives it no weight (method.policy_loss.ptx_coef of method=ppo and ppo_lagrangian)"
    if not draws(cfg, module):
        if cfg.get("rollout") and not str(cfg.rollout.get("_target_")).endswith(".TransformersEngine"):
            yield "rollout: this method learns from the responses of the data and draws none"
        if cfg.get("guidance"):
            yield "guidance: this method learns from the responses of the data and draws none"
        return
    loading = cfg.data.get("loading") or {}
    if workers := loading.get("num_workers"):
        yield f"data.loading.num_workers={workers}: rollouts are packed in the process that draws them"
    if (bucket := loading.get("bucket")) is not None:
        yield f"data.loading.bucket={bucket}: a rollout's responses are dealt out to its steps at random"
    if (cfg.data.get("spec") or {}).get("max_response_length") is not None:
        yield (
            f"data.spec.max_response_length={cfg.data.spec.max_response_length}: the data's responses are not read; "
            "rollout.max_new_tokens limits the policy's"
        )
    if rolled is None and data.options.parent is not None and "previous_round" not in roles_of(data.reward):
        yield f"rounds.parent={data.options.parent}: no reward compares with previous_round"
    reads = rolled.needs_reward if rolled is not None else data.options.reads_reward
    if data.reward is not None and not reads:
        yield f"reward: {data.reward_name!r} is logged, and this method learns from no reward"
