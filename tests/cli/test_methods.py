"""``rlhf methods`` and METHODS.md, and the yaml files that both describe."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning import compose, credit, losses
from rlhf_lightning import methods as methods_package
from rlhf_lightning.cli import methods
from rlhf_lightning.cli.catalogue import catalogue
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.method_pages import FOLDER, INDEX, _anchors, render_pages
from rlhf_lightning.cli.selectors import selectors
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.losses import WeightedSum, needs, validate
from tests.helpers.loss_inputs import loss_from_yaml, method_yaml
from tests.losses.test_policy_trl import OURS as POLICY
from tests.losses.test_trl import OURS
from tests.losses.test_unpaired import TRL_LOSSES

ENTRIES = {entry.name: entry for entry in catalogue()}
LOSSES = sorted(name for name in losses.__all__ if "\nSource:" in (inspect.getdoc(getattr(losses, name)) or ""))
#: Yaml files whose loss is another method's, or a sum of several.
VARIATIONS = {"bco_udm", "mpo", "ilr_dpo", "tr_dpo", "rso_hinge", "rso_sigmoid"}
#: Credit functions that a method uses.
CREDIT = sorted({entry.credit.name for entry in ENTRIES.values() if entry.credit})


def test_the_pages_are_up_to_date() -> None:
    root = Path(__file__).parents[2]
    pages = render_pages(catalogue())
    assert {path.relative_to(root).as_posix() for path in (root / FOLDER).glob("*.md")} | {INDEX} == pages.keys()
    for path, text in pages.items():
        assert (root / path).read_text(encoding="utf-8") == text, "run: make docs"


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = render_pages(catalogue())
    anchors = {path: set(_anchors(text)) for path, text in pages.items()}
    links = 0
    for path, text in pages.items():
        for page, anchor in re.findall(r"\]\(([\w/.]*)#([\w-]+)\)", text):
            target = (PurePosixPath(path).parent / page).as_posix() if page else path
            assert anchor in anchors[target], f"{path}: {page}#{anchor}"
            links += 1
    assert links > 3 * len(ENTRIES)


def test_no_control_characters() -> None:
    r"""A ``\\frac`` that was read as a form feed and "rac" leaves no trace but this on the page."""
    root = Path(__file__).parents[2]
    pages = [root / "METHODS.md", *(root / FOLDER).glob("*.md")]
    files = [*pages, *(root / "rlhf_lightning").rglob("*.py"), *conf_dir().rglob("*.yaml")]
    assert len(files) > 100
    control = re.compile(r"[^\n -~\u00a0-\uffff]")
    assert [f"{path}: {match!r}" for path in files for match in control.findall(path.read_text(encoding="utf-8"))] == []
    docstrings = [
        inspect.getdoc(member) or "" for package in (losses, credit) for _, member in inspect.getmembers(package)
    ]
    assert not [text for text in docstrings if control.search(text)]


def test_one_yaml_a_loss_and_one_entry_a_yaml() -> None:
    files = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    assert files == ENTRIES.keys()
    assert set(LOSSES) | VARIATIONS <= files
    for name in LOSSES:
        assert ENTRIES[name].target == name
        assert ENTRIES[name].family != "other", f"add {name} to the list in rlhf_lightning/losses/__init__.py"


@pytest.mark.parametrize("name", LOSSES)
def test_docstring_is_complete(name: str) -> None:
    doc = ENTRIES[name].method_loss
    assert doc is not None
    for part in ("summary", "equation", "source", "defaults", "differences"):
        assert getattr(doc, part), f"{name} has no {part}"
    assert "Source" not in doc.notes  # a label that was not recognised
    assert set(doc.inputs) == needs(getattr(losses, name))
    text = inspect.getdoc(getattr(losses, name)) or ""
    for parameter in inspect.signature(getattr(losses, name)).parameters:
        assert re.search(rf"^    {parameter}: ", text, flags=re.MULTILINE), f"{name} does not explain {parameter}"
    assert "Returns:" in text
    assert ("Raises:" in text) == ("*" in str(inspect.signature(getattr(losses, name))))  # it has options


def test_comparison_with_trl_is_claimed_where_it_is_made() -> None:
    claimed = {entry.name for entry in ENTRIES.values() if entry.method_loss and entry.method_loss.compared_with_trl}
    others = {"cdpo", "preferred_ft", "sft", "dft", "bradley_terry", *TRL_LOSSES.values()}
    policy = {setting["loss"] for setting in POLICY.values()}
    assert claimed == {name for name, _ in OURS.values()} | others | policy


@pytest.mark.parametrize("name", ENTRIES)
def test_yaml_header(name: str) -> None:
    entry = ENTRIES[name]
    assert re.search(r"arXiv:\d{4}\.\d{5}$|, 20\d\d$", entry.paper)
    command, *overrides = entry.command.split(" method=")[0], *entry.command.split()[2:]
    assert command == "rlhf train"
    assert overrides[0] == f"method={name}"
    for override in overrides[1:]:
        key, _, value = override.partition("=")
        if key.startswith("method."):
            options = OmegaConf.to_container(compose("train", [f"method={name}"], check=False))  # with what it includes
            default = functools.reduce(operator.getitem, key.split("."), options)
            assert value != str(default), f"{override} changes nothing"


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("exo", "loss.beta", 0.5),  # train_exo.sh for HH, TL;DR and one's own data
        ("exo_k", "loss.score_beta", 0.5),
        ("dapo", "loss.dual_clip", 10.0),  # clip_ratio_c of verl's recipe
        ("dapo", "rollout.minibatches", 16),  # 512 prompts, 32 of them a step
        ("dr_grpo", "rollout.minibatches", 8),  # 128 prompts of 8 responses, 128 responses a step
        ("armorm", "head.scale", 1.0),
    ],
)
def test_defaults_of_the_authors_scripts(name: str, option: str, value: float) -> None:
    assert ENTRIES[name].options[option] == value


@pytest.mark.parametrize("name", LOSSES)
def test_yaml_lists_every_option_with_the_default(name: str) -> None:
    """One truth: what a yaml says is what the function does without it."""
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    defaults = {f"loss.{p.name}": p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    options = {key: value for key, value in ENTRIES[name].options.items() if key.startswith("loss.")}
    assert options == defaults
    assert {key: type(value) for key, value in options.items()} == {key: type(v) for key, v in defaults.items()}


@pytest.mark.parametrize("name", ENTRIES)
def test_yaml_makes_a_valid_loss(name: str) -> None:
    body = method_yaml(name)
    package, _, module = body["_target_"].rpartition(".")
    assert package == "rlhf_lightning.methods"
    assert body["_partial_"] is True
    loss = loss_from_yaml(body["loss"])
    validate(loss)
    assert needs(loss) <= getattr(methods_package, module).provides
    assert set(ENTRIES[name].needs) | (needs(loss) & {"policy"}) == needs(loss)
    credited = (
        credit.needs(getattr(credit, body["advantage"]["_target_"].rpartition(".")[2])) if "advantage" in body else ()
    )
    assert ("running_decay" in {**body, **body.get("credit", {})}) == ("running" in {*needs(loss), *credited})


def test_hydra_makes_the_weighted_sum() -> None:
    from hydra.utils import instantiate

    loss = instantiate(method_yaml("mpo")["loss"])
    assert isinstance(loss, WeightedSum)
    assert loss.weights == {"preference": 0.8, "quality": 0.2, "generation": 1.0}
    assert loss.needs == {"policy", "reference", "running"}
    assert loss.losses["preference"].keywords == {"beta": 0.1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CREDIT)
def test_docstring_of_a_credit_function_is_complete(name: str) -> None:
    doc = next(entry.credit for entry in ENTRIES.values() if entry.credit and entry.credit.name == name)
    for part in ("summary", "equation", "source", "defaults"):
        assert getattr(doc, part), f"{name} has no {part}"
    function = getattr(credit, name)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^    {parameter}: ", text, flags=re.MULTILINE), f"{name} does not explain {parameter}"


@pytest.mark.parametrize("name", sorted(name for name, entry in ENTRIES.items() if entry.credit))
def test_yaml_lists_every_option_of_its_credit_function(name: str) -> None:
    """With the function's default, or another that the method is about."""
    entry = ENTRIES[name]
    assert entry.credit is not None
    parameters = inspect.signature(getattr(credit, entry.credit.name)).parameters.values()
    options = {key.removeprefix("advantage.") for key in entry.options if key.startswith("advantage.")}
    assert options == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_an_on_policy_method_says_how_it_is_put_together() -> None:
    page = "\n".join(render_pages([ENTRIES["grpo"], ENTRIES["rlsc"], ENTRIES["grpo_process"]]).values())
    assert "| prompts and a reward, reference |" in page
    assert "| prompts |" in page
    assert "| prompts and rewards of steps, reference |" in page
    assert "- Credit: [grpo](credit.md#credit-grpo). Reward less the group's mean" in page
    assert "\n## Credit: grpo\n" in page
    assert "- Rollout: 8 responses a prompt, optimiser steps on each rollout: 1" in page
    assert "- Tokens: `seq_mean_token_mean`. KL: k3 in the loss, times 0.04" in page


