"""What a layer-by-layer planner knows: which rows are where, and when.

Layers are planned in topological order. When a layer's turn comes, its predecessors are
fixed, and the seed's formula says when device i would finish rows ``[a, b)`` of it::

    T_i(a, b) = max(free_i, max over producers m and senders j with p_mij > 0 of
                            T_mj + latency_ji + p_mij * row_bytes_m / bandwidth_ji)
                + c_i + w_i * (b - a)

where ``p_mij`` counts the rows of m that ``[a, b)`` needs, that j owns and that i does not
have. ``free_i`` is when device i has finished what it was given so far (the published
formula leaves it out, and branches need it). A producer that makes summands sends a whole
summand from every owner. Contention of messages is left to
:mod:`edgeflow_mpi.partition.cost`, which judges finished plans.

What a rank has of a producer is what it computes and what an earlier consumer made it
receive, kept as one contiguous span: a delivery that leaves a gap is forgotten unless it is
the larger part. That can only overstate the rows still to send.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeflow_mpi.cluster.profile import LayerCost, Profile
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.cost import layer_cost
from edgeflow_mpi.partition.flow import transfer_bytes
from edgeflow_mpi.partition.plan import LayerPlan
from edgeflow_mpi.spans import EMPTY, Span

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Breakpoints = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Message:
    """Rows of a producer that one rank could get from one other, in one message.

    A message with p > 0 of ``rows`` is there at ``base_s + p * row_s``.
    """

    rows: Span
    base_s: float
    row_s: float


@dataclass(frozen=True)
class LayerProblem:
    """The seed's problem for one divisible layer: which of ``rows`` rows does each rank own?

    Positions 0..k-1 are the used ranks in rank order. ``low[m, a]`` and ``high[m, b]`` say
    that rows ``[a, b)`` need rows ``[low[m, a], high[m, b])`` of producer m (both have
    ``rows + 1`` columns; low's last and high's first are extrapolated). For position i and
    message s, rows ``[start[i, s], stop[i, s])`` of producer ``producer[i, s]`` can come from
    one sender, as in :class:`Message`; unused places have an empty span. ``ready_s[i]`` is
    the earliest start of any rows (device free, summands there), ``free_s[i]`` when the
    device is free.
    """

    rows: int
    fixed_s: Floats
    per_row_s: Floats
    free_s: Floats
    ready_s: Floats
    low: Ints
    high: Ints
    producer: Ints
    start: Ints
    stop: Ints
    base_s: Floats
    row_s: Floats

    @property
    def ranks(self) -> int:
        return len(self.fixed_s)

    def finish_s(self, breakpoints: Breakpoints) -> Floats:
        """Finish times T, 0 for empty spans, of candidates ``breakpoints[..., k + 1]``.

        Fractional breakpoints are allowed: needs are interpolated between rows.
        """
        return self.spans_finish_s(breakpoints[..., :-1], breakpoints[..., 1:])

    def spans_finish_s(self, a: Breakpoints, b: Breakpoints) -> Floats:
        """Finish times T of spans ``[a, b)``, [..., k] each, which need not join; 0 for empty."""
        low, high = self.needed(a, b)
        overlap = np.minimum(high, self.stop) - np.maximum(low, self.start)
        there_s = np.where(overlap > 1e-9, self.base_s + self.row_s * overlap, 0.0)
        start_s = np.maximum(self.ready_s, there_s.max(axis=-1, initial=0.0))
        width = b - a
        done_s: Floats = start_s + self.fixed_s + self.per_row_s * width
        return np.where(width > 1e-9, done_s, 0.0)

    def needed(self, a: Breakpoints, b: Breakpoints) -> tuple[Floats, Floats]:
        """Bounds of the rows needed by ``[a, b)`` of each message's producer: [..., k, s]."""
        if not self.start.size:
            nothing = np.zeros((*a.shape, 0))
            return nothing, nothing
        return _at(self.low, self.producer, a), _at(self.high, self.producer, b)

    def score(self, breakpoints: Breakpoints) -> npt.NDArray[np.float64]:
        """(largest finish time, sum of the times at which devices are free): [..., 2].

        The first is the objective. The second breaks its ties, since the layers that follow
        start from all of these times.
        """
        finish_s = self.finish_s(breakpoints)
        after_s = np.where(finish_s > 0.0, finish_s, self.free_s)
        return np.stack([finish_s.max(axis=-1), after_s.sum(axis=-1)], axis=-1)


def _at(table: Ints, producer: Ints, x: Breakpoints) -> Floats:
    """``table[producer[i, s], x[..., i]]``, interpolated where x is fractional."""
    floor = np.floor(x).astype(np.int64)
    here = table[producer, floor[..., None]]
    if x.dtype == np.int64:
        return here.astype(np.float64)
    after = table[producer, np.minimum(floor + 1, table.shape[1] - 1)[..., None]]
    found: Floats = here + (after - here) * (x - floor)[..., None]
    return found


