"""``rlhf optimize_prompt``: search the text that makes a model's responses score higher."""

from __future__ import annotations

import functools
import json
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import say, setup_logging
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.overrides import readable
from rlhf_lightning.files import write_atomically

if TYPE_CHECKING:
    from rlhf_lightning.prompting.language import LanguageTask, Query
    from rlhf_lightning.prompting.search import Bench, Candidate, Optimizer

log = logging.getLogger(__name__)

#: Keys that may be others when a search is resumed: how long it is, and where it lies.
_MAY_CHANGE = ("search.steps", "paths", "allow_targets")
STATE, BEST, RESULT = "search.jsonl", "best.txt", "result.json"


def main(arguments: Sequence[str]) -> int:
    """``rlhf optimize_prompt key=value ...``."""
    run(arguments)
    return 0


def run(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> dict[str, float]:
    """Search the text that options describe.

    Args:
        arguments: options of ``rlhf optimize_prompt``.
        config_dirs: other folders with config groups.

    Returns:
        Metrics: mean scores of the start's best text and of the best one, on the rows of the search and on others.
    """
    cfg = compose("optimize_prompt", readable(arguments), config_dirs=config_dirs)
    setup_logging()
    return metrics_of(optimize_prompt(cfg))


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``result.json`` as metrics; what could not be judged is left out."""
    metrics = {f"{name}/{key}": result[name][key] for name in ("start", "best") for key in ("score", "held_out")}
    metrics |= {f"held_out/{name}": result[name] for name in ("difference", "difference_error")}
    return {name: float(value) for name, value in metrics.items() if value is not None}


def check(cfg: DictConfig) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: nothing scores the responses, or nobody can write new texts.
    """
    if not cfg.reward:
        raise ConfigError("rlhf optimize_prompt needs a score of the responses: choose reward=...")
    if not cfg.proposer and "openai" in str(cfg.rollout.get("_target_", "")).lower():
        raise ConfigError(
            "proposer=self asks the weights of this process, and rollout=openai has none: choose proposer=server"
        )


def optimize_prompt(cfg: DictConfig) -> dict[str, Any]:
    """Search a prompt, or resume the search that the folder holds.

    Returns:
        What ``result.json`` says.

    Raises:
        ConfigError: options that do not go together, too few rows, or a folder with another search.
    """
    from rlhf_lightning.cli.folder import held
    from rlhf_lightning.cli.train import new_folder

    check(cfg)
    named = cfg.paths.output_dir
    parts = Parts.of(cfg)
    folder = Path(named).expanduser() if named else new_folder(Path(cfg.paths.runs) / "optimize_prompt")
    try:
        with held(folder):
            result = _searched(cfg, parts, folder)
    finally:
        if parts.engine is not None:
            parts.engine.close()
    write_atomically(folder / BEST, lambda file: file.write_text(result["best"]["text"] + "\n", encoding="utf-8"))
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / RESULT, lambda file: file.write_text(text, encoding="utf-8"))
    say(
        f"best text in {folder / BEST}: prompting=instruction prompting.file={folder / BEST} "
        f"prompting.position={parts.search.position}"
    )
    return result


def _searched(cfg: DictConfig, parts: Parts, folder: Path) -> dict[str, Any]:
    """Search in a folder, or resume what it holds."""
    from rlhf_lightning.cli.folder import write_config
    from rlhf_lightning.prompting.jsonl import Journal
    from rlhf_lightning.prompting.search import run

    _check_same(cfg, folder)
    write_config(cfg, folder)
    with Journal(folder / STATE) as journal:
        training, held_out = parts.benches(journal)
        pool: list[Candidate] = []
        for step, pool in run(parts.search, list(cfg.start), training):
            _show(step, pool)
        return _result(pool, held_out)


