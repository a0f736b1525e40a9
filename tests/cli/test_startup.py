"""Help and completion respond at once: neither torch nor Hydra is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURED = """
import sys, time
started = time.perf_counter()
from rlhf_lightning.cli.main import main
code = main({arguments!r})
heavy = sorted({{"torch", "hydra", "omegaconf", "lightning", "transformers", "numpy", "pydantic"}} & set(sys.modules))
sys.stderr.write(f"{{time.perf_counter() - started:.3f}} {{code}} {{heavy}}")
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "method=dpo", "-h"], ["completion", "words", "train method=d"]],
    ids=" ".join,
)
def test_under_a_second_and_without_torch(arguments):
    script = MEASURED.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, code, heavy = done.stderr.split(" ", 2)
    assert float(seconds) < 1.0
    assert (code, heavy) == ("0", "[]")
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
