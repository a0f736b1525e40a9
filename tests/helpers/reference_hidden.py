"""Losses on distributions, hidden states and values as plain loops over lists of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

Vector = list[float]


def softmax(logits: Vector) -> Vector:
    top = max(logits)
    exps = [math.exp(x - top) for x in logits]
    return [x / sum(exps) for x in exps]


def kl(p: Vector, q: Vector) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def reduced(tokens: list[Vector], reduction: str, mean_length: float | None = None) -> Vector:
    """One number a response from one number a token."""
    if reduction == "sum":
        return [sum(row) for row in tokens]
    if reduction == "response_mean":
        return [sum(row) / len(row) for row in tokens]
    length = mean_length or sum(map(len, tokens)) / len(tokens)
    return [sum(row) / length for row in tokens]


def knowledge_distillation(
    student: list[list[Vector]],
    teacher: list[list[Vector]],
    *,
    divergence: str = "forward_kl",
    mixture: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "token_mean",
) -> Vector:
    """Logits of each token of each response under both models."""

    def token(z: Vector, s: Vector) -> float:
        q, p = softmax([x / temperature for x in z]), softmax([x / temperature for x in s])
        if divergence == "forward_kl":
            return kl(p, q) * temperature**2
        if divergence == "reverse_kl":
            return kl(q, p) * temperature**2
        m = [mixture * a + (1 - mixture) * b for a, b in zip(p, q, strict=True)]
        return (mixture * kl(p, m) + (1 - mixture) * kl(q, m)) * temperature**2

    pairs = [list(zip(z, s, strict=True)) for z, s in zip(student, teacher, strict=True)]
    return reduced([[token(z, s) for z, s in row] for row in pairs], reduction)


def context_distillation(
    student: list[list[Vector]], teacher: list[list[Vector]], *, classes: int = 0, reduction: str = "token_mean"
) -> Vector:
    if not classes:
        return knowledge_distillation(student, teacher, reduction=reduction)

    def token(z: Vector, s: Vector) -> float:
        q, p = softmax(z), softmax(s)
        kept = sorted(range(len(p)), key=lambda v: -p[v])[:classes]
        rest_p, rest_q = (max(1 - sum(x[v] for v in kept), 1e-8) for x in (p, q))
        return kl([p[v] for v in kept] + [rest_p], [q[v] for v in kept] + [rest_q])

    pairs = [list(zip(z, s, strict=True)) for z, s in zip(student, teacher, strict=True)]
    return reduced([[token(z, s) for z, s in row] for row in pairs], reduction)


@dataclass
class Instruction:
    """An instruction in two wordings: log-probs of its response and its pooled state in both. Empty: none."""

    original: Vector
    paraphrase: Vector
    state: Vector
    other_state: Vector


def coin(groups: list[tuple[Instruction, Instruction]], *, weight: float, temperature: float, in_batch: bool) -> Vector:
    """Groups of an instruction and its hard negative, whose log-probs may be empty."""
    generation = []
    for half in ("original", "paraphrase"):
        rows = [[getattr(i, half) for i in group] for group in groups]
        tokens = sum(len(row) for group in rows for row in group) / len(groups)
        generation.append([-sum(sum(row) for row in group) / tokens for group in rows])
    generation_loss = [a + b for a, b in zip(*generation, strict=True)]
    present = [(g, i) for g, group in enumerate(groups) for i in group if i.original]

    def cosine(a: Vector, b: Vector) -> float:
        norm = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm / temperature

    contrastive = [0.0] * len(groups)
    for g, item in present:
        others = [i for other, i in present if in_batch or other == g]
        down = sum(math.exp(cosine(item.state, i.other_state)) for i in others)
        across = sum(math.exp(cosine(i.state, item.other_state)) for i in others)
        matching = cosine(item.state, item.other_state)
        share = len(groups) / len(present) if in_batch else 1 / len(others)
        contrastive[g] += (math.log(down) - matching + math.log(across) - matching) / 2 * share

    def bounded(generation: float, raw: float) -> float:
        return weight if raw < 1e-12 else min(weight, generation / raw)

    if in_batch:
        factor = bounded(sum(generation_loss) / len(groups), sum(contrastive) / len(groups))
        return [a + factor * b for a, b in zip(generation_loss, contrastive, strict=True)]
    return [a + bounded(a, b) * b for a, b in zip(generation_loss, contrastive, strict=True)]


@dataclass
class Step:
    """A token: its log-prob, the outputs of two heads, their copies, its state's value, log-softmax of both heads."""

    log_prob: float
    q: tuple[float, float]
    target: tuple[float, float]
    value: float
    q_log_prob: tuple[float, float]


def ilql(
    responses: list[list[Step]],
    scores: Vector,
    *,
    tau: float,
    gamma: float,
    cql_weight: float,
    awac_weight: float,
    awac_beta: float,
) -> Vector:
    totals = []
    for steps, score in zip(responses, scores, strict=True):
        total = []
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            goal = score if last else gamma * steps[number + 1].value
            gap = min(step.target) - step.value
            total.append(
                sum((q - goal) ** 2 for q in step.q)
                + (tau if gap >= 0 else 1 - tau) * gap**2
                - cql_weight * sum(step.q_log_prob)
                - awac_weight * math.exp(awac_beta * gap) * step.log_prob
            )
        totals.append(total)
    return reduced(totals, "token_mean")
