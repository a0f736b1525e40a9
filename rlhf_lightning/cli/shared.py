"""Sharing of first rounds between jobs, and the options that decide it besides weights, prompts and draws."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.identity import digest_of, file_contents
from rlhf_lightning.cli.sweep import SWEEP
from rlhf_lightning.cli.trust import leaves
from rlhf_lightning.cli.versions import versions
from rlhf_lightning.data.tokens.cache import default_folder, tokenizer_digest
from rlhf_lightning.models.loading.run_folders import exported
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.rounds.record import key_of
from rlhf_lightning.rounds.shared import SharedRounds

#: Rewards that are functions of responses, of the rows' columns and of files that their options name. Others ask a
#: server, the policy, or code whose content nobody knows: what they say is never another job's.
_FUNCTIONS = frozenset(
    {f"rlhf_lightning.rewards.{name}" for name in ("ClassifierReward", "Composite", "ExactMatch", "FormatReward")}
    | {f"rlhf_lightning.rewards.{name}" for name in ("LengthReward", "LexiconSentiment", "MajorityVote", "MathReward")}
    | {f"rlhf_lightning.rewards.{name}" for name in ("ModelReward", "OverlongPenalty", "ProcessReward", "RegexMatch")}
    | {f"rlhf_lightning.rewards.{name}" for name in ("RelativeLength", "RepetitionPenalty")}
    | {f"rlhf_lightning.world.{name}" for name in ("CorrectScorer", "CyclicScorer", "GoldScorer", "SafetyScorer")}
    | {"rlhf_lightning.world.StepScorer", "rlhf_lightning.world.claims.claim", "rlhf_lightning.world.claim"}
)
#: References that are the policy's start.
_STARTS_AS_POLICY = ("frozen", "adapter_off")


def shared_rounds(cfg: DictConfig, models: ModelBuilder, data: OnlineData, precision: str) -> SharedRounds | None:
    """Where a job's first round may come from; None where it is not shared, or something in it has no identity.

    Args:
        cfg: of the run; ``paths.shared`` is ``auto``, a folder or null.
        models: the builder of the policy.
        data: with engine and draws.
        precision: of the trainer.
    """
    chosen = cfg.paths.get("shared")
    if cfg.get("guidance"):  # other models, or a reward, whose content the weights do not say
        return None
    if chosen is None or (chosen == "auto" and not os.environ.get(SWEEP)):
        return None
    folder = default_folder() / "rounds" if chosen == "auto" else Path(chosen).expanduser()
    starts = str(models.reference) in _STARTS_AS_POLICY and not (cfg.get("rounds") or {}).get("parent")
    reference = str(models.reference) if starts else None
    shareable = {"policy"} if reference is None else {"policy", "reference", "mixture"}
    if not data.engine.exact or not {draw.source for draw in data.options.draws} <= shareable:
        return None
    reward = reward_identity(cfg)
    if reward is None:
        return None
    rounds = cfg.get("rounds") or OmegaConf.create()
    decides = OmegaConf.masked_copy(rounds, [str(name) for name in rounds if name != "loss_options"])
    parts = (versions(), precision, torch.get_num_threads(), OmegaConf.to_yaml(decides, resolve=True))
    device = str(cfg.trainer.get("accelerator")), torch.cuda.is_available()
    chosen_steering = cfg.model.get("steering")  # of a steered model the weights do not say all
    steering = (OmegaConf.to_yaml(chosen_steering, resolve=True), file_contents(cfg)) if chosen_steering else ()
    identity = key_of(reward, tokenizer_digest(models.tokenizer()), *parts, *device, *steering)
    compared = None if reference is None else f"{reference} {rounds.get('reference')}"
    drawing = {draw.source for draw in data.options.draws}
    fixed = compared is not None and drawing == {"reference"} and rounds.get("reference") == "initial"
    return SharedRounds(folder, identity, compared, fixed)


def reward_identity(cfg: DictConfig) -> str | None:
    """Inputs of a job's scores besides samples and columns; None if they cannot be known."""
    node = cfg.get("reward") or OmegaConf.select(cfg, "method.credit.reward")
    if not node:
        return "none"
    tree = OmegaConf.to_container(node, resolve=True)
    assert isinstance(tree, dict)
    parts = []
    for key, value in leaves(tree, "reward"):
        option = key.rpartition(".")[2]
        if option in ("_target_", "target") and value not in _FUNCTIONS:
            return None
        value = str(exported(value, "reward.run")) if option == "run" else value
        path = Path(value).expanduser() if isinstance(value, str) else None
        is_file = path is not None and len(value) < 4096 and path.exists()
        if option == "path" and not is_file:  # a name on a hub, whose content changes
            return None
        parts.append((key, digest_of(path) if is_file and path is not None else value))
    return key_of(parts)
