"""Models behind an OpenAI-compatible server: judges that are asked questions, and generators that are not trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.options import Count, NonNegative, value_object
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.rollout.completions import choices, copies, draws, finish, sampling_fields
from rlhf_lightning.rollout.endpoint import Endpoint, ServerError, in_threads
from rlhf_lightning.rollout.request_options import RequestOptions
from rlhf_lightning.types import Sample, Sampling, ended_by_text

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.adapters.lora import Adapter

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]


@former_arguments("rlhf_lightning.rollout.ChatClient")
class ChatClient:
    """Asks one model of one server, by ``/v1/chat/completions``.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        model: as the server calls it; null: the only one it serves.
        temperature: of the answers; 0 is the most likely one.
        max_tokens: most tokens of an answer.
        seed: of the answers where the server honours it; None: the server's own.
        api_key_env: name of the environment variable that holds the key; it may be unset.
        requests: how it is asked; the options of ``RequestOptions`` by name.
        options: further fields of every request.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        temperature: NonNegative = 0.0,
        max_tokens: Count = 512,
        seed: int | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        requests: RequestOptions | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if temperature < 0 or max_tokens < 1:
            raise ValueError(f"temperature={temperature} must be at least 0 and max_tokens={max_tokens} at least 1")
        asked = value_object(RequestOptions, requests, RequestOptions.node)
        self.endpoint, self.concurrency = Endpoint.asked(url, asked, api_key_env), asked.concurrency
        self._model = model
        self._body: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens} | dict(options or {})
        if seed is not None:
            self._body["seed"] = seed

    @property
    def model(self) -> str:
        """The model's name; asked for once where none was given.

        Raises:
            ServerError: the server cannot be reached, or serves several models or none.
        """
        if self._model is None:
            self._model = only_model(self.endpoint)
        return self._model

    def ask(self, messages: Messages, **options: Any) -> str:
        """The answer to a conversation.

        Args:
            messages: with ``role`` and ``content``, the last one by the user.
            options: fields of this request, before those of the client: ``temperature``, ``max_tokens``, ``stop`` ...

        Raises:
            ServerError: the server refused, could not be reached or answered in another form.
        """
        body = {"model": self.model, "messages": [dict(m) for m in messages], **self._body, **options}
        answer = self.endpoint.post("/v1/chat/completions", body)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = answer
        if content is not None and not isinstance(content, str):
            raise ServerError(
                f"the answer of {self.endpoint.url} has no text at choices[0].message.content: {str(answer)[:300]!r}; "
                "is it a chat model behind an OpenAI-compatible server?"
            )
        return content or ""

    def ask_all(self, conversations: Sequence[Messages], **options: Any) -> list[str]:
        """The answers to several conversations, in their order; several are asked at once.

        Raises:
            ServerError: one of them got none; the others are not asked any more.
        """
        return in_threads(lambda messages: self.ask(messages, **options), conversations, self.concurrency)

    def ask_each(self, conversations: Sequence[Messages], **options: Any) -> list[str | None]:
        """As :meth:`ask_all`, but None, with a warning, where the server gave no answer after its retries."""

        def one(messages: Messages) -> str | None:
            try:
                return self.ask(messages, **options)
            except ServerError as error:
                log.warning("no answer to a question: %s", error)
                return None

        return in_threads(one, conversations, self.concurrency)


def only_model(endpoint: Endpoint) -> str:
    """The name of the one model that a server serves.

    Raises:
        ServerError: it cannot be reached, or serves several models or none.
    """
    listed = endpoint.get("/v1/models")
    try:
        names = [str(row["id"]) for row in (listed or {}).get("data", [])]
    except (AttributeError, KeyError, TypeError):
        raise ServerError(f"{endpoint.url} does not list its models: set model= to one of them") from None
    if len(names) != 1:
        raise ServerError(f"{endpoint.url} serves {names or 'no model'}: set model= to one of them")
    return names[0]


