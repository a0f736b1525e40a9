"""A trained reward model as a reward: our own exports, and any sequence-classification folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.adapters.shared_storage import share_base
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.export.classification import load_whole, without_head
from rlhf_lightning.models.loading.heads import HEAD
from rlhf_lightning.models.loading.run_folders import exported
from rlhf_lightning.models.loading.vocabulary import align_with_tokenizer
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.options import Count, WholeNumber
from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.texts import Texts, batches, chosen_device
from rlhf_lightning.types import Example, SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelReward:
    """Scores of a reward model, normalised as it was when it was trained.

    Decoders run packed: each prompt once with all its responses, in batches of so many tokens. Their score is read at
    the last token of the response, its EOS. Encoders such as DeBERTa are run on prompt and response as a pair of texts.

    Where the policy has another tokenizer than the reward model, texts are rendered again; see
    :class:`~rlhf_lightning.rewards.texts.Texts`. The adapter of a reward model stays beside its base, and where that is
    the base of the policy's adapter both stand on one copy (:mod:`~rlhf_lightning.models.adapters.shared_storage`).

    Args:
        tokenizer: of whoever made the token ids; None: the reward model's own.
        path: folder (a run's ``export/last``) or hub id of a sequence-classification model, or of an adapter for one.
        run: in the place of ``path``, the folder of the run that trained it.
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
        ValueError: ``output`` is none of the head's, neither or both of ``path`` and ``run`` are given, or the run has
            no export.
    """

    asks_policy = False  # it has a policy only to share a base with it

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str | None = None,
        run: str | None = None,
        name: str = "model",
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
        max_length: Count | None = None,
        normalize: bool = True,
        output: WholeNumber = 0,
        scale: float = 1.0,
    ) -> None:
        self.name, self.path = name, _location(path, run)
        self.max_tokens, self.max_length = max_tokens, max_length
        self.normalize, self.output, self.scale = normalize, output, scale
        self.model_tokenizer = Pretrained(self.path).tokenizer()
        self.texts = Texts(self.model_tokenizer, tokenizer)
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        options = {"dtype": kind, "trust_remote_code": False, "weights_only": True}
        model: Any = load_whole(self.path, options, merged=False)
        self.decoder = hasattr(model, HEAD)
        self.device = chosen_device(device)
        if self.decoder:
            align_with_tokenizer(model, self.model_tokenizer)
            keep_float32_buffers(model)
            model = without_head(model)
            model = Scorer(model, outputs=len(model.saved_head.weight))
            if not 0 <= output < model.outputs:
                raise ValueError(f"reward.output={output}, but {self.path} has {model.outputs} outputs")
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._policy: Any = None

    @property
    def policy(self) -> Any:
        """The module that is trained; None before it is set."""
        return self._policy

    @policy.setter
    def policy(self, module: Any) -> None:
        if module is not self._policy and self.decoder:
            share_base(self.model, module.policy)
        self._policy = module

    @torch.no_grad()
    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        if not self.decoder:
            return self._encoded(groups)
        pairs = zip(*self.texts.translated(groups), strict=True)
        examples = [self.texts.example(prompt, group, self.max_length) for prompt, group in pairs]
        scores: Scores = [[] for _ in examples]
        for rows in batches(examples, self.max_tokens):
            batch = pack([examples[row] for row in rows], kind="supervised" if _single(examples, rows) else None)
            numbers = self._score(batch.to(self.device)).reshape(len(rows), -1).tolist()
            for row, values in zip(rows, numbers, strict=True):
                scores[row] = values[: len(examples[row].responses)]
        return scores

    def numbers(self, outputs: Tensor) -> Tensor:
        """Rewards, ``[n]``, from the outputs of the head, ``[n, outputs]``."""
        scores = outputs[:, self.output]
        normal = self.decoder and self.normalize
        return self.scale * (self.model.normalized(scores) if normal else scores.float())

    def _score(self, batch: Any) -> Tensor:
        scores: Tensor = self.model(batch)
        return self.numbers(scores if self.model.outputs > 1 else scores[:, None])

    def _encoded(self, groups: Sequence[SampleGroup]) -> Scores:
        """Scores of an encoder, which reads a pair of texts."""
        pairs = [
            (self.texts.content(group.prompt), self.texts.text(response))
            for group in groups
            for response in group.responses
        ]
        flat: list[float] = []
        for start in range(0, len(pairs), 16):
            first, second = zip(*pairs[start : start + 16], strict=True)
            inputs = self.model_tokenizer(
                list(first),
                list(second),
                padding=True,
                truncation="only_first" if self.max_length else False,
                max_length=self.max_length,
                return_tensors="pt",
            )
            flat += self.numbers(self.model(**inputs.to(self.device)).logits).tolist()
        values = iter(flat)
        return [[next(values) for _ in group.samples] for group in groups]


def _location(path: str | None, run: str | None) -> str:
    """The folder or hub id of a reward model that is given by its path or by its run."""
    if (path is None) == (run is None):
        raise ValueError("a reward model is given by reward.path=<folder or hub id> or reward.run=<folder of its run>")
    if path is None:
        return str(exported(str(run), "reward.run"))
    folder = Path(path).expanduser()
    return str(folder) if folder.exists() else path


def _single(groups: Sequence[Example], rows: Sequence[int]) -> bool:
    return all(len(groups[row].responses) == 1 for row in rows)
