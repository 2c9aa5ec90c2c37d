"""Every partitioner's plan for one model and one cluster, side by side.

How far a plan is from the best imaginable is certified by a lower bound. A plan that does not
fit into a device's memory is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeflow_mpi.errors import PlanError
from edgeflow_mpi.partition.bound import lower_bound
from edgeflow_mpi.progress import Progress
from edgeflow_mpi.report.candidates import Candidate, Refused, Task
from edgeflow_mpi.report.offers import alone_on_each, offer


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

    ``joint`` comes last, wherever it is named, as it starts from the plans of all others.

    Raises
    ------
    PlanError
        Nothing fits into the devices' memory; the sentence has the numbers.
    """
    with progress.step("the model on every single device"):
        alone = alone_on_each(task)
    offers: dict[str, Candidate] = {}
    refused: list[Refused] = []
    for name in sorted(partitioners, key="joint".__eq__):
        with progress.step(f"plan: {name}"):
            found = offer(task, name, alone, tuple(offers.values()), progress)
        if isinstance(found, Candidate):
            offers[name] = found
        else:
            refused.append(found)
    candidates = tuple(offers[name] for name in partitioners if name in offers)
    if not candidates:
        raise PlanError(_nothing_fits(task, alone, refused))
    with progress.step("lower bound"):
        bound_s = lower_bound_s(task)
    return Comparison(task, alone, candidates, tuple(refused), bound_s)


def lower_bound_s(task: Task) -> float:
    """No plan on the allowed devices takes less."""
    return lower_bound(task.graph, task.needs, task.profile, task.allowed).makespan_s


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
