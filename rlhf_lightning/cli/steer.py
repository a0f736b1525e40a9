"""``rlhf steer build`` makes steering vectors out of pairs, ``rlhf steer show`` says what a file of them holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import OUT, setup_logging
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.files import write_atomically

if TYPE_CHECKING:
    from rlhf_lightning.types import PackedBatch

ACTIONS = ("build", "show")
#: The kind of data that each contrast is made of.
KINDS = {"responses": "preference", "instructions": "instruction"}


def main(arguments: Sequence[str]) -> int:
    """``rlhf steer build key=value ...`` or ``rlhf steer show FILE``."""
    action, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if action not in ACTIONS:
        raise ConfigError(
            f"rlhf steer {action}: no such action; write rlhf steer build or rlhf steer show FILE."
            f"{suggestion(action, ACTIONS)}"
        )
    if action == "show":
        if len(rest) != 1:
            raise ConfigError("rlhf steer show takes one file: rlhf steer show steering.safetensors")
        show(Path(rest[0].removeprefix("path=")).expanduser())
        return 0
    run(rest)
    return 0


def run(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
    """Build the vectors that options describe, and show them.

    Args:
        arguments: options of ``rlhf steer build``.
        config_dirs: other folders with config groups.
    """
    cfg = compose("steer", arguments, config_dirs=config_dirs)
    setup_logging()
    build(cfg)
    show(Path(cfg.output).expanduser())


def check(cfg: DictConfig) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: as above.
    """
    if cfg.contrast == "responses" and cfg.tokens == "last_prompt":
        raise ConfigError(
            "tokens=last_prompt with contrast=responses: both responses have the same prompt, whose states do not "
            "differ. Set tokens=response, or contrast=instructions"
        )


def build(cfg: DictConfig) -> None:
    """Read the states of good and bad responses, and write the direction between them of every layer.

    Raises:
        ConfigError, ValueError: options that do not go together, or a layer that the model does not have.
        DataError: the data set cannot be used.
    """
    from rlhf_lightning.cli.build import make_data
    from rlhf_lightning.cli.generate import device_of
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.models.blocks import check_layers
    from rlhf_lightning.models.hidden_states.directions import differences
    from rlhf_lightning.models.hidden_states.layers import LayerActor
    from rlhf_lightning.models.hidden_states.steering import write_vectors
    from rlhf_lightning.models.roles.builder import ModelBuilder
    from rlhf_lightning.models.roles.reference import ReferenceKind
    from rlhf_lightning.ops.steering import direction

    check(cfg)
    builder = ModelBuilder(make(cfg.model), make(cfg.adapter), ReferenceKind.NONE)
    sizes = builder.source.sizes()
    layers = list(range(1, sizes.layers + 1)) if cfg.layers is None else list(cfg.layers)
    check_layers("layers", layers, sizes.layers)
    data = make_data(cfg, builder, KINDS[cfg.contrast])
    data.setup("fit")
    actor = builder(LayerActor).policy.to(device_of(cfg.device)).eval()
    by_layer = differences(actor, _pairs(data.train_dataloader()), layers, cfg.tokens, cfg.examples)
    vectors = {layer: direction(each, cfg.direction, seed=cfg.seed + layer) for layer, each in by_layer.items()}
    notes = {name: str(cfg[name]) for name in ("direction", "contrast", "tokens", "seed")}
    notes |= {
        "model": builder.source.name,
        "data": str(getattr(data.source, "name", "examples")),
        "examples": str(len(by_layer[layers[0]])),
    }
    if cfg.contrast == "instructions":
        notes |= {
            name: str(cfg.data.spec[name]) for name in ("positive_context", "negative_context", "context_position")
        }
    write_atomically(Path(cfg.output).expanduser(), lambda temporary: write_vectors(temporary, vectors, notes))


def _pairs(batches: Any) -> Iterator[PackedBatch]:
    """The two sides of each group: both responses, or a response under both instructions."""
    from rlhf_lightning.methods.slots import only_slot

    for batch in batches:
        yield batch if batch.slots == 2 else only_slot(batch, 0, 1)


def show(path: Path) -> None:
    """Print what a file of directions is made of, and the length of each.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    import torch
    from rich.table import Table

    from rlhf_lightning.models.hidden_states.steering import read_header, read_vectors

    header = read_header(path, f"rlhf steer show {path}")
    vectors = read_vectors(path)
    for name, text in sorted(header.notes.items()):
        OUT.print(f"{name:<17} {text}", markup=False, soft_wrap=True)
    table = Table("layer", "width", "length", "cosine to the next", box=None)
    numbers = list(header.sizes)
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        cosine = "" if following is None else f"{torch.cosine_similarity(vectors[number], vectors[following], 0):.3f}"
        table.add_row(str(number), str(header.sizes[number]), f"{vectors[number].norm():.4g}", cosine)
    OUT.print(table)
