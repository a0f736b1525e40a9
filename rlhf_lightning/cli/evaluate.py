"""``rlhf evaluate``: a run, a checkpoint or a model on held-out data, with the metrics of any method."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.callbacks.implicit_rewards import FILE as REWARDS
from rlhf_lightning.cli.agreement import check_files_exist, check_readable, check_same, check_seen, meet
from rlhf_lightning.cli.announce import describe_run
from rlhf_lightning.cli.benchmark import benchmark
from rlhf_lightning.cli.build import callbacks_of, make_run
from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import check_command, held, note, write_config
from rlhf_lightning.cli.guidance import guide_samples, make_guidance
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.processes import is_first_process
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.train import optimized, prepare
from rlhf_lightning.cli.versions import versions
from rlhf_lightning.data import AlignmentDataModule, RewardBench
from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.tokens.conversations import Rendered
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.prompt_transforms import prompt_text
from rlhf_lightning.data.tokens.templates import resolve
from rlhf_lightning.methods import ScoringModule
from rlhf_lightning.rewards import Reward, WinRate, metrics_of, score_groups, why_unscored
from rlhf_lightning.rewards.base import Scores, reads_columns
from rlhf_lightning.rewards.statistics import length_statistics, preference_statistics, reward_statistics
from rlhf_lightning.types import PackedBatch, RankedBatch, SampleGroup, sample_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float | None:
    """Score the validation data of a configuration.

    Args:
        cfg: from ``compose("evaluate", overrides)``; for the evaluation of a run, through
            :func:`rlhf_lightning.cli.runs.from_run`.

    Returns:
        The value of ``optimized_metric``; None without one.
    """
    started = time.perf_counter()
    folder = prepare(cfg, "evaluate")
    with held(folder):
        check_command(folder, "evaluate")
        if is_first_process():
            note(folder, command="evaluate")
            write_config(cfg, folder)
        return _evaluate(cfg, folder, started)


def _evaluate(cfg: DictConfig, folder: Path, started: float) -> float | None:
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.get("benchmark"):
        from rlhf_lightning.cli.harness import evaluate_tasks

        return _finish(cfg, folder, evaluate_tasks(cfg, folder), started)
    evaluation = make(cfg.get("evaluation"))
    if isinstance(evaluation, WinRate):
        return _finish(cfg, folder, evaluate_wins(cfg, evaluation), started)
    if cfg.get("reward") and issubclass(make(cfg.method).func, ScoringModule):
        return _finish(cfg, folder, evaluate_reward(cfg, folder), started)
    (folder / REWARDS).unlink(missing_ok=True)
    # Nothing learns from samples here, so that rollouts need not know what guides them.
    run = make_run(cast("DictConfig", OmegaConf.merge(cfg, {"guidance": None})))
    guide_samples(make_guidance(cfg.get("guidance"), run.models), run.trainer)
    if evaluation is not None:
        if run.models.reference in ("none", "cached"):
            raise ConfigError(evaluation.needs_reference)
        callbacks_of(run.trainer).append(evaluation)
    checkpoint = _checkpoint(cfg)
    meet(run.trainer, run.module)
    check_seen(run.trainer, folder, "paths.output_dir")
    check_files_exist(run.trainer, [] if checkpoint is None else [Path(checkpoint)])
    check_readable(run.trainer, checkpoint)
    run.data.setup("validate")
    check_same(run.trainer, run.data.content())
    describe_run(cfg, run, checkpoint)
    if run.models.reference == "cached":
        from rlhf_lightning.cli.reference import fill_reference_cache

        fill_reference_cache(run)
    run.trainer.validate(run.module, datamodule=run.data, ckpt_path=checkpoint, verbose=False)
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    if not run.trainer.is_global_zero:  # the files of the pairs' rewards may still be on their way
        return optimized(metrics, cfg.optimized_metric)
    return _finish(cfg, folder, metrics | calibration(folder) | _benchmark_of(run.data, folder), started)


def calibration(folder: Path) -> dict[str, float]:
    """Statistics of the rewards of all validation pairs, in addition to their means; empty if no pairs were scored."""
    file = folder / REWARDS
    if not file.exists():
        return {}
    pairs = np.load(file)
    statistics = preference_statistics(torch.from_numpy(pairs["chosen"]), torch.from_numpy(pairs["rejected"]))
    names = ("ties", "margin_std", "log_loss", "calibration_error")
    return {f"val/reward/{name}": statistics[name] for name in names}


def _benchmark_of(data: AlignmentDataModule, folder: Path) -> dict[str, float]:
    """RewardBench's score of the rewards of every validation pair; nothing for other data."""
    file = folder / REWARDS
    if not isinstance(data.validation, RewardBench) or data.val_examples is None or not file.exists():
        return {}
    pairs, rows = np.load(file), data.val_examples.rows()
    named = [rows[number] for number in pairs["index"]]
    return benchmark(data.validation, named, pairs["chosen"].tolist(), pairs["rejected"].tolist(), folder)