@dataclass
class Parts:
    """Parts of a search; their weights are loaded on first use."""

    cfg: DictConfig
    search: Any
    training: list[Query]
    held_out: list[Query]
    engine: Any = None

    @classmethod
    def of(cls, cfg: DictConfig) -> Parts:
        """Read the rows and check what can be checked before weights load.

        Raises:
            ConfigError: too few rows, or parts that do not go together.
        """
        from rlhf_lightning.cli.instantiate import make
        from rlhf_lightning.prompting.language import queries_of

        rows = queries_of(make(cfg.data.source), make(cfg.data.spec))
        if len(rows) < cfg.examples + cfg.held_out:
            raise ConfigError(
                f"examples={cfg.examples} and held_out={cfg.held_out} are more than the {len(rows)} prompts of the data"
            )
        random.Random(cfg.seed).shuffle(rows)
        return cls(cfg, make(cfg.search), rows[: cfg.examples], rows[cfg.examples :][: cfg.held_out])

    def benches(self, journal: Any) -> tuple[Bench, Bench]:
        """Those of the search and of the held-out rows."""
        from rlhf_lightning.prompting.search import Bench

        make_task, optimizer = self._language()
        seed = self.cfg.seed
        return (
            Bench(optimizer, make_task(self.training), journal, seed),
            Bench(optimizer, make_task(self.held_out), journal, seed, name="held_out"),
        )

    def _language(self) -> tuple[functools.partial[LanguageTask], Optimizer]:
        """Makers of the task, from rows, and of the optimiser."""
        from rlhf_lightning.cli.instantiate import make
        from rlhf_lightning.data.tokens.encode import Encoder
        from rlhf_lightning.data.tokens.templates import resolve
        from rlhf_lightning.models.roles.builder import ModelBuilder
        from rlhf_lightning.models.roles.reference import ReferenceKind
        from rlhf_lightning.prompting.language import LanguageTask, Sampler, Temperature, optimizer_of
        from rlhf_lightning.rewards import as_reward
        from rlhf_lightning.rewards.asking import AskPolicy
        from rlhf_lightning.rewards.base import PolicyReward, reads_columns, smallest_group
        from rlhf_lightning.types import Sampling

        cfg = self.cfg
        builder = ModelBuilder(make(cfg.model), make(cfg.adapter), ReferenceKind.NONE)
        tokenizer, spec = builder.tokenizer(), make(cfg.data.spec)
        reward: Any = as_reward(make(cfg.reward), tokenizer)
        if smallest_group(reward) > 1:
            raise ConfigError(
                f"reward {reward.name!r} compares responses, and a text has one to each prompt: choose another"
            )
        if reads_columns(reward):
            for names in {frozenset(query.columns) for query in (*self.training, *self.held_out)}:
                reward.check_columns(names)
        template = resolve(tokenizer, spec)
        engine: Any = make(cfg.rollout)(tokenizer=tokenizer)
        self.engine = engine
        actor: Any = None
        if not engine.frozen:
            engine.check_adapter(make(cfg.adapter))
            actor = builder().policy
            engine.sync(actor, 0)
        proposer: Any = make(cfg.proposer)
        if isinstance(proposer, functools.partial):
            proposer = proposer()
        if isinstance(reward, PolicyReward) and actor is not None:
            reward.policy = Sampler(actor)

        def respond(prompts: Sequence[Sequence[int]]) -> list[Any]:
            greedy = Sampling(engine.max_new_tokens, 0.0)
            return [samples[0] for samples in engine.generate(prompts, greedy, n=1, seeds=[0] * len(prompts))]

        encoder = Encoder(tokenizer, spec, template)
        task = functools.partial(
            LanguageTask,
            respond=respond,
            reward=reward,
            encoder=encoder,
            template=template,
            position=self.search.position,
            answer=cfg.answer,
        )
        asked = proposer or AskPolicy(tokenizer, Sampler(actor))
        start, end = cfg.proposal_temperature, cfg.proposal_temperature_end
        temperature = start if end is None else Temperature(start, end, self.search.steps)
        return task, optimizer_of(asked, temperature, cfg.proposal_tokens)


def _check_same(cfg: DictConfig, folder: Path) -> None:
    """Refuse a folder that another search began.

    Raises:
        ConfigError: an option has another value there.
    """
    from rlhf_lightning.cli.identity import compare, listed, plain
    from rlhf_lightning.cli.runs import read_config

    state = folder / STATE
    if not state.exists() or not state.stat().st_size:
        return
    comparison = compare(plain(read_config(folder)), plain(cfg))
    # Where the temperature goes in a line over the steps, more steps are other temperatures.
    free = [key for key in _MAY_CHANGE if key != "search.steps" or cfg.proposal_temperature_end is None]
    changed = [
        difference
        for difference in comparison.refused
        if not any(difference.key == key or difference.key.startswith(f"{key}.") for key in free)
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds another search ({listed(changed)}): set these back to resume it, or choose another "
            "paths.output_dir"
        )


def _show(step: int, pool: Sequence[Candidate]) -> None:
    from rlhf_lightning.prompting.search import best

    leader = best(pool)
    say(f"step {step}: {len(pool)} texts, best {leader.mean:.4g} (of step {leader.step}): {leader.text!r}")


def _result(pool: Sequence[Candidate], held_out: Bench) -> dict[str, Any]:
    """The best text by its score on the examples of the search, and the start's best, on rows that no text has seen.

    The standard error of the difference is that of the paired differences of the rows.
    """
    from rlhf_lightning.prompting.search import best

    leader, start = best(pool), best([candidate for candidate in pool if candidate.step == 0])
    tried = {one.text: held_out.trials(one.text, one.step) for one in (leader, start)}
    described: dict[str, dict[str, Any]] = {}
    for name, one in (("start", start), ("best", leader)):
        scores = [trial.score for trial in tried[one.text] if trial.score is not None]
        described[name] = {"text": one.text, "step": one.step, "score": one.mean, "held_out": _mean(scores)}
    pairs = zip(tried[leader.text], tried[start.text], strict=True)
    differences = [a.score - b.score for a, b in pairs if a.score is not None and b.score is not None]
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    result: dict[str, Any] = {
        **described,
        "texts": len(pool),
        "difference": _mean(differences),
        "difference_error": error,
    }
    if result["difference"] is not None:
        margin = "" if error is None else f" +- {error:.2g}"
        say(
            f"held out: {described['start']['held_out']:.4g} -> {described['best']['held_out']:.4g} "
            f"(difference {result['difference']:+.4g}{margin})"
        )
    return result


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
