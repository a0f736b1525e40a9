"""Parts of an on-policy job: prompts, an engine that draws responses, a reward that scores them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.guidance import check_credit, check_texts, make_guidance
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.online_checks import (
    check,
    check_cost,
    check_judge_pairs,
    check_rounds,
    check_scorer,
    terms_to_make,
)
from rlhf_lightning.lessons.replay import Replay
from rlhf_lightning.lessons.rounds import Rounds
from rlhf_lightning.lessons.select import SelectLesson
from rlhf_lightning.models.roles.earlier import MODEL, ROLES, Earlier
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.rewards import as_reward
from rlhf_lightning.rewards.base import roles_of
from rlhf_lightning.rollout.base import GuidedEngine
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.rounds.responses import DataResponses

if TYPE_CHECKING:
    from rlhf_lightning.data.module import AlignmentDataModule
    from rlhf_lightning.methods import AlignmentModule
    from rlhf_lightning.models.guidance import Guidance
    from rlhf_lightning.models.roles.builder import ModelBuilder
    from rlhf_lightning.rollout.base import RolloutEngine
    from rlhf_lightning.types import Rolled

#: Makes the data of the run as a kind, its name; ``mismatched``: with what KTO's reference point is estimated from.
MakeData = Callable[..., "AlignmentDataModule"]
#: What makes samples and scores beside the method's options: a rollout of others is not taken up again.
_IDENTITY = ("reward", "method.credit.reward", "rollout", "model", "adapter", "prompting", "guidance")


def make_rounds(
    cfg: DictConfig,
    models: ModelBuilder,
    module: AlignmentModule[Any],
    prompts: AlignmentDataModule,
    make_data: MakeData,
) -> OnlineData:
    """The data of a method that learns from groups of its own samples (``rounds``).

    Args:
        cfg: of the run.
        models: the builder of the policy.
        module: the method, without weights.
        prompts: data of kind ``prompt``.
        make_data: the data of the run as another kind.

    Raises:
        ConfigError: rounds, method and reward do not go together, or the engine's weights cannot change.
        ValueError: an option of the rounds is out of its range, or the engine cannot draw what they ask for.
    """
    rounds: Rounds = make(cfg.rounds)()
    scorer = make(cfg.get("reward"))
    check_scorer(rounds, scorer)  # before the models of a reward load
    reward = None if scorer is None else as_reward(scorer, tokenizer=models.tokenizer())
    check_rounds(rounds, module, reward, str(models.reference))
    engine = make_engine(cfg, models)
    guidance = make_guidance(cfg.get("guidance"), models)
    check_texts(guidance, module, reward)
    models.earlier = earlier_of(rounds, roles_of(reward), models)
    models.check_parent()
    names_responses = "same_as" in rounds.needs or any(draw.source == "data" for draw in rounds.draws)
    responses = DataResponses(make_data("supervised")) if names_responses else None
    mismatched, validates = "kl" in module.needs, cfg.data.get("validation") is not None
    check_judge_pairs(rounds, module, reward, validates=validates)
    groups = make_data(module.kind, mismatched=mismatched) if validates or rounds.replay else None
    replay = Replay(rounds.replay, groups, cfg.seed) if rounds.replay and groups is not None else None
    lesson = functools.partial(SelectLesson, kind=module.kind, seed=cfg.seed, responses=responses, replay=replay)
    return OnlineData(
        prompts,
        guided(engine, guidance),
        reward,
        rounds,
        Path(cfg.paths.output_dir) / "rollouts",
        _identity(cfg) + ("" if rounds.parent is None else f" rounds.parent={rounds.parent}"),
        lesson=lesson,
        groups=groups,
        responses=responses,
    )


def earlier_of(rounds: Rounds, roles: frozenset[str], models: ModelBuilder) -> Earlier | None:
    """The policies of earlier rounds that a reward names; None: it names none.

    Raises:
        ConfigError: ``rounds.parent=model``, and the run starts as its model.
    """
    wanted = roles & frozenset(ROLES)
    parent: Any = rounds.parent if "previous_round" in wanted else None
    if parent == MODEL and models.start is None and (models.adapter is None or models.adapter.path is None):
        raise ConfigError(
            "rounds.parent=model is the run's model without the weights that it starts from, and it starts as its "
            "model: name what the policy was trained from, rounds.parent=<folder or hub id>, or start from what was "
            "trained, ckpt_path=<checkpoint of its run> or adapter.path=<its export>"
        )
    if parent is not None and parent != MODEL:
        parent = Pretrained(parent, dtype=getattr(models.source, "dtype", "float32"))
    playing = {"initial": "initial", "round_start": "initial", "previous_round": "previous_round"}
    return Earlier(wanted, parent, playing.get(rounds.reference)) if wanted else None


def make_rollouts(cfg: DictConfig, models: ModelBuilder, module: Rolled, prompts: AlignmentDataModule) -> OnlineData:
    """The data of an on-policy method.

    The reward is ``reward``; where that is ``none``, the method's own (``method.credit.reward``).

    Args:
        cfg: of the run.
        models: the builder of the policy.
        module: the method, without weights.
        prompts: data of kind ``prompt``.

    Raises:
        ConfigError: nothing scores, what scores lacks what the method reads, or the engine's weights cannot change.
        ValueError: the engine cannot follow the run's adapter.
    """
    scorer = make(cfg.get("reward")) or module.default_reward
    check_cost(module, terms_to_make(scorer), inside=True)  # before the reward models among them load
    reward = None if scorer is None else as_reward(scorer, tokenizer=models.tokenizer())
    check(module, reward, prompts)
    engine = make_engine(cfg, models)
    guidance = make_guidance(cfg.get("guidance"), models)
    check_credit(guidance, module)
    folder = Path(cfg.paths.output_dir) / "rollouts"
    return OnlineData(prompts, guided(engine, guidance), reward, module.rollout, folder, _identity(cfg))


def guided(engine: RolloutEngine, guidance: Guidance | None) -> RolloutEngine:
    """An engine with the guidance of a run.

    Raises:
        ConfigError: it cannot be guided.
    """
    if guidance is None:
        return engine
    if not isinstance(engine, GuidedEngine):
        raise ConfigError(
            f"guidance={guidance.name}: rollout={engine.name} draws tokens by itself: choose rollout=transformers, or "
            "guidance=none"
        )
    engine.guide(guidance)
    return engine


def make_engine(cfg: DictConfig, models: ModelBuilder) -> RolloutEngine:
    """Make the engine that draws responses.

    Raises:
        ConfigError: its weights cannot follow the policy.
        ValueError: it cannot follow the run's adapter.
    """
    engine: RolloutEngine = make(cfg.rollout)(tokenizer=models.tokenizer())
    if engine.frozen:
        raise ConfigError(
            f"rollout={engine.name} cannot follow the policy, whose weights change: choose rollout=transformers, "
            "vllm or vllm_server"
        )
    engine.check_adapter(models.adapter)
    return engine


def _identity(cfg: DictConfig) -> str:
    return str({name: OmegaConf.select(cfg, name) for name in _IDENTITY})
