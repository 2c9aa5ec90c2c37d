"""How long a plan takes: a deterministic discrete-event evaluation on a measured profile.

The model of a cluster:

* device i computes r > 0 rows of layer l in ``c + w * r`` seconds (measured), one unit at a
  time; whenever it is free it runs the *first ready* unit in the plan's order, as the
  runtime does. A unit is ready when every row it reads is there;
* a message from i to j is asked for when the unit that makes its rows finishes. Alone it
  takes ``latency + bytes / bandwidth``. It occupies i's outgoing side for ``bytes / bandwidth``,
  in the order of asking, and j's incoming side for as long, in the order in which messages
  begin to reach it, which is one latency after they begin to leave. Messages wait for a busy
  receiver in the network, as they do in a switch, without holding up their sender. Sending
  and receiving overlap with each other and with computation;
* messages asked for by one unit leave in the order of its forwarding table.

What travels is decided by :func:`edgeflow_mpi.partition.flow.trace_flows`, the very rule
that the unit tables are compiled by.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from edgeflow_mpi.cluster.profile import LayerCost, Profile
from edgeflow_mpi.errors import ProfileError
from edgeflow_mpi.graph.needs import Needs
from edgeflow_mpi.graph.types import Graph, Layer
from edgeflow_mpi.partition.flow import Flow, Traffic, trace_flows
from edgeflow_mpi.partition.plan import Plan

FREE = LayerCost(0.0, 0.0)


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
    goes from its first byte leaving to its last byte's arrival. ``compute_s``,
    ``bytes_sent`` and ``messages`` are totals for each rank.
    """

    makespan_s: float
    units: Mapping[tuple[str, int], Interval]
    transfers: Mapping[Flow, Interval]
    compute_s: tuple[float, ...]
    bytes_sent: tuple[int, ...]
    messages: tuple[int, ...]


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
    cost = profile.costs[rank].get(graph.signatures[layer.name])
    if cost is None:
        raise ProfileError(
            f"the profile has no cost of layer {layer.name} on device "
            f"{profile.devices[rank].name}; it was measured for another model, measure it again"
        )
    return cost