def test_reference_sync_comes_with_tr_dpo() -> None:
    from rlhf_lightning.cli.compose import compose

    cfg = compose("train", ["method=tr_dpo", "model=tiny_random"], check=False)
    assert cfg.callbacks.reference_sync._target_ == "rlhf_lightning.callbacks.ReferenceSync"
    assert cfg.method.loss._target_ == "rlhf_lightning.losses.dpo"


def test_equations_and_links_are_rendered() -> None:
    page = "\n".join(render_pages(catalogue()).values())
    assert page.count("```math") == len(LOSSES) + len(CREDIT) + len(selectors())
    assert "[arXiv:2305.18290](https://arxiv.org/abs/2305.18290)" in page
    assert ":math:" not in page
    assert "``" not in page.replace("```", "")
    for name in ENTRIES:
        assert f"\n## {name}\n" in page
        assert f"#{name})" in page


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"""
import sys
from rlhf_lightning.cli.methods import main
status = main({list(arguments)!r})
assert "torch" not in sys.modules and "hydra" not in sys.modules, "rlhf methods must not wait for torch"
sys.exit(status)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_table_lists_every_method_without_torch() -> None:
    result = run_command()
    assert result.returncode == 0, result.stderr
    listed = re.findall(r"^(\w+)  ", result.stdout, flags=re.MULTILINE)
    assert set(ENTRIES) <= set(listed)
    assert "collision" in result.stdout  # what WPO needs


def test_one_method_in_full() -> None:
    result = run_command("odpo")
    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    for part in (r"\alpha\log\big(s(y_w) - s(y_l)\big)", "arXiv:2402.10571", "loss.alpha=1", "TL;DR data skips ties"):
        assert part in text


def test_unknown_method_names_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"no method 'dpoo'\. Did you mean dpo"):
        methods.main(["dpoo"])


def test_write(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "a_family_that_is_gone.md").touch()
    assert methods.main(["--write", str(tmp_path)]) == 0
    pages = render_pages(catalogue())
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")} == pages.keys()
    assert all((tmp_path / path).read_text(encoding="utf-8") == text for path, text in pages.items())


@pytest.mark.parametrize("first_line", ["", "_target_: x", "# no paper here", "# DPO (arXiv:2305.18290) rlhf train"])
def test_a_bad_header_is_reported_with_its_file(first_line: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(f"{first_line}\nloss: {{}}\n")
    monkeypatch.setattr("rlhf_lightning.cli.catalogue.conf_dir", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"mine\.yaml: the first line must be"):
        catalogue()


def command_of(path: Path) -> str:
    line = path.read_text(encoding="utf-8").splitlines()[0]
    return line[line.rindex(". rlhf ") + 2 :]


#: Yaml files whose command sets more than what every test of a method sets.
TELLING = [path for path in sorted((conf_dir() / "method").glob("*.yaml")) if "reward" in command_of(path)]


@pytest.mark.parametrize("path", TELLING, ids=lambda path: path.stem)
def test_the_command_of_a_yaml_with_a_reward_composes(path: Path) -> None:
    """With a function that is there for the reader's own."""
    command = command_of(path)
    for original, replacement in (("my_package.my_reward", "operator.eq"), ("[my_package]", "[_operator,operator]")):
        command = command.replace(original, replacement)
    _, name, *overrides = shlex.split(command)
    assert compose(name, [override for override in overrides if override != "-m"]).method._target_
