"""Fused blocks: runs of layers in which a rank recomputes its halos rather than receive them.

A *block* is a run of layers in the graph's order. In it every rank computes whatever its own
rows of the block's later layers need, so nothing travels between layers of one block; what a
block reads of earlier ones comes from its owners. Layers that cannot be recomputed (undivided
ones and those that make summands) may lie in a block, and exchange their rows as ever.

Rows of a tensor that nobody in the block reads are shared out by the devices' speed on the
whole model, at the same fractions of the height in every layer. Inside a block the owner of
a row is one of the ranks that compute it anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from edgeflow_mpi.cluster.profile import Profile
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.baselines import apportion
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.placement import place_chain
from edgeflow_mpi.partition.plan import LayerPlan, Plan
from edgeflow_mpi.partition.timeline import Floats, Ints, Timeline
from edgeflow_mpi.spans import Span


def recomputable(layer: Layer) -> bool:
    """Whether ranks may share out its rows and compute some of them twice."""
    return layer.splits and layer.combine is None and not layer.pinned


class Shares:
    """The devices of a profile as fused blocks see them: shares of rows, speeds and links.

    All arrays have one entry for each rank of the profile; ranks that are not used have no
    rows.
    """

    def __init__(self, graph: Graph, needs: Needs, profile: Profile, ranks: Sequence[int]) -> None:
        self.graph = graph
        self.needs = needs
        self.profile = profile
        self.ranks = tuple(ranks)
        self.layers = tuple(layer for layer in graph.layers if not layer.pinned)
        self._weights = _speeds(graph, profile, ranks)
        self._breakpoints: dict[int, Ints] = {}
        count = len(profile.devices)
        self._fixed_s, self._per_row_s = np.zeros((2, len(self.layers), count))
        for position, layer in enumerate(self.layers):
            for rank in ranks:
                cost = layer_cost(graph, profile, layer, rank)
                self._fixed_s[position, rank] = cost.fixed_s
                self._per_row_s[position, rank] = cost.per_row_s
        self._latency_s, self._byte_s = np.zeros((2, count, count))
        for (source, dest), link in profile.links.items():
            self._latency_s[source, dest] = link.latency_s
            self._byte_s[source, dest] = 1.0 / link.bandwidth_bytes_s

    def breakpoints(self, layer: Layer) -> Ints:
        """Where the rows of each rank end and the next one's begin: n + 1 integers."""
        if layer.pinned:
            return np.array([0] + [layer.rows] * len(self._weights), dtype=np.int64)
        if layer.rows not in self._breakpoints:
            found = apportion(layer.rows, self._weights)
            self._breakpoints[layer.rows] = np.array(found, dtype=np.int64)
        return self._breakpoints[layer.rows]

    def compute_s(self, position: int, rows: Ints) -> Floats:
        """Seconds that every rank takes for its ``rows`` of the layer at ``position``."""
        seconds = self._fixed_s[position] + self._per_row_s[position] * rows
        found: Floats = np.where(rows > 0, seconds, 0.0)
        return found

    def exchange_s(self, producer: Layer, start: Ints, stop: Ints) -> tuple[Floats, Floats, float]:
        """What it takes to bring every rank rows ``[start, stop)`` from their owners.

        Returns
        -------
        sending, receiving : seconds for which each rank's link is occupied.
        latency_s : of the slowest link that is used.
        """
        owned = self.breakpoints(producer)
        last = np.minimum(owned[1:, None], stop[None, :])
        rows = np.maximum(last - np.maximum(owned[:-1, None], start[None, :]), 0)
        np.fill_diagonal(rows, 0)
        seconds = rows * (producer.out.row_bytes * self._byte_s)
        latency_s = float(np.where(rows > 0, self._latency_s, 0.0).max())
        return seconds.sum(axis=1), seconds.sum(axis=0), latency_s


class Block:
    """A block that grows towards the input, one layer at a time.

    ``plans`` has the owned and computed spans of every recomputable layer in it.
    ``compute_s[i]`` is what rank i takes to compute them.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._wanted: dict[str, tuple[Ints, Ints]] = {}
        self._exchange: dict[str, tuple[Floats, Floats, float]] = {}
        count = len(shares.profile.devices)
        self.compute_s: Floats = np.zeros(count)
        self.plans: dict[str, LayerPlan] = {}

    def prepend(self, position: int) -> None:
        """Take in the layer at ``position``, which must be the one before the block."""
        shares = self._shares
        layer = shares.layers[position]
        breakpoints = shares.breakpoints(layer)
        if not recomputable(layer):
            if layer.splits:
                self.compute_s = self.compute_s + shares.compute_s(position, np.diff(breakpoints))
            return
        start, stop = breakpoints[:-1], breakpoints[1:]
        if layer.name in self._wanted:
            wanted = self._wanted.pop(layer.name)
            self._exchange.pop(layer.name, None)
            start, stop = _owners(breakpoints, *wanted)
            owned = start, stop
            start, stop = _hull(start, stop, *wanted)
        else:
            owned = start, stop
        self.plans[layer.name] = LayerPlan(_spans(*owned), _spans(start, stop))
        self.compute_s = self.compute_s + shares.compute_s(position, stop - start)
        tables = shares.needs.table(layer.name)
        for name, (low, high) in zip(layer.inputs, tables, strict=True):
            producer = shares.graph.by_name[name]
            if recomputable(producer) or producer.kind == "input":
                self._want(producer, low, high, start, stop)

    def _want(self, producer: Layer, low: Ints, high: Ints, start: Ints, stop: Ints) -> None:
        some = stop > start
        first = np.where(some, low[np.where(some, start, 0)], 0)
        last = np.where(some, high[np.where(some, stop - 1, 0)], 0)
        if producer.name in self._wanted:
            first, last = _hull(first, last, *self._wanted[producer.name])
        self._wanted[producer.name] = first, last
        self._exchange[producer.name] = self._shares.exchange_s(producer, first, last)

    @property
    def input_s(self) -> float:
        """Until every rank has what the block reads of earlier ones, all sent at once."""
        if not self._exchange:
            return 0.0
        found = list(self._exchange.values())
        sending = np.sum([exchange[0] for exchange in found], axis=0)
        receiving = np.sum([exchange[1] for exchange in found], axis=0)
        latency_s = max(exchange[2] for exchange in found)
        return float(max(sending.max(), receiving.max())) + latency_s

    @property
    def duration_s(self) -> float:
        """Seconds from the block's inputs at their owners to its last row."""
        return self.input_s + float(self.compute_s.max())


