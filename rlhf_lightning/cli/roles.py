"""Role of each node of a configuration, which decides the ``_target_`` that it may have.

A place is a key. What is made there has a role: a class of a known base, or a function of a declared kind. A name in a
yaml is allowed where it has the role of its place, never because of the package that it lies in: the packages that
optimisers and callbacks come from also have helpers that start shells and load code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Role:
    """Role of a node: the objects that it may make.

    Attributes:
        noun: what messages call it.
        ours: our packages and modules that have it; what is only imported there does not count.
        bases: dotted names of classes or protocols, one of which a class must have or fulfil.
        declares: what a declared function of this role calls itself (``options.Declared``).
        functions: dotted names of our functions, or of modules whose public functions have the role.
        public: modules of other packages whose classes of these bases may be named.
    """

    noun: str
    ours: tuple[str, ...]
    bases: tuple[str, ...] = ()
    declares: str | None = None
    functions: tuple[str, ...] = ()
    public: tuple[str, ...] = ()

    def fits(self, target: Any, bases: Mapping[str, type]) -> bool:
        """Check whether a target has this role.

        Args:
            target: what a dotted path names.
            bases: the classes that :attr:`bases` names, by name.
        """
        if inspect.isclass(target):
            return any(_is_a(target, bases[name]) for name in self.bases)
        if not callable(target):
            return False
        if self.declares is not None and getattr(target, "declares", None) == self.declares:
            return True
        module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "_")
        return not name.startswith("_") and (module in self.functions or f"{module}.{name}" in self.functions)


def _is_a(target: type, base: type) -> bool:
    """Check whether a class has a base, or every method of a protocol."""
    if not getattr(base, "_is_protocol", False):
        return issubclass(target, base)
    methods = [name for name, value in vars(base).items() if callable(value) or isinstance(value, property)]
    required = [name for name in methods if name == "__call__" or not name.startswith("_")]
    return bool(required) and all(hasattr(target, name) for name in required)


_R = "rlhf_lightning"
_MODEL = Role("a model", (f"{_R}.models", f"{_R}.world"), bases=(f"{_R}.models.sources.Execution",))
_HEAD = Role("a head on a model", (f"{_R}.models",), bases=(f"{_R}.models.backbone.Backbone",))
_LOSS = Role("a loss", (f"{_R}.losses",), bases=(f"{_R}.losses.weighted_sum.WeightedSum",), declares="loss")
_REWARD = Role("a reward", (f"{_R}.rewards", f"{_R}.world"), bases=(f"{_R}.rewards.base.Reward",))
_DATA = Role("a data module", (f"{_R}.data",), bases=(f"{_R}.data.module.AlignmentDataModule",))
_SOURCE = Role(
    "a source of rows", (f"{_R}.data", f"{_R}.world", f"{_R}.prompting"), bases=(f"{_R}.data.sources.base.Source",)
)
_SPEC = Role("how rows become tokens", (f"{_R}.data",), bases=(f"{_R}.data.spec.DataSpec",))
_WRITERS = (
    f"{_R}.rollout.openai.ChatClient",
    f"{_R}.prompting.language.LocalModel",
    f"{_R}.prompting.phrases.Phrases",
)
_EVALUATIONS = (f"{_R}.callbacks.token_shift.TokenShift", f"{_R}.rewards.win_rate.WinRate")
_PROMPTING = Role("a prompt transform", (f"{_R}.prompting",), bases=(f"{_R}.prompting.base.Transform",))
_REVISION = Role(
    "a chain of critiques and revisions", (f"{_R}.prompting",), bases=(f"{_R}.prompting.revision.Revision",)
)
_CLIENT = Role("a client of a judge", (f"{_R}.rollout",), bases=(f"{_R}.rollout.openai.ChatClient",))
_TEXTS = Role("a function of prompt and response", (f"{_R}.world",), functions=(f"{_R}.world.claims.claim",))


def _part(name: str, cls: str) -> Role:
    return Role(name, (f"{_R}.methods",), bases=(f"{_R}.methods.{cls}",))


_REWARDS = r"(?:method\.credit\.|guidance\.)?reward(?:\.terms\.[^.]+|\.right)*"
_DATAS = r"data(?:\.ptx)*"

#: Patterns of whole keys, and the role of what is made there.
ROLE_BY_KEY: tuple[tuple[str, Role], ...] = (
    (r"model|reference\.source|method\.critic\.source|guidance\.(?:tuned|untuned|reference)", _MODEL),
    (r"(?:method\.critic\.)?adapter", Role("an adapter", (f"{_R}.models",), bases=(f"{_R}.models.adapters.Lora",))),
    (r"method", Role("a method", (f"{_R}.methods",), bases=(f"{_R}.methods.base.AlignmentModule",))),
    (r"method\.loss(?:\.terms\.[^.]+\.loss)*", _LOSS),
    (r"method\.advantage", Role("a credit function", (f"{_R}.credit",), declares="credit function")),
    (r"rounds", Role("rounds of samples", (f"{_R}.lessons",), bases=(f"{_R}.lessons.rounds.Rounds",))),
    (r"rounds\.selector", Role("a selector", (f"{_R}.selection",), declares="selector")),
    (r"method\.(?:head|critic)", _HEAD),
    (r"method\.kl", _part("a KL penalty", "kl.KLPenalty")),
    (r"method\.credit\.shaping", _part("a shaping of rewards", "shaping.RewardShaping")),
    (r"method\.credit\.multiplier", _part("a multiplier of costs", "lagrangian.Multiplier")),
    (r"method\.policy_loss\.mismatch", _part("a correction of the engine's log-probs", "mismatch.Mismatch")),
    (r"method\.density_ratio", _part("a density ratio", "density_ratio.DensityRatio")),
    (_REWARDS, _REWARD),
    (rf"{_REWARDS}\.(?:function|extract)", _TEXTS),
    (rf"{_REWARDS}\.judge|{_DATAS}\.(?:source|validation)\.judge", _CLIENT),
    (rf"{_REWARDS}\.spec|{_DATAS}\.spec|spec", _SPEC),
    (r"evaluation", Role("an evaluation", (f"{_R}.callbacks", f"{_R}.rewards"), bases=_EVALUATIONS)),
    (r"search", Role("a search of a prompt", (f"{_R}.prompting",), bases=(f"{_R}.prompting.search.PromptSearch",))),
    (r"proposer", Role("what writes prompts", (f"{_R}.prompting", f"{_R}.rollout"), bases=_WRITERS)),
    (rf"prompting|(?:{_REWARDS}\.|{_DATAS}\.)?spec\.prompting", _PROMPTING),
    (r"revision", _REVISION),
    (r"guidance", Role("a guidance", (f"{_R}.models",), bases=(f"{_R}.models.guidance.Guidance",))),
    (_DATAS, _DATA),
    (rf"{_DATAS}\.(?:source|validation)(?:\.source|\.chosen|\.rejected|\.sources\.[^.]+)*", _SOURCE),
    (
        r"rollout",
        Role("a rollout engine", (f"{_R}.rollout",), bases=(f"{_R}.rollout.base.RolloutEngine",)),
    ),
    (
        r"optimizer",
        Role(
            "an optimizer",
            (f"{_R}.optimizers",),
            bases=("torch.optim.Optimizer",),
            public=("torch.optim", "bitsandbytes.optim", "transformers.optimization"),
        ),
    ),
    (
        r"scheduler",
        Role(
            "a schedule",
            (f"{_R}.schedules",),
            bases=("torch.optim.lr_scheduler.LRScheduler",),
            functions=(f"{_R}.schedules",),
            public=("torch.optim.lr_scheduler",),
        ),
    ),
    (
        r"callbacks\.[^.]+",
        Role(
            "a callback",
            (f"{_R}.callbacks",),
            bases=("lightning.pytorch.callbacks.Callback",),
            public=("lightning.pytorch.callbacks",),
        ),
    ),
    (
        r"callbacks\.[^.]+\.world",
        Role("a judge that knows the world", (f"{_R}.world",), bases=(f"{_R}.world.evaluator.TinyEvaluator",)),
    ),
    (
        r"(?:callbacks\.[^.]+|evaluation)\.pack",
        Role("a packing", (f"{_R}.data",), functions=(f"{_R}.data.batches.packing.pack",)),
    ),
    (
        r"logger\.[^.]+",
        Role(
            "a logger",
            (f"{_R}.loggers",),
            bases=("lightning.pytorch.loggers.Logger",),
            public=("lightning.pytorch.loggers",),
        ),
    ),
    (
        r"strategy\.strategy",
        Role(
            "a strategy",
            (f"{_R}.strategies",),
            bases=("lightning.pytorch.strategies.Strategy",),
            public=("lightning.pytorch.strategies",),
        ),
    ),
    (
        r"trainer\.profiler",
        Role(
            "a profiler",
            (),
            bases=("lightning.pytorch.profilers.Profiler",),
            public=("lightning.pytorch.profilers",),
        ),
    ),
)


def role_of(key: str) -> Role | None:
    """The role of what is made at a key; None where nothing is."""
    return next((role for pattern, role in ROLE_BY_KEY if re.fullmatch(pattern, key)), None)
