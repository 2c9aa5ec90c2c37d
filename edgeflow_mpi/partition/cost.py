"""How long a plan takes: a deterministic discrete-event evaluation on a measured profile.

The model of a cluster:

* device i computes r > 0 rows of layer l in ``c + w * r`` seconds (measured), one unit at a
  time; whenever it is free it runs the *first ready* unit in the plan's order, as the
  runtime does. A unit is ready when every row it reads is there. A unit whose boundary goes
  first runs as several, each at this cost;
* a message from i to j is asked for when the unit that makes its rows finishes. Alone it
  takes ``latency + bytes / bandwidth``. It occupies i's outgoing side for ``bytes / bandwidth``,
  in the order of asking, and j's incoming side for as long, in the order in which messages
  begin to reach it, which is one latency after they begin to leave. Messages wait for a busy
  receiver in the network, as they do in a switch, without holding up their sender. Sending
  and receiving overlap with each other and with computation;
* where all share one medium (``profile.network``), a message occupies that instead, for ``bytes
  / bandwidth`` in the order of asking, and is there one latency after it has left;
* messages asked for by one unit leave in the order of its forwarding table;
* where a message costs processor time, the sender hands its messages over one by one before
  it runs anything else, each leaving when its time has been spent, and the unit that a
  message is carried for takes it in before it computes (the first piece of it that reads
  the message).

What travels is decided by :func:`edgeflow_mpi.partition.flow.trace_flows`, the very rule
that the unit tables are compiled by.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeflow_mpi.cluster.profile import LayerCost, Profile
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer, Origin
from edgeflow_mpi.partition.flow import Demand, Flow, trace_flows
from edgeflow_mpi.partition.pieces import pieces_of
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.spans import Span

FREE = LayerCost(0.0, 0.0)

# What happens to a flow.
_HANDED_OVER, _REACHES, _IS_THERE = range(3)


@dataclass(frozen=True)
class Interval:
    """When something ran, in seconds after the input was on rank 0."""

    start_s: float
    finish_s: float


@dataclass(frozen=True)
class Prediction:
    """What a plan is expected to do.

    ``makespan_s`` is the time from input on rank 0 to the last answer tensor on rank 0.
    ``units[(layer, rank)]`` and ``transfers[flow]`` are the timeline; a transfer's interval
    goes from its first byte leaving to its last byte's arrival. ``pieces[(layer, rank)]`` are
    the rows that the rank computes at one go, and when, in the order of their priority: more
    than one where boundary rows come first. Taking in messages is part of a piece's interval,
    handing them over is not. ``compute_s``, ``bytes_sent`` and ``messages`` are totals for
    each rank.
    """

    makespan_s: float
    units: Mapping[tuple[str, int], Interval]
    transfers: Mapping[Flow, Interval]
    compute_s: tuple[float, ...]
    bytes_sent: tuple[int, ...]
    messages: tuple[int, ...]
    pieces: Mapping[tuple[str, int], tuple[tuple[Span, Interval], ...]]


def layer_cost(graph: Graph, profile: Profile, layer: Layer, rank: int) -> LayerCost:
    """The measured cost of ``layer`` on ``rank``; free for inputs and outputs.

    Raises
    ------
    ProfileError
        The profile has no such device or does not know the layer.
    """
    if layer.pinned:
        return FREE
    if not 0 <= rank < len(profile.costs):
        raise ProfileError(
            f"the profile describes {len(profile.costs)} devices, so it says nothing about "
            f"rank {rank}; measure it again with all ranks"
        )
    signature = graph.signatures[layer.name]
    cost = profile.costs[rank].get(signature)
    origin = graph.origin.get(layer.name)
    # A layer that is computed whole has the signature of the one that it is made of, but
    # perhaps fewer rows: summands of rows become one.
    other = origin is not None and signature == origin.signature and layer.rows != origin.rows
    # A product may be divided by the rows of what it reads, or by its channels.
    if cost is not None and cost.points and layer.divided == "inputs":
        other = cost.points[-1][0] != layer.rows
    if origin is not None and (cost is None or other):
        cost = _share_cost(profile.costs[rank], layer, origin)
    if cost is None:
        raise ProfileError(
            f"the profile has no cost of layer {layer.name} on device "
            f"{profile.devices[rank].name}; it was measured for another model, measure it again"
        )
    return cost


def _share_cost(costs: Mapping[str, LayerCost], layer: Layer, origin: Origin) -> LayerCost | None:
    """What rows of a layer that is not divided by rows cost, going by the undivided layer.

    Beyond what a call costs whatever it computes, a share of the channels takes that share of
    the whole layer's time: unlike a share of its rows, it is also a share of the weights. A
    call is taken to cost what one row of the cheapest layer does, and no more than the layer's
    own line says.
    """
    native = costs.get(origin.signature)
    if native is None:
        return None
    call_s = min(cost.seconds(1) for cost in costs.values())
    whole_s = native.seconds(origin.rows)
    if origin.part == "all":
        if layer.rows == origin.rows:
            return native
        engines = (native.engine(origin.rows),) if native.engines else ()
        return LayerCost(whole_s, 0.0, ((layer.rows, whole_s),) if engines else (), engines)
    if origin.part == "rest":
        return LayerCost(min(call_s, whole_s), 0.0)
    fixed_s = min(call_s, whole_s if origin.rows == 1 else native.fixed_s)
    engines = (native.engine(origin.rows),) if native.engines else ()
    points = ((layer.rows, whole_s),) if engines else ()
    return LayerCost(fixed_s, (whole_s - fixed_s) / layer.rows, points, engines)


def predict(
    graph: Graph, needs: Needs, profile: Profile, plan: Plan, *, measured: bool = False
) -> Prediction:
    """Evaluate ``plan``, which must satisfy ``check_plan``, on ``profile``.

    With ``measured`` units take what was measured at about as many rows
    (:meth:`LayerCost.measured_seconds`) in place of what the lines say by which plans are made.

    Returns
    -------
    Prediction
        A function of the arguments alone: equal events are served in a fixed order (by
        the plan's order of the layer, then by rank).

    Raises
    ------
    ProfileError
        The profile does not cover a device, a layer or a link that the plan uses.
    """
    return _Evaluation(graph, needs, profile, plan, measured).run()


@dataclass
class _Unit:
    """Rows that a rank computes at one go: all it computes of a layer, or a piece of that."""

    layer: str
    rank: int
    rows: Span
    compute_s: float
    forwards: tuple[Flow, ...]
    takes: int = 0
    followers: list[int] = field(default_factory=list)
    waiting_for: int = 0


class _Evaluation:
    """The state of one evaluation; used once.

    Units are numbered in the order of their priority.
    """

    def __init__(
        self, graph: Graph, needs: Needs, profile: Profile, plan: Plan, measured: bool
    ) -> None:
        self._graph = graph
        self._profile = profile
        self._plan = plan
        self._measured = measured
        self._traffic = trace_flows(graph, needs, plan)
        ranks, flows = plan.ranks, self._traffic.flows
        self._position = {name: i for i, name in enumerate(plan.order)}
        self._flow_index = {flow: i for i, flow in enumerate(flows)}
        self._flow_followers: list[list[int]] = [[] for _ in flows]
        self._left_s = [0.0] * len(flows)
        self._occupied_s = [0.0] * len(flows)
        # The sending sides, or the one medium in place of them all.
        self._out_free_s = [0.0] * ranks
        self._shared = profile.network == "shared"
        self._message_cpu_s = profile.message_cpu_s or (0.0,) * ranks
        self._in_free_s = [0.0] * ranks
        self._busy = [False] * ranks
        self._waiting_to_leave: list[list[Flow]] = [[] for _ in range(ranks)]
        self._ready: list[list[int]] = [[] for _ in range(ranks)]
        self._units: list[_Unit] = []
        self._intervals: dict[int, Interval] = {}
        self._transfers: dict[Flow, Interval] = {}
        # (time, position of the layer, rank, what): unit -1 - what finishes there, or flow
        # what // 3 has been handed over by that rank, begins to reach it, or is there.
        self._events: list[tuple[float, int, int, int]] = []
        self._lay_out(needs)

    def run(self) -> Prediction:
        for rank in range(self._plan.ranks):
            self._start_next(rank, 0.0)
        while self._events:
            now_s = self._events[0][0]
            touched: set[int] = set()
            while self._events and self._events[0][0] == now_s:
                _, _, rank, what = heapq.heappop(self._events)
                if what < 0:
                    self._finish(self._units[-1 - what], now_s)
                elif what % 3 == _HANDED_OVER:
                    self._hand_over(what // 3, now_s)
                elif what % 3 == _REACHES:
                    self._reach(what // 3, now_s)
                    continue
                else:
                    self._satisfy(self._flow_followers[what // 3])
                touched.add(rank)
            for rank in sorted(touched):
                self._start_next(rank, now_s)
        return self._prediction()

    def _lay_out(self, needs: Needs) -> None:
        """Number the units and count what each waits for."""
        here: dict[tuple[str, int], list[int]] = {}
        taken: set[Flow] = set()
        for name in self._plan.order:
            layer = self._graph.by_name[name]
            for rank, computed in enumerate(self._plan.layers[name].computed):
                if not computed:
                    continue
                cost = layer_cost(self._graph, self._profile, layer, rank)
                seconds = cost.measured_seconds if self._measured else cost.seconds
                flows = self._traffic.forwards.get((name, rank), ())
                demands = self._traffic.demands[name, rank]
                for rows in pieces_of(self._plan, layer, rank, flows):
                    leaving = tuple(flow for flow in flows if flow.rows in rows)
                    unit = _Unit(name, rank, rows, seconds(rows.rows), leaving)
                    here.setdefault((name, rank), []).append(len(self._units))
                    self._units.append(unit)
                    read = [d.rows for d in demands] if rows == computed else needs.of(name, rows)
                    for demand, need in zip(demands, read, strict=True):
                        flows_read = self._depend(
                            demand, need, here.get((demand.producer, rank), ())
                        )
                        mine = {flow for flow in flows_read if flow.consumer == name} - taken
                        unit.takes += len(mine)
                        taken |= mine
                    if not unit.waiting_for:
                        heapq.heappush(self._ready[rank], len(self._units) - 1)

    def _depend(self, demand: Demand, need: Span, local: Sequence[int]) -> list[Flow]:
        """Let the newest unit wait for what it reads of one input; the flows among that."""
        index = len(self._units) - 1
        summands = self._graph.by_name[demand.producer].combine is not None
        flows = [flow for flow in demand.flows if summands or flow.rows & need]
        sources = [
            self._units[source].followers for source in local if self._units[source].rows & need
        ]
        sources += [self._flow_followers[self._flow_index[flow]] for flow in flows]
        for followers in sources:
            followers.append(index)
        self._units[index].waiting_for += len(sources)
        return flows

    def _satisfy(self, followers: Sequence[int]) -> None:
        for index in followers:
            unit = self._units[index]
            unit.waiting_for -= 1
            if not unit.waiting_for:
                heapq.heappush(self._ready[unit.rank], index)

    def _start_next(self, rank: int, now_s: float) -> None:
        if self._busy[rank] or not self._ready[rank]:
            return
        index = heapq.heappop(self._ready[rank])
        unit = self._units[index]
        work_s = unit.compute_s
        if unit.takes:
            work_s += unit.takes * self._message_cpu_s[rank]
        finish_s = now_s + work_s
        self._intervals[index] = Interval(now_s, finish_s)
        self._busy[rank] = True
        heapq.heappush(self._events, (finish_s, self._position[unit.layer], rank, -1 - index))

    def _finish(self, unit: _Unit, now_s: float) -> None:
        self._satisfy(unit.followers)
        if unit.forwards and self._message_cpu_s[unit.rank] > 0.0:
            self._waiting_to_leave[unit.rank] = list(reversed(unit.forwards))
            self._spend_on_next_message(unit.rank, now_s)
            return
        self._busy[unit.rank] = False
        for flow in unit.forwards:
            self._send(flow, now_s)

    def _spend_on_next_message(self, rank: int, now_s: float) -> None:
        flow = self._waiting_to_leave[rank][-1]
        at_s = now_s + self._message_cpu_s[rank]
        self._arrange(at_s, flow, rank, 3 * self._flow_index[flow] + _HANDED_OVER)

    def _hand_over(self, index: int, now_s: float) -> None:
        rank = self._traffic.flows[index].source
        self._send(self._waiting_to_leave[rank].pop(), now_s)
        if self._waiting_to_leave[rank]:
            self._spend_on_next_message(rank, now_s)
        else:
            self._busy[rank] = False

    def _send(self, flow: Flow, now_s: float) -> None:
        link = self._profile.links.get((flow.source, flow.dest))
        if link is None:
            raise ProfileError(
                f"the profile has no link from rank {flow.source} to rank {flow.dest}; "
                "measure it again with all ranks"
            )
        size_bytes = flow.size_bytes(self._graph.by_name[flow.producer])
        side = 0 if self._shared else flow.source
        start_s = max(now_s, self._out_free_s[side])
        index = self._flow_index[flow]
        self._occupied_s[index] = size_bytes / link.bandwidth_bytes_s
        self._left_s[index] = start_s
        self._out_free_s[side] = start_s + self._occupied_s[index]
        reach_s = start_s + link.latency_s
        if self._shared:
            self._arrive(index, reach_s + self._occupied_s[index])
        else:
            self._arrange(reach_s, flow, flow.dest, 3 * index + _REACHES)

    def _reach(self, index: int, now_s: float) -> None:
        flow = self._traffic.flows[index]
        arrival_s = max(now_s, self._in_free_s[flow.dest]) + self._occupied_s[index]
        self._in_free_s[flow.dest] = arrival_s
        self._arrive(index, arrival_s)

    def _arrive(self, index: int, arrival_s: float) -> None:
        flow = self._traffic.flows[index]
        self._transfers[flow] = Interval(self._left_s[index], arrival_s)
        self._arrange(arrival_s, flow, flow.dest, 3 * index + _IS_THERE)

    def _arrange(self, at_s: float, flow: Flow, rank: int, what: int) -> None:
        heapq.heappush(self._events, (at_s, self._position[flow.producer], rank, what))

    def _prediction(self) -> Prediction:
        ranks = self._plan.ranks
        compute_s = [0.0] * ranks
        for unit in self._units:
            compute_s[unit.rank] += unit.compute_s
        bytes_sent, messages = [0] * ranks, [0] * ranks
        for flow in self._traffic.flows:
            bytes_sent[flow.source] += flow.size_bytes(self._graph.by_name[flow.producer])
            messages[flow.source] += 1
        pieces: dict[tuple[str, int], list[tuple[Span, Interval]]] = {}
        for index, unit in enumerate(self._units):
            interval = self._intervals[index]
            pieces.setdefault((unit.layer, unit.rank), []).append((unit.rows, interval))
        units = {
            key: Interval(
                min(interval.start_s for _, interval in found),
                max(interval.finish_s for _, interval in found),
            )
            for key, found in pieces.items()
        }
        makespan_s = max(
            (units[layer.name, 0].finish_s for layer in self._graph.outputs), default=0.0
        )
        return Prediction(
            makespan_s,
            units,
            self._transfers,
            tuple(compute_s),
            tuple(bytes_sent),
            tuple(messages),
            {key: tuple(found) for key, found in pieces.items()},
        )
