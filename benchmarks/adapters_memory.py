"""Memory of policy, reference, reward and value: adapters on one base, against a model for each.

.venv/bin/python benchmarks/adapters_memory.py                       # SmolLM2-135M's shape, random weights
.venv/bin/python benchmarks/adapters_memory.py --layers 4 --hidden 64

Parameters are counted by storage, so that what lies in the same memory counts once. The roles are built as
``rlhf chain experiment=zhongjing`` builds those of its PPO: the adapter of a reward model is exported, scores from
there, and is where the critic starts; the reference is the policy without its adapter.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.adapters.shared_storage import stored_bytes
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import FrozenCopy
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.rewards import ModelReward


def main() -> None:
    """Build both, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--rank", type=int, default=16, help="of every adapter")
    options = parser.parse_args()
    heads = max(options.hidden // 64, 1)
    source = TinyRandom(
        layers=options.layers,
        hidden_size=options.hidden,
        heads=heads,
        kv_heads=heads // 3 or 1,
        intermediate_size=8 * options.hidden // 3,
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(source, Path(folder), options.rank)


def measure(source: TinyRandom, folder: Path, rank: int) -> None:
    """Print what each way holds.

    Args:
        source: of the base.
        folder: empty, for the base and the reward model.
        rank: of the adapters.
    """
    source.load().save_pretrained(folder / "base")
    source.tokenizer().save_pretrained(folder / "base")
    base = Pretrained(str(folder / "base"))
    export_scorer(
        Scorer(Lora(r=rank, seed=1).apply(base.load())), source.tokenizer(), folder / "reward", form="adapter"
    )
    print(f"the base alone               {megabytes(stored_bytes([base.load()]))}")
    critic = Lora(path=str(folder / "reward"))
    roles(folder, "adapters on one base", Lora(r=rank, seed=0), "auto", {"kind": "adapter", "adapter": critic})
    separate = {"kind": "separate", "source": Pretrained(str(folder / "reward"))}
    roles(folder, "a model for each role", None, "frozen", separate)


def roles(folder: Path, name: str, adapter: Lora | None, reference: str, critic: dict[str, Any]) -> None:
    """Print the bytes of policy, reference, reward and value, built in one way."""

    def actor(model: Any, **options: Any) -> ActorCritic:
        return ActorCritic(model, **critic, **options)

    models = ModelBuilder(Pretrained(str(folder / "base")), adapter, reference)(actor)
    reward = ModelReward(path=str(folder / "reward"))
    parts = [models.policy, reward.model]
    if isinstance(models.reference, FrozenCopy):
        parts.append(models.reference.actor)
    apart = stored_bytes(parts)
    if adapter is not None:
        reward.policy = SimpleNamespace(policy=models.policy)  # as the rollouts introduce it
    trained = sum(p.nbytes for p in models.policy.parameters() if p.requires_grad)
    print(f"{name:<28} {megabytes(stored_bytes(parts))}, {megabytes(apart)} as loaded, {megabytes(trained)} trained")


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    main()
