"""Whole commands that get a signal at a chosen point, in forked processes, and what they leave behind."""

from __future__ import annotations

import csv
import functools
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.cli.main import main
from rlhf_lightning.rollout.transformers import TransformersEngine
from rlhf_lightning.types import Sample
from tests.helpers.jobs import CLOCK, differences

#: Calls before and after which a signal may come: name of the point -> module, and function or class and method in it.
POINTS = {
    "micro-batch": ("rlhf_lightning.methods.base", "AlignmentModule.forward"),
    "step": ("rlhf_lightning.callbacks.last_checkpoint", "LastCheckpoint.on_train_batch_end"),
    "validation": ("rlhf_lightning.callbacks.last_checkpoint", "LastCheckpoint.on_validation_batch_end"),
    "metrics": ("rlhf_lightning.loggers", "CSVLogger.log_metrics"),
    "row": ("rlhf_lightning.loggers", "CSVLogger._write"),
    "file": ("rlhf_lightning.files", "sync"),  # of checkpoints, results, configurations, tables and rollouts
    "tokens": ("rlhf_lightning.data.tokens.cache", "_save"),
    "cache": ("rlhf_lightning.data.reference.shards", "write_atomically"),
    "draw": ("rlhf_lightning.rounds.collect", "Collector.sample_and_score"),
    "sample": ("rlhf_lightning.rollout.transformers", "TransformersEngine.generate"),
    "score": ("rlhf_lightning.rounds.collect", "Collector._rewards"),
    "select": ("rlhf_lightning.lessons.select", "SelectLesson.begin"),
    "rollout": ("rlhf_lightning.rounds.record", "Rollouts.write"),
    "groups": ("rlhf_lightning.rounds.record", "Rollouts.write_groups"),
    "table": ("rlhf_lightning.callbacks.samples", "PolicySamples._write"),
    "export": ("rlhf_lightning.methods.base", "export"),
    "end": ("rlhf_lightning.callbacks.hf_export", "HFExport.on_train_end"),
}
#: Of ``result.json``: what a clock measures, and what of a cache was found and what was computed.
_OF_A_PROCESS = ("seconds", "reference")
PAIRS = [
    {"prompt": f"What is {a}?", "chosen": f"It is {a}{a}.", "rejected": "No idea" + "." * (a % 3)} for a in range(20)
]
OPTIONS = [
    "model=tiny_random", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "data=json",
    "data.validation=0.2", "data.batch_size=4", "data.loading.eval_batch_size=2", "trainer.accumulate_grad_batches=2",
    "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.val_check_interval=3",
    "trainer.check_val_every_n_epoch=null", "callbacks.last.every_n_steps=2", "callbacks.samples.prompts=2",
    "callbacks.samples.max_new_tokens=4",
]  # fmt: skip
ONLINE = [
    "reward=function", "reward.target=tests.helpers.online.letters", "allow_targets=[tests]",
    "rollout.max_new_tokens=4", "method.rollout.group_size=2",
]  # fmt: skip
METHODS = {
    "dpo": ["method=dpo", "reference=cached"],
    "kto": ["method=kto"],
    "ended_early": ["method=dpo", "trainer.max_epochs=9", "+callbacks.early.mode=max", "+callbacks.early.patience=1",
                    "+callbacks.early.monitor=val/loss",
                    "+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping"],
    "sft": ["method=sft", "trainer.log_every_n_steps=3", "trainer.max_steps=7"],
    "bradley_terry": ["method=bradley_terry"],
    "ppo": ["method=ppo", *ONLINE, "method.rollout.inner_epochs=2", "trainer.max_steps=6"],
    "grpo": ["method=grpo", *ONLINE, "+method.rollout.max_empty=3", "method.rollout.minibatches=2"],
    "tr_dpo": ["method=dpo", "callbacks=[default,ema,reference_sync]", "callbacks.reference_sync.every_n_steps=3",
               "reference=frozen", "callbacks.ema.decay=0.5"],
    "lora": ["method=ipo", "adapter=lora", "adapter.dropout=0.2", "callbacks.best.save_top_k=2"],
}  # fmt: skip