def plan_blocks(name: str, shares: Shares, starts: Iterable[int], stop: int) -> Plan:
    """A plan of the blocks that begin at positions ``starts``, the first being 0.

    Layers at position ``stop`` and behind it are whole on rank 0. Chains of undivided layers
    are placed as under every partitioner.
    """
    divided: dict[str, LayerPlan] = {}
    begins = set(starts)
    block = Block(shares)
    for position in range(stop - 1, -1, -1):
        block.prepend(position)
        if position in begins:
            divided |= block.plans
            block = Block(shares)
    behind = {layer.name for layer in shares.layers[stop:]}
    return _assemble(name, shares, divided, behind)


def _assemble(
    name: str, shares: Shares, divided: Mapping[str, LayerPlan], on_rank_0: set[str]
) -> Plan:
    graph = shares.graph
    timeline = Timeline(graph, shares.needs, shares.profile)
    placed: dict[str, LayerPlan] = {}
    for layer in graph.layers:
        if layer.pinned or layer.name in on_rank_0:
            plan = LayerPlan.whole(layer.rows, timeline.ranks, 0)
        elif layer.name in divided:
            plan = divided[layer.name]
        elif layer.splits:
            # Summands are made of the rows that a rank has of what is summed.
            plan = LayerPlan.split(timeline.plans[layer.inputs[0]].owned)
        else:
            if layer.name not in placed:
                placed |= place_chain(timeline, layer, shares.ranks, placed)
            plan = placed[layer.name]
        timeline.commit(layer, plan)
    order = tuple(layer.name for layer in graph.layers)
    return Plan(name, timeline.ranks, timeline.plans, order)


def _speeds(graph: Graph, profile: Profile, ranks: Sequence[int]) -> tuple[Fraction, ...]:
    """Weights of all ranks: one over the time of the divided layers, 0 for those not used."""
    seconds = {
        rank: sum(
            layer_cost(graph, profile, layer, rank).seconds(layer.rows)
            for layer in graph.layers
            if layer.splits
        )
        for rank in ranks
    }
    free = min(seconds.values()) <= 0.0
    return tuple(
        Fraction(0)
        if rank not in seconds
        else Fraction(int(seconds[rank] <= 0.0))
        if free
        else 1 / Fraction(seconds[rank])
        for rank in range(len(profile.devices))
    )


def _hull(start: Ints, stop: Ints, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Spans that hold ``[start, stop)`` and ``[first, last)``, of which either may be empty."""
    some, others = stop > start, last > first
    both = some & others
    low = np.where(both, np.minimum(start, first), np.where(some, start, first))
    high = np.where(both, np.maximum(stop, last), np.where(some, stop, last))
    return low, high


def _owners(shares: Ints, first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Spans that tile the rows, each within ``[first, last)`` of its rank where they can be.

    Breakpoints are those of ``shares``, moved to where the rows wanted on both sides of them
    overlap, or between them where there is a gap. Ranks that want nothing own nothing.
    """
    rows = int(shares[-1])
    some = last > first
    if not some.any():
        return shares[:-1], shares[1:]
    behind = np.minimum.accumulate(np.where(some, first, rows)[::-1])[::-1]
    before = np.maximum.accumulate(np.where(some, last, 0))
    low = np.minimum(behind[1:], before[:-1])
    high = np.maximum(behind[1:], before[:-1])
    inner = np.minimum(np.maximum(shares[1:-1], low), high)
    wanted_behind = np.logical_or.accumulate(some[::-1])[::-1]
    ends = [0, *np.where(wanted_behind[1:], inner, rows).tolist(), rows]
    for rank in range(1, len(ends) - 1):
        if not some[rank - 1] and wanted_behind[rank]:
            ends[rank] = ends[rank - 1]
    breakpoints = np.maximum.accumulate(np.array(ends, dtype=np.int64))
    return breakpoints[:-1], breakpoints[1:]


def _spans(start: Ints, stop: Ints) -> tuple[Span, ...]:
    return tuple(Span.of(int(a), int(b)) for a, b in zip(start, stop, strict=True))
