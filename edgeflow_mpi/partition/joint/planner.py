"""Whole-DAG planning: from everybody's plans to a better one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.baselines import proportional
from edgeflow_mpi.partition.cost import layer_cost, predict
from edgeflow_mpi.partition.joint.search import Budget, Search
from edgeflow_mpi.partition.plan import Plan, check_plan, computing_ranks
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.progress import Progress

_HOT, _COLD = 1e-3, 1e-5
"""Temperatures of the last walk, in parts of the makespan."""


@dataclass(frozen=True)
class Found:
    """A plan, and how many plans were simulated to find it."""

    plan: Plan
    simulations: int


@dataclass(frozen=True)
class _Start:
    plan: Plan
    used: tuple[int, ...]
    makespan_s: float


def joint(
    graph: Graph,
    needs: Needs,
    profile: Profile,
    starts: Iterable[Plan],
    *,
    budget: Budget,
    seed: int = 0,
    progress: Progress,
) -> Found:
    """The best plan found for the whole DAG at once, never worse than any of ``starts``.

    Every start, and a proportional split over the k fastest devices for several k, is
    simulated; a walk begins from the best few of them, the better walks go on, and the best one
    gets what is left of the budget.

    Parameters
    ----------
    starts : plans of other partitioners.
    budget : how much searching there may be; with simulations alone the result is the same
        every time.
    seed : of the walks.
    progress : told how far the walks have come.
    """
    budget.start()
    pool = _Pool(graph, needs, profile)
    for plan in starts:
        pool.add(plan)
    for ranks in _device_sets(graph, profile):
        if budget.spent > 0.2 and pool.starts:
            break
        pool.add(proportional(graph, needs, profile.among(ranks), ranks))
    budget.used += len(pool.starts)
    best = min(pool.starts, key=lambda start: start.makespan_s)
    searches: list[Search] = []
    for start in pool.best(6):
        if budget.spent > 0.35 and searches:
            break
        found = Search(graph, needs, profile.among(start.used), pool.around(start), seed)
        found.begin(start.plan, budget)
        searches.append(found)
        progress.update(
            f"joint: from {start.makespan_s * 1e3:.4g} to {found.value_s * 1e3:.4g} ms "
            f"on {len(start.used)} devices"
        )
    searches.sort(key=lambda search: search.value_s)
    searches = searches[:3]
    at = budget.spent
    for k, search in enumerate(searches):
        if len(searches) > 1:
            search.anneal(budget, at + (k + 1) * 0.08, _HOT, _HOT / 10)
    searches.sort(key=lambda search: search.value_s)
    search = searches[0]
    search.anneal(budget, 1.0, _HOT, _COLD)
    plan = search.plan()
    check_plan(graph, plan)
    used = computing_ranks(graph, plan)
    makespan_s = predict(graph, needs, profile.among(used), plan).makespan_s
    if makespan_s > best.makespan_s:
        plan, makespan_s = best.plan, best.makespan_s
    return Found(replace(plan, partitioner="joint", predicted_s=makespan_s), budget.used)


class _Pool:
    """Plans to start from, with their makespans."""

    def __init__(self, graph: Graph, needs: Needs, profile: Profile) -> None:
        self._graph, self._needs, self._profile = graph, needs, profile
        self._simulators: dict[tuple[int, ...], Simulator] = {}
        self._stretched = profile.among(()) is not profile
        self.starts: list[_Start] = []

    def add(self, plan: Plan) -> None:
        used = computing_ranks(self._graph, plan)
        key = used if self._stretched else ()
        if key not in self._simulators:
            self._simulators[key] = Simulator(self._graph, self._needs, self._profile.among(key))
        self.starts.append(_Start(plan, used, self._simulators[key].makespan_s(plan)))

    def best(self, count: int) -> list[_Start]:
        return sorted(self.starts, key=lambda start: start.makespan_s)[:count]

    def around(self, start: _Start) -> tuple[int, ...]:
        return tuple(sorted({0, *start.used}))


def _device_sets(graph: Graph, profile: Profile) -> list[tuple[int, ...]]:
    """The k fastest devices, for every k up to 8 and then about every fifth part more."""
    ranks = range(len(profile.devices))
    whole_s = [
        sum(layer_cost(graph, profile, layer, r).seconds(layer.rows) for layer in graph.layers)
        for r in ranks
    ]
    fastest = sorted(ranks, key=lambda rank: (whole_s[rank], rank))
    counts = []
    count = 1
    while count < len(fastest):
        counts.append(count)
        count = max(count + 1, count * 6 // 5)
    counts.append(len(fastest))
    return [tuple(sorted(fastest[:count])) for count in counts]
