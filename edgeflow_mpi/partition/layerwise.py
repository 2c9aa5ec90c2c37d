"""Every layer whole on one device: list scheduling over the DAG, as in HEFT.

The *upward rank* of a layer is the length of the longest way from its start to an answer,

    rank(l) = mean_i t_i(l) + max over readers m of (mean_ij c_ij(l, m) + rank(m)),

where ``t_i(l)`` is the time of the whole layer on device i and ``c_ij(l, m)`` that of what m
reads of l, as one message from i to j. Layers are scheduled in the order of decreasing upward
rank, each on the device where it finishes first; a device may run it in a gap between layers
that are scheduled already (insertion). Input and output layers stay on rank 0. Contention of
messages is not part of the schedule, as in the publication; finished plans are judged with it.

The published heuristic is kept as it is but for pinned layers; for one inference of a network
that is mostly a chain there is little for it to do in parallel, which is its point here.

References
----------
.. [1] H. Topcuoglu, S. Hariri and M.-Y. Wu, "Performance-effective and low-complexity task
   scheduling for heterogeneous computing", IEEE Transactions on Parallel and Distributed
   Systems 13(3), 2002.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from itertools import permutations
from statistics import fmean

from edgeflow_mpi.cluster.profile import Link, Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.spans import Span


def layerwise(graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> Plan:
    """Heterogeneous earliest finish time over ``ranks``; see the module."""
    schedule = _Schedule(graph, needs, profile, ranks)
    upward = schedule.upward_ranks_s()
    index = {layer.name: i for i, layer in enumerate(graph.layers)}
    for layer in sorted(graph.layers, key=lambda layer: (-upward[layer.name], index[layer.name])):
        schedule.place(layer)
    plans = {
        layer.name: LayerPlan.whole(layer.rows, len(profile.devices), schedule.device[layer.name])
        for layer in graph.layers
    }
    order = sorted(index, key=lambda name: (schedule.start_s[name], index[name]))
    return Plan("layers", len(profile.devices), plans, tuple(order))


class _Schedule:
    """Where and when layers run that have been placed so far."""

    def __init__(self, graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> None:
        self._graph = graph
        self._profile = profile
        self._ranks = tuple(ranks)
        self._edge_bytes = {
            (name, layer.name): transfer_bytes(graph.by_name[name], need)
            for layer in graph.layers
            for name, need in zip(
                layer.inputs, needs.of(layer.name, Span(0, layer.rows)), strict=True
            )
        }
        self._busy: dict[int, list[tuple[float, float]]] = {rank: [] for rank in {0, *ranks}}
        self.device: dict[str, int] = {}
        self.start_s: dict[str, float] = {}
        self._finish_s: dict[str, float] = {}

    def upward_ranks_s(self) -> dict[str, float]:
        """The longest way from each layer's start to an answer, in mean times."""
        graph, links = self._graph, self._links()
        latency_s = fmean(link.latency_s for link in links) if links else 0.0
        byte_s = fmean(1.0 / link.bandwidth_bytes_s for link in links) if links else 0.0
        found: dict[str, float] = {}
        for layer in reversed(graph.layers):
            behind_s = [
                latency_s + self._edge_bytes[layer.name, name] * byte_s + found[name]
                for name in graph.consumers[layer.name]
            ]
            own_s = fmean(self._compute_s(layer, rank) for rank in self._ranks)
            found[layer.name] = own_s + max(behind_s, default=0.0)
        return found

    def place(self, layer: Layer) -> None:
        """Schedule ``layer``, all of whose inputs have been, where it finishes first."""
        ranks = (0,) if layer.pinned else self._ranks
        starts = {rank: self._earliest_s(layer, rank) for rank in ranks}
        rank = min(ranks, key=lambda rank: (starts[rank] + self._compute_s(layer, rank), rank))
        finish_s = starts[rank] + self._compute_s(layer, rank)
        insort(self._busy[rank], (starts[rank], finish_s))
        self.device[layer.name] = rank
        self.start_s[layer.name], self._finish_s[layer.name] = starts[rank], finish_s

    def _earliest_s(self, layer: Layer, rank: int) -> float:
        """The start of the first gap on ``rank`` that the layer fits into, inputs there."""
        start_s = 0.0
        for name in layer.inputs:
            there_s = self._finish_s[name]
            source = self.device[name]
            if source != rank:
                size_bytes = self._edge_bytes[name, layer.name]
                there_s += self._profile.links[source, rank].seconds(size_bytes)
            start_s = max(start_s, there_s)
        duration_s = self._compute_s(layer, rank)
        for busy_from_s, busy_to_s in self._busy[rank]:
            if start_s + duration_s <= busy_from_s:
                break
            start_s = max(start_s, busy_to_s)
        return start_s

    def _compute_s(self, layer: Layer, rank: int) -> float:
        return layer_cost(self._graph, self._profile, layer, rank).seconds(layer.rows)

    def _links(self) -> list[Link]:
        """Between the ranks in use and rank 0."""
        return [self._profile.links[pair] for pair in permutations(sorted(self._busy), 2)]
