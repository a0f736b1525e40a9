"""Options and ``_target_`` names under the names that they had before: what they are called now, for one version.

An old name counts wherever an option may stand: on the command line, in a yaml of the user's, in the folder of a run.
It is moved once the configuration is composed, so everything behind that knows the new name alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rlhf_lightning.cli.targets import targets

_POLICY_LOSS = {
    "aggregation": "policy_loss.aggregation",
    "aggregation_length": "policy_loss.aggregation_length",
    "entropy_coef": "policy_loss.entropy_coef",
    "mismatch": "policy_loss.mismatch",
    "score_temperature": "policy_loss.temperature",
    "target_kl": "policy_loss.target_kl",
}
_CREDIT = {
    "multi_reward": "credit.multi_reward",
    "reward": "credit.reward",
    "reward_weights": "credit.reward_weights",
    "running_decay": "credit.running_decay",
    "shaping": "credit.shaping",
}
_WRITING = {name: f"writing.{name}" for name in ("max_tokens", "seed", "temperature")}
_REQUESTS = {name: f"requests.{name}" for name in ("backoff", "concurrency", "retries", "timeout")}
_VLLM = {
    name: f"vllm.{name}"
    for name in ("dtype", "enforce_eager", "gpu_memory_utilization", "max_model_len", "max_num_seqs", "memory")
}
#: Class -> old name of an option -> its name now.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "rlhf_lightning.data.AlignmentDataModule": {
        name: f"loading.{name}" for name in ("bucket", "eval_batch_size", "num_workers", "padded", "shuffle")
    },
    "rlhf_lightning.data.DataSpec": {"context_place": "context_position"},
    "rlhf_lightning.methods.KLPenalty": {"place": "apply_to"},
    "rlhf_lightning.methods.PolicyGradient": {**_POLICY_LOSS, **_CREDIT},
    "rlhf_lightning.methods.PPO": {
        **_POLICY_LOSS,
        **_CREDIT,
        "advantage_clip": "credit.clip",
        "critic_lr": "value_loss.critic_lr",
        "critic_warmup": "value_loss.critic_warmup",
        "max_ratio": "policy_loss.max_ratio",
        "multiplier": "credit.multiplier",
        "ptx_coef": "policy_loss.ptx_coef",
        "value_clip": "value_loss.clip",
        "value_coef": "value_loss.coef",
        "whiten_advantages": "credit.whiten",
        "whiten_unbiased": "credit.whiten_unbiased",
    },
    "rlhf_lightning.rewards.ComparisonJudge": _WRITING,
    "rlhf_lightning.rewards.ExpectedRating": {
        name: f"rating.{name}" for name in ("high", "least_mass", "low", "scaled")
    },
    "rlhf_lightning.rewards.RatingJudge": {
        **_WRITING,
        **{name: f"rating.{name}" for name in ("high", "histogram", "judgments", "least_read", "low", "scaled")},
    },
    "rlhf_lightning.rollout.ChatClient": _REQUESTS,
    "rlhf_lightning.rollout.OpenAIEngine": _REQUESTS,
    "rlhf_lightning.rollout.VLLMEngine": _VLLM,
    "rlhf_lightning.rollout.VLLMServerEngine": {
        **_VLLM,
        **_REQUESTS,
        "arguments": "server.arguments",
        "environment": "server.environment",
        "folder": "server.folder",
        "port": "server.port",
        "start_timeout": "server.start_timeout",
    },
}
#: A ``_target_`` under the module that it was in -> its public name.
MOVED: Mapping[str, str] = {
    f"rlhf_lightning.models.{module}.{name}": f"rlhf_lightning.models.{name}"
    for module, name in (
        ("critic", "ActorCritic"),
        ("gated", "GatedScorer"),
        ("scorer", "Scorer"),
        ("value_actor", "ValueActor"),
    )
}


def with_new_names(cfg: DictConfig, *, warn: bool = True) -> DictConfig:
    """Move options of old names, and rename targets that have moved, in place.

    A value under an old name counts above one under the new name, which may be a default; options of a mapping are
    moved one by one.

    Args:
        cfg: composed, or read from the folder of a run.
        warn: say what an old name is now; not of what nobody typed.

    Returns:
        The same configuration.
    """
    for key, made in targets(OmegaConf.to_container(cfg, resolve=False)):
        if (earlier := str(made["_target_"])) in MOVED:
            with open_dict(cfg):
                OmegaConf.update(cfg, f"{key}._target_", MOVED[earlier])
            if warn:
                _warn(earlier, MOVED[earlier])
    while (move := next(_moves(OmegaConf.to_container(cfg, resolve=False)), None)) is not None:
        old, new, value = move
        node, _, name = old.rpartition(".")
        with open_dict(cfg):
            del OmegaConf.select(cfg, node)[name]
            OmegaConf.update(cfg, new, value, merge=True, force_add=True)
        if warn:
            _warn(old, new)
    return cfg


def names_of(keys: Iterable[str]) -> frozenset[str]:
    """Keys, and what each of them may be called now.

    Args:
        keys: of options that a user gave, whatever class they are options of.
    """
    return frozenset(name for key in keys for name in (key, *_new_names(key)))


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name counts in this version only", FutureWarning, stacklevel=3)


def _moves(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Old key, new key and value of each option under an old name, outermost first."""
    for key, node in targets(tree):
        for old, new in RENAMED.get(str(node["_target_"]), {}).items():
            if old in node and "[" not in key:
                yield f"{key}.{old}", f"{key}.{new}", node[old]


def _new_names(key: str) -> Iterator[str]:
    parts = key.split(".")
    for at, part in enumerate(parts):
        for names in RENAMED.values():
            if part in names:
                yield ".".join([*parts[:at], names[part], *parts[at + 1 :]])
