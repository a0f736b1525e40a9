"""Help and completion import neither torch nor Hydra; options are checked without torch, Lightning and transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What a check of options has no need of.
HEAVY = {"torch", "lightning", "transformers", "peft", "datasets"}
MEASURED = """
import sys
from rlhf_lightning.cli.main import main
code = main({arguments!r})
heavy = sorted({{"torch", "hydra", "omegaconf", "lightning", "transformers", "numpy", "pydantic"}} & set(sys.modules))
sys.stderr.write(f"{{code}} {{heavy}}")
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "method=dpo", "-h"], ["completion", "words", "train method=d"]],
    ids=" ".join,
)
def test_without_torch(arguments):
    script = MEASURED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []"
    assert "dpo" in done.stdout or "quickstart" in done.stdout


def test_a_configuration_is_printed_without_torch():
    """``--cfg`` is how a sweep is looked over before it starts; Hydra composes, nothing else is needed."""
    script = (
        "import atexit, sys; from rlhf_lightning.cli.main import main\n"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
        "main(['train', 'experiment=grpo_arithmetic', '--cfg', 'job'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "dataset: chain_sum" in done.stdout
    assert done.stderr == "False"


def test_importing_the_package_imports_no_torch():
    script = "import sys, rlhf_lightning; sys.exit('torch' in sys.modules or not rlhf_lightning.__version__)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metho.beta=1", "has no option 'metho'"),
        ("trainer.max_stesp=3", "Did you mean max_steps?"),
        ("method=dpoo", "Did you mean method=dpo?"),
        ("method.loss.beta=abc", "expected a number"),
        ("method.los.beta=1", "has no option 'los'"),
    ],
)
def test_a_mistake_is_told_without_heavy_imports(override, message):
    script = (
        "import sys; from rlhf_lightning.cli.main import main; code = main(['train', 'method=dpo', sys.argv[1]])\n"
        f"sys.exit(str(code) + str(sorted({HEAVY} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script, override], capture_output=True, text=True)
    assert message in done.stderr
    assert done.stderr.endswith("2[]\n")


def test_what_is_right_is_checked_without_heavy_imports():
    script = (
        "import sys; from rlhf_lightning.cli.compose import compose\n"
        "for method in ('dpo', 'grpo', 'ppo', 'kto', 'bradley_terry', 'sft'):\n"
        "    compose('train', [f'method={method}', 'model=tiny_random', 'trainer=debug'])\n"
        f"sys.exit(str(sorted({HEAVY} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "[]\n"
