"""Suggestion of the right key for an option given elsewhere, or under the name that other programs use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.cli.complete import keys_of
from rlhf_lightning.cli.help import options as files_of
from rlhf_lightning.conf_dir import conf_dir

#: Names of other programs, and abbreviations, where no key of ours ends so.
SYNONYMS: Mapping[str, str] = {
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "base_model": "model.name",
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "checkpoint": "ckpt_path",
    "checkpoint_dir": "paths.output_dir",
    "clip_grad": "trainer.gradient_clip_val",
    "data_path": "data.source.path",
    "dataset": "data.source.path",
    "dataset_name": "data.source.id",
    "epoch": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "eval_steps": "trainer.val_check_interval",
    "eval_batch": "data.loading.eval_batch_size",
    "gpus": "strategy.devices",
    "grad_accum": "trainer.accumulate_grad_batches",
    "gradient_accumulation": "trainer.accumulate_grad_batches",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "gradient_clipping": "trainer.gradient_clip_val",
    "learning_rate": "optimizer.lr",
    "load_in_4bit": "adapter.quantize",
    "load_in_8bit": "adapter.quantize",
    "logging_steps": "trainer.log_every_n_steps",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_target_modules": "adapter.target_modules",
    "max_grad_norm": "trainer.gradient_clip_val",
    "max_seq_length": "data.spec.max_length",
    "max_seq_len": "data.spec.max_length",
    "micro_batch_size": "trainer.accumulate_grad_batches",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "n_epochs": "trainer.max_epochs",
    "nodes": "strategy.num_nodes",
    "num_epochs": "trainer.max_epochs",
    "num_generations": "method.rollout.group_size",
    "num_gpus": "strategy.devices",
    "num_steps": "trainer.max_steps",
    "num_train_epochs": "trainer.max_epochs",
    "num_train_steps": "trainer.max_steps",
    "num_workers": "data.loading.num_workers",
    "out_dir": "paths.output_dir",
    "output": "paths.output_dir",
    "output_folder": "paths.output_dir",
    "per_device_eval_batch_size": "data.loading.eval_batch_size",
    "per_device_train_batch_size": "data.batch_size",
    "random_seed": "seed",
    "random_state": "seed",
    "rank": "adapter.r",
    "resume": "ckpt_path",
    "resume_from": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "run_dir": "paths.output_dir",
    "save_dir": "paths.output_dir",
    "save_steps": "callbacks.last.every_n_steps",
    "seed_everything": "seed",
    "steps": "trainer.max_steps",
    "train_batch_size": "data.batch_size",
    "train_steps": "trainer.max_steps",
    "wandb_project": "logger.wandb.project",
    "warmup_ratio": "scheduler.warmup",
    "warmup_steps": "scheduler.warmup",
    "wd": "optimizer.weight_decay",
    "workers": "data.loading.num_workers",
}
#: Keys that count where several end alike; the shortest of the others comes first.
PREFERRED = (
    "adapter.alpha",
    "adapter.dropout",
    "adapter.r",
    "data.batch_size",
    "data.spec.max_length",
    "logger.wandb.project",
    "method.loss.beta",
    "model.name",
    "optimizer.lr",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "seed",
)
#: How a file is chosen beside those that are chosen anyway, where that is not ``group=file``.
_ADDED_TO_DEFAULT = {"callbacks": "callbacks=[default,{}]"}


def right_keys(full: str, tree: Mapping[str, Any]) -> list[str]:
    """Keys that an unknown one may stand for, likeliest first, each with the choice that it needs.

    Args:
        full: the unknown key.
        tree: the configuration that it was given in.
    """
    name = full.rpartition(".")[2].lower().replace("-", "_")
    preferred = [key for key in PREFERRED if key.rpartition(".")[2] == name]
    if (synonym := SYNONYMS.get(name)) is not None:
        keys = [synonym]
    else:
        same = [key for key in _leaves(tree) if key.rpartition(".")[2] == name]
        keys = preferred or sorted(same, key=lambda key: (key.count("."), key))[:3]
    hints = (_with_choice(key, tree) for key in keys if key != full)
    return [hint for hint in hints if hint is not None]


def choices_for(key: str) -> list[str]:
    """The choices of a group's file, ``adapter=lora``, that make what a key is an option of."""
    group = key.partition(".")[0]
    names = sorted(set(files_of(group)) - {"default"})
    having = {name: [option.removesuffix("=") for option in keys_of(group, name)] for name in names}
    exact = [name for name, keys in having.items() if key in keys]
    near = [name for name, keys in having.items() if any(option.startswith(f"{key}.") for option in keys)]
    if not exact and not near:  # of a node that a file takes from another group: /model@source
        part = key.split(".")[1:2]
        near = [name for name in names if part and f"@{part[0]}:" in (conf_dir() / group / f"{name}.yaml").read_text()]
    return [_ADDED_TO_DEFAULT.get(group, f"{group}={{}}").format(name) for name in (exact or near)]


def _with_choice(key: str, tree: Mapping[str, Any]) -> str | None:
    """A key, with the choice that it needs where the configuration has not made it; None: the command has no such."""
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            group, choices = key.partition(".")[0], choices_for(key)
            return f"{key} (with {' or '.join(choices[:4])})" if group in tree and choices else None
        node = node[part]
    return key


def _leaves(node: Any, key: str = "") -> Iterator[str]:
    """Every key of a configuration."""
    for name, inner in node.items() if isinstance(node, Mapping) else ():
        full = f"{key}.{name}" if key else str(name)
        yield full
        yield from _leaves(inner, full)
