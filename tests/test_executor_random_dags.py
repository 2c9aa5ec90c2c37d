"""Random networks under random plans, and under every partitioner over random profiles."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from edgeflow_mpi.cluster.profile import Device, LayerCost, Link, Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.search import PARTITIONERS, graph_for, plan_model
from edgeflow_mpi.progress import NoProgress
from tests.inprocess import Job, Model, build, relative_error, tolerance
from tests.random_dags import random_network
from tests.rule_checks import check_layers

Tensor = torch.Tensor

NETWORKS = 24


def made(seed: int, steps: int) -> tuple[Model, list[Tensor]]:
    network, inputs = random_network(seed, steps)
    return build(network, *inputs), inputs


def with_boundary_first(plan: Plan, random: Random) -> Plan:
    """The plan with some units computing first what others wait for."""
    units = [(name, rank) for name in plan.layers for rank in range(plan.ranks)]
    return replace(plan, boundary_first=frozenset(u for u in units if random.random() < 0.4))


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_random_networks_under_random_plans(seed: int) -> None:
    """Three requests in a row: a buffer that is read too late or filled too early shows."""
    random = Random(seed)
    model, inputs = made(seed, steps=random.choice([4, 8, 14]))
    check_layers(model, *inputs, seed=seed)
    requests = [inputs, [x * -0.7 + 0.1 for x in inputs], [x.flip(2) for x in inputs]]
    answers = [tolerance(model.module, *request) for request in requests]
    for ranks in (1, 2, random.choice([3, 4, 5]), 8):
        plan = random_plan(model.graph, model.needs, ranks, random)
        for variant in (plan, with_boundary_first(plan, random)):
            job = Job(model, variant, seed=seed)
            for request, (expected, bound) in zip(requests, answers, strict=True):
                assert relative_error(job.run(*request), expected) <= bound


def random_profile(graph: Graph, ranks: int, random: Random) -> Profile:
    """Devices and links that differ by up to two orders of magnitude."""
    costs = tuple(
        {
            graph.signatures[layer.name]: LayerCost(
                1e-5 * random.random() * slowness, 1e-4 * random.random() * slowness
            )
            for layer in graph.layers
            if layer.kind == "compute"
        }
        for slowness in (10 ** random.uniform(-1, 1) for _ in range(ranks))
    )
    links = {
        (i, j): Link(10 ** random.uniform(-6, -3), 10 ** random.uniform(5, 9))
        for i in range(ranks)
        for j in range(ranks)
        if i != j
    }
    devices = tuple(Device(f"d{i}", 1, 1 << 30, f"h{i}") for i in range(ranks))
    return Profile(graph.name, graph.fingerprint, devices, costs, links)


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_every_partitioner_gives_the_same_answer(partitioner: str) -> None:
    for seed in (101, 102, 103):
        random = Random(seed)
        model, inputs = made(seed, steps=8)
        graph = graph_for(partitioner, model.graph)
        if graph is not model.graph:
            model = replace(model, graph=graph, needs=Needs(graph))
        expected, bound = tolerance(model.module, *inputs)
        profile = random_profile(model.graph, random.choice([2, 3, 4]), random)
        plan = plan_model(
            model.graph, model.needs, profile, partitioner,
            progress=NoProgress(), budget=Budget(None, 300),
        )  # fmt: skip
        job = Job(model, plan, seed=seed)
        for _ in range(2):
            assert relative_error(job.run(*inputs), expected) <= bound