#: Methods that learn from rounds of their own samples: two rounds an epoch.
ROUNDS = [
    "allow_targets=[tests]", "rollout._target_=tests.helpers.faults.Ending", "rollout.max_new_tokens=4",
    "rounds.minibatches=2", "trainer.max_steps=12",
]  # fmt: skip
LETTERS = ["reward=function", "reward.target=tests.helpers.online.letters"]
ROUND_METHODS = {
    "iterative": ["method=dpo", "rounds=iterative", "rounds.draws=[{source: policy, n: 3}]", "rounds.carry=all",
                  "rounds.reference=previous_round", "rounds.inner_epochs=2", *LETTERS, *ROUNDS],
    "online": ["method=dpo", "rounds=online", *LETTERS, *ROUNDS, "rounds.minibatches=1"],
    "spin": ["method=spin", "rounds=spin", *ROUNDS],
    "raft": ["method=sft", "rounds=raft", "rounds.draws=[{source: policy, n: 3}]", "rounds.inner_epochs=2", *LETTERS,
             *ROUNDS],
    "rso": ["method=rso_sigmoid", "rounds=rso", "rounds.draws=[{source: reference, n: 4}]", "rounds.selector.n=2",
            *LETTERS, *ROUNDS],
}  # fmt: skip
#: What a round goes through, and the point at which it is killed there.
STAGES = {"draw": "sample", "score": "score", "select": "select", "train": "micro-batch", "write": "groups"}


#: A chain of stages, under the name of an experiment.
CHAIN: dict[str, Any] = {
    "shared": OPTIONS,
    "stages": {
        "sft": ["method=sft"],
        "reward": ["method=bradley_terry", "model=run", "model.run=${stage:sft}"],
        "dpo": [
            "method=dpo",
            "model=run",
            "model.run=${stage:sft}",
            "method.loss.beta=${stage:reward.metrics.val/loss}",
        ],
    },
}
#: RAHF's chains in the tiny world: a model that obeys either instruction, or a good and a bad one; then the adapter.
TINY = [
    "experiment=tiny", "callbacks=[step_seed,nonfinite,last,export]", "callbacks.last.every_n_steps=2",
    "data.source.size=24", "data.batch_size=6", "trainer.max_steps=6", "trainer.max_epochs=-1",
    "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.accumulate_grad_batches=2",
    "trainer.log_every_n_steps=1", "trainer.val_check_interval=3", "trainer.check_val_every_n_epoch=null",
    "trainer.limit_val_batches=2", "data.eval_batch_size=2",
]  # fmt: skip
RAHF: dict[str, dict[str, Any]] = {
    "rahf_scit": {
        "shared": TINY,
        "stages": {
            "instruct": ["method=contrastive_instruction"],
            "states": ["method=representation_fit", "world=tiny/representation_fit", "model=run",
                       "model.run=${stage:instruct}", "adapter=lora", "adapter.dropout=0.1"],
        },
    },
    "rahf_dual": {
        "shared": TINY,
        "stages": {
            "good": ["method=sft", "data.source.side=chosen"],
            "bad": ["method=sft", "data.source.side=rejected"],
            "states": ["method=rahf_dual", "world=tiny/rahf_dual", "model=run", "model.run=${stage:good}",
                       "reference.source.name=${stage:bad.export}", "adapter=lora", "adapter.dropout=0.1"],
        },
    },
}  # fmt: skip
CHAINS = {"chain": CHAIN, **RAHF}


class Ending(TransformersEngine):
    """Reports every response as ended: a random model ends none, and what was cut off wins no pair."""

    def generate(self, *args: Any, **options: Any) -> list[list[Sample]]:
        """Samples of the model."""
        return [[replace(sample, finish="stop") for sample in row] for row in super().generate(*args, **options)]


class Fault:
    """Counts the points that a process passes, and signals it at one of them.

    Args:
        file: of the names of the points, in their order; None: none is written.
        at: number of the point; None: no signal.
        point: where given, only these points count.
        number: the signal.
    """

    def __init__(
        self, file: Path | None = None, at: int | None = None, point: str | None = None, number: int = signal.SIGKILL
    ) -> None:
        self.file, self.at, self.point, self.number = file, at, point, number
        self.passed: list[str] = []

    def install(self) -> None:
        """Put the points into this process's functions."""
        for name, (module, path) in POINTS.items():
            owner: Any = importlib.import_module(module)
            *inside, function = path.split(".")
            for attribute in inside:
                owner = getattr(owner, attribute)
            setattr(owner, function, self._watched(name, getattr(owner, function)))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*args: Any, **options: Any) -> Any:
            self._pass(name)
            result = function(*args, **options)
            self._pass(name)
            return result

        return watched

    def _pass(self, name: str) -> None:
        if self.point not in (None, name):
            return
        self.passed.append(name)
        if len(self.passed) - 1 == self.at:
            os.kill(os.getpid(), self.number)


