"""A configuration of somebody else runs nothing: every place, every way in, and what known packages have to offer."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.compose import compose, compose_with_overrides
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.hydra_targets import check_hydra
from rlhf_lightning.cli.schema import check_config
from rlhf_lightning.cli.targets import TargetError, resolve
from rlhf_lightning.cli.trust import uncommanded

#: What runs code, loads it, or starts processes, from every kind of package, and classes of ours in a wrong place.
GADGETS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "touch {canary}"},
    "subprocess.check_call": {"args": ["touch", "{canary}"]},
    "builtins.exec": {"_args_": ["open('{canary}', 'w')"]},
    "pathlib.Path.touch": {"_args_": ["{canary}"]},
    "functools.partial": {"_args_": [{"_target_": "os.system", "command": "touch {canary}"}]},
    "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": "touch {canary}"}},
    "lightning.pytorch.cli.instantiate_class": {"args": "touch {canary}", "init": {"class_path": "os.system"}},
    "lightning.pytorch.callbacks.model_checkpoint.os.system": {"command": "touch {canary}"},
    "lightning.pytorch.loggers.csv_logs.os.system": {"command": "touch {canary}"},
    "torch.hub.load": {"repo_or_dir": "{folder}", "model": "evil", "source": "local"},
    "torch.optim.os.system": {"command": "touch {canary}"},
    "transformers.testing_utils.run_command": {"command": ["touch", "{canary}"]},
    "transformers.dynamic_module_utils.get_class_from_dynamic_module": {"class_reference": "evil.X"},
    "peft.PeftModel.from_pretrained": {"model_id": "{folder}"},
    "rlhf_lightning.cli.main.main": {"arguments": ["train"]},
    "rlhf_lightning.cli.worker.subprocess.run": {"args": ["touch", "{canary}"]},
    "rlhf_lightning.rollout.vllm_process.ServerProcess": {"command": ["-c", "open('{canary}', 'w')"], "port": 1},
    "rlhf_lightning.rewards.graders.sandbox.subprocess.run": {"args": ["touch", "{canary}"]},
    "rlhf_lightning.data.tokens.cache.cached": {"folder": "{folder}", "key": "x"},
    "rlhf_lightning.checkpointing.remove": {"path": "{canary}"},
    "evil_module.touch": {},
}
#: Where something is made, and where only data belongs.
MADE = [
    "model", "adapter", "reference.source", "method", "method.loss", "method.loss.terms.a.loss", "method.advantage",
    "method.head", "method.kl", "reward", "reward.terms.a", "reward.function", "reward.extract", "reward.judge",
    "method.credit.reward", "data", "data.source", "data.source.sources.a", "data.validation", "data.spec", "rollout",
    "optimizer", "scheduler", "callbacks.a", "callbacks.a.world", "callbacks.a.pack", "logger.a", "strategy.strategy",
    "trainer.profiler", "rounds", "rounds.selector",
]  # fmt: skip
PLAIN = [
    "trainer.plugins", "trainer.accelerator", "optimizer.betas", "callbacks.last.dirpath", "data.spec.columns.prompt",
    "data.spec.template_arguments.a.b", "data.spec.template_arguments.list[0][0].a", "method.loss.beta", "paths.runs",
    "seed", "allow_targets", "data.source.path", "strategy.devices", "anything", "anything.below[0]",
]  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that an attack would make; and a module that makes it when it is imported."""
    file = tmp_path / "canary"
    code = f"open({str(file)!r}, 'w').close()\n\ndef touch(*args, **kwargs):\n    pass\n"
    for name in ("evil_module", "hubconf"):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setitem(sys.modules, "evil_module", None)
    del sys.modules["evil_module"]
    monkeypatch.syspath_prepend(str(tmp_path))
    return file


def gadget(name: str, canary: Path) -> dict[str, Any]:
    text = yaml.safe_dump({"_target_": name, **GADGETS[name]}, width=1000)
    made: dict[str, Any] = yaml.safe_load(text.replace("{canary}", str(canary)).replace("{folder}", str(canary.parent)))
    return made


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose("train", ["method=ppo", "reward=length", "data=json", "data.source.path=x.jsonl"], check=False)


@pytest.mark.parametrize("name", GADGETS)
def test_no_gadget_has_a_place(name: str, canary: Path):
    for key in [*MADE, *PLAIN]:
        with pytest.raises((TargetError, ImportError)):
            resolve(key, name, ())
    assert not canary.exists()


