"""How the speed-up grows with the number of devices, partitioner by partitioner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.report.candidates import Candidate, Task, judged, overflowing
from edgeflow_mpi.report.offers import alone_on_each, search_plan
from edgeflow_mpi.report.planning import Comparison, lower_bound_s
from edgeflow_mpi.report.wording import counted

SHOWN = ("joint", "exact", "aofl", "equal")
"""Partitioners that stand for their kind, where they were asked for."""

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_EVERY = 8
_BOUNDED = (1, 2, 4, 8)  # the bound takes its time on many devices


@dataclass(frozen=True)
class Scaling:
    """Speed-ups over the best single device of all.

    ``counts[k]`` devices are the first one and the fastest others. ``by_partitioner[name][k]``
    is None where no plan fits into their memory. ``bound[k]`` is what no plan on them can
    exceed; infinite where nothing is known.
    """

    counts: tuple[int, ...]
    by_partitioner: Mapping[str, tuple[float | None, ...]]
    bound: tuple[float, ...]


def speedups(comparison: Comparison, progress: Progress) -> Scaling:
    """Plan again for 1, 2, ... devices, with partitioners that are quick or the best.

    The joint planner's time is shared out among the numbers of devices.
    """
    task = comparison.task
    one_s = _reference_s(comparison)
    order = _fastest_first(task)
    counts = _counts(len(order))
    names = [c.partitioner for c in comparison.candidates if c.partitioner in SHOWN]
    if comparison.best.partitioner not in (*names, "single"):
        names.append(comparison.best.partitioner)
    found: dict[str, list[float | None]] = {name: [] for name in names}
    bounds: list[float] = []
    for count in counts:
        part = replace(
            task,
            excluded=frozenset(range(len(task.names))) - frozenset(order[:count]),
            plan_seconds=task.plan_seconds / len(counts),
        )
        starts = list(alone_on_each(part).values())
        for name in sorted(names, key="joint".__eq__):
            progress.update(f"{name} on {counted(count, 'device')}")
            candidate = _candidate(comparison, part, name, starts, progress)
            if candidate is not None:
                starts.append(candidate)
            found[name].append(None if candidate is None else one_s / candidate.predicted_s)
        bound_s = comparison.lower_bound_s
        if count != counts[-1] and (count in _BOUNDED or len(counts) <= _EVERY):
            progress.update(f"lower bound on {counted(count, 'device')}")
            bound_s = lower_bound_s(part)
        elif count != counts[-1]:
            bound_s = 0.0
        bounds.append(one_s / bound_s if bound_s else math.inf)
    # What more devices cannot exceed, fewer cannot either.
    bound = tuple(reversed(tuple(accumulate(reversed(bounds), min))))
    return Scaling(counts, {name: tuple(values) for name, values in found.items()}, bound)


def _candidate(
    comparison: Comparison, part: Task, name: str, starts: Sequence[Candidate], progress: Progress
) -> Candidate | None:
    if part.excluded == comparison.task.excluded:
        return next(c for c in comparison.candidates if c.partitioner == name)
    plan, _ = search_plan(part, name, part.allowed, starts, progress)
    candidate = judged(part, name, plan)
    return None if overflowing(part, candidate.memory) else candidate


def _reference_s(comparison: Comparison) -> float:
    single: Candidate | None = comparison.single
    return comparison.best.predicted_s if single is None else single.predicted_s


def _fastest_first(task: Task) -> list[int]:
    """Rank 0, which every plan needs, then the others by their speed."""
    others = [rank for rank in task.allowed if rank != 0]
    return [0, *sorted(others, key=lambda rank: (_model_s(task, rank), rank))]


def _counts(most: int) -> tuple[int, ...]:
    if most <= _EVERY:
        return tuple(range(1, most + 1))
    return (*(count for count in _COUNTS if count < most), most)


def _model_s(task: Task, rank: int) -> float:
    return sum(
        layer_cost(task.graph, task.profile, layer, rank).seconds(layer.rows)
        for layer in task.graph.layers
    )
