"""The partitioners by name, and the choice of the devices that they divide the model among."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.errors import InputError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph
from edgeflow_mpi.partition.aofl import aofl
from edgeflow_mpi.partition.baselines import equal, proportional, single
from edgeflow_mpi.partition.cost import layer_cost, predict
from edgeflow_mpi.partition.exact import exact
from edgeflow_mpi.partition.fused import fused
from edgeflow_mpi.partition.gather import gather
from edgeflow_mpi.partition.joint.planner import joint
from edgeflow_mpi.partition.joint.search import Budget
from edgeflow_mpi.partition.layerwise import layerwise
from edgeflow_mpi.partition.lp import lp
from edgeflow_mpi.partition.one_shot import one_shot
from edgeflow_mpi.partition.plan import Plan, check_plan, computing_ranks
from edgeflow_mpi.partition.progressive import Partitioner
from edgeflow_mpi.partition.random import random_partition
from edgeflow_mpi.progress import Progress


@dataclass(frozen=True)
class Scheme:
    """A partitioner, and whether it is run on several sets of devices.

    Where ``tries_subsets`` is set, the plan with the least predicted makespan wins. The
    others are given every rank.
    """

    partition: Partitioner
    tries_subsets: bool


def schemes(seed: int = 0) -> Mapping[str, Scheme]:
    """All partitioners but ``joint``, which looks at whole plans, by the names that users give.

    ``seed`` is for the random one.
    """
    return {
        "lp": Scheme(lp, tries_subsets=True),
        "exact": Scheme(exact, tries_subsets=True),
        "equal": Scheme(equal, tries_subsets=False),
        "proportional": Scheme(proportional, tries_subsets=True),
        "gather": Scheme(gather, tries_subsets=True),
        "fused": Scheme(fused, tries_subsets=True),
        "aofl": Scheme(aofl, tries_subsets=True),
        "layers": Scheme(layerwise, tries_subsets=False),
        "single": Scheme(single, tries_subsets=False),
        "one-shot": Scheme(one_shot, tries_subsets=True),
        "random": Scheme(partial(random_partition, seed=seed), tries_subsets=False),
    }


PARTITIONERS = ("joint", *schemes())
"""Names of the partitioners, the default first."""
EVERY_COUNT = 16
"""Up to so many devices every number of them is tried."""
PLAN_SECONDS = 10.0
"""How long ``joint`` searches unless told."""


def plan_model(
    graph: Graph,
    needs: Needs,
    profile: Profile,
    partitioner: str,
    *,
    progress: Progress,
    seed: int = 0,
    budget: Budget | None = None,
    measured: bool = False,
) -> Plan:
    """The best plan that the named partitioner finds for the devices of ``profile``.

    ``joint`` searches for whole plans. Most others are run on the k fastest devices for many k
    (:func:`device_sets`) and on every single device, so that a device that only slows things down
    gets no rows and the answer may be not to distribute at all. ``single`` and ``layers`` look for
    the best devices by themselves. ``equal`` and ``random`` are asked for by people who want to
    see every rank at work: they use all of them, whatever it costs.

    Parameters
    ----------
    graph : what :func:`~edgeflow_mpi.partition.graphs.graph_for` makes of the model's graph.
    needs : its row algebra.
    profile : one device for each rank of the job.
    partitioner : one of :data:`PARTITIONERS`.
    progress : told which devices are being tried.
    seed : for ``joint`` and ``random``; the others take no chances.
    budget : how much ``joint`` may search; :data:`PLAN_SECONDS` unless told.
    measured : whether plans are judged by costs as measured, not by lines.

    Returns
    -------
    Plan
        Checked, with ``predicted_s`` set. Of equally good plans the one on fewer devices wins.

    Raises
    ------
    InputError
        There is no partitioner of that name.
    ProfileError
        The profile does not cover the model, a device or a link.
    """
    if partitioner == "joint":
        if budget is None:
            budget = Budget(PLAN_SECONDS)
        return joint(
            graph, needs, profile,
            budget=budget, seed=seed, measured=measured, progress=progress,
        ).plan  # fmt: skip
    scheme = schemes(seed).get(partitioner)
    if scheme is None:
        raise InputError(
            f"there is no partitioner {partitioner!r}: choose one of {', '.join(PARTITIONERS)}"
        )
    ranks = len(profile.devices)
    sets = device_sets(graph, profile) if scheme.tries_subsets else [tuple(range(ranks))]
    candidates = []
    for used in sets:
        progress.update(f"{partitioner} on {len(used)} of {ranks} devices")
        plan = scheme.partition(graph, needs, profile.among(used), used)
        # Ranks of one host that the plan leaves idle leave their cores to the others.
        busy = profile.among(computing_ranks(graph, plan))
        predicted = predict(graph, needs, busy, plan, measured=measured)
        candidates.append((predicted.makespan_s, plan))
    best_s, best = min(candidates, key=lambda candidate: candidate[0])
    check_plan(graph, best)
    return replace(best, predicted_s=best_s)


def device_sets(graph: Graph, profile: Profile) -> list[tuple[int, ...]]:
    """Sets of ranks (ascending) worth trying: every single one, and the k fastest for many k.

    These are all k up to :data:`EVERY_COUNT`, then about every sixth part more, and all ranks: a
    plan for 31 devices is next to one for 32. The fastest is the one with the least measured
    time for the whole model; of equals, the lower rank.
    """
    ranks = range(len(profile.devices))
    alone = [(rank,) for rank in ranks]
    fastest = sorted(ranks, key=lambda rank: (_model_s(graph, profile, rank), rank))
    counts = list(range(2, min(len(fastest), EVERY_COUNT) + 1))
    while counts and counts[-1] < len(fastest):
        counts.append(min(counts[-1] * 7 // 6, len(fastest)))
    return alone + [tuple(sorted(fastest[:count])) for count in counts]


def _model_s(graph: Graph, profile: Profile, rank: int) -> float:
    """Computation time of the whole model on one device."""
    return sum(
        layer_cost(graph, profile, layer, rank).seconds(layer.rows) for layer in graph.layers
    )