@pytest.mark.parametrize("key", [*MADE, *PLAIN])
def test_a_gadget_is_found_wherever_it_hides(key: str, canary: Path, composed: DictConfig):
    cfg = composed.copy()
    node: Any = gadget("os.system", canary)
    for part in reversed(re.findall(r"\[\d+\]|[^.\[\]]+", key)):
        node = [node] if part.startswith("[") else {part: node}
    with pytest.raises(ConfigError, match=r"os\.system|no option 'anything'"):
        check_config(OmegaConf.create(_merged(OmegaConf.to_container(cfg), node)), "train", ())
    assert not canary.exists()


def _merged(base: Any, node: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(node, dict) or "_target_" in node:
        return node
    return {**base, **{key: _merged(base.get(key), value) for key, value in node.items()}}


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.adamw.AdamW",
        "transformers.optimization.Adafactor",
        "rlhf_lightning.optimizers.AdamTF",
    ],
)
def test_what_has_the_role_of_its_place_is_legal(target: str):
    assert resolve("optimizer", target, ()).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("callbacks.a", "torch.optim.SGD"),
        ("optimizer", "lightning.pytorch.callbacks.ModelCheckpoint"),
        ("logger.a", "rlhf_lightning.callbacks.EMAWeights"),
        ("method.loss", "rlhf_lightning.credit.rloo"),
        ("method.loss", "rlhf_lightning.losses.needs"),
        ("method.advantage", "rlhf_lightning.losses.dpo"),
        ("rounds.selector", "rlhf_lightning.losses.dpo"),
        ("rounds.selector", "rlhf_lightning.selection.validate"),
        ("reward", "rlhf_lightning.models.Scorer"),
        ("scheduler", "rlhf_lightning.schedules.LambdaLR"),
        ("data.source", "rlhf_lightning.world.TinyWorld"),
    ],
)
def test_what_has_another_role_is_refused(key: str, target: str):
    with pytest.raises((TargetError, ImportError)):
        resolve(key, target, ())


INTERPOLATED = {
    "a name": ["+data.spec.template_arguments.a=os.system", "optimizer._target_=${data.spec.template_arguments.a}"],
    "a node": [
        "+data.spec.template_arguments.a={_target_:os.system}",
        "+callbacks.a=${data.spec.template_arguments.a}",
    ],
    "text": ["+callbacks.a=\"${oc.create:'{_target_: os.system, command: x}'}\""],
    "the environment": ['+callbacks.a="${oc.decode:${oc.env:EVIL}}"'],
}


