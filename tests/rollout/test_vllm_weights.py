"""Weights of a policy for vLLM, and policies that both ways of running it refuse; vLLM itself is not needed."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import VLLMEngine, VLLMServerEngine
from rlhf_lightning.rollout import vllm as in_process
from rlhf_lightning.rollout import vllm_server as server
from rlhf_lightning.rollout.vllm_options import RestrictedSampling, check_request, fitting, set_environment
from rlhf_lightning.rollout.vllm_worker import fix_tied
from rlhf_lightning.rollout.weights import base_weights, ends, policy_weights, write_config, write_weights
from rlhf_lightning.types import Sampling


def make(*, tied: bool = True, lora: bool = False) -> Actor:
    adapter = Lora(r=2, seed=0) if lora else None
    policy = ModelBuilder(TinyRandom(tie_embeddings=tied), adapter, ReferenceKind.NONE)().policy
    if lora:
        with torch.no_grad():
            for name, value in policy.named_parameters():
                if "lora_B" in name:
                    value.copy_(torch.linspace(-0.1, 0.1, value.numel()).view_as(value))
    assert isinstance(policy, Actor)
    return policy.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_a_folder_of_the_weights_is_the_policy(tmp_path: Path, tied: bool, lora: bool) -> None:
    policy = make(tied=tied, lora=lora)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    expected = logits(policy.model)
    weights = policy_weights(policy)
    assert ("lm_head.weight" in weights) is not tied
    assert not any("lora" in name or "base_layer" in name for name in weights)
    write_config(policy, tmp_path)
    write_weights(weights, tmp_path, "float32")
    # Without the adapter's update, or with a head of other numbers, the logits would differ.
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-5, rtol=0)
    assert not list(tmp_path.glob("*.part"))
    after = policy.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())  # merged in copies


def test_base_weights_are_those_beneath_the_adapter() -> None:
    policy = make(lora=True)
    base = base_weights(policy)
    plain = policy_weights(make())
    assert base.keys() == plain.keys()
    assert all(torch.equal(base[name], plain[name]) for name in plain)
    assert any(not torch.equal(base[name], value) for name, value in policy_weights(policy).items())


def test_weights_are_copies(tmp_path: Path) -> None:
    policy = make()
    weights = policy_weights(policy)
    weights["model.norm.weight"].zero_()
    assert transformers_model(policy).model.norm.weight.abs().sum() > 0


def test_weights_are_written_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_weights({"a": torch.tensor([1.0]), "b": torch.tensor([1])}, tmp_path, "bfloat16")
    assert {name: value.dtype for name, value in load_file(tmp_path / "model.safetensors").items()} == {
        "a": torch.bfloat16,
        "b": torch.int64,
    }


def test_ends_are_those_of_the_policy() -> None:
    policy = make()
    config = transformers_model(policy).generation_config
    for token, expected in ((7, [7]), ([7, 8], [7, 8]), (None, [])):
        config.eos_token_id = token
        assert ends(policy) == expected


def test_limits_of_a_request() -> None:
    policy = make()
    assert fitting(100, policy) == 100
    assert fitting(10**9, policy) == transformers_model(policy).config.max_position_embeddings
    check_request([[1] * 4], Sampling(max_new_tokens=6), 10)
    with pytest.raises(ValueError, match=r"prompt of 5 tokens.*response of 6.*rollout.vllm.max_model_len=10"):
        check_request([[1], [1] * 5], Sampling(max_new_tokens=6), 10)
    for temperature in (0.0, 0.01):
        check_request([[1]], Sampling(max_new_tokens=1, temperature=temperature), 10)
    with pytest.raises(ValueError, match=r"temperature of 0.01 or more, not at 0.001"):
        check_request([[1]], Sampling(max_new_tokens=1, temperature=0.001), 10)


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_k": 5}, {"min_new_tokens": 2}])
def test_restricted_sampling_is_reported_once(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    restricted = RestrictedSampling()
    with caplog.at_level(logging.WARNING):
        assert not restricted(Sampling(temperature=0.7))
        assert restricted(Sampling(**options))
        assert restricted(Sampling(**options))
    assert len(caplog.records) == 1


def test_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.1")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    import os

    set_environment({"VLLM_CPU_KVCACHE_SPACE": "3"})
    assert (os.environ["VLLM_HOST_IP"], os.environ["VLLM_CPU_KVCACHE_SPACE"]) == ("10.0.0.1", "3")
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name)


def test_a_head_that_is_not_packed_is_left_alone() -> None:
    """With a packed one this would import vLLM."""
    headless, tied = torch.nn.Linear(1, 1), torch.nn.Module()
    tied.lm_head = torch.nn.Linear(1, 1)
    for model in (headless, tied):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        fix_tied(model)
        assert str(dict(model.state_dict())) == str(before)


def test_vllm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, engine in ((in_process, VLLMEngine), (server, VLLMServerEngine)):
        monkeypatch.setattr(module, "installed", lambda: False)
        with pytest.raises(ModuleNotFoundError, match=r"pip install.*docs/vllm.md.*rollout=transformers"):
            engine()
    VLLMServerEngine(url="http://127.0.0.1:1")  # a server that runs needs no vLLM here


@pytest.mark.parametrize("engine", [VLLMEngine, VLLMServerEngine])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"vllm": {"max_model_len": 1}}, r"rollout.vllm.max_model_len=1 .* a whole number in \[2, inf\)"),
        ({"vllm": {"max_num_seqs": 0}}, "max_num_seqs=0"),
        ({"vllm": {"dtype": "int8"}}, "rollout.vllm.dtype='int8'"),
        ({"max_gap": 0.0}, "rollout.max_gap=0.0"),
    ],
)
def test_refused_options(engine: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine(**options)


class FakeLLM:
    """Keeps what it is built with and asked for; refuses what vLLM refuses."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def sleep(self, level: int) -> None:
        self.nights = [*getattr(self, "nights", []), level]

    def wake_up(self) -> None:
        self.nights = [*self.nights, "awake"]

    def generate(self, inputs: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        assert all(asked.n == 1 or asked.temperature > 0 for asked in parameters), "n must be 1 when greedy"
        drawn = SimpleNamespace(token_ids=[5], logprobs=[{5: SimpleNamespace(logprob=-0.5)}], finish_reason="stop")
        return [SimpleNamespace(outputs=[drawn] * asked.n) for asked in parameters]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of the module ``vllm``, on a CPU."""
    platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setattr(in_process, "installed", lambda: True)
    monkeypatch.setattr(in_process, "set_environment", lambda values: None)
    return platform


def test_a_cpu_cuts_no_prompt_into_chunks(module: SimpleNamespace) -> None:
    policy = make()
    assert VLLMEngine()._build(policy).arguments["enable_chunked_prefill"] is False
    assert VLLMEngine(options={"enable_chunked_prefill": True})._build(policy).arguments["enable_chunked_prefill"]
    module.is_cpu = lambda: False
    assert "enable_chunked_prefill" not in VLLMEngine()._build(policy).arguments


def test_a_cpu_is_eager_and_a_gpu_sleeps_between_rollouts(module: SimpleNamespace) -> None:
    policy, sampling = make(), Sampling(temperature=0.0)
    for cpu, nights in ((True, None), (False, [1, "awake", 1])):
        module.is_cpu = lambda cpu=cpu: cpu
        engine = VLLMEngine()
        engine._llm = engine._build(policy)
        assert engine._llm.arguments["enforce_eager"] is cpu
        assert engine._llm.arguments.get("enable_sleep_mode", False) is not cpu
        for _ in range(2):
            engine.generate([[1]], sampling, n=1, seeds=[0])
        assert getattr(engine._llm, "nights", None) == nights
    kept = VLLMEngine(vllm={"enforce_eager": True}, options={"enable_sleep_mode": False})
    kept._llm = kept._build(policy)
    kept.generate([[1]], sampling, n=1, seeds=[0])
    assert kept._llm.arguments["enforce_eager"]
    assert not hasattr(kept._llm, "nights")


def test_a_greedy_response_is_drawn_once(module: SimpleNamespace) -> None:
    engine = VLLMEngine()
    engine._llm = FakeLLM()
    for temperature in (0.0, 1.0):
        groups = engine.generate([[1], [2]], Sampling(temperature=temperature), n=3, seeds=[0, 1])
        assert [[(s.ids, s.log_probs) for s in group] for group in groups] == [[([5], [-0.5])] * 3] * 2


def test_generate_needs_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_process, "installed", lambda: True)
    for engine in (VLLMEngine(), VLLMServerEngine(url="http://127.0.0.1:1")):
        with pytest.raises(ValueError, match="call sync"):
            engine.generate([[1]], Sampling(), n=1, seeds=[0])
        engine.close()
