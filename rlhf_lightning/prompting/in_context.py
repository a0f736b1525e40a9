"""Constant examples in front of the query: alignment of a base model by its prompt alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rlhf_lightning.data.rows.messages import Turns
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.options import WholeNumber
from rlhf_lightning.prompting.base import Transform, texts_of
from rlhf_lightning.prompting.in_context_texts import EXAMPLES, INSTRUCTION, PLAIN_EXAMPLES
from rlhf_lightning.types import PromptForm

_FENCE = "```"


@dataclass
class InContext(Transform):
    r"""URIAL: an instruction and a few worked examples, then the query; a base model continues with its response.

    The prompt is text that no chat template renders: ``# Instruction`` and a paragraph; then, for every example and
    every turn, ``# Query:`` and ``# Answer:``, each followed by its text in a code fence. The response is what follows
    the last, open fence, up to ``# Query`` or ``# User`` or EOS, without the fence that closes it. Responses of the
    data are closed by a fence. A system message of the conversation follows the paragraph.

    Source: "The Unlocking Spell on Base LLMs: Rethinking Alignment via In-Context Learning", arXiv:2312.01552 (URIAL),
    sections and stops of Re-Align/URIAL. ``style=vanilla`` is its baseline of bare queries and responses.
    Differences: paragraph and examples are our own texts.

    Args:
        style: ``urial``, or ``vanilla``: queries and short answers without paragraph and fences.
        examples: number of examples; K = 0, 1 and 3 are the paper's ablation (a list, a refusal, a how-to).
        file: file of other examples: JSONL rows with ``query`` and ``answer``, of which the first ``examples`` are
            used.
        instruction: another paragraph; None: ours.

    Raises:
        ValueError: there are too few examples, or a row of the file is not an example.
    """

    plain: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("file",)

    style: Literal["urial", "vanilla"] = "urial"
    examples: WholeNumber = 3
    file: str | None = None
    instruction: str | None = None
    _start: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        """Build the constant part."""
        if self.style not in ("urial", "vanilla"):
            raise ValueError(f"prompting.style={self.style!r} must be urial or vanilla")
        if self.style == "vanilla" and self.instruction is not None:
            raise ValueError(
                "prompting.style=vanilla has no paragraph for prompting.instruction: set prompting.style=urial"
            )
        default = EXAMPLES if self.style == "urial" else PLAIN_EXAMPLES
        exchanges = default if self.file is None else texts_of(self.file, "prompting.file", ("query", "answer"))
        if not 0 <= self.examples <= len(exchanges):
            raise ValueError(
                f"prompting.examples={self.examples} must lie between 0 and {len(exchanges)}, the number of examples: "
                "give a file with more in prompting.file=..."
            )
        paragraph = INSTRUCTION if self.instruction is None else self.instruction
        head = f"# Instruction\n\n{paragraph.strip()}\n\n" if self.style == "urial" else ""
        self._start = head + "".join(self._exchange(query, answer) for query, answer in exchanges[: self.examples])

    @property
    def closing(self) -> str:
        """Text that closes a response."""
        return f"\n{_FENCE}" if self.style == "urial" else ""

    @property
    def form(self) -> PromptForm:
        """See :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`."""
        trailing = _FENCE if self.style == "urial" else ""
        return PromptForm(self._start, ("# Query", "# User"), trailing, self.tokenizer)

    def __call__(self, turns: Turns) -> Turns:
        """Return one turn with the whole prompt.

        Raises:
            RowError: there is a tool turn, or user and assistant turns do not alternate.
        """
        system = [turn["content"] for turn in turns if turn["role"] == "system"]
        rest = [turn for turn in turns if turn["role"] != "system"]
        roles_in_turn = ["user", "assistant"] * len(rest)
        if not rest or [turn["role"] for turn in rest] != roles_in_turn[: len(rest)]:
            roles = ", ".join(turn["role"] for turn in turns)
            raise RowError(
                ProblemKind.TEMPLATE, f"prompting=in_context needs alternating user and assistant turns, not {roles}"
            )
        texts = [turn["content"] for turn in rest]
        pairs = zip(texts[::2], texts[1::2], strict=False)
        begun = texts[-1] if len(texts) % 2 == 0 else None  # a response that the prompt begins
        done = list(pairs)[: (len(texts) - 1) // 2]
        system_text = "".join(f"{text.strip()}\n\n" for text in system)
        earlier = "".join(self._exchange(query, answer) for query, answer in done)
        query = texts[-1] if begun is None else texts[-2]
        return [{"role": "user", "content": self._start + system_text + earlier + self._open(query) + (begun or "")}]

    def _open(self, query: str) -> str:
        """Format a query and the beginning of its response."""
        if self.style == "vanilla":
            return f"# Query:\n{query}\n\n# Answer:\n"
        return f"# Query:\n{_FENCE}\n{query}\n{_FENCE}\n\n# Answer:\n{_FENCE}\n"

    def _exchange(self, query: str, answer: str) -> str:
        return f"{self._open(query)}{answer}{self.closing}\n\n"