def evaluate_reward(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """Measure how a reward (``reward=model reward.path=...``) agrees with the validation data, without a policy.

    Pairs and lists are compared, chosen against rejected and every response against those with a lower score. The
    calibration is that of sigma(margin) in the units of the reward: ``reward.normalize=false`` gives those of training.

    Args:
        cfg: whose method says what kind of data, and whether a high number is bad, as a cost is.
        folder: for the table of a benchmark.

    Returns:
        Metrics by name: accuracy, margin, calibration, the distribution of rewards, their correlation with length.
    """
    method = make(cfg.method).func
    reward, tokenizer = reward_of(cfg)
    # Only comparisons say what a reward should prefer; where a method learns from something else, pairs are asked for.
    kind = method.kind if KINDS[method.kind].ordered else "preference"
    data = make(cfg.data)(tokenizer=tokenizer, kind=kind, seed=cfg.seed)
    if reads_columns(reward):
        data.check_columns = reward.check_columns  # type: ignore[attr-defined]
    data.setup("validate")
    better, worse, values, tokens, rows = [], [], [], [], []
    for batch in data.val_dataloader():
        scores = signed(score_groups(reward, groups_of(batch, data.val_columns))[0], method.sign)
        for row, group, pairs in zip(batch.rows, scores, preferences(batch), strict=True):
            preferred = [pair for pair in pairs if not any(math.isnan(group[at]) for at in pair)]
            rows += [row] * len(preferred)
            better += [group[first] for first, _ in preferred]
            worse += [group[second] for _, second in preferred]
        values += [score for group in scores for score in group]
        tokens += (batch.response_span[:, 1] - batch.response_span[:, 0])[batch.present].tolist()
    if values and all(math.isnan(score) for score in values):
        reason = why_unscored(metrics_of(reward))
        raise ConfigError(f"reward {reward.name!r} scored none of the {len(values)} responses{reason}")
    if not better:
        raise ConfigError("the validation data has no two responses of which one is preferred: choose other data")
    metrics = preference_statistics(torch.tensor(better), torch.tensor(worse))
    given = (score := torch.tensor(values)).isfinite()
    metrics |= reward_statistics(score[given]) | length_statistics(score[given], torch.tensor(tokens)[given])
    metrics |= metrics_of(reward) | ({} if given.all() else {"unscored": float((~given).float().mean())})
    metrics = {f"val/reward/{name}": value for name, value in metrics.items()}
    if isinstance(data.validation, RewardBench):
        metrics |= benchmark(data.validation, rows, better, worse, folder)
    return metrics


def evaluate_wins(cfg: DictConfig, evaluation: WinRate) -> dict[str, float]:
    """The win rate of one file of responses over another by the reward of a configuration; no policy is loaded.

    Raises:
        ConfigError: nothing judges, or nothing could be judged.
    """
    if not cfg.get("reward"):
        raise ConfigError("evaluation=win_rate needs who judges: choose reward=llm_compare, or any other reward")
    reward, tokenizer = reward_of(cfg)
    spec = make(cfg.data.spec)
    template = resolve(tokenizer, spec)
    encoder = Encoder(tokenizer, spec, template)

    def prompt_ids(text: str) -> list[int]:
        brings_bos = template is not None and template.brings_bos
        prompt = prompt_text([{"role": "user", "content": text}], template)
        return list(encoder.encode([Rendered(prompt, [], [], brings_bos)])[0].prompt)

    def response_ids(text: str) -> list[int]:
        return [*cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"]), encoder.eos]

    metrics = evaluation(reward, prompt_ids, response_ids)
    if "win_rate" not in metrics:
        raise ConfigError(
            f"reward {reward.name!r} judged none of the {metrics['pairs']:.0f} pairs{why_unscored(metrics)}"
        )
    return {f"val/wins/{name}": value for name, value in metrics.items()}


def reward_of(cfg: DictConfig) -> tuple[Reward, PreTrainedTokenizerBase]:
    """The reward of a configuration and the tokenizer of its data: the reward's own, else that of ``model``."""
    maker = make(cfg.reward)
    if cfg.reward.get("path") or cfg.reward.get("run"):  # what is read from a folder brings its own
        reward = maker()
        return reward, reward.model_tokenizer
    tokenizer = make(cfg.model).tokenizer()
    return maker(tokenizer=tokenizer), tokenizer


def signed(scores: Scores, sign: float) -> list[list[float]]:
    """Scores times a sign; nan where there is none."""
    return [[math.nan if score is None else sign * score for score in group] for group in scores]


def groups_of(batch: PackedBatch, columns: Mapping[str, Mapping[str, Any]]) -> list[SampleGroup]:
    """Prompts and present responses of a batch, with what is known of the columns of each row."""
    prompts = [batch.ids[start:end].tolist() for start, end in batch.prompt_span.tolist()]
    responses: list[list[list[int]]] = [[] for _ in prompts]
    for parent, (start, end) in zip(batch.parent.tolist(), batch.response_span.tolist(), strict=True):
        if end > start:
            responses[parent].append(batch.ids[start:end].tolist())
    return sample_groups(prompts, responses, [columns.get(row, {}) for row in batch.rows])


def preferences(batch: PackedBatch) -> list[list[tuple[int, int]]]:
    """Of each group, which response is preferred to which, as numbers of the present responses."""
    if not isinstance(batch, RankedBatch):
        return [[(0, 1)]] * len(batch)
    rows = [[score for score in row if score == score] for row in batch.score.view(len(batch), -1).tolist()]
    return [[(i, j) for i, a in enumerate(row) for j, b in enumerate(row) if a > b] for row in rows]


def _finish(cfg: DictConfig, folder: Path, metrics: dict[str, float], started: float) -> float | None:
    """Write ``result.json`` and show the metrics."""
    value = optimized(metrics, cfg.optimized_metric)
    result = Result("done", cfg.optimized_metric, value, metrics, 0, round(time.perf_counter() - started, 2))
    result.versions = versions()
    if is_first_process():
        result.write(folder)
        show(metrics)
    return value


def show(metrics: dict[str, float]) -> None:
    """Print metrics as a table on standard output."""
    width = max(map(len, metrics), default=0)
    for name, value in sorted(metrics.items()):
        say(f"{name:<{width}}  {value:.6g}")


def _checkpoint(cfg: DictConfig) -> str | None:
    path = OmegaConf.select(cfg, "ckpt_path")
    return None if path is None else str(Path(path).expanduser())
