"""The engine of a vLLM server against a fake one that keeps what it is sent; its process: test_vllm_process.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import RolloutEngine, VLLMServerEngine
from rlhf_lightning.rollout.completions import server_seed
from rlhf_lightning.rollout.endpoint import ServerError
from rlhf_lightning.rollout.weights import policy_weights
from rlhf_lightning.types import Sampling
from tests.helpers.fake_server import FakeServer, fake_server
from tests.helpers.jobs import ranks

UPDATE = ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"]


class FakeVLLM:
    """Keeps the weights that it is told to load, and draws the ids 5, 6, .. with log-probs -0.5, -1.5, .."""

    def __init__(self, fake: FakeServer) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.adapters: list[list[str]] = []
        self.folders: list[Path] = []
        for route in ("/pause", "/resume", "/reset_prefix_cache"):
            fake.answers[route] = lambda _: None
        fake.answers["/collective_rpc"] = self.load
        fake.answers["/v1/load_lora_adapter"] = self.load_adapter
        fake.answers["/v1/completions"] = self.complete

    def load(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["method"] == "load_policy"
        self.folders.append(Path(body["args"][0]))
        self.weights.append(load_file(self.folders[-1] / "model.safetensors"))
        return {"results": [None]}

    def load_adapter(self, body: dict[str, Any]) -> bytes:
        self.folders.append(Path(body["lora_path"]))
        self.adapters.append(sorted(file.name for file in self.folders[-1].iterdir()))
        return b"Success: loaded."  # vLLM responds in plain text here

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        def choice(index: int) -> dict[str, Any]:
            ids = [5 + i for i in range(index + 1)]
            log_probs = {"token_logprobs": [-0.5 - i for i in range(index + 1)]} if "logprobs" in body else None
            return {"index": index, "token_ids": ids, "logprobs": log_probs, "finish_reason": "stop"}

        return {"choices": [choice(j) for j in range(body["n"])]}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def vllm(server: FakeServer) -> FakeVLLM:
    return FakeVLLM(server)


def make(lora: bool = False) -> Models:
    adapter = Lora(r=2, seed=0) if lora else None
    return ModelBuilder(TinyRandom(tie_embeddings=True), adapter, ReferenceKind.NONE)()


def engine_of(fake: FakeServer, models: Models, **options: Any) -> VLLMServerEngine:
    return VLLMServerEngine(models.tokenizer, url=fake.url, requests={"retries": 0, "timeout": 5.0}, **options)


def routes(server: FakeServer) -> list[str]:
    return [path.partition("?")[0] for path, _ in server.requests]


def test_each_sync_sends_the_policy_as_it_is(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make()
    engine = engine_of(server, models)
    assert isinstance(engine, RolloutEngine)
    engine.sync(models.policy, 0)
    with torch.no_grad():
        for value in models.policy.parameters():
            value.add_(1.0)
    engine.sync(models.policy, 3)
    assert routes(server) == ["/v1/models", *UPDATE, *UPDATE]
    now = policy_weights(models.policy)
    assert vllm.weights[1].keys() == now.keys()
    assert all(torch.equal(vllm.weights[1][name], value) for name, value in now.items())
    assert not torch.equal(vllm.weights[0]["model.norm.weight"], now["model.norm.weight"])
    assert [folder.exists() for folder in vllm.folders] == [False, True]  # only the newest is kept
    engine.close()
    assert not vllm.folders[1].parent.exists()


def test_samples(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make()
    engine = engine_of(server, models, model="served")
    engine.sync(models.policy, 7)
    groups = engine.generate([[1, 2], [3]], Sampling(temperature=0.5, stop=(9,)), n=2, seeds=[4, 1 << 62])
    assert [[sample.ids for sample in group] for group in groups] == [[[5], [5, 6]]] * 2
    assert groups[1][1].log_probs == [-0.5, -1.5]
    assert {sample.version for group in groups for sample in group} == {7}
    body = min(server.bodies("/v1/completions"), key=lambda b: len(b["prompt"]) == 1)
    end = models.tokenizer.eos_token_id
    # The server's and the model's own defaults (top-k 50, a repetition penalty) must not come in.
    assert body == {
        "model": "served",
        "prompt": [1, 2],
        "n": 2,
        "max_tokens": 256,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": server_seed(4),
        "stop_token_ids": [end, 9],
        "return_token_ids": True,
        "logprobs": 0,
    }


def test_several_servers_take_the_weights_and_the_prompts_in_turn(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make()
    with fake_server() as other:
        second = FakeVLLM(other)
        server.answers["/v1/completions"] = lambda body: (time.sleep(0.2), vllm.complete(body))[1]  # the slow one
        engine = VLLMServerEngine(models.tokenizer, url=[server.url, other.url], requests={"retries": 0, "timeout": 5})
        engine.sync(models.policy, 0)
        assert [len(each.weights) for each in (vllm, second)] == [1, 1]
        engine.generate([[1], [2], [3], [4], [5]], Sampling(), n=1, seeds=range(5))
        asked = [sorted(body["prompt"][0] for body in each.bodies("/v1/completions")) for each in (server, other)]
        assert asked == [[1, 3, 5], [2, 4]]
        address = other.url
    with pytest.raises(ServerError, match=f"no response from {address}"):
        engine.generate([[1], [2]], Sampling(), n=1, seeds=[0, 1])
    with pytest.raises(ServerError, match=f"no response from {address}"):
        engine.sync(models.policy, 1)


def test_servers_of_different_models_are_refused(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make()
    with fake_server() as other:
        other.answers["/v1/models"] = lambda _: {"data": [{"id": "another"}]}
        engine = VLLMServerEngine(models.tokenizer, url=[server.url, other.url], requests={"retries": 0, "timeout": 5})
        with pytest.raises(ServerError, match=f"different models.*{other.url}.*another"):
            engine.sync(models.policy, 0)


def test_ignore_eos_and_restricted_sampling(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make()
    engine = engine_of(server, models)
    engine.sync(models.policy, 0)
    group = engine.generate([[1]], Sampling(ignore_eos=True, top_p=0.9), n=1, seeds=[0])[0]
    body = server.bodies("/v1/completions")[0]
    assert body["ignore_eos"] is True
    assert body["stop_token_ids"] == []
    assert "logprobs" not in body  # they would be renormalised after top-p
    assert group[0].log_probs == []
    assert engine.generate([], Sampling(), n=1, seeds=[]) == []
    with pytest.raises(ValueError, match="n=0"):
        engine.generate([[1]], Sampling(), n=0, seeds=[0])
    with pytest.raises(ValueError, match="max_model_len"):
        engine.generate([[1] * 2000], Sampling(), n=1, seeds=[0])


def test_a_greedy_response_is_asked_for_once(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make()
    engine = engine_of(server, models)
    engine.sync(models.policy, 2)
    groups = engine.generate([[1], [2]], Sampling(temperature=0.0), n=3, seeds=[0, 1])
    # vLLM refuses n > 1 at temperature 0: all of them would be the same.
    assert [body["n"] for body in server.bodies("/v1/completions")] == [1, 1]
    assert [[(s.ids, s.log_probs, s.version) for s in group] for group in groups] == [[([5], [-0.5], 2)] * 3] * 2
    assert groups[0][0].ids is not groups[0][1].ids
    assert len(engine.generate([[1]], Sampling(temperature=0.01), n=3, seeds=[0])[0]) == 3
    assert server.bodies("/v1/completions")[-1]["n"] == 3


def test_an_adapter_is_sent_alone(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make(lora=True)
    engine = engine_of(server, models, lora=True)
    engine.sync(models.policy, 0)
    engine.sync(models.policy, 1)
    update = [route.replace("/collective_rpc", "/v1/load_lora_adapter") for route in UPDATE]
    assert routes(server) == ["/v1/models", *update, *update]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(vllm.adapters[0])
    body = server.bodies("/v1/load_lora_adapter")[1]
    assert body["load_inplace"] is True  # a second adapter of the same name is refused without it
    engine.generate([[1]], Sampling(), n=1, seeds=[0])
    assert server.bodies("/v1/completions")[0]["model"] == body["lora_name"]
    assert [folder.exists() for folder in vllm.folders] == [False, True]
    engine.close()


def test_an_adapter_merged(server: FakeServer, vllm: FakeVLLM) -> None:
    models = make(lora=True)
    engine = engine_of(server, models)
    engine.sync(models.policy, 0)
    assert vllm.weights[0].keys() == policy_weights(make().policy).keys()
    with pytest.raises(ValueError, match=r"rollout.lora=true needs an adapter"):
        engine_of(server, make(), lora=True).sync(make().policy, 0)


@pytest.mark.parametrize("route", ["/collective_rpc", "/pause"])
def test_a_server_that_was_not_started_for_it(server: FakeServer, vllm: FakeVLLM, route: str) -> None:
    del server.answers[route]
    models = make()
    with pytest.raises(ServerError, match=r"does not take weights.*VLLM_SERVER_DEV_MODE=1.*PolicyWorker"):
        engine_of(server, models).sync(models.policy, 0)
    # Whatever happened, a server that was paused is let go again.
    assert ("/resume" in routes(server)) is (route == "/collective_rpc")


def test_a_server_without_token_ids(server: FakeServer, vllm: FakeVLLM) -> None:
    server.answers["/v1/completions"] = lambda _: {"choices": [{"text": "a", "finish_reason": "stop"}]}
    models = make()
    engine = engine_of(server, models)
    engine.sync(models.policy, 0)
    with pytest.raises(ServerError, match="return_token_ids"):
        engine.generate([[1]], Sampling(), n=1, seeds=[0])


def test_a_folder_of_the_users_own_is_kept(server: FakeServer, vllm: FakeVLLM, tmp_path: Path) -> None:
    models = make()
    engine = engine_of(server, models, server={"folder": str(tmp_path / "shared")})
    engine.sync(models.policy, 5)
    engine.close()
    assert (tmp_path / "shared" / "weights-5" / "model.safetensors").is_file()


def one_of_two(url: str, folder: Path, refused: bool) -> None:
    """A rank of a job that syncs and draws; with ``refused`` both must see that the server takes no weights."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    models = make()
    engine = VLLMServerEngine(
        models.tokenizer, url=url, server={"folder": str(folder)}, requests={"retries": 0, "timeout": 30.0}
    )
    if refused:
        with pytest.raises(ServerError, match="does not take weights"):
            engine.sync(models.policy, 0)
        return
    engine.sync(models.policy, 0)
    group = engine.generate([[1] * (rank + 1)], Sampling(), n=1, seeds=[rank])[0]
    assert [sample.ids for sample in group] == [[5]]
    engine.close()


def test_two_processes_share_a_server(server: FakeServer, vllm: FakeVLLM, tmp_path: Path) -> None:
    assert ranks(2, one_of_two, server.url, tmp_path, False) == [0, 0]
    assert len(vllm.weights) == 1  # process 0 writes, once
    assert sorted(len(body["prompt"]) for body in server.bodies("/v1/completions")) == [1, 2]
    del server.answers["/collective_rpc"]
    assert ranks(2, one_of_two, server.url, tmp_path, True) == [0, 0]  # process 1 would wait for ever
