"""A trained reward model as a reward: our own exports, and any sequence-classification folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from rlhf_lightning.data.packing import pack
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.classification import HEAD, load_whole, without_head
from rlhf_lightning.models.roles import align_with_tokenizer
from rlhf_lightning.models.scorer import Scorer
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTINEL = "\x01content\x01"


class ModelReward:
    """Scores of a reward model, normalised as it was when it was trained.

    Decoders run packed: each prompt once with all its responses, in batches of so many tokens. Their score is read at
    the last token of the response, its EOS. Encoders such as DeBERTa are run on prompt and response as a pair of texts.

    Where the policy has another tokenizer than the reward model, texts are rendered again: the prompt's content is
    taken out of the policy's chat template (a prompt of several turns keeps the text between its first and last mark)
    and put into the reward model's own; responses are decoded without special tokens and closed with the reward model's
    EOS.

    Args:
        tokenizer: of whoever made the token ids; None: the reward model's own.
        path: folder (a run's ``export/last``) or hub id of a sequence-classification model, or of an adapter for one.
        name: what its numbers are logged under.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch, prompts and responses; a longer group is a batch of its own.
        max_length: longest prompt with a response, in tokens; of a longer prompt the beginning is left out, since a
            score is read at the end. None: no limit.
        normalize: False gives the scores as the head computes them.
        output: which of several outputs is the reward.
        scale: multiplies the scores at last; -1 makes a reward of a cost.

    Raises:
        ValueError: ``output`` is none of the head's.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str,
        name: str = "model",
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        device: str = "auto",
        max_tokens: int = 16_384,
        max_length: int | None = None,
        normalize: bool = True,
        output: int = 0,
        scale: float = 1.0,
    ) -> None:
        self.name, self.path = name, str(Path(path).expanduser()) if Path(path).expanduser().exists() else path
        self.max_tokens, self.max_length = max_tokens, max_length
        self.normalize, self.output, self.scale = normalize, output, scale
        self.own = Pretrained(self.path).tokenizer()
        self.theirs = tokenizer if tokenizer is not None else self.own
        self.renders = not _equal(self.own, self.theirs)
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        model: Any = load_whole(self.path, {"dtype": kind, "trust_remote_code": False, "weights_only": True})
        self.decoder = hasattr(model, HEAD)
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if self.decoder:
            align_with_tokenizer(model, self.own)
            keep_float32_buffers(model)
            model = without_head(model)
            model = Scorer(model, outputs=len(model.saved_head.weight))
            if not 0 <= output < model.outputs:
                raise ValueError(f"reward.output={output}, but {path} has {model.outputs} outputs")
        self.model = model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, prompts: list[list[int]], responses: list[list[list[int]]]) -> list[list[float]]:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        if not self.decoder:
            return self._encoded(prompts, responses)
        if self.renders:
            prompts, responses = self._rendered(prompts, responses)
        groups = [self._cut(prompt, group) for prompt, group in zip(prompts, responses, strict=True)]
        scores: list[list[float]] = [[] for _ in groups]
        for rows in self._batches(groups):
            batch = pack([groups[row] for row in rows], kind="supervised" if _single(groups, rows) else None)
            found = self._score(batch.to(self.device)).reshape(len(rows), -1).tolist()
            for row, values in zip(rows, found, strict=True):
                scores[row] = values[: len(groups[row].responses)]
        return scores

    def _score(self, batch: Any) -> Tensor:
        scores: Tensor = self.model(batch)
        if self.model.outputs > 1:
            scores = scores[:, self.output]
        return self.scale * (self.model.normalized(scores) if self.normalize else scores)

    def _cut(self, prompt: list[int], group: list[list[int]]) -> Example:
        """A group within ``max_length``; an empty response is its end alone."""
        responses = [response or [cast("int", self.own.eos_token_id)] for response in group]
        if self.max_length is not None and responses:
            prompt = prompt[-max(self.max_length - max(map(len, responses)), 1) :]
        return Example(prompt or [_beginning(self.own)], responses)

    def _batches(self, groups: Sequence[Example]) -> Iterator[list[int]]:
        """Rows of groups of similar length that fit together, without the groups that have no response."""
        sizes = [len(group.prompt) + sum(map(len, group.responses)) for group in groups]
        rows: list[int] = []
        for row in sorted((row for row, group in enumerate(groups) if group.responses), key=sizes.__getitem__):
            if rows and sum(sizes[r] for r in rows) + sizes[row] > self.max_tokens:
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows

    # Other tokenizers

    def _rendered(
        self, prompts: list[list[int]], responses: list[list[list[int]]]
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """The same texts in the reward model's own tokens and chat template."""
        eos = cast("int", self.own.eos_token_id)
        texts = [self._content(prompt) for prompt in prompts]
        rendered = [self._ids(_with_template(self.own, text)) for text in texts]
        answers = [[[*self._ids(self._text(ids)), eos] for ids in group] for group in responses]
        return rendered, answers

    def _content(self, prompt: list[int]) -> str:
        """What the user said, out of the chat template that the policy's prompts are written in."""
        template = _with_template(self.theirs, _SENTINEL)
        before, _, after = template.partition(_SENTINEL)
        text = str(self.theirs.decode(prompt, skip_special_tokens=False))
        bos = self.theirs.bos_token or ""
        before, text = before.removeprefix(bos), text.removeprefix(bos)
        if before and text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
        return self._text(prompt)

    def _text(self, ids: list[int]) -> str:
        return str(self.theirs.decode(ids, skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        return cast("list[int]", self.own(text, add_special_tokens=False)["input_ids"])

    def _encoded(self, prompts: list[list[int]], responses: list[list[list[int]]]) -> list[list[float]]:
        """Scores of an encoder, which reads a pair of texts."""
        pairs = [
            (self._content(prompt), self._text(response))
            for prompt, group in zip(prompts, responses, strict=True)
            for response in group
        ]
        flat: list[float] = []
        for start in range(0, len(pairs), 16):
            first, second = zip(*pairs[start : start + 16], strict=True)
            inputs = self.own(
                list(first),
                list(second),
                padding=True,
                truncation="only_first" if self.max_length else False,
                max_length=self.max_length,
                return_tensors="pt",
            )
            flat += (self.scale * self.model(**inputs.to(self.device)).logits[:, self.output].float()).tolist()
        values = iter(flat)
        return [[next(values) for _ in group] for group in responses]


def _equal(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same ids of the same conversation."""
    if one is other:
        return True
    same = one.get_vocab() == other.get_vocab() and one.eos_token_id == other.eos_token_id
    return same and (one.chat_template or "") == (other.chat_template or "")


def _with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A user's turn and the beginning of the answer; plain text without a template."""
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") + text
    turn = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))


def _beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    return cast("int", tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)


def _single(groups: Sequence[Example], rows: Sequence[int]) -> bool:
    return all(len(groups[row].responses) == 1 for row in rows)
