"""What an on-policy method learns from: prompts, an engine that answers them, a reward that scores the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.online_checks import check, check_cost, terms_to_make
from rlhf_lightning.rewards import as_reward
from rlhf_lightning.rounds import OnlineData

if TYPE_CHECKING:
    from rlhf_lightning.data.module import AlignmentDataModule
    from rlhf_lightning.models.roles import ModelBuilder
    from rlhf_lightning.types import Rolled

#: What makes samples and scores beside the method's options: a rollout of others is not taken up again.
_IDENTITY = ("reward", "method.reward", "rollout", "model", "adapter")


def make_rollouts(cfg: DictConfig, models: ModelBuilder, module: Rolled, prompts: AlignmentDataModule) -> OnlineData:
    """The data of an on-policy method.

    The reward is ``reward``; where that is ``none``, the method's own (``method.reward``).

    Args:
        cfg: of the run.
        models: the builder of the policy.
        module: the method, without weights.
        prompts: data of kind ``prompt``.

    Raises:
        ConfigError: nothing scores, what scores lacks what the method reads, or the engine's weights cannot change.
        ValueError: the engine cannot follow the run's adapter.
    """
    scorer = make(cfg.get("reward")) or module.own_reward
    check_cost(module, terms_to_make(scorer), inside=True)  # before the reward models among them load
    reward = None if scorer is None else as_reward(scorer, tokenizer=models.tokenizer())
    check(module, reward, prompts)
    engine = make(cfg.rollout)(tokenizer=models.tokenizer())
    if engine.frozen:
        raise ConfigError(
            f"rollout={engine.name} cannot follow the policy, whose weights change: choose rollout=transformers, "
            "vllm or vllm_server"
        )
    engine.check_adapter(models.adapter)
    identity = str({name: OmegaConf.select(cfg, name) for name in _IDENTITY})
    return OnlineData(prompts, engine, reward, module.rollout, Path(cfg.paths.output_dir) / "rollouts", identity)
