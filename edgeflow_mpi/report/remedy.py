"""What would have to change before distributing a model pays: found by predicting it.

The network is made faster step by step in the profile, plans are predicted on it, and the
least improvement that gives a clear gain is reported. Plans are those that the partitioners
found and quick ones (even and proportional shares, fused blocks) on the fastest devices, so a
factor found here is enough, though a better plan may need less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgeflow_mpi.cluster.profile import Link, Profile
from edgeflow_mpi.cluster.subset import subset
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.plan import Plan, computing_ranks
from edgeflow_mpi.partition.relocate import spread_out
from edgeflow_mpi.partition.search import device_sets, schemes
from edgeflow_mpi.partition.simulator.simulator import Simulator
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.report.candidates import Task, overflowing
from edgeflow_mpi.report.planning import Comparison
from edgeflow_mpi.units.memory import plan_memory

WORTH_IT = 1.2
"""The gain over one device that a remedy must give."""

_QUICK = ("proportional", "equal", "aofl")
_FASTEST = 1e4
_PRECISION = 1.02
_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Remedy:
    """By how much a network must be faster for a gain of ``WORTH_IT``.

    ``bandwidth_factor`` is for every link's bandwidth alone, ``latency_factor`` for latencies
    (divided by it) alone, ``both_factor`` for both; None where no factor suffices.
    ``ideal_speedup`` is what a network without any delay would give. ``combined_speed`` is the
    summed speed of all devices over that of the fastest.
    """

    bandwidth_factor: float | None
    latency_factor: float | None
    both_factor: float | None
    ideal_speedup: float
    combined_speed: float


def find_remedy(comparison: Comparison, progress: Progress) -> Remedy:
    """What makes distributing worth it, where :class:`Comparison` says that it is not."""
    task = comparison.task
    plans = [c.plan for c in comparison.candidates if c.graph is task.graph and len(c.used) > 1]
    plans += _quick_plans(task, progress)
    alone = [candidate.plan for candidate in comparison.alone.values()]

    def gain(bandwidth: float, latency: float) -> float:
        simulator = Simulator(
            task.graph, task.needs, faster_network(task.profile, bandwidth, latency)
        )
        one_s = min(simulator.makespan_s(plan) for plan in alone)
        best_s = min((simulator.makespan_s(plan) for plan in plans), default=one_s)
        return one_s / min(best_s, one_s) if best_s else 1.0

    progress.update("how fast the network would have to be")
    return Remedy(
        bandwidth_factor=_least(lambda factor: gain(factor, 1.0)),
        latency_factor=_least(lambda factor: gain(1.0, factor)),
        both_factor=_least(lambda factor: gain(factor, factor)),
        ideal_speedup=gain(_FASTEST**2, _FASTEST**2),
        combined_speed=_combined_speed(task),
    )


def faster_network(profile: Profile, bandwidth: float, latency: float) -> Profile:
    """The profile with bandwidths multiplied by one factor and latencies divided by another."""
    links = {
        pair: Link(link.latency_s / latency, link.bandwidth_bytes_s * bandwidth)
        for pair, link in profile.links.items()
    }
    return replace(profile, links=links)


def _least(gain: Callable[[float], float]) -> float | None:
    """The least factor with a gain of ``WORTH_IT``, a little more; None where there is none."""
    high = 2.0
    while gain(high) < WORTH_IT:
        high *= 2
        if high > _FASTEST:
            return None
    low = high / 2
    while high > low * _PRECISION:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if gain(middle) >= WORTH_IT else (middle, high)
    return high


def _quick_plans(task: Task, progress: Progress) -> list[Plan]:
    """Plans on some sets of the fastest devices, for the network as it is and a perfect one."""
    found = []
    known = schemes(task.seed)
    for profile in (task.profile, faster_network(task.profile, _FASTEST**2, _FASTEST**2)):
        devices = subset(profile, task.allowed)
        for used in _some_sets(task, devices):
            for name in _QUICK:
                if name not in known:
                    continue
                progress.update(f"{name} on {len(used)} devices")
                plan = known[name].partition(task.graph, task.needs, devices, used)
                found.append(spread_out(plan, task.allowed, len(task.names)))
    return [
        plan
        for plan in found
        if len(computing_ranks(task.graph, plan)) > 1
        and not overflowing(task, plan_memory(task.graph, task.needs, plan))
    ]


def _some_sets(task: Task, profile: Profile) -> list[tuple[int, ...]]:
    """The 2, 3, 4, 6, 8, 12, ... fastest devices of ``profile``, and all of them."""
    count = len(profile.devices)
    sizes = sorted({*(size for size in _SIZES if size < count), count})
    sets = {len(used): used for used in device_sets(task.graph, profile)}
    return [sets[size] for size in sizes if size > 1]


def _combined_speed(task: Task) -> float:
    seconds = [
        sum(
            layer_cost(task.graph, task.profile, layer, rank).seconds(layer.rows)
            for layer in task.graph.layers
        )
        for rank in task.allowed
    ]
    fastest = min(seconds)
    return sum(fastest / each for each in seconds) if fastest else float(len(seconds))
