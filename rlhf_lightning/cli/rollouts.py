"""What an on-policy method learns from: prompts, an engine that answers them, a reward that scores the answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.rewards import as_reward
from rlhf_lightning.rewards.base import smallest_group
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.types import RolloutOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.data.module import AlignmentDataModule

#: What makes samples and scores beside the method's options: a rollout of others is not taken up again.
_IDENTITY = ("reward", "method.reward", "rollout", "model", "adapter")


def make_rollouts(
    cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, module: Any, prompts: AlignmentDataModule
) -> OnlineData:
    """The data of an on-policy method.

    The reward is ``reward``; where that is ``none``, the method's own (``method.reward``).

    Args:
        cfg: of the run.
        tokenizer: of the policy.
        module: the method, without weights.
        prompts: data of kind ``prompt``.

    Raises:
        ConfigError: nothing scores, what scores lacks what the method reads, or the engine's weights cannot change.
    """
    from rlhf_lightning.cli.build import make

    scorer = make(cfg.get("reward")) or getattr(module, "own_reward", None)
    _check_cost(module, _terms_to_make(scorer), inside=True)  # before the reward models among them load
    reward = None if scorer is None else as_reward(scorer, tokenizer=tokenizer)
    _check(module, reward, prompts)
    _check_cost(module, getattr(reward, "term_names", None))
    _check_cost_is_no_reward(module, reward)
    _check_groups(module.rollout, reward)
    engine = make(cfg.rollout)(tokenizer=tokenizer)
    if getattr(engine, "frozen", False):
        raise ConfigError(
            f"rollout={engine.name} cannot follow the policy, whose weights change: choose rollout=transformers, "
            "vllm or vllm_server"
        )
    identity = str({name: OmegaConf.select(cfg, name) for name in _IDENTITY})
    return OnlineData(prompts, engine, reward, module.rollout, Path(cfg.paths.output_dir) / "rollouts", identity)


def _check(module: Any, reward: Any, prompts: AlignmentDataModule) -> None:
    """Refuse what could only fail in the first rollout, after weights were loaded."""
    if reward is None and getattr(module, "needs_reward", True):
        raise ConfigError(
            "reward=none, and this method learns from rewards of the policy's own responses: choose reward=model "
            "reward.path=..., reward=function reward.target=..., or another of conf/reward"
        )
    reads: frozenset[str] = getattr(getattr(module, "assignment", None), "needs", frozenset())
    if "step_reward" in reads and getattr(reward, "step_reward", None) is None:
        raise ConfigError(
            f"this method learns from rewards of steps, and the reward {getattr(reward, 'name', None)!r} gives one "
            "number a response: choose reward=process reward.path=..., or method=grpo"
        )
    weight = getattr(module, "ptx_coef", 0.0)
    if weight and prompts.ptx is None:
        raise ConfigError(
            f"method.ptx_coef={weight} mixes demonstrations or text in, and there are none: name their data with "
            "+data@data.ptx=..., for example +data@data.ptx=ultrachat, or set method.ptx_coef=0"
        )
    costs: frozenset[str] = getattr(module, "cost_terms", frozenset())
    if costs and getattr(reward, "terms", None) is None:
        raise ConfigError(
            f"this method limits the cost {sorted(costs)[0]!r}, a term of the reward, and the reward "
            f"{getattr(reward, 'name', None)!r} has no terms: choose reward=composite with a cost model among its terms"
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


def _terms_to_make(scorer: Any) -> frozenset[str] | None:
    """Names of the terms that a composed reward's partial will make; None for any other reward."""
    terms = getattr(scorer, "keywords", {}).get("terms")
    return frozenset(terms) if isinstance(terms, Mapping) else None


def _check_cost(module: Any, names: Collection[str] | None, *, inside: bool = False) -> None:
    """Refuse a cost that is none of the reward's terms.

    Args:
        module: the method.
        names: of the terms; None: they are not known before the reward scores.
        inside: a term may have terms of its own, ``term/part``, that are not among the names yet.
    """
    for cost in sorted(getattr(module, "cost_terms", frozenset())):
        if names is None or (cost.partition("/")[0] if inside else cost) in names:
            continue
        raise ConfigError(
            f"method.multiplier.cost={cost} is no term of the reward: set method.multiplier.cost to one of its terms, "
            f"or add the term, for example +reward@reward.terms.{cost}=cost reward.terms.{cost}.path=<cost model> "
            f"'reward.costs=[{cost}]'.{suggestion(cost, names)}"
        )


def _check_cost_is_no_reward(module: Any, reward: Any) -> None:
    """Refuse a cost that the reward adds up: it would be sought and limited at once."""
    weights: Mapping[str, float] = getattr(reward, "weights", {})
    for cost in sorted(getattr(module, "cost_terms", frozenset())):
        if weights.get(cost, 0.0) > 0:
            raise ConfigError(
                f"the reward adds up its term {cost!r} with weight {weights[cost]:g}, and this method limits it as a "
                f"cost: set 'reward.costs=[{cost}]', which takes it out of the sum"
            )
