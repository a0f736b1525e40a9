"""A python grader cannot hurt the run: whatever it does is a failure of that one response."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_lightning.rewards.graders import worker
from rlhf_lightning.rewards.graders.sandbox import MAX_SOURCE, Limits, Outcome, Sandbox, check_source

SAMPLE, ITEM = {"output_text": "four"}, {"answer": "four"}
#: What only a filter of system calls stops.
confined = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="no seccomp filter here"
)


def source(body: str) -> str:
    return "def grade(sample, item):\n" + textwrap.indent(textwrap.dedent(body), "    ")


def run(body: str, limits: Limits | None = None) -> Outcome:
    sandbox = Sandbox(source(body), limits)
    try:
        return sandbox.run(SAMPLE, ITEM)
    finally:
        sandbox.close()


@pytest.fixture(scope="module")
def both() -> Iterator[Sandbox]:
    """A grader that misbehaves when the response asks for it, so that one process sees good and bad calls in turn."""
    sandbox = Sandbox(source("exec(sample['output_text'])\nreturn 1.0"), Limits(cpu_seconds=1, seconds=3.0))
    yield sandbox
    sandbox.close()


def test_a_score():
    assert run("return 0.25 * (sample['output_text'] == item['answer'])") == Outcome(0.25)


def test_the_process_is_used_again_and_remembers_nothing(both: Sandbox):
    first = both.run({"output_text": "import builtins; builtins.found = 1"}, {})
    second = both.run({"output_text": "assert not hasattr(__import__('builtins'), 'found')"}, {})
    assert (first, second, both.starts) == (Outcome(1.0), Outcome(1.0), 1)


ATTACKS = {
    "stops the interpreter": ("import sys; sys.exit(0)", "SystemExit"),
    "leaves without a word": ("import os; os._exit(0)", "without a score"),
    "closes every file": ("import os; os.closerange(0, 64)", "without a score"),
    "closes its output and goes on": ("import os, time; os.close(3); time.sleep(60)", "closed its output"),
    "raises what is no Exception": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "has an error that is code": ("raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})", "E"),
    "recurses": ("f = lambda g: g(g); f(f)", "RecursionError"),
    "fills the answer's pipe": ("import os; os.write(3, b'[' * 10_000)", "without a score"),
    "forges an answer": ("import os; os.write(3, b'{\"score\": 1e999}'); os._exit(0)", "without a score"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "without a score"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_failures_of_one_call(both: Sandbox, attack: str):
    text, message = ATTACKS[attack]
    outcome = both.run({"output_text": text}, {})
    assert outcome.score is None
    assert message in (outcome.error or "")
    assert both.run({"output_text": ""}, {}) == Outcome(1.0)
    assert both.starts == 1


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "10 ** 400", "'1'", "None", "[1]", "1j"])
def test_what_is_no_score(value: str):
    outcome = run(f"return {value}")
    assert outcome.score is None
    assert outcome.error


def test_an_infinite_loop_costs_its_cpu_time():
    outcome = run("while True: pass", Limits(cpu_seconds=1, seconds=100.0))
    assert outcome.timeout
    assert "CPU" in (outcome.error or "")


def test_a_loop_that_ignores_signals(both: Sandbox):
    text = (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
    )
    assert both.run({"output_text": text + "while True: pass"}, {}).timeout


def test_waiting_costs_the_time_limit(both: Sandbox):
    begun = time.monotonic()
    outcome = both.run({"output_text": "import time; time.sleep(600)"}, {})
    assert outcome.timeout
    assert 2.5 < time.monotonic() - begun < 20


def test_memory():
    outcome = run("return len(bytearray(4 * 2**30))", Limits(memory=128 * 2**20))
    assert "MemoryError" in (outcome.error or "")


def test_megabytes_of_output_go_nowhere(capfd: pytest.CaptureFixture[str]):
    assert run("import sys\nprint('x' * 10**7)\nsys.stderr.write('y' * 10**7)\nreturn 0.5") == Outcome(0.5)
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_OF_THE_RUN", "1")
    assert run("import os\nreturn len(os.environ) + len(item) - 1") == Outcome(0.0)


@confined
@pytest.mark.parametrize("of", ["os.getppid()", "'self'", str(os.getpid())], ids=["parent", "self", "tests"])
def test_nor_is_there_one_to_read(of: str):
    """Of its parents, which have the run's."""
    outcome = run(f"import os\nreturn len(open(f'/proc/{{{of}}}/environ', 'rb').read())")
    assert outcome.score is None or outcome.score == 0.0


