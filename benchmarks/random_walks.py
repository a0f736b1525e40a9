"""ILQL on random walks: a policy that only ever saw aimless walks finds short ones when its values steer it.

A directed graph of 21 nodes is drawn; a thousand walks start at random nodes and continue along random edges until they
reach the goal or have visited 10 nodes. A walk's return is its optimality: 1 for a shortest path from its start, 0 when
it never arrives or takes an edge that does not exist. A small transformer is trained from scratch on the walks with
their returns (arXiv:2206.11871, appendix; the settings are those of trlX's example: tau 0.8, copies of the Q heads that
move by 0.1 every 5 steps). Then it samples from every start, with the advantage weighed by beta: 0 is the policy, which
imitates the walks.

    .venv/bin/python benchmarks/random_walks.py            # half a minute a graph on one core; --steps 100 for a look
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import ilql
from rlhf_lightning.methods import ValueBased
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.types import Example

NODES, GOAL, LONGEST, WALKS = 21, 0, 10, 1000
BOS, EOS, VOCABULARY = NODES, NODES + 1, NODES + 2


@dataclass(frozen=True)
class Graph:
    """Random edges, and the walks along them.

    Args:
        edges: whether one leads from node i to node j, ``[nodes, nodes]``.
    """

    edges: np.ndarray

    @classmethod
    def drawn(cls, draw: np.random.Generator, probability: float = 0.1) -> Graph:
        """Edges with a given probability; each node has one that leads on, and most of them a way to the goal."""
        while True:
            edges = draw.random((NODES, NODES)) < probability
            np.fill_diagonal(edges, False)
            for node in np.flatnonzero(~edges.any(1)):
                edges[node, draw.choice([other for other in range(NODES) if other != node])] = True
            graph = cls(edges)
            if len(graph.starts()) > NODES // 2:
                return graph

    def distances(self) -> np.ndarray:
        """Edges of the shortest path from each node to the goal; infinite where there is none."""
        distance = np.full(NODES, np.inf)
        distance[GOAL] = 0
        for length in range(1, NODES):
            reached = (self.edges & (distance == length - 1)[None]).any(1) & np.isinf(distance)
            distance[reached] = length
        return distance

    def starts(self) -> list[int]:
        """Nodes from which a walk of allowed length can arrive."""
        distances = self.distances()
        return [node for node in range(NODES) if 0 < distances[node] < LONGEST]

    def walk(self, draw: np.random.Generator) -> list[int]:
        """A start and random steps from there."""
        nodes = [int(draw.choice(self.starts()))]
        while nodes[-1] != GOAL and len(nodes) < LONGEST:
            nodes.append(int(draw.choice(np.flatnonzero(self.edges[nodes[-1]]))))
        return nodes

    def optimality(self, nodes: list[int]) -> float:
        """1 for a shortest walk to the goal, less the longer it is, 0 for one that does not arrive."""
        arrived = GOAL in nodes
        nodes = nodes[: nodes.index(GOAL) + 1] if arrived else nodes
        allowed = all(b < NODES and self.edges[a, b] for a, b in pairwise(nodes))
        length = len(nodes) - 1 if arrived and allowed else LONGEST
        return (LONGEST - min(length, LONGEST)) / (LONGEST - self.distances()[nodes[0]])


def examples(graph: Graph, draw: np.random.Generator) -> list[Example]:
    """Walks as a start (the prompt) and what follows, ended by EOS, each with its return."""
    walks = [graph.walk(draw) for _ in range(WALKS)]
    return [Example([BOS, w[0]], [[*w[1:], EOS]], numbers={"score": [graph.optimality(w)]}) for w in walks]


def model(size: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A transformer of random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=2 * LONGEST,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    made = LlamaForCausalLM(config)
    made.generation_config.eos_token_id = made.generation_config.pad_token_id = EOS
    return made


def trained(
    rows: list[Example],
    steps: int,
    *,
    size: int = 64,
    layers: int = 2,
    lr: float = 2e-3,
    batch: int = 100,
    seed: int = 0,
) -> ValueBased:
    """ILQL on walks with their returns, in a plain loop.

    Args:
        rows: the walks.
        steps: optimiser steps.
        size: width of the model.
        layers: of the model.
        lr: learning rate, falling to 0 along a cosine.
        batch: walks a step.
        seed: of weights and order.
    """

    def build(actor):  # noqa: ANN001, ANN202
        return Models(actor(model(size, layers, seed)), None, None)

    module = ValueBased(build, partial(ilql, tau=0.8, gamma=0.99, cql_weight=0.1), target_rate=0.1)
    module.configure_model()
    module.standardize(torch.tensor([row.numbers["score"] for row in rows]))
    optimizer = AdamW(module.policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = draw.choice(len(rows), batch, replace=False)
        optimizer.zero_grad()
        module(pack([rows[i] for i in chosen], kind="ranked")).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        module.follow()
    return module


def optimality(module: ValueBased, graph: Graph, beta: float, each: int = 20) -> float:
    """Mean optimality of sampled walks from every start.

    Args:
        module: trained.
        graph: that it walks on.
        beta: weight of the advantage in decoding.
        each: walks from every start.
    """
    prompts = [[BOS, start] for start in graph.starts() for _ in range(each)]
    walks = module.sample(prompts, beta=beta, max_new_tokens=LONGEST, seed=1, batch_size=500)
    scores = [graph.optimality([p[-1], *(n for n in w if n != EOS)]) for p, w in zip(prompts, walks, strict=True)]
    return float(np.mean(scores))


def main() -> None:
    """One line of JSON a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3, help="graphs, each with its own walks and weights")
    given = parser.parse_args()
    for seed in range(given.seeds):
        started, draw = time.perf_counter(), np.random.default_rng(seed)
        graph = Graph.drawn(draw)
        rows = examples(graph, draw)
        module = trained(rows, given.steps, seed=seed)
        walked = sum(row.numbers["score"][0] for row in rows) / len(rows)
        by_beta = {f"beta {beta:g}": round(optimality(module, graph, beta), 3) for beta in (0.0, 1.0, 10.0, 100.0)}
        seconds = round(time.perf_counter() - started, 1)
        print(json.dumps({"seed": seed, "walks": round(walked, 3), **by_beta, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