def _command(folder: Path, method: str, fault: Fault) -> None:
    """``rlhf train`` or ``rlhf chain`` in this process, which ends with its exit code."""
    os.chdir(folder.parent)
    if method not in RAHF:  # the base of the tiny world is trained once, not in every folder
        os.environ["RLHF_CACHE"] = str(folder.parent / f"cache-{folder.name}")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr = (folder.parent / f"{folder.name}.txt").open("a", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # nothing may hang on the global generator's start
    fault.install()
    code = 1
    try:
        code = main(_arguments(folder, method))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        if fault.file is not None:
            fault.file.write_text(json.dumps(fault.passed))
        os._exit(code)


def _arguments(folder: Path, method: str) -> list[str]:
    """The command line of a method's run, or of a chain, in a folder."""
    paths = [f"data.source.path={folder.parent / 'pairs.jsonl'}", f"paths.output_dir={folder}"]
    if method not in CHAINS:
        return ["train", *OPTIONS, *(METHODS | ROUND_METHODS)[method], *paths]
    experiments = folder.parent / "conf" / "experiment"
    experiments.mkdir(parents=True, exist_ok=True)
    (experiments / "faults.yaml").write_text("# @package _global_\n" + json.dumps({"chain": CHAINS[method]}))
    paths = paths[1:] if method in RAHF else paths  # the tiny world brings its rows
    return ["chain", "--config-dir", str(experiments.parent), "experiment=faults", *paths]


def command(folder: Path, method: str, fault: Fault | None = None) -> int:
    """Exit code of ``rlhf train``, or of ``rlhf chain``, in a process of its own, negative where a signal ended it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    process = multiprocessing.get_context("fork").Process(target=_command, args=(folder, method, fault or Fault()))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def unbroken(folder: Path, method: str) -> tuple[Path, list[str]]:
    """A run that nothing happens to, and the points that it passes."""
    assert command(folder, method, Fault(folder.parent / "points.json")) == 0, printed(folder)
    return folder, json.loads((folder.parent / "points.json").read_text())


def printed(folder: Path) -> str:
    """Output of the commands of a folder."""
    return (folder.parent / f"{folder.name}.txt").read_text()


def unlike(whole: Path, cut: Path) -> list[str]:
    """Differences of two runs' folders: weights and every other state, logs, result, rollouts, tables, exports."""
    unequal = differences(_state(whole), _state(cut))
    for name in ("metrics.csv", "result.json"):
        if _plain(whole / name) != _plain(cut / name):
            unequal.append(name)
    kept = [_files(folder) for folder in (whole, cut)]
    unequal += sorted(kept[0] ^ kept[1])
    both = sorted(kept[0] & kept[1])
    return unequal + [name for name in both if _content(whole, name) != _content(cut, name)]


def _content(folder: Path, name: str) -> bytes:
    """A file's bytes, without the names of the run's folder and of its chain's, which model cards and adapters have."""
    content = (folder / name).read_bytes()
    for root in (folder, folder.parent.parent):
        content = content.replace(str(root).encode(), b"<folder>")
    return content.replace(f"# {folder.name}\n".encode(), b"# <folder>\n")  # the title of a card


def _state(folder: Path) -> dict[str, Any]:
    """The last checkpoint, less what Lightning does not restore or only counts: validation, cache fill, last score."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    del state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"], state["loops"]["predict_loop"]
    for callback in state["callbacks"].values():
        callback.pop("current_score", None)
    moved: dict[str, Any] = _moved(state, str(folder))
    return moved


def _moved(node: Any, folder: str) -> Any:
    """A container without the name of the run's folder."""
    if isinstance(node, dict):
        return {_moved(key, folder): _moved(value, folder) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_moved(value, folder) for value in node]
    return node.replace(folder, "<folder>") if isinstance(node, str) else node


def _plain(file: Path) -> Any:
    """Content without what a clock measured."""
    if file.suffix == ".json":
        result = json.loads(file.read_text())
        metrics = {name: value for name, value in result["metrics"].items() if not CLOCK.match(name)}
        kept = {name: value for name, value in result.items() if name not in (*_OF_A_PROCESS, "overrides")}
        return kept | {"metrics": metrics}
    with file.open(newline="") as lines:
        rows = list(csv.reader(lines))
    clocks = [at for at, name in enumerate(rows[0]) if CLOCK.match(name)]
    without = [[cell for at, cell in enumerate(row) if at not in clocks] for row in rows]
    return without if clocks else file.read_bytes()


def _files(folder: Path) -> set[str]:
    """Names of every file that does not hold a time or the name of the folder."""
    apart = {".hydra", "config.yaml", "train.log", "date.txt", "job.json", "metrics.csv", "result.json", ".lock"}
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {str(name) for name in files if name.parts[0] not in apart and name.suffix != ".ckpt"}


def leftovers(folders: Iterable[Path]) -> Sequence[Path]:
    """Unfinished files."""
    return [f for folder in folders for f in folder.rglob("*") if f.suffix in (".unfinished", ".part", ".tmp", ".old")]


def discard(folder: Path) -> None:
    """Remove a run and its cache."""
    for path in (folder, folder.parent / f"cache-{folder.name}"):
        shutil.rmtree(path, ignore_errors=True)
