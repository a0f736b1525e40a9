"""Samples of the policy, and their KL to the reference."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from rlhf_lightning.callbacks.rich_progress import AlignmentProgressBar
from rlhf_lightning.callbacks.tables import log_table
from rlhf_lightning.files import write_atomically
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.ops.kl import k1, k3
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.options import Count, NonNegative, PositiveShare, Seed
from rlhf_lightning.types import Example, PackedBatch, Ragged, RolloutBatch, SampleGroup, sample_groups

log = logging.getLogger(__name__)


@dataclass
class Sample:
    """One row of a sample table."""

    step: int
    row: str  #: "file:row" of the prompt
    prompt: str
    response: str
    data: str  #: the data's own (chosen) response
    tokens: int
    finished: bool  #: the response ended by itself and was not cut off
    kl: float | None  #: log-ratio to the reference, summed over the response, nats
    index: int  #: row of the data set
    reward: float | None = None  #: reward of the response, if there is a reward


@dataclass
class _Prompt:
    ids: list[int]
    data: list[int]
    row: str
    index: int
    columns: Mapping[str, Any]


class PolicySamples(Callback):
    """Samples from the policy at each validation: tables of prompts and responses, and the KL to the reference.

    Responses are sampled for the first distinct prompts of the validation data, whatever ``limit_val_batches`` is. Each
    prompt has its own random streams, so that tables of different steps and numbers of processes are comparable. Every
    pass writes ``<folder>/step_<step>.jsonl`` with one row per sample, and a table to the loggers that support tables.
    Logged metrics:

    * ``val/kl/reference``: mean over responses of the summed log-ratio (k1), which estimates KL(policy || reference) in
      nats per response; ``val/kl/k3``: the same by the estimator that is never negative;
    * ``val/sample/reward``, with a reward, which sees the samples of a prompt and the data's own response as one
      group: its mean over the samples; ``val/sample/data_reward``: over the data's own responses;
      ``val/sample/win_rate``: share of samples that score higher, ties counting half;
    * ``val/sample/length`` in tokens, ``val/sample/finished``: share of responses that ended by themselves.

    Nothing is sampled if the model is not a policy (a reward model). The KL needs a live reference (``frozen`` or
    ``adapter_off``) and samples of the policy's own distribution, so temperature and top_p must be 1 and there must be
    no guidance; otherwise it is left out.

    Args:
        pack: makes a batch of examples; ``rlhf_lightning.data.pack``.
        prompts: number of prompts, over all processes.
        each: responses per prompt.
        max_new_tokens: maximum length of a response in tokens.
        temperature: sampling temperature; 0 is greedy.
        top_p: nucleus of the samples.
        batch_size: responses decoded together.
        seed: seed of the samples.
        before_training: sample at step 0 too, for comparison.
        folder: folder of the JSONL files; None: ``samples`` in the trainer's ``default_root_dir``.
    """

    def __init__(
        self,
        pack: Callable[[Sequence[Example]], PackedBatch],
        prompts: Count = 8,
        max_new_tokens: Count = 64,
        temperature: NonNegative = 1.0,
        top_p: PositiveShare = 1.0,
        batch_size: Count = 8,
        seed: Seed = 0,
        before_training: bool = True,
        folder: str | None = None,
        each: Count = 1,
    ) -> None:
        if prompts < 1 or each < 1:
            raise ValueError(f"callbacks.samples.prompts={prompts} and .each={each} must be at least 1")
        self.pack = pack
        self.prompts, self.each = prompts, each
        self.options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "batch_size": batch_size,
        }
        self.seed, self.before_training, self.folder = seed, before_training, folder
        #: Scores groups of responses and may use the module (``rewards.evaluated``); None: no scores.
        self.scorer: Callable[[Sequence[SampleGroup], Any], list[list[float | None]]] | None = None
        #: Guidance of the samples (``models.guidance``), which then have no KL; None: no guidance.
        self.guidance: Any = None
        self._prompts: list[_Prompt] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Sample from the untrained policy, and log its metrics."""
        if not self.before_training or trainer.global_step or _data(trainer) is None or not _is_policy(pl_module):
            return
        self._prompts = []
        self._complete(trainer)
        with pl_module.evaluation_weights():
            rows = self._write(trainer, self._sample(trainer, pl_module))
        for logger in trainer.loggers if rows else ():
            logger.log_metrics(_means(rows), step=0)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start a pass."""
        self._prompts = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: PackedBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the prompts of the first batches, if there is no data module."""
        if _data(trainer) is None:
            self._collect(trainer, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Sample, score, log and write."""
        if not trainer.sanity_checking and _is_policy(pl_module):
            self._complete(trainer)
            self._write(trainer, self._sample(trainer, pl_module))

    def _share(self, trainer: Trainer) -> int:
        return math.ceil(self.prompts / trainer.world_size)

    def _complete(self, trainer: Trainer) -> None:
        """Collect this process's share of the data module's first distinct prompts."""
        examples = getattr(_data(trainer), "val_examples", None)
        if examples is None:
            return
        alone = not examples.slot_tokens.any()  # prompts without responses
        chosen: dict[tuple[int, ...], _Prompt] = {}
        for group in range(len(examples)):
            example = examples[group]
            ids = tuple(example.prompt)
            if ids not in chosen:
                data = [] if alone else example.responses[0]
                index, row = int(examples.number[group]), example.row
                chosen[ids] = _Prompt(example.prompt, data, row, index, _columns(trainer, row))
            if len(chosen) == self.prompts:
                break
        share = list(chosen.values())[trainer.global_rank :: trainer.world_size]
        self._prompts = [prompt for prompt in share for _ in range(self.each)]

    def _collect(self, trainer: Trainer, batch: PackedBatch) -> None:
        count = self._share(trainer) * self.each
        seen = {tuple(prompt.ids) for prompt in self._prompts}
        for group in range(len(batch)):
            spans = batch.prompt_span[group], batch.response_span[group * batch.slots]
            prompt, data = (batch.ids[start:end].tolist() for start, end in spans)
            if tuple(prompt) in seen or len(self._prompts) >= count:
                continue
            seen.add(tuple(prompt))
            if isinstance(batch, RolloutBatch):
                data = []  # only prompts come from the data: the responses of this batch are the policy's
            index = int(batch.index[group])
            row = batch.rows[group]
            sampled = _Prompt(prompt, data, row, index, _columns(trainer, row))
            self._prompts += [sampled] * self.each

    def _sample(self, trainer: Trainer, module: Any) -> list[Sample]:
        """Sample the rows of this process; a collective call."""
        prompts = [prompt.ids for prompt in self._prompts]
        seeds = [stream_seed("samples", self.seed, *prompt) for prompt in prompts]
        streams = [(seed, number % self.each) for number, seed in enumerate(seeds)]
        form = getattr(_data(trainer), "prompt_form", None)
        by_text = form is not None and bool(form.stops)  # a text that ends a response is cut off
        if trainer.is_global_zero and prompts:
            log.info("%-9s drawing %d responses to held-out prompts", "samples", len(prompts) * trainer.world_size)
        guide = {} if self.guidance is None else {"guide": self.guidance.guide(module.policy)}
        with self._progress(trainer, len(prompts)) as progress:
            responses = module.sample(prompts, streams=streams, form=form, **progress, **self.options, **guide)
        ratios = self._log_ratios(module, responses) or [None] * len(responses)
        rewards = self._rewards(module, responses)
        text = module.tokenizer.decode
        ends, limit = _ends(module), self.options["max_new_tokens"]
        samples = [
            Sample(
                step=trainer.global_step,
                row=prompt.row,
                prompt=text(prompt.ids),
                response=text(response, skip_special_tokens=True),
                data=text(prompt.data, skip_special_tokens=True),
                tokens=len(response),
                finished=response[-1] in ends or (by_text and len(response) < limit),
                kl=ratio,
                index=prompt.index,
                reward=reward,
            )
            for prompt, response, ratio, reward in zip(self._prompts, responses, ratios, rewards, strict=True)
        ]
        if trainer.evaluating:
            for name, values in {
                "length": [float(sample.tokens) for sample in samples],
                "finished": [float(sample.finished) for sample in samples],
            }.items():
                module.track(f"val/sample/{name}", torch.tensor(values, device=module.device))
        return samples

    @contextmanager
    def _progress(self, trainer: Trainer, prompts: int) -> Iterator[dict[str, Callable[[], None]]]:
        """Count the tokens of the responses that are drawn together on the trainer's bar, if it can."""
        bar = trainer.progress_bar_callback
        if not isinstance(bar, AlignmentProgressBar) or not prompts:
            yield {}
            return
        batches = math.ceil(prompts / self.options["batch_size"])
        with bar.counting("tokens", batches * self.options["max_new_tokens"]) as advance:
            yield {"progress": advance}

    def _rewards(self, module: Any, responses: list[list[int]]) -> Sequence[float | None]:
        """Score each response; log its reward and that of the data's own response, if the data has one."""
        if self.scorer is None:
            return [None] * len(responses)
        firsts = self._prompts[:: self.each]
        drawn = [responses[start : start + self.each] for start in range(0, len(responses), self.each)]
        groups = [samples + [p.data] * bool(p.data) for samples, p in zip(drawn, firsts, strict=True)]
        scores = self.scorer(sample_groups([p.ids for p in firsts], groups, [p.columns for p in firsts]), module)
        if module.trainer.evaluating:
            rows = torch.tensor([[math.nan if s is None else s for s in row[: self.each]] for row in scores])
            last = torch.tensor([math.nan if row[-1] is None else row[-1] for row in scores])
            has_data = torch.tensor([bool(p.data) for p in firsts], dtype=torch.bool)
            win = outcomes(rows, last[:, None].expand_as(rows))[has_data] if len(firsts) else rows
            for name, values in {"reward": rows, "data_reward": last[has_data], "win_rate": win}.items():
                module.track(f"val/sample/{name}", values[values.isfinite()].to(module.device))
        return [score for row in scores for score in row[: self.each]]

    def _log_ratios(self, module: Any, responses: list[list[int]]) -> list[float | None] | None:
        """Return the summed log-ratio of each response; log the estimates of the KL."""
        if self.options["temperature"] != 1 or self.options["top_p"] != 1 or self.guidance is not None:
            return None
        size = self.options["batch_size"]
        examples = [Example(p.ids, [r], row=p.row) for p, r in zip(self._prompts, responses, strict=True)]
        batches = [self.pack(examples[i : i + size]) for i in range(0, len(examples), size)]
        ratios = module.log_ratios(batches)
        if ratios is None:
            return None
        sums = {"reference": _sums(ratios, k1, module), "k3": _sums(ratios, k3, module)}
        if module.trainer.evaluating:
            for name, values in sums.items():
                module.track(f"val/kl/{name}", values)
        return [float(value) for value in sums["reference"]]

    def _write(self, trainer: Trainer, samples: list[Sample]) -> list[Sample]:
        """Write the rows of every process; the first process returns all of them, the others nothing."""
        rows = _gather(samples)
        if not trainer.is_global_zero or not rows:
            return []
        folder = Path(self.folder or Path(trainer.default_root_dir) / "samples")
        rows = sorted(rows, key=lambda sample: sample.index)
        text = "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in rows)
        path = folder / f"step_{trainer.global_step:08d}.jsonl"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for logger in trainer.loggers:
            log_table(logger, "samples", [asdict(sample) for sample in rows], trainer.global_step)
        return rows


def _means(rows: Sequence[Sample]) -> dict[str, float]:
    """Means of these rows, under the names that a validation logs."""
    values_by_name: dict[str, list[float | None]] = {
        "val/sample/reward": [row.reward for row in rows],
        "val/kl/reference": [row.kl for row in rows],
        "val/sample/length": [row.tokens for row in rows],
        "val/sample/finished": [float(row.finished) for row in rows],
    }
    present = {name: [value for value in values if value is not None] for name, values in values_by_name.items()}
    return {name: fmean(values) for name, values in present.items() if values}


def _columns(trainer: Trainer, row: str) -> Mapping[str, Any]:
    """Columns of a validation row: prompts keep them, other data reads them if a reward needs them."""
    data = _data(trainer)
    examples = getattr(data, "val_examples", None)
    if examples is not None and examples.columns is not None:
        # By its name: row numbers differ between a subset of the rows and the batches.
        columns: Mapping[str, Any] = examples.columns_of(examples.rows().index(row))
        return columns
    by_row: Mapping[str, Any] = getattr(data, "val_columns", {}).get(row, {})
    return by_row


def _data(trainer: Trainer) -> Any:
    """Data module, for which Lightning declares no type; None if loaders were given."""
    return trainer.datamodule  # type: ignore[attr-defined]


def _is_policy(module: Any) -> bool:
    return bool(getattr(module.policy, "needs_vocabulary", True))


def _sums(ratios: Iterable[Ragged], estimator: Callable[[torch.Tensor], torch.Tensor], module: Any) -> Any:
    """Sum an estimator over each response."""
    sums = [ratio.with_token(estimator(ratio.token)).sum() for ratio in ratios]
    return torch.cat(sums) if sums else torch.zeros(0, device=module.device)


def _ends(module: Any) -> set[int]:
    """Token ids that end a response."""
    ends = {module.tokenizer.eos_token_id}
    configured = getattr(getattr(module.policy.model, "generation_config", None), "eos_token_id", None)
    return ends | (set(configured) if isinstance(configured, list) else {configured})


def _gather(samples: list[Sample]) -> list[Sample]:
    """Gather the rows of every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return samples
    shares: list[list[Sample]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, samples)
    return [sample for share in shares for sample in share]
