"""Alignment without training: transforms of the prompt, and the search for a better one.

* :class:`InContext`: constant examples in front of the query (URIAL);
* :class:`Rules`: the rules that fit the query, retrieved (OPO);
* :class:`Rewriter`: another model's wording of the query (BPO);
* :class:`Instruction`: a text at a position of the query, as the search of a prompt finds it (OPRO, GEPA);
* :class:`Revision`: critique and revision of responses under principles (constitutional AI).

All but the last fulfil :class:`~rlhf_lightning.data.tokens.prompt_transforms.PromptTransform`. :class:`OPRO` and
:class:`GEPA` are searches (:mod:`rlhf_lightning.prompting.search`), :class:`PromptRewrites` is data for a rewriter.
Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.data.tokens.prompt_transforms import PromptTransform as PromptTransform
    from rlhf_lightning.prompting.gepa import GEPA as GEPA
    from rlhf_lightning.prompting.in_context import InContext as InContext
    from rlhf_lightning.prompting.instruction import Instruction as Instruction
    from rlhf_lightning.prompting.language import LocalModel as LocalModel
    from rlhf_lightning.prompting.opro import OPRO as OPRO
    from rlhf_lightning.prompting.phrases import Phrases as Phrases
    from rlhf_lightning.prompting.revision import Revision as Revision
    from rlhf_lightning.prompting.rewrite_data import PromptRewrites as PromptRewrites
    from rlhf_lightning.prompting.rewriter import Rewriter as Rewriter
    from rlhf_lightning.prompting.rules import Rules as Rules

_HOME = {
    "GEPA": "rlhf_lightning.prompting.gepa",
    "InContext": "rlhf_lightning.prompting.in_context",
    "Instruction": "rlhf_lightning.prompting.instruction",
    "LocalModel": "rlhf_lightning.prompting.language",
    "OPRO": "rlhf_lightning.prompting.opro",
    "Phrases": "rlhf_lightning.prompting.phrases",
    "PromptRewrites": "rlhf_lightning.prompting.rewrite_data",
    "PromptTransform": "rlhf_lightning.data.tokens.prompt_transforms",
    "Revision": "rlhf_lightning.prompting.revision",
    "Rewriter": "rlhf_lightning.prompting.rewriter",
    "Rules": "rlhf_lightning.prompting.rules",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
