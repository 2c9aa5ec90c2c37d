"""Partitioners that look at no link: an even split, one by measured speed, one device.

References
----------
.. [1] J. Mao et al., "MoDNN: Local distributed mobile computing system for deep neural
   network", DATE 2017: every layer in equal one-dimensional shares, exchanged layer by layer.
.. [2] J. Mao et al., "MeDNN: A distributed mobile system with enhanced partition and
   deployment for large-scale DNNs", ICCAD 2017, and L. Zeng et al., "CoEdge: Cooperative DNN
   inference with adaptive workload partitioning over heterogeneous edge devices", IEEE/ACM
   Transactions on Networking 29(2), 2021: shares by the devices' speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.cost import predict
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.partition.progressive import plan_progressively
from edgeflow_mpi.partition.timeline import Timeline


def equal(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Every divided layer in shares that differ by at most one row, as in MoDNN [1]_.

    The published system gathers on one node between layers; here, as under every
    partitioner, neighbours exchange only the rows that are missing.
    """
    return plan_progressively("equal", _even, graph, needs, profile, ranks)


def proportional(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Every divided layer in shares proportional to its measured speed on each device.

    The speed of a device is that of the layer as a whole. The idea is MeDNN's and CoEdge's
    [2]_; CoEdge's threshold below which a device is left out, and its links, are not part of
    it (leaving devices out is done for every partitioner by
    :mod:`edgeflow_mpi.partition.search`).
    """
    return plan_progressively("proportional", _by_speed, graph, needs, profile, ranks)


def single(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """The whole model on the one of ``ranks`` that answers first, transfers included."""
    best: Plan | None = None
    best_s = 0.0
    for rank in ranks:
        alone = profile.among([rank])
        plan = plan_progressively("single", _even, graph, needs, alone, [rank])
        makespan_s = predict(graph, needs, alone, plan).makespan_s
        if best is None or makespan_s < best_s:
            best, best_s = plan, makespan_s
    if best is None:
        raise ValueError("no rank to choose from")
    return best


def speed_shares(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> tuple[int, ...]:
    """Breakpoints that give each rank rows in proportion to its speed on the whole layer."""
    seconds = [timeline.cost(layer, rank).seconds(layer.rows) for rank in ranks]
    if min(seconds) <= 0.0:
        weights = [Fraction(int(s <= 0.0)) for s in seconds]
    else:
        weights = [1 / Fraction(s) for s in seconds]
    return apportion(layer.rows, weights)


def apportion(rows: int, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Breakpoints of ``rows`` rows in proportion to ``weights``, each rounded by itself.

    So the same weights give breakpoints of layers of different heights that lie at the same
    share of the height, and few rows have to change hands. The sum of ``weights`` must be
    positive.
    """
    total = sum(weights, Fraction(0))
    return tuple(
        int((2 * rows * part + total) / (2 * total)) for part in (Fraction(0), *accumulate(weights))
    )


def _even(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> tuple[int, ...]:
    return apportion(layer.rows, [Fraction(1)] * len(ranks))


def _by_speed(timeline: Timeline, layer: Layer, ranks: Sequence[int]) -> tuple[int, ...]:
    return speed_shares(timeline, layer, ranks)
