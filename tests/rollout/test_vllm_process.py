"""The process of a server that a run starts: how it starts, fails, ends, and what it leaves behind.

The launcher and the engine are the real ones; in place of vLLM they find a small package that serves the same routes
and ends when it is told to.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import VLLMServerEngine, vllm_server
from rlhf_lightning.rollout.endpoint import Endpoint, ServerError
from rlhf_lightning.rollout.temporary import TemporaryFolder
from rlhf_lightning.rollout.vllm_process import ServerProcess, free_port
from rlhf_lightning.rollout.vllm_serve import server_arguments
from rlhf_lightning.types import Sampling
from tests.helpers.fake_server import fake_server
from tests.helpers.jobs import ranks

ROOT = Path(__file__).parents[2]

SERVE = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_start_and_stop(tmp_path: Path) -> None:
    port = free_port()
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])\n{SERVE}"
    process = ServerProcess(["-c", child, str(port)], port, tmp_path / "log", {})
    process.wait(30)
    pid = process._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    process.stop()
    process.stop()  # nothing further happens
    assert gone(pid)
    assert len(children) == 1
    assert gone(int(children[0]))  # what it started has ended with it


def test_a_server_that_fails_says_why(tmp_path: Path) -> None:
    process = ServerProcess(["-c", "raise SystemExit('no such model')"], free_port(), tmp_path / "log", {})
    with pytest.raises(ServerError, match=r"(?s)ended with code 1 while it started.*log.*no such model"):
        process.wait(30)


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    process = ServerProcess(["-c", "import time; time.sleep(99)"], free_port(), tmp_path / "log", {})
    with pytest.raises(ServerError, match=r"rollout.server.start_timeout=0.1"):
        process.wait(0.1)
    assert gone(process._process.pid)


def test_environment_of_a_server(tmp_path: Path) -> None:
    code = "import os, rlhf_lightning; print({k: os.environ.get(k) for k in ('VLLM_SERVER_DEV_MODE', 'MINE')})"
    process = ServerProcess(["-c", code], free_port(), tmp_path / "log", {"MINE": "1"})
    process._process.wait(30)
    assert (tmp_path / "log").read_text().strip() == "{'VLLM_SERVER_DEV_MODE': '1', 'MINE': '1'}"


def test_a_server_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    # The parent starts the launcher's watch in a child of another session and is killed with SIGKILL.
    child = (
        "import os, time; from rlhf_lightning.rollout.vllm_serve import end_with; end_with(os.getppid()); "
        "print(os.getpid(), flush=True); time.sleep(99)"
    )
    parent = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(pid, 5.0)


@pytest.mark.parametrize(("ending", "code"), [("os.kill(os.getpid(), 9)", 1), ("sys.exit(3)", 1), ("sys.exit(0)", 7)])
def test_a_server_ends_with_its_engine(tmp_path: Path, ending: str, code: int) -> None:
    """An engine that was killed or failed leaves a server that waits for ever; one that ended by itself does not."""
    engine, served = tmp_path / "engine.py", tmp_path / "served.py"
    engine.write_text(f"import os, sys, time\n\ndef run():\n    time.sleep(1)\n    {ending}\n")
    served.write_text(
        "import multiprocessing, sys, time\n"
        "from rlhf_lightning.rollout import vllm_serve\n"
        "import engine\n\n"
        "if __name__ == '__main__':\n"
        "    vllm_serve._FAREWELL = 0.2\n"
        "    vllm_serve.end_with_engine()\n"
        "    multiprocessing.get_context('spawn').Process(target=engine.run).start()\n"
        "    time.sleep(8)\n"
        "    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, served], env=environment(), cwd=tmp_path, timeout=60).returncode == code


def test_what_shares_a_process_group_outlives_it(tmp_path: Path) -> None:
    # As a shell script starts them: the launcher leads no group, and other jobs of the script are in the same one.
    watched = (
        "import os, time; from rlhf_lightning.rollout.vllm_serve import end_with; end_with(os.getppid()); "
        "print(os.getpid(), flush=True); time.sleep(99)"
    )
    parent = (
        "import subprocess, sys, time; "
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid, flush=True); "
        f"subprocess.Popen([sys.executable, '-c', {watched!r}]); time.sleep(99)"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment()
    )
    assert script.stdout is not None
    other, launcher = int(script.stdout.readline()), int(script.stdout.readline())
    try:
        script.kill()
        script.wait()
        assert gone(launcher, 5.0)
        assert alive(other)
    finally:
        os.kill(other, signal.SIGKILL)


def test_a_port_that_is_taken_is_refused() -> None:
    with (
        fake_server() as fake,
        pytest.raises(ServerError, match=r"rollout.server.port=\d+: another server listens there"),
    ):
        free_port(int(fake.url.rpartition(":")[2]))
    port = free_port()
    assert free_port(port) == port


@pytest.mark.parametrize(
    ("arguments", "cpu", "expected"),
    [
        (["--model", "x"], True, ["--model", "x", "--no-enable-chunked-prefill"]),
        (["--model", "x"], False, ["--model", "x"]),
        (["--enable-chunked-prefill"], True, ["--enable-chunked-prefill"]),
        (["--enable_chunked_prefill=true"], True, ["--enable_chunked_prefill=true"]),
        (["--no-enable-chunked-prefill"], True, ["--no-enable-chunked-prefill"]),
    ],
)
def test_a_cpu_cuts_no_prompt_into_chunks(arguments: list[str], cpu: bool, expected: list[str]) -> None:
    assert server_arguments(arguments, cpu=cpu) == expected


# The launcher and the engine with a package in place of vLLM

API_SERVER = """
import os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

