"""The weights that a run trained, in a policy that was freshly loaded."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

from torch import nn

from rlhf_lightning.checkpoint_files import read_checkpoint
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.adapters.start import BASE, AdapterStart

log = logging.getLogger(__name__)

#: How a checkpoint names a policy's weights, and those of its transformers model.
_POLICY, _MODEL = "policy.", "model."


def adapter_of_run(adapter: Lora | None, checkpoint: Path, layers: int) -> Lora | None:
    """The adapter of a run on the decoder blocks that it was trained on.

    A method may adapt fewer blocks than its configuration says, where no gradient reaches the others
    (``methods.RepresentationAlignment``); the checkpoint has the weights of those alone.

    Args:
        adapter: as the run's configuration has it; None: the run had none.
        checkpoint: that the run wrote.
        layers: decoder blocks of the model.
    """
    if adapter is None or adapter.blocks is not None or checkpoint.is_dir():
        return adapter
    names = [
        name for name in read_checkpoint(checkpoint)["state_dict"] if name.startswith(_POLICY) and ".lora_" in name
    ]
    numbers = [re.search(r"\.(\d+)\.", name) for name in names]
    if not numbers or None in numbers:  # an adapter outside of the blocks is on all of them
        return adapter
    highest = max(int(number[1]) for number in numbers if number is not None) + 1
    return replace(adapter, blocks=highest) if highest < layers else adapter


def load_trained(checkpoint: Path, policy: nn.Module, start: AdapterStart | None = None) -> None:
    """Put the trained weights of a checkpoint into a policy of the same model and adapter.

    Heads beside the model (values, scores) are taken where both have them. One that only the checkpoint has stays
    there; one that only the policy has keeps its own start, and both are logged.

    Args:
        checkpoint: a file that training wrote.
        policy: an actor, or another backbone.
        start: of the policy's adapter, which must have been trained on the same base; None: not compared.

    Raises:
        ValueError: the checkpoint is sharded, damaged or another program's, belongs to another model or adapter, or
            its adapter to another base.
    """
    if checkpoint.is_dir():
        raise ValueError(
            f"{checkpoint} is a sharded checkpoint, which other runs and rlhf generate do not read: use its run's "
            "export (model=hub model.name=<export folder>), or make it one file by resuming the run with strategy=fsdp "
            "strategy.strategy.save_distributed_checkpoint=false (where it has ended: with trainer.max_steps=<more>)"
        )
    whole = read_checkpoint(checkpoint)
    if start is not None and BASE in whole:
        start.check(whole[BASE])
    saved = whole["state_dict"]
    given = {name.removeprefix(_POLICY): value for name, value in saved.items() if name.startswith(_POLICY)}
    present = policy.state_dict()
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    fitting = {name for name in given if name in present and present[name].shape == given[name].shape}
    if other := sorted(name for name in (given.keys() | trained) - fitting if name.startswith(_MODEL)):
        raise ValueError(f"{checkpoint} does not belong to this model and adapter, for example {other[0]}")
    policy.load_state_dict({name: given[name] for name in fitting}, strict=False)
    for text, names in (("are left out", given.keys() - fitting), ("keep their own start", trained - fitting)):
        if names:
            log.info(
                "%-9s %s: %d weights of heads %s, for example %s", "start", checkpoint, len(names), text, min(names)
            )
