"""What every lower bound here starts from: useful rows, least times, fastest links."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.channels import trace_channels
from edgeflow_mpi.graph.division import can_divide, flattens, multiplies
from edgeflow_mpi.graph.needs import Needs, native_calls
from edgeflow_mpi.graph.tail import maybe_divided
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.partition.timeline import Floats, Ints
from edgeflow_mpi.spans import Span

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Edge:
    """Row r of the reading layer needs rows ``[low[r], high[r])`` of layer ``source``.

    ``dense`` says that rows r and r + 1 never leave a row between their needs out, so that
    consecutive rows together need one span.
    """

    source: int
    low: Ints
    high: Ints
    dense: bool


class Case:
    """A graph on some ranks of a profile, layers and these ranks numbered.

    Attributes
    ----------
    layers : of the graph, in its order.
    ranks : how many there are. Number 0 is rank 0.
    edges : for each layer, those to its inputs.
    useful : for each layer, which of its rows some answer depends on.
    count : how many they are.
    work : the layers that take time and have useful rows.
    fixed_s, row_s : the least costs that a layer can have on each rank, [layer, rank].
    loose : those that plans may divide otherwise than by rows (:mod:`edgeflow_mpi.graph.tail`).
    by_channel : for each loose layer and its inputs, whether channels need just the same
        channels of the input, if it is divided by channels as well.
    by_inputs : those that may be divided by their inputs.
    spared : flattenings that are then not needed; they take no time here.
    shared : whether all messages take turns on one medium.
    """

    def __init__(self, graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> None:
        self.layers = graph.layers
        self.ranks = len(ranks)
        self.shared = profile.network == "shared"
        index = {layer.name: i for i, layer in enumerate(self.layers)}
        self.edges: tuple[tuple[Edge, ...], ...] = tuple(
            tuple(
                _edge(index[name], low, high)
                for name, (low, high) in zip(layer.inputs, needs.table(layer.name), strict=True)
            )
            for layer in self.layers
        )
        self.useful = self._useful_rows()
        self.count = np.array([mask.sum() for mask in self.useful], dtype=np.int64)
        self.work = [i for i, layer in enumerate(self.layers) if not layer.pinned and self.count[i]]
        names = maybe_divided(graph, self.ranks) if self.ranks > 1 else frozenset()
        self.loose = frozenset(index[name] for name in names)
        self.by_channel = {i: _by_channel(graph, self.layers[i]) for i in self.loose}
        self.by_inputs = frozenset(i for i in self.loose if multiplies(self.layers[i]))
        # A flattening is not needed where the layer behind it is divided by its inputs.
        self.spared = frozenset(
            i
            for i, layer in enumerate(self.layers)
            if self.loose
            and flattens(layer)
            and any(multiplies(graph.by_name[name]) for name in graph.consumers[layer.name])
        )
        self.fixed_s, self.row_s = np.zeros((2, len(self.layers), self.ranks))
        for place, rank in enumerate(ranks):
            # Ranks of one host that compute nothing leave their cores to the others.
            alone = profile.among((rank,))
            for i, layer in enumerate(self.layers):
                if i in self.spared:
                    continue
                cost = layer_cost(graph, alone, layer, rank)
                self.fixed_s[i, place], self.row_s[i, place] = cost.fixed_s, cost.per_row_s
        self._links = {
            (i, j): profile.links[source, dest]
            for i, source in enumerate(ranks)
            for j, dest in enumerate(ranks)
            if i != j and (source, dest) in profile.links
        }

    def _useful_rows(self) -> tuple[Bools, ...]:
        found = [np.zeros(layer.rows, dtype=bool) for layer in self.layers]
        for i in range(len(self.layers) - 1, -1, -1):
            if self.layers[i].kind == "output":
                found[i][:] = True
            rows = np.flatnonzero(found[i])
            for edge in self.edges[i]:
                # +1 where a need begins, -1 behind it: positive sums are needed rows.
                change = np.zeros(self.layers[edge.source].rows + 1, dtype=np.int64)
                np.add.at(change, edge.low[rows], 1)
                np.add.at(change, np.maximum(edge.high[rows], edge.low[rows]), -1)
                found[edge.source] |= np.cumsum(change[:-1]) > 0
            if not self.layers[i].divisible and found[i].any():
                found[i][:] = True
        return tuple(found)

    def least_s(self, layer: int, rows: Ints | int) -> Floats:
        """The least time in which any one device computes ``rows`` rows; 0 for none."""
        amounts = np.asarray(rows)
        found: Floats = (self.fixed_s[layer] + self.row_s[layer] * amounts[..., None]).min(axis=-1)
        return np.where(amounts > 0, found, 0.0)

    @cached_property
    def latency_s(self) -> float:
        """The least latency of any link."""
        return min((link.latency_s for link in self._links.values()), default=0.0)

    @cached_property
    def byte_s(self) -> float:
        """The least time of a byte on any link."""
        return min((1.0 / link.bandwidth_bytes_s for link in self._links.values()), default=0.0)

    def rate_bytes_s(self, *, source: int | None = None, dest: int | None = None) -> float:
        """The bandwidth of the fastest link from ``source`` or to ``dest``."""
        return max(
            link.bandwidth_bytes_s
            for (i, j), link in self._links.items()
            if source in (None, i) and dest in (None, j)
        )

    @cached_property
    def round_trip_s(self) -> Floats:
        """For each rank, the least time of a message from rank 0 to it and of one back.

        On each way others may pass it on.
        """
        # One row, or one summand, is the least that can travel.
        size_bytes = min(transfer_bytes(layer, Span(0, 1)) for layer in self.layers)
        if self.loose:
            size_bytes = 1  # one channel of anything
        there = self._distances_s(size_bytes, backwards=False)
        back = self._distances_s(size_bytes, backwards=True)
        if any(not edges and not self.layers[i].pinned for i, edges in enumerate(self.edges)):
            there = np.zeros(self.ranks)  # a layer without inputs may start anywhere
        return there + back

    def _distances_s(self, size_bytes: int, *, backwards: bool) -> Floats:
        """Dijkstra's algorithm from rank 0, or to it."""
        found = np.full(self.ranks, np.inf)
        queue = [(0.0, 0)]
        while queue:
            at_s, rank = heapq.heappop(queue)
            if at_s >= found[rank]:
                continue
            found[rank] = at_s
            for other in range(self.ranks):
                pair = (other, rank) if backwards else (rank, other)
                if other != rank and pair in self._links:
                    heapq.heappush(queue, (at_s + self._links[pair].seconds(size_bytes), other))
        return found


def _edge(source: int, low: Ints, high: Ints) -> Edge:
    return Edge(source, low, high, bool((low[1:] <= high[:-1]).all() and (low < high).all()))


def _by_channel(graph: Graph, layer: Layer) -> tuple[bool, ...]:
    if not can_divide(graph, layer, "outputs"):
        return (False,) * len(layer.inputs)
    one = np.array([0]), np.array([1])
    wants = trace_channels(layer, native_calls(graph, layer), *one)
    return tuple(not want.whole for want in wants.inputs)
