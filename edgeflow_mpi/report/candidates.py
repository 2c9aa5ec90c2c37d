"""One partitioner's plan, judged: what it takes, what it needs, what it moves.

A plan is judged by :mod:`edgeflow_mpi.partition.cost` and :mod:`edgeflow_mpi.units.memory`;
nothing is run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.division import divided
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.cost import Prediction, predict
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.partition.plan import Plan, computing_ranks
from edgeflow_mpi.units.memory import DeviceMemory, plan_memory


@dataclass(frozen=True)
class Task:
    """What is to be planned.

    ``excluded`` ranks get no work; rank 0 must not be among them. ``plan_simulations``, where
    given, limits the joint search in place of ``plan_seconds``: it then finds the same plan
    every time.
    """

    graph: Graph
    needs: Needs
    profile: Profile
    excluded: frozenset[int] = frozenset()
    seed: int = 0
    plan_seconds: float = 10.0
    plan_simulations: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.profile.devices)

    @property
    def allowed(self) -> tuple[int, ...]:
        """Ranks that may get work, in order."""
        ranks = range(len(self.profile.devices))
        return tuple(rank for rank in ranks if rank not in self.excluded)


@dataclass(frozen=True)
class Candidate:
    """One partitioner's plan, over all ranks of the profile, and what it is expected to do.

    ``graph`` is the one it is a plan for (:func:`~edgeflow_mpi.partition.graphs.graph_for`).
    ``used`` are the ranks that compute something. ``redundant_share`` is the part of the
    multiply-adds done that some other rank does as well. ``planning_s`` is how long finding it
    took, with ``simulations`` evaluations of a plan.
    """

    partitioner: str
    graph: Graph
    plan: Plan
    prediction: Prediction
    memory: tuple[DeviceMemory, ...]
    used: tuple[int, ...]
    redundant_share: float
    planning_s: float
    simulations: int

    @property
    def predicted_s(self) -> float:
        return self.prediction.makespan_s

    @property
    def bytes_moved(self) -> int:
        """Bytes of all messages of one request."""
        return sum(self.prediction.bytes_sent)

    @property
    def messages(self) -> int:
        return sum(self.prediction.messages)


@dataclass(frozen=True)
class Refused:
    """A partitioner none of whose plans fits into the devices' memory, and why."""

    partitioner: str
    reason: str


def judged(task: Task, name: str, plan: Plan) -> Candidate:
    """What ``plan``, which partitioner ``name`` made for all ranks, is expected to do."""
    graph = graph_for(name, task.graph)
    needs = task.needs if graph is task.graph else Needs(graph)
    graph, needs = divided(graph, needs, plan.division)
    used = computing_ranks(graph, plan)
    prediction = predict(graph, needs, task.profile.among(used), plan)
    return Candidate(
        partitioner=name,
        graph=graph,
        plan=replace(plan, predicted_s=prediction.makespan_s),
        prediction=prediction,
        memory=plan_memory(graph, needs, plan),
        used=used,
        redundant_share=redundant_share(graph, plan),
        planning_s=0.0,
        simulations=1,
    )


def redundant_share(graph: Graph, plan: Plan) -> float:
    """The part of all multiply-adds done that are done again by a row's owner."""
    done = again = 0.0
    for layer in graph.layers:
        spans = plan.layers[layer.name]
        rows = sum(span.rows for span in spans.computed)
        done += layer.macs * rows / layer.rows
        again += layer.macs * (rows - layer.rows) / layer.rows
    return again / done if done else 0.0


def overflowing(task: Task, memory: Sequence[DeviceMemory]) -> tuple[int, ...]:
    """Ranks that need more memory than their device may give."""
    devices = task.profile.devices
    return tuple(
        rank for rank, need in enumerate(memory) if need.peak_bytes > devices[rank].memory_bytes
    )


def shortage(task: Task, candidate: Candidate, short: Collection[int]) -> str:
    """What a plan lacks where the ranks ``short`` lack memory: a clause with the numbers."""
    devices = task.profile.devices
    worst = max(short, key=lambda r: candidate.memory[r].peak_bytes / devices[r].memory_bytes)
    return (
        f"needs {_mb(candidate.memory[worst].peak_bytes)} on {devices[worst].name}, which has "
        f"{_mb(devices[worst].memory_bytes)}"
    )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 10**7 else f"{size_bytes / 1e6:.2g} MB"