@former_arguments("rlhf_lightning.rollout.OpenAIEngine")
class OpenAIEngine:
    """Responses of a model behind any OpenAI-compatible server, by ``/v1/completions``: a generator that is frozen.

    The prompt's ids are decoded to text, with the template's control tokens, and the text of the answer is tokenised;
    where the server returns token ids (vLLM does when it is asked), they are taken as they are. There are no
    log-probs, so these samples serve rewards, evaluation and offline data, and a policy cannot be trained on them as
    its own.

    Args:
        tokenizer: of the model behind the server; it must know the prompts' ids.
        url: of the server, such as ``http://127.0.0.1:8000``.
        model: as the server calls it; null: the only one it serves.
        max_new_tokens: most tokens of a response.
        min_new_tokens: tokens before which a response cannot end; above 0 the server must know ``min_tokens``.
        api_key_env: name of the environment variable that holds the key; it may be unset.
        requests: how it is asked; the options of ``RequestOptions`` by name.
        options: further fields of every request, such as ``return_token_ids: true`` for vLLM.

    Raises:
        ValueError: an option is out of range.
    """

    name = "openai"
    exact = False
    frozen = True  #: its weights cannot follow a policy
    sources = frozenset({"policy"})

    def __init__(
        self,
        tokenizer: Any,
        *,
        url: str,
        model: str | None = None,
        max_new_tokens: Count = 256,
        min_new_tokens: int = 0,
        api_key_env: str = "OPENAI_API_KEY",
        requests: RequestOptions | Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        Sampling(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)  # checks them
        asked = value_object(RequestOptions, requests, RequestOptions.node)
        self.endpoint, self.concurrency = Endpoint.asked(url, asked, api_key_env), asked.concurrency
        self.tokenizer = tokenizer
        self.max_new_tokens, self.min_new_tokens, self.max_gap = max_new_tokens, min_new_tokens, None
        self._model, self._options = model, dict(options or {})

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Draw ``n`` responses to each prompt, several prompts at once.

        Sample ``j`` of a prompt draws as the server makes of a request's seed; many servers ignore it. At temperature 0
        a prompt's samples are copies of one.

        Raises:
            ValueError: ``n`` is out of range.
            ServerError: the server refused, could not be reached or answered in another form.
        """
        if n < 1:
            raise ValueError(f"n={n} samples a prompt must be at least 1")
        if not prompts:
            return []
        if self._model is None:
            self._model = only_model(self.endpoint)
        drawn = draws(sampling, n)

        def one(asked: tuple[Sequence[int], int]) -> list[Sample]:
            prompt, seed = asked
            text = self.tokenizer.decode(list(prompt), skip_special_tokens=False)
            body = {"model": self._model, "prompt": text, **sampling_fields(sampling, drawn, seed), **self._options}
            answer = self.endpoint.post("/v1/completions", body)
            samples = [self._sample(choice, sampling) for choice in choices(answer, drawn, self.endpoint.url)]
            return copies([ended_by_text(sample, sampling) for sample in samples], n)

        return in_threads(one, list(zip(prompts, seeds, strict=True)), self.concurrency)

    def _sample(self, choice: Mapping[str, Any], sampling: Sampling) -> Sample:
        ids = choice.get("token_ids")
        if not ids:
            ids = self.tokenizer.encode(choice.get("text") or "", add_special_tokens=False)
            end = self.tokenizer.eos_token_id
            if finish(choice) == "stop" and end is not None and (not ids or ids[-1] != end):
                ids = [*ids, end]  # the text of an answer leaves out what ended it
        # Tokenised again a text may have more tokens than were drawn; an empty answer that was cut off has none.
        ids = [int(token) for token in ids][: sampling.max_new_tokens] or [self.tokenizer.eos_token_id or 0]
        return Sample(ids, [], finish(choice))

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Accept any policy: none is followed."""

    def sync(self, policy: Actor, version: int) -> None:
        """Refuse: the server's weights are its own.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "rollout=openai is a frozen generator: the server's weights cannot follow the policy. Train with "
            "rollout=transformers, vllm or vllm_server"
        )

    def close(self) -> None:
        """Nothing is held open."""
