"""The engines with the real vLLM, in float32, against transformers; skipped where vLLM is missing (docs/vllm.md)."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import TransformersEngine, VLLMEngine, VLLMServerEngine
from rlhf_lightning.rollout import vllm as in_process
from rlhf_lightning.rollout.endpoint import ServerError
from rlhf_lightning.rollout.vllm_options import installed
from rlhf_lightning.types import Example, Sample, Sampling

pytestmark = [
    pytest.mark.skipif(not installed(), reason="vLLM is not installed; docs/vllm.md says how"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[2]
GREEDY = Sampling(max_new_tokens=24, temperature=0.0)
#: One prompt is longer than a block of vLLM's prefix cache (128 tokens on a CPU), so that a stale cache shows.
LENGTHS = (5, 9, 40, 200, 17)


def make(*, tied: bool = True, lora: bool = False) -> Models:
    """A model whose heads are 32 wide, the least that vLLM's attention on a CPU takes."""
    source = TinyRandom(hidden_size=128, heads=4, kv_heads=2, tie_embeddings=tied)
    return ModelBuilder(source, Lora(r=4, seed=0) if lora else None, ReferenceKind.NONE)()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(10, 200, (length,), generator=generator).tolist() for length in LENGTHS]


def step(policy: Actor) -> None:
    """An optimiser step that changes the responses."""
    trained = [value for value in policy.parameters() if value.requires_grad]
    batch = pack([Example(prompt, [[7, 8, 9]]) for prompt in prompts()], kind="supervised")
    for _ in range(2):  # with B = 0 the first step moves an adapter's B only
        optimizer = torch.optim.SGD(trained, lr=1.0)
        (-policy(batch).token.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def gap(engine_samples: list[list[Sample]], trainer_samples: list[list[Sample]]) -> float:
    """Largest difference of log-probs; infinity where other tokens were drawn."""
    pairs = [
        pair
        for one, other in zip(engine_samples, trainer_samples, strict=True)
        for pair in zip(one, other, strict=True)
    ]
    if any(one.ids != other.ids for one, other in pairs):
        return float("inf")
    return max(abs(x - y) for a, b in pairs for x, y in zip(a.log_probs, b.log_probs, strict=True))


def greedy(engine: Any, policy: Actor, version: int) -> list[list[Sample]]:
    engine.sync(policy, version)
    return engine.generate(prompts(), GREEDY, n=1, seeds=range(len(LENGTHS)))


def transformers_greedy(policy: Actor, n: int) -> list[list[Sample]]:
    engine = TransformersEngine()
    engine.sync(policy, 0)
    return engine.generate(prompts(), GREEDY, n=n, seeds=range(len(LENGTHS)))


def same_as_transformers(engine: Any, policy: Actor, version: int = 0) -> float:
    return gap(greedy(engine, policy, version), greedy(TransformersEngine(), policy, version))


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(vllm={"max_model_len": 512, "max_num_seqs": 16})
    yield engine
    engine.close()


def test_follows_the_policy_through_a_step(engine: VLLMEngine) -> None:
    policy = make().policy
    before = greedy(engine, policy, 0)
    assert gap(before, greedy(TransformersEngine(), policy, 0)) < 1e-4
    step(policy)
    after = greedy(engine, policy, 1)
    # With the head of the old embedding, or prompts out of the old policy's cache, the gap would be above 0.01.
    assert gap(after, greedy(TransformersEngine(), policy, 1)) < 1e-4
    assert gap(before, after) > 0.01
    assert {sample.version for group in after for sample in group} == {1}


def test_the_test_sees_a_stale_head(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make().policy
    greedy(engine, policy, 0)
    step(policy)
    monkeypatch.setattr(in_process, "fix_tied", lambda model: None)
    assert same_as_transformers(engine, policy) > 0.01


def test_an_adapter_goes_in_merged(engine: VLLMEngine) -> None:
    policy = make(lora=True).policy
    base = greedy(engine, policy, 0)
    step(policy)
    assert same_as_transformers(engine, policy) < 1e-4
    assert gap(base, greedy(engine, policy, 1)) > 0.01


def test_log_probs_are_at_the_temperature(engine: VLLMEngine) -> None:
    policy = make().policy.eval()
    engine.sync(policy, 0)
    groups = engine.generate(prompts(), Sampling(max_new_tokens=16, temperature=0.7), n=3, seeds=range(len(LENGTHS)))
    examples = [Example(p, [s.ids for s in group]) for p, group in zip(prompts(), groups, strict=True)]
    with torch.no_grad():
        trainer = policy(pack(examples), temperature=0.7).token
    drawn = torch.tensor([x for group in groups for sample in group for x in sample.log_probs])
    torch.testing.assert_close(drawn, trainer, atol=1e-4, rtol=0)  # at temperature 1 they would differ by 0.1 and more


def test_streams(engine: VLLMEngine) -> None:
    policy = make().policy
    engine.sync(policy, 0)
    sampling = Sampling(max_new_tokens=12, ignore_eos=True)
    prompt = prompts()[0]
    first = engine.generate([prompt] * 3, sampling, n=2, seeds=[1, 2, 1])
    assert first[0] == first[2]
    assert first[0] != first[1]
    assert first[0][0] != first[0][1]
    assert engine.generate([prompt], sampling, n=2, seeds=[2])[0] == first[1]
    assert all(len(sample.ids) == 12 and sample.finish == "length" for group in first for sample in group)


def test_ends(engine: VLLMEngine) -> None:
    policy = make().policy
    engine.sync(policy, 0)
    prompt = prompts()[0]
    drawn_ids = engine.generate([prompt], GREEDY, n=1, seeds=[0])[0][0].ids
    stop = Sampling(max_new_tokens=24, temperature=0.0, stop=(drawn_ids[3],))
    cut = engine.generate([prompt], stop, n=1, seeds=[0])[0][0]
    assert (cut.ids, cut.finish) == (drawn_ids[: drawn_ids.index(drawn_ids[3]) + 1], "stop")  # with what ended it
    assert len(cut.log_probs) == len(cut.ids)
    restricted = engine.generate([prompt], Sampling(max_new_tokens=4, top_p=0.5), n=1, seeds=[0])[0][0]
    assert restricted.log_probs == []


def beyond_a_step() -> list[list[int]]:
    """Prompts of 5000 tokens in all: vLLM takes 4096 in a step by default in process, and 2048 in a server."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 200, (500,), generator=generator).tolist() for _ in range(10)]


def seeded(engine: Any, prompts: list[list[int]]) -> list[list[list[int]]]:
    groups = engine.generate(prompts, Sampling(max_new_tokens=4), n=2, seeds=range(len(prompts)))
    return [[sample.ids for sample in group] for group in groups]


def test_prompts_beyond_a_step(engine: VLLMEngine) -> None:
    engine.sync(make().policy, 0)
    drawn = seeded(engine, beyond_a_step())
    assert len(drawn) == 10
    assert drawn[:2] == seeded(engine, beyond_a_step()[:2])


def test_greedy_samples_are_copies(engine: VLLMEngine) -> None:
    policy = make().policy
    engine.sync(policy, 0)
    groups = engine.generate(prompts(), GREEDY, n=3, seeds=range(len(LENGTHS)))
    assert gap(groups, transformers_greedy(policy, 3)) < 1e-4


@pytest.mark.slow
def test_chunks_of_prompts_are_the_trap() -> None:
    engine = VLLMEngine(vllm={"max_model_len": 512, "max_num_seqs": 16}, options={"enable_chunked_prefill": True})
    engine.sync(make().policy, 0)
    with pytest.raises(RuntimeError, match="offset"):
        seeded(engine, beyond_a_step())
    engine.close()


@pytest.mark.slow
def test_untied_embeddings() -> None:
    policy = make(tied=False).policy
    engine = VLLMEngine(vllm={"max_model_len": 512, "max_num_seqs": 16})
    assert same_as_transformers(engine, policy) < 1e-4
    step(policy)
    assert same_as_transformers(engine, policy) < 1e-4
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_server_follows_the_policy(lora: bool) -> None:
    models = make(lora=lora)
    engine = VLLMServerEngine(models.tokenizer, lora=lora, vllm={"max_model_len": 512, "max_num_seqs": 16})
    try:
        before = greedy(engine, models.policy, 0)
        assert gap(before, greedy(TransformersEngine(), models.policy, 0)) < 1e-4
        step(models.policy)
        assert same_as_transformers(engine, models.policy) < 1e-4
        assert gap(before, greedy(engine, models.policy, 1)) > 0.01
        drawn = seeded(engine, beyond_a_step())
        assert drawn[:2] == seeded(engine, beyond_a_step()[:2])
        copied = engine.generate(prompts(), GREEDY, n=3, seeds=range(len(LENGTHS)))
        assert gap(copied, transformers_greedy(models.policy, 3)) < 1e-4
    finally:
        engine.close()


def group_of(leader: int) -> list[int]:
    """Processes of a group that are alive."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            number, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            if rest[0] != "Z" and int(rest[2]) == leader:
                members.append(number)
    return members


@pytest.mark.slow
def test_a_server_whose_engine_is_killed_leaves_its_log() -> None:
    models = make()
    engine = VLLMServerEngine(models.tokenizer, vllm={"max_model_len": 512, "max_num_seqs": 16})
    try:
        engine.sync(models.policy, 0)
        leader = engine._process._process.pid
        workers = [pid for pid in group_of(leader) if pid != leader]  # of them one is the engine
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=r"(?s)server ended with code \d+ while it was in use.*server.log"):
            greedy(engine, models.policy, 1)
        assert not group_of(leader)
    finally:
        folder = engine._folder
        engine.close()
    assert [file.name for file in folder.iterdir()] == ["server.log"]
    shutil.rmtree(folder)


def run_until_killed(connection: Connection) -> None:
    models = make()
    engine = VLLMServerEngine(models.tokenizer, vllm={"max_model_len": 512, "max_num_seqs": 16})
    engine.sync(models.policy, 0)
    connection.send((engine._folder, engine._process._process.pid))
    time.sleep(999)


@pytest.mark.slow
def test_nothing_of_a_killed_run_stays() -> None:
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(sender,))
    process.start()
    assert receiver.poll(600)
    folder, leader = receiver.recv()
    assert folder.is_dir()
    assert group_of(leader)
    process.kill()
    process.join()
    until = time.monotonic() + 10
    while (folder.exists() or group_of(leader)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not folder.exists()
    assert not group_of(leader)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["rollout=vllm"], ["rollout=vllm_server"], ["rollout=vllm_server", "adapter=lora", "rollout.lora=true"]]
)
def test_grpo_trains_with_it(options: list[str], tmp_path: Path) -> None:
    command = [
        *("train", "experiment=tiny", "method=grpo", "rollout.max_new_tokens=16", "rollout.vllm.max_model_len=256"),
        *("rollout.max_gap=0.001", "data.batch_size=4", "trainer.max_steps=2", "callbacks.gold=null"),
        *(f"paths.output_dir={tmp_path}", *options),
    ]
    code = "import sys; from rlhf_lightning.cli.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) >= 3
