"""The compiled simulator against the readable cost model, and the search that stands on it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from partition_cases import random_graph, random_profile

from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.baselines import equal, single
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.joint.planner import joint
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.plan import check_plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.progress import NoProgress


@pytest.mark.parametrize("seed", range(40))
def test_the_makespan_is_that_of_the_cost_model(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng)
    needs = Needs(graph)
    ranks = rng.choice([1, 2, 3, 5, 8])
    profile = random_profile(rng, graph, ranks)
    if seed % 4 == 3:
        profile = replace(profile, network="shared")
    if seed % 3 == 2:
        profile = replace(profile, message_cpu_s=(2e-5,) * ranks)
    simulator = Simulator(graph, needs, profile)
    for _ in range(5):
        plan = random_plan(graph, needs, ranks, rng)
        expected_s = predict(graph, needs, profile, plan).makespan_s
        assert simulator.makespan_s(plan) == pytest.approx(expected_s, rel=1e-12, abs=1e-15)


def _problem(seed: int) -> tuple[Graph, Needs, random.Random]:
    rng = random.Random(seed)
    graph = random_graph(rng, rows=14)
    return graph, Needs(graph), rng


@pytest.mark.parametrize("seed", range(6))
def test_joint_is_never_worse_than_its_starts_and_the_same_every_time(seed: int) -> None:
    graph, needs, rng = _problem(seed)
    ranks = rng.choice([2, 3, 4])
    profile = random_profile(rng, graph, ranks)
    everyone = range(ranks)
    starts = [equal(graph, needs, profile, everyone), single(graph, needs, profile, everyone)]
    starts.append(random_plan(graph, needs, ranks, rng))
    found = [
        joint(
            graph, needs, profile, starts,
            budget=Budget(simulations=600), seed=1, progress=NoProgress(),
        ).plan
        for _ in range(2)
    ]  # fmt: skip
    check_plan(graph, found[0])
    assert found[0] == found[1]
    reached_s = predict(graph, needs, profile, found[0]).makespan_s
    assert found[0].predicted_s == pytest.approx(reached_s, rel=1e-12)
    assert all(reached_s <= predict(graph, needs, profile, p).makespan_s for p in starts)
