"""Output of ``rlhf generate``: responses, their rewards, and their distance from another model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.console import ERR, OUT
from rlhf_lightning.cli.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.guidance import Guidance
    from rlhf_lightning.types import Finish, SampleGroup


@dataclass(frozen=True)
class Response:
    """One response.

    Attributes:
        text: decoded text.
        score: score, if there is a reward.
        log_ratio: with a reference, log-prob under the sampling distribution minus that under the reference, in nats.
        sizes: tokens of the prompt that the model was given, of the original prompt, and of the response.
        rewritten: the prompt as rewritten by a transform; None: the original prompt.
        finish: ``length`` if the limit of tokens ended it.
    """

    text: str
    score: float | None = None
    log_ratio: float | None = None
    sizes: tuple[int, int, int] = (0, 0, 0)
    rewritten: str | None = None
    finish: Finish = "stop"

    def row(self, prompt: str) -> dict[str, Any]:
        """Row of the output file; with scores, the file is a data set of ranked responses. Sources read ``finish``."""
        columns = {"score": self.score, "log_ratio": self.log_ratio, "rewritten": self.rewritten}
        filled = {name: value for name, value in columns.items() if value is not None}
        return {"prompt": prompt, "response": self.text, "finish": self.finish, **filled}


def check_reference(cfg: DictConfig, prompts: int) -> None:
    """Refuse to measure a KL where samples are not those of a distribution with log-probs.

    Raises:
        ConfigError: nothing is sampled, or not from the whole distribution; the message names the option.
    """
    if OmegaConf.select(cfg, "reference.source") is None:
        return
    if cfg.chat or not prompts or cfg.revision:
        raise ConfigError("reference.source needs responses to prompt=TEXT or prompts=FILE: give prompts")
    if cfg.temperature != 1 or cfg.top_p != 1:
        raise ConfigError(
            "reference.source: the KL is measured on samples of the whole distribution, which temperature="
            f"{cfg.temperature} and top_p={cfg.top_p} change: set temperature=1 top_p=1"
        )


def log_ratios(
    reference: Actor | None, prompts: Sequence[Sequence[int]], groups: Sequence[SampleGroup], batch_size: int
) -> list[list[float | None]]:
    """Summed log-ratio of every sample, from the prompt given to the model to the reference on the original prompt.

    Args:
        reference: None: nothing is measured.
        prompts: token ids without any transform, one a group.
        groups: samples; those without log-probs, whose distribution is not known, have no ratio.
        batch_size: samples that the reference reads together.

    Returns:
        One number a sample, in nats.
    """
    if reference is None or not all(sample.log_probs for group in groups for sample in group.samples):
        return [[None] * len(group.samples) for group in groups]
    import torch

    from rlhf_lightning.data.batches.packing import pack
    from rlhf_lightning.types import Example

    device = next(reference.parameters()).device
    each = max(1, batch_size // max(len(group.samples) for group in groups))
    ratios: list[list[float | None]] = []
    for start in range(0, len(groups), each):
        part = groups[start : start + each]
        examples = [Example(list(p), g.responses) for p, g in zip(prompts[start : start + each], part, strict=True)]
        with torch.no_grad():
            logged = iter(reference(pack(examples).to(device)).sum().tolist())
        ratios += [[math.fsum(sample.log_probs) - next(logged) for sample in group.samples] for group in part]
    return ratios


def statistics(
    responses: Sequence[Sequence[Response]], samples: int, keep: int | None, guidance: Guidance | None
) -> dict[str, float]:
    """Statistics of the rewards and the costs of responses.

    Args:
        responses: responses of the output, by prompt.
        samples: number of samples drawn for each prompt.
        keep: number of best samples to keep; None: all.
        guidance: guidance of the samples.

    Returns:
        ``val/sample/reward`` with its standard error over prompts (``_error``), ``val/sample/length`` in tokens,
        ``val/kl/reference`` in nats with its standard error over samples, ``val/prompt/tokens``, of them those that the
        transform added (``val/prompt/added``), ``val/sample/drawn``: samples drawn for one that is handed out, and
        ``val/kl/choice``: of the best of n, and of blocks, the most nats that choosing adds to the distribution that
        the candidates are drawn from.
    """
    from rlhf_lightning.models.guidance import BlockGuidance

    every = [response for group in responses for response in group]
    metrics = {
        "val/sample/length": fmean(response.sizes[2] for response in every),
        "val/prompt/tokens": fmean(response.sizes[0] for response in every),
        "val/prompt/added": fmean(response.sizes[0] - response.sizes[1] for response in every),
        "val/sample/drawn": samples / (keep or samples),
    }
    means = [fmean(scores) for group in responses if (scores := [a.score for a in group if a.score is not None])]
    metrics |= _mean("val/sample/reward", means)
    if keep is None:
        metrics |= _mean("val/kl/reference", [a.log_ratio for a in every if a.log_ratio is not None])
    elif keep == 1:
        metrics["val/kl/choice"] = _best_of(samples)
    if isinstance(guidance, BlockGuidance) and guidance.candidates > 1:
        blocks = fmean(math.ceil(response.sizes[2] / guidance.tokens) for response in every)
        metrics["val/sample/drawn"] *= guidance.candidates
        metrics["val/kl/choice"] = metrics.get("val/kl/choice", 0.0) + blocks * _best_of(guidance.candidates)
    return metrics


def summary(responses: Sequence[Sequence[Response]], cfg: DictConfig, guidance: Guidance | None) -> dict[str, float]:
    """Show the statistics of the responses, and return them."""
    metrics = statistics(responses, cfg.samples, cfg.keep, guidance)
    ERR.print("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()), markup=False, soft_wrap=True)
    return metrics


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """A mean and its standard error; nothing of no values."""
    if not values:
        return {}
    error = {f"{name}_error": stdev(values) / math.sqrt(len(values))} if len(values) > 1 else {}
    return {name: fmean(values), **error}


def _best_of(count: int) -> float:
    """Upper bound of the KL of the best of n samples, in nats: log n - (n - 1) / n."""
    return math.log(count) - (count - 1) / count


def hand_out(prompts: Sequence[str], responses: Sequence[Sequence[Response]], output: str | None) -> None:
    """Write the responses to a file, or show them."""
    if output is not None:
        pairs = [(prompt, response) for prompt, group in zip(prompts, responses, strict=True) for response in group]
        file = Path(output).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(response.row(prompt), ensure_ascii=False) + "\n" for prompt, response in pairs]
        file.write_text("".join(lines), encoding="utf-8")
        ERR.print(f"{len(lines)} responses in {output}")
        return
    for prompt, group in zip(prompts, responses, strict=True):
        if len(prompts) > 1:
            show_prompt(prompt)
        for response in group:
            show_response(response.text, response.score)
            if len(group) > 1 or len(prompts) > 1:
                OUT.print()


def show_prompt(prompt: str) -> None:
    """Show a prompt above its responses."""
    OUT.print(f"[bold]{'>'}[/] ", end="")
    OUT.print(prompt, style="bold", markup=False)


def show_response(text: str, score: float | None = None, label: str = "") -> None:
    """Show a response, behind its label and its score if it has them."""
    parts = [label, "" if score is None else f"{score:.4g}"]
    for part in filter(None, parts):
        OUT.print(f"[dim]{part}[/]", end="  ")
    OUT.print(text, markup=False)
