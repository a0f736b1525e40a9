"""Conversion of rendered text to token ids and masks, in batches.

The boundary of prompt and response. ``boundary=ids`` (default) tokenises prompt and response apart and joins the ids:
generation starts from exactly these prompt ids, so training and inference agree. ``boundary=prefix`` tokenises
both together and ends the prompt at the longest token prefix that the prompt alone shares with every response; the
merged tokens behind it count as response (TRL's rule).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import cast

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.chat_templates import TrainedTemplate
from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError, SpecialIds
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.conversations import Rendered, Segment
from rlhf_lightning.data.tokens.templates import ChatTemplate, resolve

Ids = list[int]
#: Characters put before a response, one after the other, to tokenise it as a continuation.
_ANCHORS = ("\n", ".")


@dataclass(slots=True)
class Encoded:
    """A group as ids."""

    prompt: Ids
    responses: list[Ids]
    masks: list[list[bool]]  #: for each response, which of its tokens are scored
    ends: list[list[int]] = field(default_factory=list)  #: where each piece of each response ends
    merges: bool | None = None  #: tokenised together, the group has other ids; None: not checked


class Encoder:
    """Tokenises rendered records under one spec."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: DataSpec, template: ChatTemplate | None) -> None:
        """Find out how the tokenizer treats BOS and spaces.

        Raises:
            DataError: the tokenizer has no EOS, or ``data.spec.bos=true`` and it has no BOS.
        """
        self.tokenizer, self.spec = tokenizer, spec
        bos, eos = cast("int | None", tokenizer.bos_token_id), cast("int | None", tokenizer.eos_token_id)
        if eos is None:
            raise DataError("the tokenizer has no EOS token, so no response could end; set its eos_token")
        if spec.bos and bos is None:
            raise DataError("data.spec.bos=true, but the tokenizer has no BOS token")
        self.eos = eos
        ends = {eos}
        if template is not None and template.end_token is not None:
            ends.add(cast("int", tokenizer.convert_tokens_to_ids(template.end_token)))
        self.special = SpecialIds(bos, frozenset(ends), bos_marks_turns(tokenizer, template))
        self._adds_bos = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
        self._anchors = self._find_anchors()

    def _ids(self, texts: Iterable[str]) -> dict[str, Ids]:
        """Ids of each text without special tokens around it; every text is tokenised once."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        ids = self.tokenizer(unique, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return dict(zip(unique, cast("list[Ids]", ids), strict=True))

    def _find_anchors(self) -> dict[str, Ids]:
        """Anchors with their ids, when the tokenizer puts a space before any text it is given (SentencePiece)."""
        anchors = self._ids([*_ANCHORS, "a", *(anchor + "a" for anchor in _ANCHORS)])
        first = _ANCHORS[0]
        continued = anchors[first + "a"][len(anchors[first]) :]
        if not anchors[first] or continued == anchors["a"]:
            return {}
        return {anchor: anchors[anchor] for anchor in _ANCHORS}

    def _continuations(self, texts: Iterable[str]) -> dict[str, Ids]:
        """Ids of texts that continue another one: without the space that a tokenizer adds at a beginning."""
        by_text: dict[str, Ids] = {}
        remaining = list(dict.fromkeys(texts))
        for anchor, prefix in self._anchors.items():
            joined = self._ids(anchor + text for text in remaining)
            fitting = {text: joined[anchor + text] for text in remaining}
            by_text |= {text: ids[len(prefix) :] for text, ids in fitting.items() if ids[: len(prefix)] == prefix}
            remaining = [text for text in remaining if text not in by_text]
        return by_text | self._ids(remaining)

    def encode(self, batch: Sequence[Rendered], *, compare: bool = False) -> list[Encoded]:
        """Tokenise a batch of rendered records.

        Args:
            batch: records as text.
            compare: with ``boundary=ids``, also tokenise prompt and response together and note where that differs.
        """
        prompts = self._ids(item.prompt for item in batch)
        if self.spec.boundary == "prefix":
            joined = self._ids(text for item in batch for spans in item.responses for text in _cumulative(item, spans))
            encoded = [_by_prefix(item, prompts, joined) for item in batch]
        else:
            pieces = self._continuations(text for item in batch for spans in item.responses for text, _ in spans)
            encoded = [_by_ids(item, prompts, pieces) for item in batch]
            if compare:
                wholes = self._ids(_cumulative(item, spans)[-1] for item in batch for spans in item.responses)
                for item, made in zip(batch, encoded, strict=True):
                    made.merges = (
                        None
                        if not item.responses
                        else any(
                            wholes[_cumulative(item, spans)[-1]] != made.prompt + ids
                            for spans, ids in zip(item.responses, made.responses, strict=True)
                        )
                    )
        for item, made in zip(batch, encoded, strict=True):
            self._finish(item, made)
        return encoded

    def prompt_length(self, text: str) -> int:
        """Tokens of a prompt of plain text, the BOS that it will get included."""
        return len(self.encode([Rendered(text, [], [], templated=False)])[0].prompt)

    def adds_bos(self, templated: bool) -> bool:
        """Return whether prompts without a BOS get one.

        Args:
            templated: rendered by a chat template with special tokens.
        """
        return self.spec.bos if self.spec.bos is not None else (self._adds_bos and not templated)

    def _finish(self, item: Rendered, made: Encoded) -> None:
        """EOS behind responses that have none, BOS before the prompt, a predictor for a response without a prompt."""
        for closed, ids, mask in zip(item.closed, made.responses, made.masks, strict=True):
            if not closed and ids[-1:] != [self.eos]:
                ids.append(self.eos)
                mask.append(True)
        bos = self.special.bos
        if self.adds_bos(item.templated) and bos is not None and made.prompt[:1] != [bos]:
            made.prompt = [bos, *made.prompt]
        if not item.prompt and not made.prompt and made.responses and len(made.responses[0]) > 1:
            # plain text and no BOS: nothing predicts its first token, so that becomes the prompt
            made.prompt = [made.responses[0].pop(0)]
            made.masks[0].pop(0)


def trained_template(tokenizer: PreTrainedTokenizerBase, spec: DataSpec) -> TrainedTemplate | None:
    """Describe the template, for exports of weights that were trained on conversations; None without one.

    Raises:
        DataError: as ``templates.resolve``.
    """
    template = resolve(tokenizer, spec)
    if template is None:
        return None
    return template.trained(Encoder(tokenizer, spec, template).adds_bos(template.brings_bos))


def _cumulative(item: Rendered, spans: Sequence[Segment]) -> list[str]:
    """The prompt with the first segment, with the first two, and so on."""
    return list(accumulate((text for text, _ in spans), initial=item.prompt))[1:]


def _by_ids(item: Rendered, prompts: dict[str, Ids], pieces: dict[str, Ids]) -> Encoded:
    responses = [[token for text, _ in spans for token in pieces[text]] for spans in item.responses]
    masks = [[flag for text, flag in spans for _ in pieces[text]] for spans in item.responses]
    ends = [list(accumulate(len(pieces[text]) for text, _ in spans)) for spans in item.responses]
    return Encoded(list(prompts[item.prompt]), responses, masks, ends)


def _by_prefix(item: Rendered, prompts: dict[str, Ids], joined: dict[str, Ids]) -> Encoded:
    alone = prompts[item.prompt]
    if not item.responses:
        return Encoded(list(alone), [], [])
    wholes, cuts = [], []
    for spans in item.responses:
        texts = _cumulative(item, spans)
        whole = joined[texts[-1]]
        inner = [_common(tokens, whole) for tokens in (alone, *(joined[text] for text in texts[:-1]))]
        wholes.append(whole)
        cuts.append(list(accumulate([*inner, len(whole)], max)))
    start = min(cut[0] for cut in cuts)
    masks = []
    for spans, cut in zip(item.responses, cuts, strict=True):
        mask = [True] * (cut[0] - start)  # prompt text merged into what another response starts with
        for (_, flag), begin, end in zip(spans, cut, cut[1:], strict=False):
            mask += [flag] * (end - begin)
        masks.append(mask)
    ends = [[end - start for end in cut[1:]] for cut in cuts]
    return Encoded(alone[:start], [whole[start:] for whole in wholes], masks, ends, merges=start != len(alone))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def bos_marks_turns(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None) -> bool:
    """Return whether the BOS token opens every turn, in the template used or in the tokenizer's."""
    if template is not None and template.bos_marks_turns:
        return True
    if not tokenizer.chat_template or (template is not None and template.source is None):
        return False
    try:
        return ChatTemplate(tokenizer, DataSpec(), "tokenizer", None).bos_marks_turns
    except DataError:  # its own template is not in use and need not work
        return False


