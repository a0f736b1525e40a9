"""A wheel behaves like the checkout, from any folder: its yaml files, the command, the plugin for other Hydra apps."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = """
import hydra
@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    print(cfg.method.loss._target_, cfg.method.loss.beta)
main()
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RLHF_CONF")}
    parts = [str(part) for part in command]
    done = subprocess.run(parts, cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with our wheel, which borrows everything else from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    (site,) = environment.glob("lib/python*/site-packages")
    # A path file is not read for further path files: the editable install of the checkout stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return environment / "bin"


def test_the_wheel_carries_its_own_files(installed, tmp_path):
    where = "import rlhf_lightning.conf_dir as c; print(c.conf_dir())"
    folder = Path(run(installed / "python", "-c", where, cwd=tmp_path).strip())
    assert folder.is_relative_to(installed.parent)
    ours = {path.relative_to(ROOT / "conf"): path.read_text() for path in (ROOT / "conf").rglob("*.yaml")}
    ours = {path: text for path, text in ours.items() if path.parts[0] != "local"}
    assert {path.relative_to(folder): path.read_text() for path in folder.rglob("*.yaml")} == ours
    assert (folder.parent / "py.typed").exists()


def test_wheel_and_checkout_compose_the_same(installed, tmp_path):
    options = ["--cfg", "job", "model=tiny_random", "method=ipo", "trainer=debug"]
    wheel = run(installed / "rlhf", "train", *options, cwd=tmp_path)
    assert "rlhf_lightning.losses.ipo" in wheel
    checkout = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", *options]
    assert wheel == run(*checkout, cwd=tmp_path, PYTHONPATH=str(ROOT))


def test_another_hydra_app_uses_our_groups(installed, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text("defaults: [{method: ipo}, _self_]\nmethod: {loss: {beta: 0.25}}\n")
    out = run(installed / "python", "app.py", "hydra.run.dir=.", "hydra.output_subdir=null", cwd=tmp_path)
    assert out.split() == ["rlhf_lightning.losses.ipo", "0.25"]