@pytest.mark.parametrize("way", INTERPOLATED)
def test_interpolations_are_followed(way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVIL", "{_target_: os.system, command: x}")
    with pytest.raises(ConfigError, match=r"_target_: os\.system"):
        compose("train", INTERPOLATED[way])


def test_positional_options_are_refused():
    with pytest.raises(ConfigError, match=r"optimizer\._args_: give options by their names"):
        compose("train", ["+optimizer._args_=[1]"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "groups"


def experiment(folder: Path, content: dict[str, Any], name: str = "evil", group: str = "experiment") -> list[str]:
    """A config folder of somebody else with one file; the override that chooses it."""
    file = folder / group / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# @package _global_\n" + yaml.safe_dump(content, sort_keys=False))
    return [f"{group}={name}"]


def logging_of(handler: dict[str, Any]) -> dict[str, Any]:
    return {"version": 1, "handlers": {"a": handler}, "root": {"handlers": ["a"]}}


INSTANTIATED = {"()": "lightning.pytorch.cli.instantiate_class", "args": "touch x", "init": {"class_path": "os.system"}}
HYDRA: dict[str, tuple[dict[str, Any], str]] = {
    "a factory": ({"job_logging": logging_of({"()": "os.system", "command": "touch x"})}, "os.system is not a handler"),
    "a helper": ({"job_logging": logging_of(INSTANTIATED)}, "instantiate_class is not a handler"),
    "a class": ({"hydra_logging": logging_of({"class": "evil_module.touch"})}, "evil_module.touch is not a handler"),
    "an object": (
        {"job_logging": logging_of({"class": "logging.StreamHandler", "stream": "ext://evil_module.touch"})},
        "ext://evil_module.touch is not one of",
    ),
    "a file": (
        {"job_logging": logging_of({"class": "logging.FileHandler", "filename": "/tmp/.bashrc"})},
        "is not in the folder of the job",
    ),
    "a file above": (
        {"job_logging": logging_of({"class": "logging.FileHandler", "filename": "${hydra.runtime.output_dir}/../x"})},
        "is not in the folder of the job",
    ),
    "a callback": ({"callbacks": {"a": {"_target_": "os.system"}}}, "does not belong to Hydra"),
    "a launcher": ({"launcher": {"_target_": "hydra.utils.instantiate"}}, "does not belong to Hydra"),
    "a plugin that is none": (
        {"sweeper": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}},
        "is not a sweeper",
    ),
    "plain data": ({"help": {"a": {"_target_": "os.system"}}}, "only plain values belong"),
    "the environment": ({"job": {"env_set": {"LD_PRELOAD": "x.so"}}}, "counts only on the command line"),
    "a search space": ({"sweeper": {"custom_search_space": "os.system"}}, "counts only on the command line"),
    "a parameter": ({"sweeper": {"params": {"allow_targets": "[os]"}}}, "counts only on the command line"),
    "hydra as a parameter": ({"sweeper": {"params": {"hydra.job.env_set": "{}"}}}, "counts only on the command line"),
    "a shell line": ({"launcher": {"setup": ["touch x"]}}, "counts only on the command line"),
    "a Slurm header": ({"launcher": {"partition": "gpu\ntouch x"}}, "counts only on the command line"),
}


@pytest.fixture(scope="module")
def with_hydra(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """A composition in which a folder of somebody else takes part."""
    folder = tmp_path_factory.mktemp("groups")
    cfg, _ = compose_with_overrides("train", [], config_dirs=[folder], check=False, with_hydra=True)
    return cfg


@pytest.mark.parametrize("way", HYDRA)
def test_hydras_own_part(way: str, canary: Path, with_hydra: DictConfig):
    content, message = HYDRA[way]
    tree = OmegaConf.to_container(with_hydra)
    check_hydra(OmegaConf.create(tree))
    with pytest.raises(ConfigError, match=message):
        check_hydra(OmegaConf.create(_merged(tree, {"hydra": content})))
    assert not canary.exists()


COMMANDED: dict[str, dict[str, Any]] = {
    "allow_targets[0]": {"allow_targets": ["evil_module"], "optimizer": {"_target_": "evil_module.touch"}},
    "rollout.server.environment.LD_PRELOAD": {"rollout": {"server": {"environment": {"LD_PRELOAD": "x.so"}}}},
    "rollout.server.arguments[0]": {"rollout": {"server": {"arguments": ["--trust-remote-code"]}}},
    "rollout.options.trust_remote_code": {"rollout": {"options": {"trust_remote_code": True}}},
    "logger.a.settings.x_executable": {"logger": {"a": {"settings": {"x_executable": "evil"}}}},
}


@pytest.mark.parametrize("key", COMMANDED)
def test_what_counts_on_the_command_line_alone(key: str, canary: Path, composed: DictConfig):
    cfg = OmegaConf.create(_merged(OmegaConf.to_container(composed), COMMANDED[key]))
    chosen = [
        "rollout=vllm_server",
        "rollout.server.environment={A: b}",
        "optimizer._target_=x",
    ]  # says nothing of this key
    with pytest.raises(ConfigError, match=rf"(?m)^{re.escape(key)}: .*counts only on the command line"):
        check_config(cfg, "train", chosen)
    assert not canary.exists()


def test_given_on_the_command_line_it_counts():
    given = [
        "allow_targets=[a,b]",
        "rollout.environment={A: b}",
        "rollout.server.arguments=[c]",
        "+rollout.options.x=1",
    ]
    tree = {
        "allow_targets": ["a", "b"],
        "rollout": {"server": {"environment": {"A": "b"}, "arguments": ["c"]}, "options": {"x": 1}},
    }
    assert list(uncommanded(tree, given)) == []
    assert len(list(uncommanded(tree, []))) == 5


def test_a_folder_of_groups_cannot_allow_its_own_code(folder: Path, canary: Path):
    chosen = experiment(folder, COMMANDED["allow_targets[0]"])
    with pytest.raises(ConfigError, match=r"allow_targets=\.\.\. there, or put it into RLHF_ALLOW_TARGETS"):
        compose("train", chosen, config_dirs=[folder])
    assert not canary.exists()


def test_an_alias_bomb_is_an_error(folder: Path):
    levels = [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 9)}]" for n in range(9)]
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "bomb.yaml").write_text("\n".join(levels))
    with pytest.raises(ConfigError, match=r"bomb\.yaml: its aliases stand for more than 100,000 values"):
        compose("train", ["experiment=bomb"], config_dirs=[folder])