def predict(graph: Graph, needs: Needs, profile: Profile, plan: Plan) -> Prediction:
    """Evaluate ``plan``, which must satisfy ``check_plan``, on ``profile``.

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
    return _Evaluation(graph, profile, plan, trace_flows(graph, needs, plan)).run()


class _Evaluation:
    """The state of one evaluation; used once."""

    def __init__(self, graph: Graph, profile: Profile, plan: Plan, traffic: Traffic) -> None:
        self._graph = graph
        self._profile = profile
        self._plan = plan
        self._traffic = traffic
        ranks = plan.ranks
        self._position = {name: i for i, name in enumerate(plan.order)}
        self._units: dict[tuple[str, int], Interval] = {}
        self._transfers: dict[Flow, Interval] = {}
        self._waiting: dict[tuple[str, int], int] = {}
        self._after_unit: dict[tuple[str, int], list[str]] = {}
        self._after_flow: list[list[str]] = [[] for _ in traffic.flows]
        self._flow_index = {flow: i for i, flow in enumerate(traffic.flows)}
        self._ready: list[list[int]] = [[] for _ in range(ranks)]
        self._busy = [False] * ranks
        self._left_s = [0.0] * len(traffic.flows)
        self._occupied_s = [0.0] * len(traffic.flows)
        self._out_free_s = [0.0] * ranks
        self._in_free_s = [0.0] * ranks
        # (time, position of the layer, rank, what: -1 where the layer's unit finishes there,
        # 2 f where flow f begins to reach that rank, 2 f + 1 where it is there)
        self._events: list[tuple[float, int, int, int]] = []
        self._count_dependencies()

    def run(self) -> Prediction:
        for rank in range(self._plan.ranks):
            self._start_next(rank, 0.0)
        while self._events:
            now_s = self._events[0][0]
            touched: set[int] = set()
            while self._events and self._events[0][0] == now_s:
                _, position, rank, what = heapq.heappop(self._events)
                if what < 0:
                    self._finish(self._plan.order[position], rank, now_s)
                elif what % 2 == 0:
                    self._reach(what // 2, now_s)
                    continue
                else:
                    for consumer in self._after_flow[what // 2]:
                        self._satisfy(consumer, rank)
                touched.add(rank)
            for rank in sorted(touched):
                self._start_next(rank, now_s)
        return self._prediction()

    def _count_dependencies(self) -> None:
        computed = {name: layer.computed for name, layer in self._plan.layers.items()}
        for (name, rank), demands in self._traffic.demands.items():
            count = 0
            for demand in demands:
                if demand.rows & computed[demand.producer][rank]:
                    self._after_unit.setdefault((demand.producer, rank), []).append(name)
                    count += 1
                for flow in demand.flows:
                    self._after_flow[self._flow_index[flow]].append(name)
                count += len(demand.flows)
            self._waiting[name, rank] = count
            if not count:
                heapq.heappush(self._ready[rank], self._position[name])

    def _satisfy(self, consumer: str, rank: int) -> None:
        self._waiting[consumer, rank] -= 1
        if not self._waiting[consumer, rank]:
            heapq.heappush(self._ready[rank], self._position[consumer])

    def _start_next(self, rank: int, now_s: float) -> None:
        if self._busy[rank] or not self._ready[rank]:
            return
        position = heapq.heappop(self._ready[rank])
        name = self._plan.order[position]
        rows = self._plan.layers[name].computed[rank].rows
        cost = layer_cost(self._graph, self._profile, self._graph.by_name[name], rank)
        finish_s = now_s + cost.seconds(rows)
        self._units[name, rank] = Interval(now_s, finish_s)
        self._busy[rank] = True
        heapq.heappush(self._events, (finish_s, position, rank, -1))

    def _finish(self, name: str, rank: int, now_s: float) -> None:
        self._busy[rank] = False
        for consumer in self._after_unit.get((name, rank), ()):
            self._satisfy(consumer, rank)
        for flow in self._traffic.forwards.get((name, rank), ()):
            self._send(flow, now_s)

    def _send(self, flow: Flow, now_s: float) -> None:
        link = self._profile.links.get((flow.source, flow.dest))
        if link is None:
            raise ProfileError(
                f"the profile has no link from rank {flow.source} to rank {flow.dest}; "
                "measure it again with all ranks"
            )
        size_bytes = flow.size_bytes(self._graph.by_name[flow.producer])
        start_s = max(now_s, self._out_free_s[flow.source])
        index = self._flow_index[flow]
        self._occupied_s[index] = size_bytes / link.bandwidth_bytes_s
        self._left_s[index] = start_s
        self._out_free_s[flow.source] = start_s + self._occupied_s[index]
        position = self._position[flow.producer]
        heapq.heappush(self._events, (start_s + link.latency_s, position, flow.dest, 2 * index))

    def _reach(self, index: int, now_s: float) -> None:
        flow = self._traffic.flows[index]
        arrival_s = max(now_s, self._in_free_s[flow.dest]) + self._occupied_s[index]
        self._in_free_s[flow.dest] = arrival_s
        self._transfers[flow] = Interval(self._left_s[index], arrival_s)
        position = self._position[flow.producer]
        heapq.heappush(self._events, (arrival_s, position, flow.dest, 2 * index + 1))

    def _prediction(self) -> Prediction:
        ranks = self._plan.ranks
        compute_s = [0.0] * ranks
        for (_, rank), unit in self._units.items():
            compute_s[rank] += unit.finish_s - unit.start_s
        bytes_sent, messages = [0] * ranks, [0] * ranks
        for flow in self._traffic.flows:
            bytes_sent[flow.source] += flow.size_bytes(self._graph.by_name[flow.producer])
            messages[flow.source] += 1
        outputs = {layer.name for layer in self._graph.outputs}
        makespan_s = max(
            (unit.finish_s for (name, _), unit in self._units.items() if name in outputs),
            default=0.0,
        )
        return Prediction(
            makespan_s,
            self._units,
            self._transfers,
            tuple(compute_s),
            tuple(bytes_sent),
            tuple(messages),
        )
