"""Whole-DAG planning: everybody's plans, then a better one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.division import Division
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.aofl import aofl
from edgeflow_mpi.partition.baselines import equal, proportional, single
from edgeflow_mpi.partition.cost import layer_cost, predict
from edgeflow_mpi.partition.exact import exact
from edgeflow_mpi.partition.fused import fused
from edgeflow_mpi.partition.joint.divisions import Case, divisions_worth_trying
from edgeflow_mpi.partition.joint.search import Budget, Search
from edgeflow_mpi.partition.layerwise import layerwise
from edgeflow_mpi.partition.lp import lp
from edgeflow_mpi.partition.plan import Plan, check_plan, computing_ranks
from edgeflow_mpi.partition.progressive import Partitioner
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.partition.trim import trimmed
from edgeflow_mpi.progress import Progress

OTHERS: Mapping[str, Partitioner] = {
    "exact": exact, "layers": layerwise, "fused": fused, "aofl": aofl, "lp": lp,
}  # fmt: skip
"""Partitioners whose plans for the most promising devices are starts, the quick ones first."""

# Temperatures of a walk, in parts of the makespan; parts of the budget that stages may take.
_HOT, _WARM, _COLD = 1e-3, 1e-4, 1e-5
# What is left in the end is for judging the result.
_FOR_STARTS, _FOR_CLIMBS, _FOR_HEATS, _FOR_ALL = 0.2, 0.3, 0.08, 0.98
_FOR_DIVISIONS = 0.1
_CLIMBS, _HEATS, _DIVISIONS = 6, 3, 2
_NEARLY = 1.02
"""A division whose first plan is this close to the best may well be better in the end."""
_ENOUGH = 100
"""Simulations for every unit and second of the budget; more find next to nothing better. Half as
many left VGG-16 on eight devices 1.5 % above what these find."""


@dataclass(frozen=True)
class Found:
    """A plan, and how many plans were simulated to find it."""

    plan: Plan
    simulations: int


def joint(
    graph: Graph,
    needs: Needs,
    profile: Profile,
    starts: Iterable[Plan] = (),
    *,
    budget: Budget,
    seed: int = 0,
    measured: bool = False,
    progress: Progress,
) -> Found:
    """The best plan found by searching whole plans for the least simulated makespan.

    Varied are the breakpoints of every layer; for every unit whether halo rows are recomputed
    or received, above and below, and whether boundary rows go first; where layers that cannot
    be divided run, and on which ranks they are replicated; the order of the layers; with all
    that the set of devices; and which layers are divided by channels or by inputs in place of
    rows (:mod:`.divisions`).

    Parameters
    ----------
    graph, needs, profile : as for ``predict``; every device of the profile may be used.
    starts : plans to start from, all of ``graph`` and for all ranks of ``profile``.
    budget : of time, of simulations, or of both. The search starts its clock; it takes a
        little longer where the starts alone take longer, and ends early on small problems,
        which are soon searched through. Compiling the search, once on every machine, is not
        counted.
    seed : of the search. With a budget of simulations alone the same seed gives the same plan.
    measured : whether costs are as measured, in place of the lines by which the other
        partitioners plan. A line is off by a tenth at some numbers of rows, and a search finds
        them: its plans were those whose costs the lines make too low.
    progress : told about the best makespan so far.

    Returns
    -------
    Found
        Its plan is checked and has ``predicted_s`` set; it is for the graph with the plan's
        ``division``. It is never worse than any of
        ``starts``, nor than those that the search makes by itself: the model divided by speed
        among the k fastest devices, for many k, and the plans of the other partitioners for
        the devices that this makes most promising.

    Notes
    -----
    The best starts are improved by turning over the marks of whole layers, greedily; the best
    of what comes out by short annealing [1]_; and the best of that by a long one, most of whose
    moves happen on the critical path of the plan that it has come to.

    References
    ----------
    .. [1] S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, "Optimization by simulated annealing",
       Science 220, 1983.
    """
    Search.compile(progress)
    if budget.seconds is not None and budget.simulations is None:
        units = len(graph.layers) * len(profile.devices)
        budget = Budget(budget.seconds, round(_ENOUGH * budget.seconds * units))
    budget.start()
    own = Case(graph, needs)
    pool = _Pool(profile, measured)
    for plan in starts:
        pool.add(own, plan)
    for plan in _own_starts(graph, needs, profile, pool, budget):
        pool.add(own, plan)
    budget.used += len(pool.starts)
    if len(profile.devices) > 1:
        _divide(own, profile, pool, budget)
    best = pool.ranked[0]
    if len(profile.devices) > 1:
        case, plan = _walk(profile, pool, budget, seed, progress)
        check_plan(case.graph, plan)
        lean = trimmed(case.graph, case.needs, plan)
        # Of equals, the one that does less.
        best = min(pool.start(case, lean), pool.start(case, plan), best, key=_promise_s)
    # The oracle has the last word.
    busy, case = profile.among(best.used), best.case
    predicted_s = predict(case.graph, case.needs, busy, best.plan, measured=measured).makespan_s
    plan = replace(best.plan, partitioner="joint", predicted_s=predicted_s, division=case.division)
    return Found(plan, budget.used)


@dataclass(frozen=True)
class _Start:
    case: Case
    plan: Plan
    used: tuple[int, ...]
    makespan_s: float
    promise_s: float


class _Pool:
    """Plans with their makespans."""

    def __init__(self, profile: Profile, measured: bool) -> None:
        self._profile = profile
        self.measured = measured
        self._simulators: dict[tuple[Division, tuple[int, ...]], Simulator] = {}
        self.starts: list[_Start] = []

    @property
    def ranked(self) -> list[_Start]:
        """The fastest first."""
        return sorted(self.starts, key=_promise_s)

    def add(self, case: Case, plan: Plan) -> None:
        self.starts.append(self.start(case, plan))

    def start(self, case: Case, plan: Plan) -> _Start:
        """The plan simulated, as ranks that it leaves idle leave the cores to others."""
        used = computing_ranks(case.graph, plan)
        busy = self._profile.among(used)
        key = case.division, () if busy is self._profile else used
        if key not in self._simulators:
            self._simulators[key] = Simulator(case.graph, case.needs, busy, measured=self.measured)
        makespan_s = self._simulators[key].makespan_s(plan)
        return _Start(case, plan, used, makespan_s, case.promise_s(makespan_s, self._profile))


def _promise_s(start: _Start) -> float:
    return start.promise_s


def _own_starts(
    graph: Graph, needs: Needs, profile: Profile, pool: _Pool, budget: Budget
) -> Iterator[Plan]:
    """Plans of the other partitioners that gave none, as far as the budget for starts allows."""

    def made(partition: Partitioner, ranks: Sequence[int]) -> Plan:
        return partition(graph, needs, profile.among(ranks), ranks)

    everyone = tuple(range(len(profile.devices)))
    yield made(single, everyone)
    yield made(equal, everyone)
    for ranks in device_sets(graph, profile):
        if budget.spent > _FOR_STARTS / 2:
            break
        yield made(proportional, ranks)
    had = {start.plan.partitioner for start in pool.starts}
    for name, partition in OTHERS.items():
        if budget.spent > _FOR_STARTS:
            break
        if name in had:
            continue
        yield made(partition, pool.ranked[0].used)


def _divide(own: Case, profile: Profile, pool: _Pool, budget: Budget) -> None:
    """The most promising ways to divide some layers otherwise become starts as well."""
    best, found = pool.ranked[0], []
    if len(best.used) > 1:
        more = divisions_worth_trying(
            own, profile, best.plan, best.used, best.makespan_s,
            lambda case, plan: pool.start(case, plan).makespan_s,
        )  # fmt: skip
        until = budget.spent + _FOR_DIVISIONS
        for case, plan, makespan_s in more:
            budget.used += 1
            used = computing_ranks(case.graph, plan)
            promise_s = case.promise_s(makespan_s, profile)
            start = _Start(case, plan, used, makespan_s, promise_s)
            if start.promise_s < best.promise_s * _NEARLY:
                found.append(start)
            if budget.spent > until:
                break
    found.sort(key=_promise_s)
    pool.starts += found[:_DIVISIONS]


def _walk(
    profile: Profile, pool: _Pool, budget: Budget, seed: int, progress: Progress
) -> tuple[Case, Plan]:
    """Climb from the best starts, anneal the best of those, and the best of these for long."""

    def told(search: Search) -> Callable[[], None]:
        def tell() -> None:
            progress.update(
                f"joint: {search.value_s * 1e3:.4g} ms on up to {len(search.ranks)} devices, "
                f"{budget.used} plans simulated, {100 * min(budget.spent, 1):.0f} % of the time"
            )

        return tell

    case_of: dict[Search, Case] = {}
    until = max(_FOR_CLIMBS, budget.spent + _FOR_CLIMBS - _FOR_STARTS)
    for start in pool.ranked[:_CLIMBS]:
        if case_of and budget.spent > until:
            break
        busy, case = profile.among(start.used), start.case
        ranks = _around(case.graph, profile, start.used) if busy is profile else start.used
        among = tuple(sorted({0, *ranks}))
        search = Search(case.graph, case.needs, busy, among, seed, measured=pool.measured)
        search.begin(start.plan, budget)
        case_of[search] = case

    def promise_s(search: Search) -> float:
        return case_of[search].promise_s(search.value_s, profile)

    searches = sorted(case_of, key=promise_s)[:_HEATS]
    if len(searches) > 1:
        first = budget.spent
        for k, search in enumerate(searches):
            search.anneal(budget, first + (k + 1) * _FOR_HEATS, _HOT, _WARM, told(search))
        searches.sort(key=promise_s)
    searches[0].anneal(budget, _FOR_ALL, _HOT, _COLD, told(searches[0]))
    return case_of[searches[0]], searches[0].plan()


def _around(graph: Graph, profile: Profile, used: Sequence[int]) -> tuple[int, ...]:
    """The devices in use, and the fastest of the others, about one for every four."""
    others = [rank for rank in _fastest(graph, profile) if rank not in used]
    return (*used, *others[: (len(used) + 3) // 4])


def device_sets(graph: Graph, profile: Profile) -> list[tuple[int, ...]]:
    """The k fastest devices, for every k up to six, then about every fifth part more, and all."""
    fastest = _fastest(graph, profile)
    counts = []
    count = 1
    while count < len(fastest):
        counts.append(count)
        count = max(count + 1, count * 6 // 5)
    return [tuple(sorted(fastest[:count])) for count in (*counts, len(fastest))]


def _fastest(graph: Graph, profile: Profile) -> list[int]:
    """All ranks, those first that compute the whole model fastest."""

    def whole_s(rank: int) -> float:
        costs = ((layer_cost(graph, profile, layer, rank), layer.rows) for layer in graph.layers)
        return sum(cost.seconds(rows) for cost, rows in costs)

    return sorted(range(len(profile.devices)), key=lambda rank: (whole_s(rank), rank))
