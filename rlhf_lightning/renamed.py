"""Names of an earlier version, which modules, classes and configurations still take for one version, with a warning."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

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
#: Class by its public name -> old name of an argument, which is an option of its yaml -> its name now.
ARGUMENTS: Mapping[str, Mapping[str, str]] = {
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


def renamed(module: str, names: Mapping[str, str], *, stacklevel: int = 2) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module some of whose names have changed.

    Args:
        module: name of the module.
        names: the earlier names with the present ones.
        stacklevel: of the warning; 2 where the result is the ``__getattr__`` itself.
    """

    def getattr_(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now called {names[name]}", DeprecationWarning, stacklevel=stacklevel)
        return getattr(sys.modules[module], names[name])

    return getattr_


def argument(name: str, *, earlier: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator of a function that may still get a keyword argument under its earlier name, with a warning.

    Args:
        name: of the argument.
        earlier: its earlier name.
    """

    def decorator(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if earlier in kwargs:
                warnings.warn(f"the argument {earlier} is now called {name}", DeprecationWarning, stacklevel=2)
                kwargs[name] = kwargs.pop(earlier)
            return function(*args, **kwargs)

        return wrapper

    return decorator


def former_arguments(target: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator of a class whose arguments still count under the names of ``ARGUMENTS``, with a warning.

    An argument that is now part of a value object (``value_clip``, which is now ``value_loss.clip``) is put into it.

    Args:
        target: public name of the class.
    """
    names = ARGUMENTS[target]

    def decorator(cls: type[T]) -> type[T]:
        plain: Any = vars(cls)["__init__"]

        @functools.wraps(plain)
        def init(self: T, *args: Any, **kwargs: Any) -> None:
            for earlier in [name for name in names if name in kwargs]:
                warnings.warn(
                    f"{cls.__name__}({earlier}=...) is now {names[earlier]}; the old name counts in this version only",
                    FutureWarning,
                    stacklevel=2,
                )
                _put(kwargs, names[earlier], kwargs.pop(earlier), f"{cls.__name__}({earlier}=...)")
            plain(self, *args, **kwargs)

        cls.__init__ = init  # type: ignore[method-assign, assignment]
        return cls

    return decorator


def _put(arguments: dict[str, Any], name: str, value: Any, former: str) -> None:
    """Set an argument, or a part of one; TypeError if it is given under both names."""
    whole, _, part = name.partition(".")
    given = arguments.get(whole)
    if not part:
        if whole in arguments:
            raise TypeError(f"{former} is the former name of {name}, and both are given: leave the former out")
        arguments[whole] = value
    elif given is None or (isinstance(given, Mapping) and part not in given):
        arguments[whole] = {**(given or {}), part: value}
    else:
        raise TypeError(f"{former} is now part of {whole}, which is given too: give {part} there")


def class_attribute(owner: type, name: str, *, earlier: str) -> Any:
    """Value of a class attribute, which a subclass may still define under its earlier name, with a warning.

    Args:
        owner: the class.
        name: of the attribute.
        earlier: its earlier name.

    Raises:
        AttributeError: neither is defined.
    """
    for cls in owner.__mro__:
        if earlier in vars(cls):
            warnings.warn(f"{cls.__name__}.{earlier} is now called {name}", DeprecationWarning, stacklevel=2)
            return vars(cls)[earlier]
        if name in vars(cls):
            return vars(cls)[name]
    raise AttributeError(f"{owner.__name__} has no attribute {name!r}")
