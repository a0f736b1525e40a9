"""Jobs of a chain's stages: their folders, digests of what they compute, and commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.chain_commands import Outcome, run_stage
from rlhf_lightning.cli.chain_parts import check_parts
from rlhf_lightning.cli.chain_record import STAGE, read_json, write_json
from rlhf_lightning.cli.chain_stages import Reference, Stage, check_left
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.identity import compare, computed, digest_of, digest_of_tree, listed
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.schema import check_config
from rlhf_lightning.cli.stages import Command
from rlhf_lightning.cli.trust import leaves

#: Stands for the chain's folder in what a stage computes, so that a chain may be moved.
_FOLDER = "<chain>"
#: Last parts of keys whose value may be a folder that a job reads; a file may be the value of any key.
_READ = ("path", "run", "prompts", "ckpt_path", "tokenizer_name", "parent")
#: Keys of models, whose value may be a folder or a name.
_MODELS = ("model.name", "source.name")
_STAND_IN = 1.0


@dataclass
class Job:
    """One stage with everything filled in.

    Attributes:
        stage: as described.
        options: of its command, with what other stages left.
        cfg: composed of them.
        folder: of the job, named after what it computes.
        tree: what it computes.
        needs: folders of the stages that it takes from, by name.
        config_flags: of the chain's command line.
    """

    stage: Stage
    options: tuple[str, ...]
    cfg: DictConfig
    folder: Path
    tree: Mapping[str, Any]
    needs: Mapping[str, Path]
    config_flags: Sequence[str]

    @property
    def result(self) -> Result | None:
        """The result of a stage that is done."""
        result = Result.read(self.folder)
        return result if result is not None and result.status == "done" else None

    def run(self) -> Outcome:
        """Run or resume it in this process."""
        write_json(self.folder / STAGE, {"stage": self.stage.name, "computes": self.tree})
        return run_stage(self.stage.command, self.options, self.folder, self.config_flags)

    def keep(self, seconds: float, outcome: Outcome) -> None:
        """Leave the result of a command that writes none."""
        if self.stage.command not in ("train", "evaluate") and not outcome.code:
            result = Result("done", metrics=dict(outcome.metrics), seconds=round(seconds, 2))
            result.overrides = list(self.options)
            result.write(self.folder)

    def record(self, chain: Path) -> dict[str, Any]:
        """Entry in ``chain.json``."""
        below = {name: str(folder.relative_to(chain)) for name, folder in self.needs.items()}
        stage = {"name": self.stage.name, "command": self.stage.command}
        return {**stage, "folder": str(self.folder.relative_to(chain)), "needs": below, "options": list(self.options)}


@dataclass
class Planner:
    """Turns stages into jobs.

    Attributes:
        folder: of the chain.
        command: the command line.
        ran: folders of the jobs that this command has run.
    """

    folder: Path
    command: Command
    ran: set[Path] = field(default_factory=set)
    _composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)
    _digests: dict[Path, str] = field(default_factory=dict)

    def check(self, stages: Sequence[Stage]) -> None:
        """Compose every stage, before any is run.

        Raises:
            ConfigError: an option of a stage is wrong, or it takes what another will not leave; the message names both.
        """
        jobs: dict[str, Job] = {}
        for stage in stages:
            try:
                for reference in stage.references:
                    check_left(reference, jobs[reference.stage].stage, jobs[reference.stage].cfg)
                jobs[stage.name] = self._job(stage, jobs, checking=True)
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"stage {stage.name}: {error}") from error

    def jobs(self, stages: Sequence[Stage]) -> Iterator[Job]:
        """The job of each stage, once those before it have run.

        Raises:
            ConfigError: what a stage takes from another is not there.
        """
        jobs: dict[str, Job] = {}
        for stage in stages:
            jobs[stage.name] = self._job(stage, jobs, checking=False)
            yield jobs[stage.name]

    def check_present(self, job: Job) -> None:
        """Refuse to run a stage that takes what an earlier one had left and what is gone.

        Raises:
            ConfigError: as above; the message names the option and the file or folder.
        """
        for reference in job.stage.references:
            source = job.needs[reference.stage]
            needed = reference.needed_path(source)
            if needed is not None and not needed.exists():
                raise ConfigError(
                    f"{reference.option}: stage {reference.stage} was done, and there is no {needed}: remove {source} "
                    "to run it again"
                )

    def why(self, job: Job) -> str | None:
        """Reason to run a stage although one of its name exists; None: there is none, or this one was begun."""
        others = [file for file in job.folder.parent.glob(f"*/{STAGE}") if file.parent != job.folder]
        newest = max(others, key=lambda file: file.stat().st_mtime, default=None)
        before = None if newest is None or (job.folder / STAGE).exists() else read_json(newest)
        if newest is None or before is None:
            return None
        comparison = compare(before.get("computes") or {}, job.tree)
        return f"it differs from {newest.parent.name}: {listed([*comparison.refused, *comparison.allowed])}"

    def _job(self, stage: Stage, jobs: Mapping[str, Job], *, checking: bool) -> Job:
        options = stage.filled(lambda reference: _value(reference, jobs[reference.stage]))
        key = (stage.command, *options)
        if key not in self._composed:
            dirs = self.command.flags.config_dirs
            self._composed[key] = compose(stage.command, options, config_dirs=dirs, check=False)
        cfg = self._composed[key]
        if checking:
            planned = {job.folder: job.cfg for job in jobs.values()}
            check_parts(_check_options(stage.command, cfg, options, planned), self.folder)
        tree = self._computed(stage, cfg)
        folder = self.folder / stage.name / digest_of_tree(tree)[:12]
        needs = {reference.stage: jobs[reference.stage].folder for reference in stage.references}
        return Job(stage, options, cfg, folder, tree, needs, self.command.config_flags)

    def _computed(self, stage: Stage, cfg: DictConfig) -> Mapping[str, Any]:
        """Definition of a stage: its configuration, and the content of the files that it reads from elsewhere."""
        tree = computed(cfg)
        content = {key: self._digest(path) for key, path in _read_files(tree) if not path.is_relative_to(self.folder)}
        text = json.dumps({"command": stage.command, **tree, "content": content}, default=str)
        moved: dict[str, Any] = json.loads(text.replace(json.dumps(str(self.folder))[1:-1], _FOLDER))
        return moved

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = digest_of(path)
        return self._digests[path]


def _value(reference: Reference, job: Job) -> str:
    """Value of a reference: a path, or a metric, which is 1 as long as the stage has not run.

    Raises:
        ConfigError: the stage has not logged the metric.
    """
    if reference.metric is None:
        return str(reference.path(job.folder))
    result = job.result
    if result is None:
        return str(_STAND_IN)
    if (value := result.metrics.get(reference.metric)) is None:
        near = suggestion(reference.metric, result.metrics)
        raise ConfigError(f"{reference.option}: stage {job.stage.name} logged no {reference.metric}.{near}")
    return repr(value)


def _read_files(tree: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Files and folders that a configuration says a job reads, with their keys."""
    for name, node in tree.items():
        for key, value in leaves(node, name):
            path = os.path.expanduser(value) if isinstance(value, str) else ""
            is_read = key.rpartition(".")[2] in _READ or key.endswith(_MODELS)
            if os.path.isfile(path) or (is_read and os.path.isdir(path)):  # text of any length may be asked
                yield key, Path(path).absolute()


def _check_options(
    command: str, cfg: DictConfig, options: Sequence[str], planned: Mapping[Path, DictConfig]
) -> DictConfig:
    """Check a stage's configuration as its command will, and return it with that of the run which it is about.

    Args:
        command: of the stage.
        cfg: of the stage.
        options: that it was composed of.
        planned: configurations of the stages so far, by their folders.
    """
    from rlhf_lightning.cli import export, game, generate, optimize_prompt, runs, steer

    cfg, run = cfg.copy(), None
    if (named := cfg.get("run")) is not None and not OmegaConf.is_missing(cfg, "run"):
        run = planned.get(Path(named))
        run = runs.read_config(named) if run is None else run
    if run is not None and command in ("evaluate", "generate"):
        cfg = (runs.evaluated if command == "evaluate" else generate.from_run)(cfg, run, options)
    check_config(cfg, command, options)
    if command in ("optimize_prompt", "steer"):
        (optimize_prompt if command == "optimize_prompt" else steer).check(cfg)
    elif command == "game":
        game.check(cfg, options)
    elif command == "export":
        export.check_form(cfg, runs.read_config(cfg.run) if run is None else run)
    return cfg
