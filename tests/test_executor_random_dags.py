"""Random networks under random plans, and under every partitioner over random profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch

from edgeflow_mpi.cluster.profile import Device, LayerCost, Link, Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.cost import Interval, Prediction, predict
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.plan import Plan, check_plan
from edgeflow_mpi.partition.random import random_plan
from edgeflow_mpi.partition.search import PARTITIONERS, plan_model
from edgeflow_mpi.partition.trim import trimmed
from edgeflow_mpi.progress import NoProgress
from edgeflow_mpi.runtime.memory import MemoryTransport
from edgeflow_mpi.units.tables import Transfer, Unit
from tests.division_cases import divided
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
        fewer = trimmed(model.graph, model.needs, plan)
        check_plan(model.graph, fewer)
        for variant in (plan, fewer, with_boundary_first(plan, random)):
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
        job = Job(divided(model, plan.division), plan, seed=seed)
        for _ in range(2):
            assert relative_error(job.run(*inputs), expected) <= bound


class Stopwatch:
    """The time of a timeline, which all transports of a job share."""

    def __init__(self, prediction: Prediction) -> None:
        self.now_s = 0.0
        self._there_s = {
            (flow.producer, flow.consumer, flow.source, flow.dest, flow.rows): when.finish_s
            for flow, when in prediction.transfers.items()
        }

    def there_s(self, t: Transfer) -> float:
        return self._there_s[t.producer, t.consumer, t.source, t.dest, t.rows]


class TimedTransport(MemoryTransport):
    """Messages are seen when the timeline has them arrive, though they have moved before."""

    watch: Stopwatch

    def arrived(self, handles: Sequence[int]) -> list[int]:
        now_s = self.watch.now_s
        due = [h for h in handles if self.watch.there_s(self._receives[h][1]) <= now_s]
        return super().arrived(due)


def played(job: Job, prediction: Prediction, inputs: Sequence[Tensor]) -> list[list[Unit]]:
    """What every executor runs when units and messages take as long as predicted.

    Each unit must begin at the very time at which the prediction has it begin.
    """
    watch = Stopwatch(prediction)
    for executor in job.executors:
        executor._transport.__class__ = TimedTransport
        executor._transport.watch = watch
    when: dict[tuple[str, int, int], Interval] = {
        (layer, rank, rows.start): interval
        for (layer, rank), pieces in prediction.pieces.items()
        for rows, interval in pieces
    }
    times = {interval.finish_s for interval in when.values()} | {0.0}
    times |= {interval.finish_s for interval in prediction.transfers.values()}
    free_s = [0.0] * len(job.executors)
    done: list[list[Unit]] = [[] for _ in job.executors]
    named = dict(zip((layer.name for layer in job.model.graph.inputs), inputs, strict=True))
    for rank, executor in enumerate(job.executors):
        executor.begin(named if rank == 0 else {})
    for watch.now_s in sorted(times):
        moved = True
        while moved:  # what takes no time makes others ready at the same time
            moved = False
            for rank, executor in enumerate(job.executors):
                if free_s[rank] <= watch.now_s and executor.step():
                    moved = True
                    unit = max(executor.trace(), key=lambda ran: ran[1])[0]
                    done[rank].append(unit)
                    interval = when[unit.layer, rank, unit.rows.start]
                    assert interval.start_s == watch.now_s, unit.label
                    free_s[rank] = interval.finish_s
    assert all(executor.finished for executor in job.executors)
    return done


@pytest.mark.parametrize("seed", range(12))
def test_the_runtime_runs_units_in_the_predicted_order(seed: int) -> None:
    """Real executors, in the time of the cost model: they choose what it has them choose."""
    random = Random(seed)
    model, inputs = made(300 + seed, steps=random.choice([6, 10, 14]))
    for ranks in (1, 2, 5):
        profile = random_profile(model.graph, ranks, random)
        plan = random_plan(model.graph, model.needs, ranks, random)
        plan = with_boundary_first(plan, random)
        prediction = predict(model.graph, model.needs, profile, plan)
        job = Job(model, plan, seed=seed, late=False)
        done = played(job, prediction, inputs)
        for rank, units in enumerate(done):
            assert sorted(unit.index for unit in units) == list(range(len(job.tables.ranks[rank])))