def fit(made: Encoded, spec: DataSpec, bos: int | None) -> str | None:
    """Bring a group within the length limits, in place.

    With ``too_long=keep_end`` or ``keep_start`` responses are first cut to ``max_response_length``. The prompt then
    gives way to the responses, down to ``max_prompt_length`` or, without it, half of ``max_length``; what is still too
    long is cut from the responses' ends. A BOS stays the first token whichever end of the prompt is kept.

    Returns:
        A message about the cut; None when nothing was cut.

    Raises:
        RowError: the group is too long and ``too_long`` is ``exclude`` or ``error``.
    """
    before = _lengths(made)
    longest = max(before[1:], default=0)
    limits = [("max_prompt_length", before[0]), ("max_response_length", longest), ("max_length", before[0] + longest)]
    over = [(name, length) for name, length in limits if length > (getattr(spec, name) or length)]
    if not over:
        return None
    if spec.too_long in ("exclude", "error"):
        listed = ", ".join(f"{length} tokens over {name}={getattr(spec, name)}" for name, length in over)
        raise RowError(ProblemKind.TOO_LONG, f"{listed} (prompt {before[0]}, longest response {longest})")
    prompt, response = _room(before[0], longest, spec)
    if prompt < before[0] and spec.too_long == "keep_end":
        first = made.prompt[:1] if prompt > 1 and made.prompt[0] == bos else []
        made.prompt = first + made.prompt[before[0] - prompt + len(first) :]
    made.prompt = made.prompt[:prompt]
    made.responses = [ids[:response] for ids in made.responses]
    made.masks = [mask[:response] for mask in made.masks]
    return f"{' + '.join(map(str, before))} tokens cut to {' + '.join(map(str, _lengths(made)))}"


def _room(prompt: int, response: int, spec: DataSpec) -> tuple[int, int]:
    """Tokens left to the prompt and to each response."""
    response = min(response, spec.max_response_length or response)
    prompt = min(prompt, spec.max_prompt_length or prompt)
    if spec.max_length is not None and prompt + response > spec.max_length:
        least = prompt if spec.max_prompt_length is not None else min(prompt, spec.max_length // 2)
        prompt = min(max(spec.max_length - response, least), spec.max_length - 1)
        response = min(response, spec.max_length - prompt)
    return prompt, response


def _lengths(made: Encoded) -> list[int]:
    return [len(made.prompt), *map(len, made.responses)]
