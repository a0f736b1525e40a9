"""Constructors take a handful of parameters: options of one idea are a value object (``options.Options``)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 10

#: Constructors with more, and why none of their parameters belongs into a value object.
LONG = {
    "PPO": "the ten of PolicyGradient, the critic and its loss",
    "AlignmentDataModule": "five of twelve are given in code: tokenizer, kind, seed, process_share, mismatched",
    "TinySource": "what rows are drawn, each option independent of the others; a test world's, not a user's",
    "ModelReward": "what is read (path, dtype, device, sizes) and which number of it; the tokenizer is given in code",
    "RolloutLoader": "internal: made at one place, of parts that the loop already has",
    "EpochLoader": "internal: made at one place, of parts that the data module already has",
}
#: Dataclasses that are a group of a configuration, whose fields are the keys of a yaml.
CONFIGURATIONS = {
    "DataSpec": "data.spec",
    "Generate": "rlhf generate",
    "Lora": "adapter",
    "OPRO": "search",
    "OptimizePrompt": "rlhf optimize_prompt",
    "RolloutOptions": "method.rollout",
    "Rounds": "rounds",
    "Sampling": "of one call, given by rollout and method",
    "Steer": "rlhf steer",
    "TinyRandom": "model",
    "_Job": "rlhf train and evaluate",
}
#: Dataclasses that are rows or tables: what was read, counted, packed or found, a field a column.
RECORDS = {
    "DataKind",
    "DataReport",
    "Examples",
    "Job",
    "MethodEntry",
    "ModelShape",
    "ModelSummary",
    "PackedBatch",
    "Record",
    "Result",
    "RolloutBatch",
}


def classes() -> Iterator[ast.ClassDef]:
    for file in sorted((ROOT / "rlhf_lightning").rglob("*.py")):
        yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef))


def parameters(node: ast.ClassDef) -> int:
    """Of ``__init__``, without ``self``; of a dataclass or named tuple without one its own fields."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            given = method.args
            return len([*given.posonlyargs, *given.args, *given.kwonlyargs]) - 1
    made = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
    made = made or any(ast.unparse(base) == "NamedTuple" for base in node.bases)
    fields = [
        one for one in node.body if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)
    ]
    computed = [one for one in fields if one.value is not None and "init=False" in ast.unparse(one.value)]
    return len(fields) - len(computed) if made else 0


def test_constructors_are_short():
    """Lists of exceptions name what is longer, and nothing else."""
    long = {node.name: parameters(node) for node in classes() if parameters(node) > MOST}
    excepted = {*LONG, *CONFIGURATIONS, *RECORDS}
    assert {name: count for name, count in long.items() if name not in excepted} == {}
    assert excepted - long.keys() == set()
    assert max(long[name] for name in LONG) <= MOST + 2
