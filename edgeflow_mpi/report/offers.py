"""A plan of every partitioner that fits into the devices' memory, if there is one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeflow_mpi.cluster.subset import subset
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.partition.baselines import single
from edgeflow_mpi.partition.graphs import graph_for
from edgeflow_mpi.partition.joint.planner import joint
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.relocate import narrowed, spread_out
from edgeflow_mpi.partition.search import device_sets, plan_model, schemes
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.report.candidates import (
    Candidate,
    Refused,
    Task,
    judged,
    overflowing,
    shortage,
)


def alone_on_each(task: Task) -> dict[int, Candidate]:
    """The model on each allowed device that has the memory for it, rank 0 its share included."""
    found = {}
    for rank in task.allowed:
        started_s = time.perf_counter()
        plan = single(task.graph, task.needs, task.profile, [rank])
        candidate = judged(task, "single", plan)
        if not overflowing(task, candidate.memory):
            found[rank] = replace(candidate, planning_s=time.perf_counter() - started_s)
    return found


def offer(
    task: Task,
    name: str,
    alone: Mapping[int, Candidate],
    starts: Sequence[Candidate],
    progress: Progress,
) -> Candidate | Refused:
    """The plan of one partitioner that fits, devices that lack the memory being left out.

    Parameters
    ----------
    alone : what :func:`alone_on_each` found.
    starts : other partitioners' plans, which ``joint`` starts from and is never worse than.
    """
    started_s = time.perf_counter()
    if name == "single" and alone:
        best = min(alone.values(), key=lambda c: c.predicted_s)
        planning_s = sum(candidate.planning_s for candidate in alone.values())
        return replace(best, planning_s=planning_s, simulations=len(alone))
    simulations = 0
    allowed = list(task.allowed)
    while True:
        plan, count = search_plan(task, name, allowed, starts, progress)
        simulations += count
        found = judged(task, name, plan)
        short = overflowing(task, found.memory)
        if not short:
            break
        reason = shortage(task, found, short)
        progress.say(f"  {name} {reason}: planned again without")
        if 0 in short:
            spared, count = _sparing_first(task, name, allowed)
            simulations += count
            if spared is None and not (name == "joint" and starts):
                return Refused(name, reason)
            found = spared if spared is not None else starts[0]
            break
        allowed = [rank for rank in allowed if rank not in short]
    if name == "joint":
        found = _no_worse(task, found, starts)
    planning_s = time.perf_counter() - started_s
    return replace(found, planning_s=planning_s, simulations=simulations)


def _sparing_first(task: Task, name: str, ranks: Sequence[int]) -> tuple[Candidate | None, int]:
    """The best fitting plan of some sets of ``ranks`` without rank 0, and how many were tried.

    Rank 0 still holds the input and the output.
    """
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
    task: Task,
    name: str,
    ranks: Sequence[int],
    starts: Sequence[Candidate],
    progress: Progress,
) -> tuple[Plan, int]:
    """The named partitioner's plan on ``ranks`` (rank 0 first), and how many it evaluated."""
    if name == "joint" and len(ranks) == 1:  # there is nothing to search
        name = "single"
    graph, profile, size = graph_for(name, task.graph), subset(task.profile, ranks), len(task.names)
    if name == "joint":
        budget = Budget.of(task.plan_seconds, task.plan_simulations)
        plans = [
            narrowed(start.plan, ranks)
            for start in starts
            if start.graph is task.graph and set(start.used) <= set(ranks)
        ]
        found = joint(
            graph, task.needs, profile, plans, budget=budget, seed=task.seed, progress=progress
        )
        return spread_out(found.plan, ranks, size), found.simulations
    needs = task.needs if graph is task.graph else Needs(graph)
    plan = plan_model(graph, needs, profile, name, progress=progress, seed=task.seed)
    scheme = schemes(task.seed).get(name)
    tried = len(device_sets(graph, profile)) if scheme and scheme.tries_subsets else 1
    return spread_out(plan, ranks, size), tried


def _no_worse(task: Task, found: Candidate, starts: Sequence[Candidate]) -> Candidate:
    """``found``, or a better start where the lack of memory left a worse plan."""
    others = [start for start in starts if start.graph is task.graph]
    best = min((found, *others), key=lambda candidate: candidate.predicted_s)
    return replace(best, partitioner="joint")
