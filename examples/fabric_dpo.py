"""DPO in a training loop of your own: the module, loss and data of the Trainer under lightning.Fabric.

python examples/fabric_dpo.py            # one process; a random model, so it runs anywhere
fabric run --devices=2 --accelerator=cpu examples/fabric_dpo.py
"""

import os
from functools import partial

import lightning as L
import torch

from rlhf_lightning.data import AlignmentDataModule, Packaged, ProcessShare
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom

ACCUMULATE = 2


def main(fabric: L.Fabric, steps: int = 20, batch_size: int = 8) -> list[float]:
    """Train for some optimiser steps and return the loss of each, over all processes."""
    fabric.seed_everything(0, verbose=False)
    builder = ModelBuilder(TinyRandom())
    module = Preference(builder, partial(dpo, beta=0.1), partial(torch.optim.AdamW, lr=1e-4))
    module.configure_model()
    pairs, share = Packaged("smollm2_pairs"), ProcessShare(ACCUMULATE, fabric.global_rank, fabric.world_size)
    data = AlignmentDataModule(pairs, builder.tokenizer(), batch_size=batch_size, process_share=share)
    data.setup()
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    losses, parts = [], []
    for number, batch in enumerate(data.train_dataloader(), start=1):
        last = number % ACCUMULATE == 0
        with fabric.no_backward_sync(model, enabled=not last):
            loss = model(batch.to(fabric.device)).loss
            fabric.backward(loss / ACCUMULATE)
        parts.append(loss.detach())
        if last:
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(fabric.all_reduce(torch.stack(parts[-ACCUMULATE:]).mean()).item())
            fabric.print(f"step {len(losses)}: loss {losses[-1]:.4f}")
        if len(losses) == steps:
            break
    return losses


if __name__ == "__main__":
    fabric = L.Fabric()
    if "LT_CLI_USED" not in os.environ:  # `fabric run` has started the processes, and connects them
        fabric.launch()
    main(fabric)