print(sys.argv[1:], flush=True)
route, _, way = os.environ.get("FAKE_FAILURE", "").partition("=")

if route == "start":
    print("the engine is out of memory", flush=True)
    sys.exit(int(way))

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        failing = self.path.partition("?")[0] == route
        if failing:
            print("the engine is out of memory", flush=True)
        if failing and way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if failing and way != "500":
            os._exit(int(way))
        self.send_response(500 if failing else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST
    def log_message(self, *args): pass

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def environment(*folders: Path) -> dict[str, str]:
    """This process's own, with folders to import from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers that are started find ``vllm``."""
    home = tmp_path / "package"
    (home / "vllm/entrypoints/openai").mkdir(parents=True)
    for folder in ("vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (home / folder / "__init__.py").touch()
    platform = "class current_platform:\n    is_cpu = staticmethod(lambda: True)\n"
    (home / "vllm/platforms.py").write_text(platform)
    (home / "vllm/entrypoints/openai/api_server.py").write_text(API_SERVER)
    monkeypatch.setenv("PYTHONPATH", str(home))
    monkeypatch.setattr(vllm_server, "installed", lambda: True)
    return home


def make() -> Models:
    return ModelBuilder(TinyRandom(), None, ReferenceKind.NONE)()


def engine_of(failure: str = "", **options: Any) -> tuple[VLLMServerEngine, Models]:
    models = make()
    asked, started = {"retries": 0, "timeout": 20.0}, {"environment": {"FAKE_FAILURE": failure}}
    options = {"requests": asked, "server": started} | options
    return VLLMServerEngine(models.tokenizer, **options), models


def test_a_run_starts_it_with_what_it_needs(package: Path) -> None:
    engine, models = engine_of()
    engine.sync(models.policy, 0)
    log = engine._folder / "server.log"
    logged = log.read_text()
    assert "'--no-enable-chunked-prefill'" in logged
    assert "--end-with" not in logged  # the launcher's own
    engine.close()
    assert not log.parent.exists()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("start=5", r"ended with code 5 while it started"),
        ("/v1/completions=3", r"ended with code 3 while it was in use"),
        (
            "/v1/completions=killed",
            r"ended with code -9 \(Killed: is the machine out of memory\?\)",
        ),
        ("/collective_rpc=4", r"\Athe vLLM server ended with code 4 while it was in use"),
        ("/v1/completions=500", r"answered 500"),
    ],
)
def test_one_that_dies_leaves_its_exit_code_and_its_log(
    package: Path, monkeypatch: pytest.MonkeyPatch, failure: str, words: str
) -> None:
    monkeypatch.setattr(vllm_server, "DYING", 1.0 if failure.endswith("500") else 20.0)
    engine, models = engine_of(failure)

    def use() -> None:
        engine.sync(models.policy, 0)
        engine.generate([[1], [2]], Sampling(max_new_tokens=2), n=1, seeds=[0, 1])

    with pytest.raises(ServerError, match=rf"(?s){words}.*server\.log.*the engine is out of memory") as error:
        use()
    assert error.value.status == (500 if failure.endswith("500") else None)
    folder = engine._folder
    engine.close()
    assert [file.name for file in folder.iterdir()] == ["server.log"]  # the weights are gone
    (folder / "server.log").unlink()
    folder.rmdir()


