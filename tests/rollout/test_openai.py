"""Judges and frozen generators behind an OpenAI-compatible server, against a fake one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf_lightning.rollout import OpenAIEngine, RolloutEngine
from rlhf_lightning.rollout.completions import server_seed
from rlhf_lightning.rollout.endpoint import Endpoint, ServerError, in_threads
from rlhf_lightning.rollout.openai import ChatClient
from rlhf_lightning.types import Sampling
from tests.helpers.fake_server import FakeServer, fake_server

FAST: dict[str, Any] = {"backoff": 0.0, "retries": 2, "timeout": 5.0}
ONCE: dict[str, Any] = {"retries": 0}
QUESTION = [{"role": "user", "content": "2 + 2?"}]


class Letters:
    """A tokenizer of single letters: "a" is 1, "b" is 2 ...; 0 ends a response."""

    eos_token_id = 0

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(96 + i) for i in ids if i)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - 96 for letter in text]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        fake.answers["/v1/chat/completions"] = lambda body: {
            "choices": [{"message": {"content": f"echo {body['messages'][-1]['content']}"}}]
        }
        fake.answers["/v1/completions"] = lambda body: {
            "choices": [
                {"index": j, "text": body["prompt"] + "abc"[j], "finish_reason": "length" if j else "stop"}
                for j in reversed(range(body["n"]))  # the order of the answer is the server's affair
            ]
        }
        yield fake


def test_ask(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    client = ChatClient(server.url + "/v1/", api_key_env="MY_KEY", seed=3, options={"top_p": 0.5}, requests=FAST)
    assert client.ask(QUESTION, max_tokens=7) == "echo 2 + 2?"
    expected = {"model": "fake", "messages": QUESTION, "temperature": 0.0, "max_tokens": 7, "seed": 3, "top_p": 0.5}
    assert server.bodies("/v1/chat/completions") == [expected]
    assert server.headers[-1]["Authorization"] == "Bearer secret"
    client.ask(QUESTION)
    assert len(server.bodies("/v1/models")) == 1  # the model's name is asked for once


def test_no_key_no_header(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    ChatClient(server.url, "fake", requests=FAST).ask(QUESTION)
    assert "Authorization" not in server.headers[-1]


def test_ask_all_keeps_the_order_and_asks_at_once(server: FakeServer) -> None:
    def slow(body: dict[str, Any]) -> dict[str, Any]:
        number = int(body["messages"][0]["content"])
        time.sleep(0.05 * (4 - number))
        return {"choices": [{"message": {"content": str(number)}}]}

    server.answers["/v1/chat/completions"] = slow
    client = ChatClient(server.url, "fake", requests=FAST | {"concurrency": 4})
    questions = [[{"role": "user", "content": str(i)}] for i in range(4)]
    assert client.ask_all(questions) == ["0", "1", "2", "3"]
    assert server.most_under_way >= 2


def test_ask_each_continues_where_one_is_refused(server: FakeServer) -> None:
    server.failures = [400]
    client = ChatClient(server.url, "fake", requests=FAST | {"concurrency": 1})
    assert client.ask_each([QUESTION, QUESTION]) == [None, "echo 2 + 2?"]
    server.failures = [400]
    with pytest.raises(ServerError, match="400"):
        client.ask_all([QUESTION, QUESTION])


@pytest.mark.parametrize("failure", [500, 503, 429, 408])
def test_tries_again_where_it_may_help(server: FakeServer, failure: int) -> None:
    server.failures = [failure, failure]
    assert ChatClient(server.url, "fake", requests=FAST).ask(QUESTION) == "echo 2 + 2?"
    assert len(server.requests) == 3


def test_gives_up_after_the_last_attempt(server: FakeServer) -> None:
    server.failures = [503] * 9
    with pytest.raises(ServerError, match=r"/v1/chat/completions answered 503.*told to fail") as error:
        ChatClient(server.url, "fake", requests=FAST).ask(QUESTION)
    assert error.value.status == 503
    assert len(server.requests) == 3


@pytest.mark.parametrize(("failure", "words"), [(401, "api_key_env"), (404, r"/v1/models"), (400, "told to fail")])
def test_a_refusal_is_final(server: FakeServer, failure: int, words: str) -> None:
    server.failures = [failure]
    with pytest.raises(ServerError, match=words):
        ChatClient(server.url, "fake", requests=FAST).ask(QUESTION)
    assert len(server.requests) == 1


def test_a_silent_server_is_left_after_the_time_limit(server: FakeServer) -> None:
    server.failures = [1.0, 1.0]
    begun = time.monotonic()
    with pytest.raises(ServerError, match=r"within 0.1 s.*larger timeout"):
        ChatClient(server.url, "fake", requests={"timeout": 0.1, "retries": 1, "backoff": 0.0}).ask(QUESTION)
    assert time.monotonic() - begun < 0.9


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_left_too(server: FakeServer, part: str) -> None:
    server.trickle = part
    begun = time.monotonic()
    with pytest.raises(ServerError, match=r"within 0.3 s \(timed out\).*larger timeout"):
        ChatClient(server.url, "fake", requests=ONCE | {"timeout": 0.3}).ask(QUESTION)
    assert time.monotonic() - begun < 2


def test_an_answer_within_the_limit_is_not_cut(server: FakeServer) -> None:
    client = ChatClient(server.url, "fake", requests=ONCE | {"timeout": 0.3})
    assert client.ask(QUESTION) == "echo 2 + 2?"
    time.sleep(0.4)  # the first limit is over, which is nothing to the second question
    assert client.ask(QUESTION) == "echo 2 + 2?"


def test_a_redirection_does_not_take_the_key_along(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with fake_server() as elsewhere:
        server.redirect = f"{elsewhere.url}/v1/models"
        with pytest.raises(ServerError, match=rf"answered 302.*{elsewhere.url}/v1/models.*if you trust it"):
            Endpoint(server.url, retries=0).get("/v1/models")
        assert elsewhere.requests == []


def test_what_a_server_says_is_shown_without_the_key_and_without_control_characters(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.refusal = b"\x1b[2J bad key secret"
    server.failures = [401]
    with pytest.raises(ServerError) as caught:
        ChatClient(server.url, "fake", requests=FAST).ask(QUESTION)
    assert "bad key ***" in str(caught.value)
    assert str(caught.value).isprintable()


def test_nobody_there() -> None:
    with pytest.raises(ServerError, match=r"no response from http://127.0.0.1:9/v1/models.*is the server running"):
        ChatClient("http://127.0.0.1:9", requests=ONCE).ask(QUESTION)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"error": "x"},
        b"<html>",
        b"\xff\x00",
        [1, 2],
        b"[" * 20_000,
        {"choices": [{"message": {"content": [{"type": "text"}]}}]},
    ],
)
def test_another_form_of_answer(server: FakeServer, answer: Any) -> None:
    server.answers["/v1/chat/completions"] = lambda _: answer
    with pytest.raises(ServerError, match=r"choices\[0\]|sent no JSON"):
        ChatClient(server.url, "fake", requests=FAST).ask(QUESTION)


def test_an_answer_without_text_is_empty(server: FakeServer) -> None:
    server.answers["/v1/chat/completions"] = lambda _: {"choices": [{"message": {"content": None}}]}
    assert ChatClient(server.url, "fake", requests=FAST).ask(QUESTION) == ""


def test_several_models_must_be_chosen_from(server: FakeServer) -> None:
    server.answers["/v1/models"] = lambda _: {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(ServerError, match=r"serves \['a', 'b'\]: set model="):
        ChatClient(server.url, requests=FAST).ask(QUESTION)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:8000"}, r"url='localhost:8000'.*http://"),
        ({"requests": {"timeout": 0}}, "timeout=0"),
        ({"requests": {"retries": -1}}, "retries=-1"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"requests": {"concurrency": 0}}, "concurrency=0"),
    ],
)
def test_refused_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ChatClient(**{"url": "http://localhost", "model": "m"} | options)


def test_the_first_error_ends_the_rest() -> None:
    done = []

    def work(item: int) -> None:
        if item == 0:
            raise ServerError("first")
        time.sleep(0.02)
        done.append(item)

    with pytest.raises(ServerError, match="first"):
        in_threads(work, range(50), 2)
    assert len(done) < 10


# The engine


def test_engine_draws_n_samples_a_prompt(server: FakeServer) -> None:
    engine = OpenAIEngine(Letters(), url=server.url, max_new_tokens=8, requests=FAST)
    assert isinstance(engine, RolloutEngine)
    groups = engine.generate([[1, 2], [3]], Sampling(max_new_tokens=8, temperature=0.5), n=2, seeds=[5, 1 << 62])
    # A sample that stopped has what ended it; one that was cut off has not. Choices come in their own order.
    assert [[sample.ids for sample in group] for group in groups] == [[[1, 2, 1, 0], [1, 2, 2]], [[3, 1, 0], [3, 2]]]
    assert [[sample.finish for sample in group] for group in groups] == [["stop", "length"]] * 2
    assert all(sample.log_probs == [] for group in groups for sample in group)
    bodies = sorted(server.bodies("/v1/completions"), key=lambda body: str(body["prompt"]))
    assert [body["prompt"] for body in bodies] == ["ab", "c"]
    assert [body["seed"] for body in bodies] == [server_seed(5), server_seed(1 << 62)]
    assert all(0 <= body["seed"] < 1 << 31 for body in bodies)
    # Servers other than vLLM refuse fields that they do not know, so those are sent only where they say something.
    assert bodies[0].keys() == {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed"}


def test_engine_asks_once_for_a_greedy_response(server: FakeServer) -> None:
    engine = OpenAIEngine(Letters(), url=server.url, requests=FAST)
    groups = engine.generate([[1, 2]], Sampling(max_new_tokens=8, temperature=0.0), n=3, seeds=[5])
    assert [sample.ids for sample in groups[0]] == [[1, 2, 1, 0]] * 3
    assert server.bodies("/v1/completions")[0]["n"] == 1  # vLLM refuses more


def test_engine_sends_extensions_where_they_are_asked_for(server: FakeServer) -> None:
    engine = OpenAIEngine(Letters(), url=server.url, model="m", options={"return_token_ids": True}, requests=FAST)
    sampling = Sampling(max_new_tokens=8, top_k=3, min_new_tokens=2, ignore_eos=True, stop=(4,))
    engine.generate([[1]], sampling, n=1, seeds=[0])
    body = server.bodies("/v1/completions")[0]
    assert (
        body
        | {
            "top_k": 3,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [4],
            "return_token_ids": True,
            "model": "m",
        }
        == body
    )


def test_engine_takes_token_ids_where_the_server_returns_them(server: FakeServer) -> None:
    choice = {"index": 0, "text": "zz", "token_ids": [9, 8, 0], "finish_reason": "stop"}
    server.answers["/v1/completions"] = lambda _: {"choices": [choice]}
    engine = OpenAIEngine(Letters(), url=server.url, requests=FAST)
    assert engine.generate([[1]], Sampling(), n=1, seeds=[0])[0][0].ids == [9, 8, 0]


def test_engine_notices_a_server_that_ignores_n(server: FakeServer) -> None:
    server.answers["/v1/completions"] = lambda _: {"choices": [{"text": "a", "finish_reason": "stop"}]}
    engine = OpenAIEngine(Letters(), url=server.url, requests=FAST)
    with pytest.raises(ServerError, match=r"1 choices where n=3.*group_size=1"):
        engine.generate([[1]], Sampling(), n=3, seeds=[0])


def test_engine_is_frozen(server: FakeServer) -> None:
    engine = OpenAIEngine(Letters(), url=server.url)
    with pytest.raises(ValueError, match=r"frozen generator.*rollout=transformers"):
        engine.sync(None, 1)  # type: ignore[arg-type]
    engine.close()
    assert engine.generate([], Sampling(), n=1, seeds=[]) == []
    assert server.requests == []


def test_loopback_never_goes_through_a_proxy(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert Endpoint(server.url, retries=0).get("/v1/models") == {"data": [{"id": "fake"}]}
