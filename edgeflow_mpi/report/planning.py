"""Every partitioner's plan for one model and one cluster, side by side.

Nothing is run: what a plan takes is predicted (:mod:`edgeflow_mpi.partition.cost`), what it
needs is computed (:mod:`edgeflow_mpi.partition.memory`), and how far it is from the best
imaginable is certified by a lower bound. A plan that does not fit into a device's memory is
not offered.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.cluster.subset import subset
from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.baselines import single
from edgeflow_mpi.partition.bound import lower_bound
from edgeflow_mpi.partition.cost import Prediction, predict
from edgeflow_mpi.partition.memory import DeviceMemory, plan_memory
from edgeflow_mpi.partition.plan import LayerPlan, Plan, computing_ranks
from edgeflow_mpi.partition.search import device_sets, graph_for, plan_model, schemes
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.spans import EMPTY


@dataclass(frozen=True)
class Task:
    """What is to be planned. ``excluded`` ranks get no work; rank 0 must not be among them."""

    graph: Graph
    needs: Needs
    profile: Profile
    excluded: frozenset[int] = frozenset()
    seed: int = 0
    plan_seconds: float = 10.0

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

    ``graph`` is the one it is a plan for (:func:`~edgeflow_mpi.partition.search.graph_for`).
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


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_partitioners` found.

    ``alone[r]`` is the whole model on rank r alone, for every rank that may work and has the
    memory. ``lower_bound_s`` is less than any plan on the allowed devices can take.
    """

    task: Task
    alone: Mapping[int, Candidate]
    candidates: tuple[Candidate, ...]
    refused: tuple[Refused, ...]
    lower_bound_s: float

    @property
    def single(self) -> Candidate | None:
        """The best of running the whole model on one device; None where none has the memory."""
        return min(self.alone.values(), key=lambda c: c.predicted_s, default=None)

    @property
    def best(self) -> Candidate:
        """The fastest; of equally fast plans the simplest."""
        return self.ranked[0]

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """The fastest first; of equally fast plans those on fewer devices, then ``single``."""
        return tuple(
            sorted(
                self.candidates,
                key=lambda c: (c.predicted_s, len(c.used), c.partitioner != "single"),
            )
        )

    def speedup(self, candidate: Candidate) -> float | None:
        """How many times as fast as the best single device."""
        single = self.single
        if single is None:
            return None
        return single.predicted_s / candidate.predicted_s if candidate.predicted_s else 1.0

    def gap(self, candidate: Candidate) -> float:
        """How much longer than the lower bound, as a share of it; 0.1 for 10 %."""
        if not self.lower_bound_s:
            return 0.0 if not candidate.predicted_s else float("inf")
        return max(0.0, candidate.predicted_s / self.lower_bound_s - 1)


def compare_partitioners(task: Task, partitioners: Sequence[str], progress: Progress) -> Comparison:
    """Plan with each of ``partitioners``, on the devices that may work and have the memory.

    Raises
    ------
    PlanError
        Nothing fits into the devices' memory; the sentence has the numbers.
    """
    with progress.step("the model on every single device"):
        alone = _alone(task)
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for name in partitioners:
        with progress.step(f"plan: {name}"):
            found = _plan(task, name, alone, progress)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            refused.append(found)
    if not candidates:
        raise PlanError(_nothing_fits(task, alone, refused))
    with progress.step("lower bound"):
        bound_s = lower_bound_s(task)
    return Comparison(task, alone, tuple(candidates), tuple(refused), bound_s)


def lower_bound_s(task: Task) -> float:
    """No plan on the allowed devices takes less."""
    return lower_bound(task.graph, task.needs, task.profile, task.allowed).makespan_s


def judged(task: Task, name: str, plan: Plan) -> Candidate:
    """What ``plan``, which partitioner ``name`` made for all ranks, is expected to do."""
    graph = graph_for(name, task.graph)
    needs = task.needs if graph is task.graph else Needs(graph)
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


def _alone(task: Task) -> dict[int, Candidate]:
    """The model on each allowed device that has the memory for it, rank 0 its share included."""
    found = {}
    for rank in task.allowed:
        started_s = time.perf_counter()
        plan = single(task.graph, task.needs, task.profile, [rank])
        candidate = judged(task, "single", plan)
        if not overflowing(task, candidate.memory):
            found[rank] = replace(candidate, planning_s=time.perf_counter() - started_s)
    return found


