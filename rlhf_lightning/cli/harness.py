"""``rlhf evaluate benchmark=<task>``: a policy on tasks of lm-evaluation-harness."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.generate import device_of
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.methods import ScoringModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.models.actor import Actor

#: In the folder of the evaluation: what the harness returned, without the single questions.
FILE = "benchmark.json"
_AUTOCAST = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


def evaluate_tasks(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """Evaluate the policy of a configuration on the tasks of ``benchmark``; prints a table, writes ``benchmark.json``.

    Tasks and their data are read before weights load.

    Args:
        cfg: of ``rlhf evaluate``.
        folder: of the file.

    Returns:
        Metrics: ``val/<task>/<metric>``, and ``..._stderr`` where the harness gives a standard error.

    Raises:
        ConfigError: the harness is not installed, an unknown task, or options that a benchmark has no use for.
    """
    names = [cfg.benchmark] if isinstance(cfg.benchmark, str) else list(cfg.benchmark)
    check(cfg)
    with _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        manager = _manager(cfg, names)
        tasks = _tasks(manager, names)
        actor, tokenizer = policy_of(cfg)
        options = cfg.harness
        model = HFLM(
            pretrained=actor.model,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=options.batch_size,
            mixed_precision_dtype=_AUTOCAST.get(str(OmegaConf.select(cfg, "trainer.precision"))),
        )
        results = simple_evaluate(
            model,
            tasks=tasks,
            num_fewshot=options.few_shot,
            limit=options.limit,
            apply_chat_template=bool(options.chat_template),
            system_instruction=options.system,
            task_manager=manager,
            log_samples=False,
            random_seed=cfg.seed,
            numpy_random_seed=cfg.seed,
            torch_random_seed=cfg.seed,
            fewshot_random_seed=cfg.seed,
        )
    for line in table(results):
        say(line)
    kept = {name: results[name] for name in ("results", "groups", "n-shot", "n-samples", "versions") if name in results}
    kept["lm_eval"] = importlib.metadata.version("lm_eval")
    (folder / FILE).write_text(json.dumps(kept, indent=2, default=str) + "\n", encoding="utf-8")
    return {f"val/{name}": value for name, value in metrics(results["results"]).items()}


def check(cfg: DictConfig) -> None:
    """Refuse what a benchmark cannot be run with.

    Raises:
        ConfigError: see :func:`evaluate_tasks`.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("benchmark=... needs lm-evaluation-harness: pip install 'rlhf-lightning[lm-eval]'")
    if issubclass(make(cfg.method).func, ScoringModule):
        raise ConfigError(
            "benchmark=... asks a language model, and this method trains rewards: data=rewardbench does that"
        )
    for group in ("prompting", "guidance", "evaluation"):
        if cfg.get(group):
            raise ConfigError(f"benchmark=... has the prompts and the decoding of its tasks: set {group}=none")


def policy_of(cfg: DictConfig) -> tuple[Actor, PreTrainedTokenizerBase]:
    """Load the policy of a configuration with its checkpoint, and the tokenizer that renders its prompts."""
    from rlhf_lightning.chat_templates import exported_tokenizer
    from rlhf_lightning.data.tokens.encode import trained_template
    from rlhf_lightning.models.roles.builder import ModelBuilder
    from rlhf_lightning.models.roles.reference import ReferenceKind
    from rlhf_lightning.models.roles.trained import adapter_of_run, load_trained

    source, adapter = make(cfg.model), make(cfg.adapter)
    checkpoint = None if cfg.ckpt_path is None else Path(cfg.ckpt_path).expanduser()
    if checkpoint is not None:
        adapter = adapter_of_run(adapter, checkpoint, source.sizes().layers)
    builder = ModelBuilder(source, adapter, ReferenceKind.NONE)
    tokenizer = builder.tokenizer()
    models = builder()
    if checkpoint is not None:
        load_trained(checkpoint, models.policy, models.start)
    accelerator = str(OmegaConf.select(cfg, "trainer.accelerator"))
    policy = models.policy.to(device_of("cpu" if accelerator == "cpu" else "auto")).eval()
    return policy, exported_tokenizer(tokenizer, trained_template(tokenizer, make(cfg.data.spec)))


def _manager(cfg: DictConfig, names: Sequence[str]) -> Any:
    """The harness's list of tasks: reading all of its own takes seconds, which files of tasks do without."""
    from lm_eval.tasks import TaskManager

    return TaskManager(
        include_path=cfg.harness.folder,
        include_defaults=not all(_is_file(name) for name in names),
        metadata={},
    )


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _tasks(manager: Any, names: Sequence[str]) -> list[Any]:
    """Tasks and groups of tasks by name, with their data.

    Raises:
        ConfigError: there is no such task, or its data cannot be had.
    """
    for name in names:
        if _is_file(name) and not Path(name).expanduser().is_file():
            raise ConfigError(f"benchmark={name}: there is no such file")
        if not _is_file(name) and not manager.match_tasks([name]):
            near = ", ".join(get_close_matches(name, manager.all_tasks)) or "lm-eval ls tasks lists them"
            raise ConfigError(f"benchmark={name}: the harness has no such task. Did you mean: {near}?")
    try:
        loaded = manager.load([str(Path(name).expanduser()) if _is_file(name) else name for name in names])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"benchmark={','.join(names)}: {error}") from error
    inside = {task for group in loaded["groups"].values() for task in group.get_all_tasks()}
    return [*loaded["groups"].values(), *(task for task in loaded["tasks"].values() if task not in inside)]


def metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Numbers by ``<task>/<metric>``: ``acc,none`` is ``acc``, and ``exact_match,strict`` ``exact_match.strict``."""
    by_metric = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, comma, filtered = name.partition(",")
            if comma and isinstance(value, int | float):
                by_metric[f"{task}/{metric}" + ("" if filtered == "none" else f".{filtered}")] = float(value)
    return by_metric


def table(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table: a metric a line, with its standard error and how many questions were asked."""
    values = metrics(results["results"])
    width = max(map(len, values), default=0)
    yield f"{'benchmark':<{width}}  {'value':>8}  {'stderr':>8}  {'n':>6}  shots"
    for name, value in values.items():
        task, metric = name.rsplit("/", 1)
        if "_stderr" in metric:
            continue
        base, dot, filtered = metric.partition(".")
        error = values.get(f"{task}/{base}_stderr{dot}{filtered}", math.nan)
        asked = (results.get("n-samples") or {}).get(task, {}).get("effective", "")
        shots = (results.get("n-shot") or {}).get(task, "")
        yield f"{name:<{width}}  {value:>8.4f}  {'' if math.isnan(error) else f'{error:.4f}':>8}  {asked:>6}  {shots}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's notes of what it is given."""
    harness = logging.getLogger("lm_eval")
    level = harness.level
    harness.setLevel(logging.ERROR)
    try:
        yield
    finally:
        harness.setLevel(level)
