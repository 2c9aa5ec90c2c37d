"""How fast plans are found and evaluated, on one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.planner_cells import Timing
from edgeflow_mpi.cluster.cluster_file import cluster_profile, parse_cluster
from edgeflow_mpi.cluster.devices import cpu_model
from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.joint.planner import joint
from edgeflow_mpi.partition.joint.search import Budget, Search
from edgeflow_mpi.partition.search import plan_model
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.progress import NoProgress, Progress

CLUSTER = """
devices:
  - {{name: board, gflops: 5, overhead_us: 50, count: {devices}}}
links:
  default: {{bandwidth_mbps: 93.7, latency_ms: 0.2}}
"""
"""The cluster that the study and most publications have: equal boards on a 100 Mbit/s switch."""

DEVICES = 8
PLANNED = (("resnet50", 8), ("inception_v3", 64))
"""What the joint planner's whole time is taken of."""

_FIND = 3000
_FOR_S = 1.0


def reference_profile(graph: Graph, devices: int) -> Profile:
    spec = parse_cluster(CLUSTER.format(devices=devices), "the reference cluster")
    return cluster_profile(spec, graph)


def measure_timing(
    graph_of: Callable[[str], Graph],
    models: Sequence[str],
    planned: Sequence[tuple[str, int]],
    progress: Progress,
) -> Timing:
    """Evaluate a good plan of each model again and again; plan some models from nothing.

    Compiling, which happens once on a machine, is not timed.
    """
    Search.compile()
    evaluations_s: dict[str, float] = {}
    for model in models:
        progress.update(f"evaluations a second: {model}")
        evaluations_s[model] = _evaluations_s(graph_of(model))
    planning = []
    for model, devices in planned:
        graph = graph_of(model)
        profile = reference_profile(graph, devices)
        progress.update(f"plan {model} for {devices} devices")
        begun_s = time.perf_counter()
        plan_model(graph, Needs(graph), profile, "joint", progress=NoProgress())
        planning.append((model, devices, time.perf_counter() - begun_s))
    return Timing(cpu_model(), DEVICES, evaluations_s, tuple(planning))


def _evaluations_s(graph: Graph) -> float:
    needs, profile = Needs(graph), reference_profile(graph, DEVICES)
    few = Budget(None, _FIND)
    plan = joint(graph, needs, profile, budget=few, progress=NoProgress()).plan
    simulator = Simulator(graph, needs, profile)
    choice = simulator.choice(plan)
    simulator.simulate(choice)
    count, begun_s = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - begun_s) < _FOR_S:
        for _ in range(20):
            simulator.simulate(choice)
        count += 20
    return count / spent_s