@confined
@pytest.mark.parametrize(
    "body",
    [
        "import os\nwhile True: os.fork()",
        "import threading\nthreading.Thread(target=len).start()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true') and 1 / 0",
        "import multiprocessing\nmultiprocessing.Process(target=len).start()",
        "import os\nos.execv('/bin/true', ['true'])",
    ],
)
def test_no_process_and_no_thread(body: str):
    outcome = run(f"{body}\nreturn 1.0")
    assert outcome.score is None
    assert not outcome.timeout


@confined
@pytest.mark.parametrize("call", ["open(path, 'w')", "open(path, 'a')", "os.open(path, os.O_RDWR)", "os.remove(path)"])
def test_no_file_is_written(tmp_path: Path, call: str):
    file = tmp_path / "kept"
    file.write_text("as it was")
    outcome = run(f"import os\npath = {str(file)!r}\n{call}\nreturn 1.0")
    assert outcome.score is None
    assert file.read_text() == "as it was"


@confined
@pytest.mark.parametrize("call", ["os.mkdir(path)", "os.symlink('/', path)", "open(path, 'x')", "os.mkfifo(path)"])
def test_no_file_is_made(tmp_path: Path, call: str):
    path = tmp_path / "new"
    assert run(f"import os\npath = {str(path)!r}\n{call}\nreturn 1.0").score is None
    assert list(tmp_path.iterdir()) == []


@confined
def test_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)\nreturn 1.0"
        assert run(body).score is None
        with pytest.raises(TimeoutError):
            server.accept()


@confined
def test_others_get_no_signals():
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        for call in (f"os.kill({victim.pid}, 9)", "os.kill(os.getppid(), 9)", "os.kill(-1, 9)"):
            assert run(f"import os\n{call}\nreturn 1.0").score is None
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@confined
def test_the_limits_cannot_be_lifted():
    body = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn 1.0"
    assert run(body).score is None


def test_the_standard_library_is_there():
    body = """
        import bisect, datetime, decimal, hashlib, json, random, re, statistics, zlib
        datetime.datetime.strptime("2020", "%Y")
        return statistics.mean([1, 2]) + float(decimal.Decimal("0.5"))
    """
    assert run(body) == Outcome(2.0)


def test_a_lost_process_is_started_again():
    sandbox = Sandbox(source("return 1.0"))
    assert sandbox.run(SAMPLE, ITEM).score == 1.0
    assert sandbox._process is not None
    os.kill(sandbox._process.pid, signal.SIGKILL)
    sandbox._process.wait()
    assert sandbox.run(SAMPLE, ITEM).score == 1.0
    assert sandbox.starts == 2
    sandbox.close()


def test_the_process_goes_with_its_sandbox():
    sandbox = Sandbox(source("return 1.0"))
    sandbox.run(SAMPLE, ITEM)
    process = sandbox._process
    assert process is not None
    del sandbox
    assert process.wait(timeout=10) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def grade(sample, item:", "not Python"),
        ("def score(sample, item): return 1", "no function grade"),
        ("def grade(sample): return 1", "grade\\(sample, item\\)"),
        ("def grade(sample, item, more): return 1", "grade\\(sample, item\\)"),
        ("def grade(sample, item, *, more): return 1", "grade\\(sample, item\\)"),
        ("class A:\n    def grade(sample, item): return 1", "no function grade"),
        ("#" * (MAX_SOURCE + 1), "at most 256000"),
    ],
)
def test_sources_are_read_before_the_run(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_source(text, "reward.spec.source")


def test_a_source_is_not_run_when_it_is_checked(tmp_path: Path):
    file = tmp_path / "written"
    check_source(f"open({str(file)!r}, 'w')\ndef grade(sample, item, more=1): return 1", "here")
    assert not file.exists()


@pytest.mark.parametrize("options", [{"cpu_seconds": 0}, {"seconds": 0.0}, {"memory": 1000}])
def test_limits_that_nothing_could_meet(options: dict[str, float]):
    with pytest.raises(ValueError, match="limits of a python grader"):
        Limits(**options)  # type: ignore[arg-type]


def test_a_machine_without_the_filter_still_grades(monkeypatch: pytest.MonkeyPatch):
    """Some containers refuse it; then the other layers hold, and the calls do not fail."""
    monkeypatch.setattr(worker.Confinement, "_landlock", lambda self, readable: False)
    monkeypatch.setattr(worker.Confinement, "lock", lambda self: 1 / 0)
    if sys.platform == "linux":
        pid = os.fork()
        if pid == 0:
            layers = worker.Confinement([]).layers
            os._exit(0 if "seccomp" not in layers and "landlock" not in layers else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_the_filter_has_both_machines():
    assert {len(worker.filter_program(machine)) % 8 for machine in ("x86_64", "aarch64")} == {0}
    assert worker.filter_program("x86_64") != worker.filter_program("aarch64")