class Timeline:
    """Finish times and possessions of the layers planned so far.

    ``finish_s[layer][i]`` is when rank i has its computed rows, ``free_s[i]`` when device i
    has finished all it was given. Used by one planner, in one pass.
    """

    def __init__(self, graph: Graph, needs: Needs, profile: Profile) -> None:
        self.graph = graph
        self.needs = needs
        self.profile = profile
        self.ranks = len(profile.devices)
        self.free_s = [0.0] * self.ranks
        self.finish_s: dict[str, list[float]] = {}
        self.plans: dict[str, LayerPlan] = {}
        self._have: dict[tuple[str, int], Span] = {}

    def cost(self, layer: Layer, rank: int) -> LayerCost:
        return layer_cost(self.graph, self.profile, layer, rank)

    def message_s(self, source: int, dest: int, size_bytes: int) -> float:
        """Seconds that a message takes by itself."""
        return self._link(source, dest)[0] + size_bytes * self._link(source, dest)[1]

    def start_s(self, layer: Layer, rank: int, rows: Span) -> float:
        """When ``rank`` could start ``rows`` (not empty) of ``layer``.

        Inputs that are not planned yet are taken to be there.
        """
        start_s = self.free_s[rank]
        for name, need in zip(layer.inputs, self.needs.of(layer.name, rows), strict=True):
            if need and name in self.plans:
                for message in self.messages(self.graph.by_name[name], rank):
                    held = (message.rows & need).rows
                    if held:
                        start_s = max(start_s, message.base_s + held * message.row_s)
        return start_s

    def messages(self, producer: Layer, dest: int) -> list[Message]:
        """What ``dest`` could get of ``producer`` from others, beyond what it has."""
        have = self._have.get((producer.name, dest), EMPTY)
        finish_s = self.finish_s[producer.name]
        found = []
        for source, owned in enumerate(self.plans[producer.name].owned):
            if source == dest or not owned:
                continue
            latency_s, byte_s = self._link(source, dest)
            base_s = finish_s[source] + latency_s
            if producer.combine:
                if have.rows < producer.rows:
                    base_s += transfer_bytes(producer, owned) * byte_s
                    found.append(Message(owned, base_s, 0.0))
            else:
                row_s = producer.out.row_bytes * byte_s
                found += [Message(rows, base_s, row_s) for rows in owned.minus(have)]
        return found

    def commit(self, layer: Layer, plan: LayerPlan) -> None:
        """Fix the plan of ``layer``, whose inputs must all be fixed."""
        finish_s = [0.0] * self.ranks
        for rank, rows in enumerate(plan.computed):
            if rows:
                start_s = self.start_s(layer, rank, rows)
                finish_s[rank] = start_s + self.cost(layer, rank).seconds(rows.rows)
        for rank, rows in enumerate(plan.computed):
            if rows:
                self.free_s[rank] = finish_s[rank]
                self._have[layer.name, rank] = rows
                self._receive(layer, rank, rows)
        self.finish_s[layer.name] = finish_s
        self.plans[layer.name] = plan

    def problem(self, layer: Layer, ranks: Sequence[int]) -> LayerProblem:
        """The problem of ``layer`` on ``ranks`` (ascending)."""
        divided, low, high = [], [], []
        ready_s = [self.free_s[rank] for rank in ranks]
        tables = self.needs.table(layer.name)
        for name, (first, last) in zip(layer.inputs, tables, strict=True):
            producer = self.graph.by_name[name]
            if producer.combine:
                for i, rank in enumerate(ranks):
                    arrivals_s = [m.base_s for m in self.messages(producer, rank)]
                    ready_s[i] = max([ready_s[i], *arrivals_s])
            else:
                divided.append(producer)
                low.append(np.append(first, 2 * first[-1] - first[-2]))
                high.append(np.insert(last, 0, 2 * last[0] - last[1]))
        messages = [
            [(m, message) for m, p in enumerate(divided) for message in self.messages(p, rank)]
            for rank in ranks
        ]
        width = max((len(row) for row in messages), default=0)
        shape = (len(ranks), width)
        producer_index, start, stop = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        base_s, row_s = np.zeros(shape), np.zeros(shape)
        for i, row in enumerate(messages):
            for s, (m, message) in enumerate(row):
                producer_index[i, s] = m
                start[i, s], stop[i, s] = message.rows.start, message.rows.stop
                base_s[i, s], row_s[i, s] = message.base_s, message.row_s
        costs = [self.cost(layer, rank) for rank in ranks]
        return LayerProblem(
            rows=layer.rows,
            fixed_s=np.array([cost.fixed_s for cost in costs]),
            per_row_s=np.array([cost.per_row_s for cost in costs]),
            free_s=np.array([self.free_s[rank] for rank in ranks]),
            ready_s=np.array(ready_s),
            low=np.array(low, dtype=np.int64).reshape(len(low), layer.rows + 1),
            high=np.array(high, dtype=np.int64).reshape(len(high), layer.rows + 1),
            producer=producer_index,
            start=start,
            stop=stop,
            base_s=base_s,
            row_s=row_s,
        )

    def _receive(self, layer: Layer, rank: int, rows: Span) -> None:
        """Remember that ``rank`` now has what ``rows`` of ``layer`` read."""
        for name, need in zip(layer.inputs, self.needs.of(layer.name, rows), strict=True):
            have = self._have.get((name, rank), EMPTY)
            touching = have.start <= need.stop and need.start <= have.stop
            joined = (
                have.hull(need)
                if touching or not have
                else max(have, need, key=lambda span: span.rows)
            )
            if joined:
                self._have[name, rank] = joined

    def _link(self, source: int, dest: int) -> tuple[float, float]:
        """Latency, and seconds per byte."""
        link = self.profile.links.get((source, dest))
        if link is None:
            raise ProfileError(
                f"the profile has no link from rank {source} to rank {dest}; "
                "measure it again with all ranks"
            )
        return link.latency_s, 1.0 / link.bandwidth_bytes_s
