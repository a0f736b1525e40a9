"""Rollouts by vLLM servers whose weights follow the policy: the same ones for all processes of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_lightning.models.adapters.lora import Adapter
from rlhf_lightning.models.export.policy import adapter_state, save_adapter
from rlhf_lightning.options import Count, value_object
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.rollout.completions import choices, copies, draws, sampling_fields, token_sample
from rlhf_lightning.rollout.device_defaults import eager
from rlhf_lightning.rollout.endpoint import Endpoint, ServerError, in_threads
from rlhf_lightning.rollout.openai import only_model
from rlhf_lightning.rollout.temporary import TemporaryFolder
from rlhf_lightning.rollout.vllm_adapters import LORA_RANKS, check_adapter, check_policy, largest_rank
from rlhf_lightning.rollout.vllm_options import (
    INSTALL,
    PolicyRequestOptions,
    RestrictedSampling,
    ServedOptions,
    ServerOptions,
    check_gap,
    check_request,
    fitting,
    installed,
)
from rlhf_lightning.rollout.vllm_process import ServerProcess, end_of_log, free_port
from rlhf_lightning.rollout.vllm_worker import EXTENSION
from rlhf_lightning.rollout.weights import base_weights, dtype_name, ends, policy_weights, write_config, write_weights
from rlhf_lightning.types import Sample, Sampling, ended_by_text

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor

T = TypeVar("T")

#: What the server calls the policy, and its adapter.
POLICY, ADAPTER = "policy", "policy-adapter"
LOG_FILE = "server.log"
#: Seconds that a server which failed a request is given to end: vLLM's looks every 5 s whether its engine lives.
DYING = 15.0
RUNNING = (
    "start a server of your own as docs/vllm.md says: VLLM_SERVER_DEV_MODE=1 and "
    f"--worker-extension-cls {EXTENSION}, or VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora for rollout.lora=true"
)


@former_arguments("rlhf_lightning.rollout.VLLMServerEngine")
class VLLMServerEngine:
    """Samples from a vLLM server, one that is started here or one that runs, or from several that run.

    At a sync process 0 writes the policy's weights to a folder, and the server reads them between a pause and a
    resume: a tied head is packed again, and prompts that the old policy computed are forgotten. With ``lora=true`` only
    the adapter is written, and the server applies it to the base that it was started with.

    Several servers take the same weights, and prompts in turn: the first prompt goes to the first server. Which server
    draws for a prompt depends on its place among the prompts alone, not on which server is free.

    As with vLLM in process, sample ``j`` of a prompt draws from the prompt's seed plus ``j``, but batches round
    differently: ``exact`` is False.

    Args:
        tokenizer: saved for the server; ids go in and out.
        url: of a running server, or a list of several; null: start one on this machine and end it with the run.
        model: as a running server calls it; null: the only one it serves.
        lora: send the adapter alone; the policy must have one.
        max_new_tokens: most tokens of a response, its EOS included.
        min_new_tokens: tokens before which a response cannot end; above 0 samples carry no log-probs.
        max_gap: largest mean difference from the trainer's log-probs at which a run continues, in nats a token;
            null: any. In bfloat16 0.03 to 0.05 is usual.
        vllm: settings of vLLM; the options of ``ServedOptions`` by name.
        server: source of its weights and how it is started; the options of ``ServerOptions`` by name.
        requests: timeouts and retries; the options of ``PolicyRequestOptions`` by name.

    Raises:
        ModuleNotFoundError: a server is to be started and vLLM is not installed.
        ValueError: an option is out of range.
    """

    name = "vllm_server"
    exact = False
    frozen = False
    sources = frozenset({"policy"})

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        url: str | Sequence[str] | None = None,
        model: str | None = None,
        lora: bool = False,
        max_new_tokens: Count = 256,
        min_new_tokens: int = 0,
        max_gap: float | None = 0.2,
        vllm: ServedOptions | Mapping[str, Any] | None = None,
        server: ServerOptions | Mapping[str, Any] | None = None,
        requests: PolicyRequestOptions | Mapping[str, Any] | None = None,
    ) -> None:
        Sampling(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)  # checks them
        check_gap(max_gap)
        self._vllm = value_object(ServedOptions, vllm, ServedOptions.node)
        self._server = value_object(ServerOptions, server, ServerOptions.node)
        self._requests = value_object(PolicyRequestOptions, requests, PolicyRequestOptions.node)
        self.urls = [url] if isinstance(url, str) else [*(url or ())]
        if not self.urls and not installed():
            raise ModuleNotFoundError(INSTALL)
        self.tokenizer, self.lora = tokenizer, lora
        self.max_new_tokens, self.min_new_tokens, self.max_gap = max_new_tokens, min_new_tokens, max_gap
        self.max_model_len = self._vllm.max_model_len
        self.version, self._model = 0, model
        self._environment = {"VLLM_CPU_KVCACHE_SPACE": str(self._vllm.memory), **(self._server.environment or {})}
        self._arguments = [
            *("--max-num-seqs", str(self._vllm.max_num_seqs)),
            *("--gpu-memory-utilization", str(self._vllm.gpu_memory_utilization)),
            *(["--enforce-eager"] if not self.urls and self._eager() else []),
            *map(str, self._server.arguments),
        ]
        self._endpoints: list[Endpoint] = []
        self._folder = Path()
        self._temporary: TemporaryFolder | None = None  # of process 0, where no folder was given
        self._process: ServerProcess | None = None  # of process 0, where it started one
        self._log_file: Path | None = None  # of a server that process 0 started, on every process
        self._ends: list[int] = []
        self._restricted = RestrictedSampling()

    # Weights

    def _eager(self) -> bool:
        return eager(self._vllm.enforce_eager, cpu=not torch.cuda.is_available())

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Refuse a run's adapter that the server could not follow, before weights load."""
        check_adapter(adapter, lora=self.lora, serves_base=bool(self.urls))

    def sync(self, policy: Actor, version: int) -> None:
        """Let the server take the policy's weights; a collective call. The first one starts the server.

        Raises:
            ValueError: ``lora=true`` and the policy is not its base with low-rank updates, or the weights to send are
                quantised.
            ServerError: the server did not start, or cannot take weights.
        """
        if not self._endpoints:
            if self.lora:
                check_policy(policy)
            self._connect(policy)
        if self.lora:
            self._send_adapter(policy, version)
        else:
            self._send_weights(policy, version)
        self._ends, self.version = ends(policy), version

    def _connect(self, policy: Actor) -> None:
        """Find the folder and the server; start one where no address is given."""
        self._folder = Path(agreed(self._new_folder))
        self.max_model_len = fitting(self.max_model_len, policy)
        addresses = self.urls
        if not addresses:
            weights = base_weights(policy) if self.lora else policy_weights(policy)
            addresses, self._model = [agreed(lambda: self._start(policy, weights))], POLICY
            self._log_file = self._folder / LOG_FILE
        self._endpoints = [Endpoint.asked(address, self._requests) for address in addresses]
        if self._model is None:
            self._model = agreed(lambda: common_model(self._endpoints))

    def _new_folder(self) -> str:
        if self._server.folder is None:
            self._temporary = TemporaryFolder("rlhf-vllm-")
            return str(self._temporary.path)
        Path(self._server.folder).mkdir(parents=True, exist_ok=True)
        return str(Path(self._server.folder).resolve())

    def _start(self, policy: Actor, weights: Mapping[str, Tensor]) -> str:
        """Start a server with these weights and wait for it; its address."""
        home, port = self._folder / "model", free_port(self._server.port)
        home.mkdir(exist_ok=True)
        write_config(policy, home, merged=not self.lora)
        write_weights(weights, home, dtype_name(policy))
        self.tokenizer.save_pretrained(home)
        command = [
            *("-m", "rlhf_lightning.rollout.vllm_serve", "--end-with", str(os.getpid())),
            *("--model", str(home), "--served-model-name", POLICY),
            *("--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"),
            *("--dtype", dtype_name(policy) if self._vllm.dtype == "auto" else self._vllm.dtype),
            *("--max-model-len", str(self.max_model_len), "--logprobs-mode", "processed_logprobs"),
            *("--worker-extension-cls", EXTENSION, *self._arguments),
        ]
        if self.lora:
            rank = max(map(largest_rank, policy.model.peft_config.values()))
            command += ["--enable-lora", "--max-lora-rank", str(next(r for r in LORA_RANKS if r >= rank))]
        self._process = ServerProcess(command, port, self._folder / LOG_FILE, self._environment)
        try:
            self._process.wait(self._server.start_timeout)
        except ServerError:
            self._keep_log()
            raise
        return self._process.url

    def _send_weights(self, policy: Actor, version: int) -> None:
        weights = policy_weights(policy)

        def send() -> None:
            folder = self._version_folder("weights", version)
            write_weights(weights, folder, dtype_name(policy))
            with self._paused():
                self._ask("/collective_rpc", {"method": "load_policy", "args": [str(folder)]})
            self._forget_all_but(folder)

        agreed(send)

    def _send_adapter(self, policy: Actor, version: int) -> None:
        weights = adapter_state(policy)  # collective

        def send() -> None:
            folder = self._version_folder("adapter", version)
            save_adapter(policy, folder, weights)
            body = {"lora_name": ADAPTER, "lora_path": str(folder), "load_inplace": True}
            with self._paused():
                self._ask("/v1/load_lora_adapter", body)
            self._forget_all_but(folder)

        agreed(send)

    def _version_folder(self, kind: str, version: int) -> Path:
        """A new folder of this kind; what an earlier attempt left is removed."""
        folder = self._folder / f"{kind}-{version}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _forget_all_but(self, folder: Path) -> None:
        """Remove older weights; the newest stay where the server may read them again."""
        for older in self._folder.glob(f"{folder.name.partition('-')[0]}-*"):
            if older != folder:
                shutil.rmtree(older, ignore_errors=True)

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """Hold the server while its weights change; requests of others wait, and nothing of the old ones is kept."""
        self._ask("/pause?mode=wait")
        try:
            yield
            self._ask("/reset_prefix_cache")
        finally:
            self._ask("/resume")

    def _ask(self, route: str, body: Mapping[str, Any] | None = None) -> None:
        try:
            with self._explained():
                in_threads(lambda endpoint: endpoint.send(route, body), self._endpoints, len(self._endpoints))
        except ServerError as error:
            if error.status is None:  # no response, so nothing is known about its routes
                raise
            raise ServerError(f"the server does not take weights: {error}. To serve a policy, {RUNNING}") from error

    # Failures

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add to an error why a server that was started here ended, and the end of its log.

        Processes other than 0 did not start it, and know the log only.
        """
        try:
            yield
        except ServerError as error:
            refused = error.status is not None and error.status < 500
            if refused or self._log_file is None:
                raise
            ended = None if self._process is None else self._process.ended(DYING)
            self._keep_log()
            reason = str(error) if ended is None else f"{ended} while it was in use ({error})"
            raise ServerError(f"{reason}. {end_of_log(self._log_file)}", None if ended else error.status) from error

    def _keep_log(self) -> None:
        """Leave the log where it is when the run ends, since an error names it."""
        if self._temporary is not None:
            self._temporary.keep(self._folder / LOG_FILE)

    # Samples

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Draw ``n`` responses to each prompt; all prompts are asked for at once, up to ``concurrency`` of a server.

        At temperature 0 a prompt's responses are copies of one.

        Raises:
            ValueError: no policy was given yet, ``n`` is out of range, a prompt is too long, or the
                temperature is above 0 and below 0.01.
            ServerError: the server refused, could not be reached or sent another form.
        """
        endpoints = self._endpoints
        if not endpoints:
            raise ValueError("the engine has no policy yet: call sync(policy, version) before generate")
        if n < 1:
            raise ValueError(f"n={n} samples a prompt must be at least 1")
        check_request(prompts, sampling, self.max_model_len)
        restricted, drawn = self._restricted(sampling), draws(sampling, n)
        before = len(prompts) * (dist.get_rank() if dist.is_initialized() else 0)  # prompts of other processes

        def one(asked: tuple[int, Sequence[int], int]) -> list[Sample]:
            number, prompt, seed = asked
            endpoint = endpoints[(before + number) % len(endpoints)]
            body = self._request(prompt, sampling, drawn, seed, log_probs=not restricted)
            listed = choices(endpoint.post("/v1/completions", body), drawn, endpoint.url)
            samples = [token_sample(choice, self.version, endpoint.url) for choice in listed]
            return copies([ended_by_text(sample, sampling) for sample in samples], n)

        with self._explained():
            asked = [(number, *each) for number, each in enumerate(zip(prompts, seeds, strict=True))]
            return in_threads(one, asked, self._requests.concurrency * len(endpoints))

    def _request(
        self, prompt: Sequence[int], sampling: Sampling, n: int, seed: int, *, log_probs: bool
    ) -> dict[str, Any]:
        """A request that leaves nothing to the server's or the model's own defaults."""
        stop = [] if sampling.ignore_eos else [*self._ends, *sampling.stop]
        return {
            **sampling_fields(sampling, n, seed),
            "model": ADAPTER if self.lora else self._model,
            "prompt": list(prompt),
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": stop,
            "return_token_ids": True,
            **({"logprobs": 0} if log_probs else {}),  # of the drawn token only
        }

    def close(self) -> None:
        """End a server that was started here and remove the weights that were written for it."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._temporary is not None:
            self._temporary.remove()
            self._temporary = None
        self._endpoints, self._log_file, self._folder = [], None, Path()


def common_model(endpoints: Sequence[Endpoint]) -> str:
    """The name of the one model that every server serves.

    Raises:
        ServerError: a server cannot be reached, serves several models or none, or another one than the first server.
    """
    names = {endpoint.url: only_model(endpoint) for endpoint in endpoints}
    if len(set(names.values())) > 1:
        raise ServerError(f"the servers of rollout.url serve different models: {names}. Start all with one model")
    return names[endpoints[0].url]


def is_first() -> bool:
    """Return whether this is process 0."""
    return not dist.is_initialized() or dist.get_rank() == 0


def agreed(work: Callable[[], T]) -> T:
    """Return the result of process 0 on every process; its error is every process's error. A collective call."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]  # result and error
    if is_first():
        try:
            outcome[0] = work()
        except Exception as error:  # the others wait for it
            outcome[1] = error
    # An error may hold what cannot be sent: the other processes get its words.
    sent = [outcome[0], None if outcome[1] is None else f"process 0: {outcome[1]}"]
    dist.broadcast_object_list(sent, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    if sent[1] is not None:
        raise ServerError(sent[1])
    made: T = sent[0]
    return made
