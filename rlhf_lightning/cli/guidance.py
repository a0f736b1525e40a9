"""The config group ``guidance``: what it makes, and which methods may learn from guided samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.losses.options import is_on_policy
from rlhf_lightning.models.guidance import Guidance, ValueGuidance
from rlhf_lightning.rewards import as_reward
from rlhf_lightning.rewards.base import reads_log_probs
from rlhf_lightning.rewards.prefix_value import RewardOfPrefix
from rlhf_lightning.types import PreferenceBatch, Rolled, Trained

if TYPE_CHECKING:
    from rlhf_lightning.models.roles.builder import ModelBuilder


def make_guidance(node: Any, models: ModelBuilder) -> Guidance | None:
    """The guidance of a configuration, checked before weights of policies load; None: there is none.

    Args:
        node: of the configuration.
        models: the builder of the policy.

    Raises:
        ValueError: it cannot guide this policy.
    """
    guidance: Guidance | None = make(node)
    if guidance is None:
        return None
    guidance.check(models)
    if isinstance(guidance, ValueGuidance):
        guidance.value = RewardOfPrefix(as_reward(guidance.reward, tokenizer=models.tokenizer()), guidance.compared)
    return guidance


def guide_samples(guidance: Guidance | None, trainer: Any) -> None:
    """Let the callbacks that sample from the policy sample under a guidance.

    Raises:
        ConfigError: nothing samples.
    """
    from rlhf_lightning.callbacks import PolicySamples

    sampling = [callback for callback in trainer.callbacks if isinstance(callback, PolicySamples)]
    if guidance is not None and not sampling:
        raise ConfigError(f"guidance={guidance.name} guides samples, and nothing samples: choose callbacks.samples")
    for callback in sampling:
        callback.guidance = guidance


def check_credit(guidance: Guidance | None, module: Rolled) -> None:
    """Refuse a policy gradient that would take guided samples for the policy's own.

    Raises:
        ConfigError: the method weighs samples by no ratio of the policy to what they were drawn from, or cannot.
    """
    if guidance is None:
        return
    if not guidance.has_log_probs:
        raise ConfigError(
            f"guidance={guidance.name} draws from a distribution that nobody knows, and this method learns from "
            "samples of the policy: set guidance=none (guidance.candidates=1 is the same), or choose rounds=... with a "
            "method that learns from texts, such as method=dpo rounds=online"
        )
    if not module.mismatch.needs_rollout:
        raise ConfigError(
            f"guidance={guidance.name} draws from another distribution than the policy's, and this method takes "
            "samples for the policy's own: correct for it with method.policy_loss.mismatch.correction=tis, set "
            "guidance=none, or "
            "choose rounds=... with a method that learns from texts, such as method=dpo rounds=online"
        )


def check_texts(guidance: Guidance | None, module: Trained, reward: Any) -> None:
    """Refuse rounds of guided samples for a method or a reward that reads more of a sample than its text.

    Raises:
        ConfigError: it reads who drew a sample, or with which log-probs.
    """
    if guidance is None:
        return
    if is_on_policy(module.loss):
        raise ConfigError(
            f"guidance={guidance.name} draws from another distribution than the policy's, and the gradient of this "
            "method's loss is one of the policy's own samples: set guidance=none, or choose a method that learns from "
            "texts, such as method=dpo"
        )
    if drawn_by := sorted(module.needs.intersection(PreferenceBatch.DRAWN_BY)):
        raise ConfigError(
            f"guidance={guidance.name} draws from another distribution than the policy's, and this method reads "
            f"{', '.join(drawn_by)}: set guidance=none, or choose a method that learns from texts, such as method=dpo"
        )
    if reward is not None and reads_log_probs(reward):
        raise ConfigError(
            f"guidance={guidance.name}: log-probs of its samples are not the policy's, and the reward {reward.name!r} "
            "reads them: set guidance=none, or choose another reward"
        )