def _plan(
    task: Task, name: str, alone: Mapping[int, Candidate], progress: Progress
) -> Candidate | Refused:
    """The plan of one partitioner that fits, devices that lack the memory being left out."""
    if name == "single" and alone:
        best = min(alone.values(), key=lambda c: c.predicted_s)
        planning_s = sum(candidate.planning_s for candidate in alone.values())
        return replace(best, planning_s=planning_s, simulations=len(alone))
    started_s = time.perf_counter()
    simulations = 0
    allowed = list(task.allowed)
    while True:
        plan, count = search_plan(task, name, allowed, progress)
        simulations += count
        found = judged(task, name, plan)
        short = overflowing(task, found.memory)
        if not short:
            break
        reason = _shortage(task, found, short)
        progress.say(f"  {name} {reason}: planned again without")
        if 0 in short:
            spared, count = _sparing_first(task, name, allowed)
            simulations += count
            if spared is None:
                return Refused(name, reason)
            found = spared
            break
        allowed = [rank for rank in allowed if rank not in short]
    planning_s = time.perf_counter() - started_s
    return replace(found, planning_s=planning_s, simulations=simulations)


def _sparing_first(task: Task, name: str, ranks: Sequence[int]) -> tuple[Candidate | None, int]:
    """The best fitting plan of some sets of ``ranks`` without rank 0, and how many were tried."""
    scheme, others = schemes(task.seed).get(name), [rank for rank in ranks if rank != 0]
    if scheme is None or not others:
        return None, 0
    graph, size = graph_for(name, task.graph), len(task.names)
    needs = task.needs if graph is task.graph else Needs(graph)
    places = device_sets(graph, subset(task.profile, others))
    sets = [[others[place] for place in chosen] for chosen in places]
    found = []
    for used in sets if scheme.tries_subsets else [others]:
        plan = scheme.partition(graph, needs, task.profile.among(used), used)
        assert plan.ranks == size
        found.append(judged(task, name, plan))
    fitting = [candidate for candidate in found if not overflowing(task, candidate.memory)]
    return min(fitting, key=lambda c: c.predicted_s, default=None), len(found)


def search_plan(
    task: Task, name: str, ranks: Sequence[int], progress: Progress
) -> tuple[Plan, int]:
    """The named partitioner's plan on ``ranks`` (rank 0 first), and how many it evaluated."""
    graph = graph_for(name, task.graph)
    plan = plan_model(
        graph,
        task.needs if graph is task.graph else Needs(graph),
        subset(task.profile, ranks),
        name,
        progress=progress,
        seed=task.seed,
    )
    scheme = schemes(task.seed).get(name)
    tried = len(device_sets(graph, task.profile)) if scheme and scheme.tries_subsets else 1
    return spread_out(plan, ranks, len(task.profile.devices)), tried


def spread_out(plan: Plan, ranks: Sequence[int], size: int) -> Plan:
    """A plan for the devices ``ranks`` as one for all ``size`` devices, the others idle."""
    if tuple(ranks) == tuple(range(size)):
        return plan
    place = {rank: k for k, rank in enumerate(ranks)}

    def spread(lp: LayerPlan) -> LayerPlan:
        return LayerPlan(
            tuple(lp.owned[place[r]] if r in place else EMPTY for r in range(size)),
            tuple(lp.computed[place[r]] if r in place else EMPTY for r in range(size)),
        )

    return replace(
        plan,
        ranks=size,
        layers={name: spread(lp) for name, lp in plan.layers.items()},
        boundary_first=frozenset((name, ranks[rank]) for name, rank in plan.boundary_first),
    )


def _shortage(task: Task, candidate: Candidate, short: Collection[int]) -> str:
    devices = task.profile.devices
    worst = max(short, key=lambda r: candidate.memory[r].peak_bytes / devices[r].memory_bytes)
    return (
        f"needs {_mb(candidate.memory[worst].peak_bytes)} on {devices[worst].name}, which has "
        f"{_mb(devices[worst].memory_bytes)}"
    )


def _nothing_fits(task: Task, alone: Mapping[int, Candidate], refused: Sequence[Refused]) -> str:
    tried = "; ".join(f"{item.partitioner} {item.reason}" for item in refused)
    if alone:
        rank = min(alone, key=lambda rank: alone[rank].predicted_s)
        return (
            f"no plan that was asked for fits into the devices' memory ({tried}): "
            f"--partitioner single does, on {task.names[rank]}"
        )
    return (
        f"{task.graph.name} does not fit into the memory of these devices, neither whole on one "
        f"of them nor divided ({tried}): add a device with more memory, raise memory_mb, or "
        "choose a smaller model"
    )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 10**7 else f"{size_bytes / 1e6:.2g} MB"
