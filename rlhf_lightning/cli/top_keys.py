"""The top-level keys of every command's configuration, and their types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_lightning.options import Count, NonNegative, Seed, WholeNumber


@dataclass
class Paths:
    """Keys of ``paths``."""

    runs: str
    sweeps: str
    output_dir: str | None = None
    shared: str | None = "auto"


@dataclass
class Harness:
    """Keys of ``harness``, options of ``benchmark``."""

    few_shot: WholeNumber | None = None
    limit: Count | None = None
    chat_template: bool = False
    system: str | None = None
    folder: str | None = None
    batch_size: Count = 8


@dataclass
class _Job:
    """Top-level keys of what has a method, data and a trainer."""

    method: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    trainer: dict[str, Any]
    optimizer: dict[str, Any]
    paths: dict[str, Any]
    seed: Seed
    adapter: dict[str, Any] | None = None
    prompting: dict[str, Any] | None = None
    guidance: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    rollout: dict[str, Any] | None = None
    reference: dict[str, Any] | str | None = None
    strategy: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    callbacks: dict[str, Any] | None = None
    logger: dict[str, Any] | None = None
    ckpt_path: str | None = "auto"
    optimized_metric: str | None = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class Train(_Job):
    """Top-level keys of ``rlhf train``."""

    rounds: dict[str, Any] | None = None
    rerun: bool = False


@dataclass
class Evaluate(_Job):
    """Top-level keys of ``rlhf evaluate``."""

    run: str | None = None
    evaluation: dict[str, Any] | None = None
    benchmark: list[str] | str | None = None
    harness: dict[str, Any] = field(default_factory=dict)


@dataclass
class Generate:
    """Top-level keys of ``rlhf generate``."""

    model: dict[str, Any]
    seed: Seed
    max_new_tokens: int
    temperature: float
    top_p: float
    samples: int
    batch_size: int
    device: str
    spec: dict[str, Any]
    adapter: dict[str, Any] | None = None
    prompting: dict[str, Any] | None = None
    guidance: dict[str, Any] | None = None
    revision: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    keep: int | None = None
    run: str | None = None
    ckpt_path: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    output: str | None = None
    system: str | None = None
    chat: bool = False
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class Data:
    """Top-level keys of ``rlhf data``."""

    method: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    rows: int
    seed: Seed
    prompting: dict[str, Any] | None = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class Steer:
    """Top-level keys of ``rlhf steer build``."""

    model: dict[str, Any]
    data: dict[str, Any]
    output: str
    direction: Literal["mean_diff", "pca", "random"]
    contrast: Literal["responses", "instructions"]
    tokens: Literal["response", "last_prompt"]
    examples: Count
    device: str
    seed: Seed
    layers: list[int] | None = None
    adapter: dict[str, Any] | None = None
    allow_targets: list[str] = field(default_factory=list)


@dataclass
class GameRules:
    """Keys of ``game``."""

    rounds: Count
    shared: list[str]
    stages: dict[str, list[str]]


@dataclass
class Game:
    """Top-level keys of ``rlhf game``."""

    game: dict[str, Any]
    paths: dict[str, Any]


@dataclass
class ChainRules:
    """Keys of ``chain``."""

    shared: list[str] | dict[str, list[str]] | None
    stages: dict[str, list[str]]
    sizes: dict[str, dict[str, Any] | None]


@dataclass
class Chain:
    """Top-level keys of ``rlhf chain``."""

    chain: dict[str, Any]
    paths: dict[str, Any]
    size: str


@dataclass
class Export:
    """Top-level keys of ``rlhf export``."""

    run: str
    form: str
    ckpt_path: str | None = None
    dtype: str | None = None
    output: str | None = None


@dataclass
class OptimizePrompt:
    """Top-level keys of ``rlhf optimize_prompt``."""

    model: dict[str, Any]
    data: dict[str, Any]
    search: dict[str, Any]
    rollout: dict[str, Any]
    paths: dict[str, Any]
    start: list[str]
    examples: Count
    held_out: WholeNumber
    answer: str
    proposal_temperature: NonNegative
    proposal_tokens: Count
    seed: Seed
    proposal_temperature_end: NonNegative | None = None
    adapter: dict[str, Any] | None = None
    reward: dict[str, Any] | None = None
    proposer: dict[str, Any] | None = None
    allow_targets: list[str] = field(default_factory=list)


TOP_KEYS: Mapping[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "generate": Generate,
    "data": Data,
    "game": Game,
    "chain": Chain,
    "export": Export,
    "optimize_prompt": OptimizePrompt,
    "steer": Steer,
}
#: Commands of several jobs: what their key of the same name may hold.
SEVERAL_JOBS: Mapping[str, type] = {"game": GameRules, "chain": ChainRules}
