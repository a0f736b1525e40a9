"""What an on-policy method learns from: prompts, an engine that answers them, a reward that scores the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.rewards import as_reward
from rlhf_lightning.rounds import OnlineData

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
    reward = None if scorer is None else as_reward(scorer, tokenizer=tokenizer)
    _check(module, reward, prompts)
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
