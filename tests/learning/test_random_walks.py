"""ILQL learns to walk straight from aimless walks, and does not with the gradient sign flipped."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import random_walks
from benchmarks.random_walks import GOAL, LONGEST, NODES, Graph, examples, optimality, trained
from rlhf_lightning.losses import ilql


@pytest.fixture(scope="module")
def world() -> tuple[Graph, list[Any]]:
    draw = np.random.default_rng(0)
    graph = Graph.drawn(draw)
    return graph, examples(graph, draw)


@pytest.mark.slow
def test_larger_weights_of_the_advantage_walk_straighter(world: tuple[Graph, list[Any]]) -> None:
    graph, rows = world
    module = trained(rows, steps=80, size=32, lr=5e-3)
    walked = sum(row.numbers["score"][0] for row in rows) / len(rows)
    imitated, guided, greedy = (optimality(module, graph, beta, each=10) for beta in (0.0, 10.0, 100.0))
    # Without values the policy walks as aimlessly as the walks it has seen; 0.1 is more than three standard errors.
    assert imitated == pytest.approx(walked, abs=0.12)
    assert guided > imitated + 0.2
    assert greedy > imitated + 0.2


def test_with_the_gradient_sign_flipped_nothing_is_learned(
    world: tuple[Graph, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(ilql)
    def turned(*args: Any, **kwargs: Any) -> Any:
        result = ilql(*args, **kwargs)
        return replace(result, loss=-result.loss)

    monkeypatch.setattr(random_walks, "ilql", turned)
    graph, rows = world
    walked = sum(row.numbers["score"][0] for row in rows) / len(rows)
    assert optimality(trained(rows, steps=20, size=32), graph, 100.0, each=10) < walked


def test_distances_and_optimality_by_hand() -> None:
    edges = np.zeros((NODES, NODES), dtype=bool)
    edges[1, GOAL] = edges[2, 1] = edges[3, 2] = edges[1, 2] = True
    graph = Graph(edges)
    assert graph.distances()[:5].tolist() == [0, 1, 2, 3, np.inf]
    assert graph.starts() == [1, 2, 3]
    assert graph.optimality([3, 2, 1, GOAL]) == 1.0
    assert graph.optimality([1, 2, 1, GOAL]) == (LONGEST - 3) / (LONGEST - 1)  # two steps too many
    assert graph.optimality([3, 1, GOAL]) == 0.0  # an edge that is none
    assert graph.optimality([3, 2, 1, 2]) == 0.0  # never there
    assert graph.optimality([1, NODES + 1, GOAL]) == 0.0  # a token that is no node