def failing_rank() -> None:
    """A rank of a job whose server dies."""
    torch.distributed.init_process_group("gloo")
    engine, models = engine_of("/v1/completions=3")
    engine.sync(models.policy, 0)
    first = torch.distributed.get_rank() == 0
    if not first:
        torch.distributed.barrier()  # by then it is dead
    with pytest.raises(
        ServerError, match="ended with code 3" if first else r"(?s)no response.*server.log.*out of memory"
    ):
        engine.generate([[1]], Sampling(max_new_tokens=2), n=1, seeds=[0])
    if first:
        torch.distributed.barrier()
    torch.distributed.barrier()  # process 0 removes the weights
    folder = engine._folder
    engine.close()
    if first:
        shutil.rmtree(folder)


def test_every_process_names_the_log(package: Path) -> None:
    assert ranks(2, failing_rank) == [0, 0]


def run_until_killed(connection: Connection, url: str | None) -> None:
    engine, models = engine_of(url=url)
    engine.sync(models.policy, 0)
    connection.send((engine._folder, None if engine._process is None else engine._process._process.pid))
    time.sleep(99)


@pytest.mark.parametrize("started", [True, False])
def test_the_weights_of_a_killed_run_go(package: Path, started: bool) -> None:
    with fake_server() as fake:
        for route in ("/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"):
            fake.answers[route] = lambda _: None
        receiver, sender = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=run_until_killed, args=(sender, None if started else fake.url))
        process.start()
        assert receiver.poll(60)
        folder, pid = receiver.recv()
        assert (folder / "weights-0/model.safetensors").is_file()
        process.kill()
        process.join()
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()
    assert pid is None or gone(pid)


def test_a_temporary_folder_goes_when_it_is_no_longer_used() -> None:
    folder = TemporaryFolder("rlhf-test-")
    path = folder.path
    (path / "weights").mkdir()
    del folder
    assert not path.exists()


def serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_lightning.rollout.vllm_serve", *arguments]


def test_one_that_a_shell_started_outlives_the_shell(package: Path) -> None:
    port = free_port()
    command = f"{' '.join(serve('--port', str(port)))} >/dev/null 2>&1 & echo $!; sleep 99"
    shell = subprocess.Popen(
        ["sh", "-c", command], stdout=subprocess.PIPE, text=True, env=environment(package), start_new_session=True
    )
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    try:
        Endpoint(f"http://127.0.0.1:{port}", retries=6, backoff=0.2).get("/health")
        shell.kill()
        shell.wait()
        assert not gone(pid, 1.5)  # one of a run looks every half second
    finally:
        os.killpg(shell.pid, signal.SIGKILL)


def test_one_whose_run_was_gone_before_it_looked(package: Path) -> None:
    command = serve("--port", str(free_port()), "--end-with", "999999999")
    done = subprocess.run(command, env=environment(package), timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
