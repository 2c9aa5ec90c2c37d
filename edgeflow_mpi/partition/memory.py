"""How much memory every device needs for a plan: known before anything runs.

Counted is what grows with the model and the plan: the weights of the layers that a device
computes, the fixed buffers of tensors that travel, and the largest sum of the tensors that are
alive at one time while it runs its units in the plan's order. Not counted is what every
process needs whatever it computes (Python, torch, MPI), and what an engine keeps beside a
weight to multiply faster.

The rules are those of :mod:`edgeflow_mpi.runtime.storage` and of the executor: a tensor of
which rows are sent or received, or that is computed in pieces, has a buffer that covers the
hull of the rows computed here and those that arrive, for as long as the job runs; summands have
one buffer for each rank that makes one; anything else lives from its unit to its last reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from edgeflow_mpi.graph.local import part_spec, share_of, weight_keys
from edgeflow_mpi.graph.needs import Needs, calls, trace
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import AveragePool, Convolution, MaxPool
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec, Var
from edgeflow_mpi.partition.flow import Flow, Traffic, trace_flows
from edgeflow_mpi.partition.pieces import pieces_of
from edgeflow_mpi.partition.plan import Plan
from edgeflow_mpi.spans import EMPTY, Span


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that one device needs for a plan.

    ``weights_bytes`` and ``buffers_bytes`` are held all the time; ``live_bytes`` is the most
    that is alive beside them while a request is answered, the request and the answer included.
    """

    weights_bytes: int
    buffers_bytes: int
    live_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.weights_bytes + self.buffers_bytes + self.live_bytes


def plan_memory(graph: Graph, needs: Needs, plan: Plan) -> tuple[DeviceMemory, ...]:
    """What every rank needs for ``plan``, which must satisfy ``check_plan``.

    Notes
    -----
    A rank runs the first *ready* unit in the plan's order. Where messages come late it may run
    a later one before an earlier one, and then holds a little more or less than counted here.
    """
    traffic = trace_flows(graph, needs, plan)
    passing: list[list[Flow]] = [[] for _ in range(plan.ranks)]
    for flow in traffic.flows:
        passing[flow.source].append(flow)
        passing[flow.dest].append(flow)
    return tuple(
        _device_memory(graph, plan, traffic, rank, passing[rank]) for rank in range(plan.ranks)
    )


def _device_memory(
    graph: Graph, plan: Plan, traffic: Traffic, rank: int, flows: Iterable[Flow]
) -> DeviceMemory:
    computed = {name: lp.computed[rank] for name, lp in plan.layers.items() if lp.computed[rank]}
    pieces = {
        name: pieces_of(plan, graph.by_name[name], rank, traffic.forwards.get((name, rank), ()))
        for name in plan.order
        if name in computed
    }
    weights = {
        name: part_spec(graph, name, part)
        for layer, spans in pieces.items()
        for rows in spans
        for name, part in weight_keys(graph, graph.by_name[layer], rows).items()
    }
    buffers = _buffers(graph, computed, pieces, rank, flows)
    return DeviceMemory(
        weights_bytes=sum(spec.size_bytes for spec in weights.values()),
        buffers_bytes=sum(buffers.values()),
        live_bytes=_live_bytes(graph, pieces, frozenset(buffers)),
    )


def _buffers(
    graph: Graph,
    computed: Mapping[str, Span],
    pieces: Mapping[str, tuple[Span, ...]],
    rank: int,
    flows: Iterable[Flow],
) -> dict[str, int]:
    """Layer -> bytes of its fixed buffers on a rank where ``flows`` leave or arrive."""
    held = {name: computed[name] for name, spans in pieces.items() if len(spans) > 1}
    summands: dict[str, set[int]] = {}
    narrow: Counter[str] = Counter()
    for flow in flows:
        name, layer = flow.producer, graph.by_name[flow.producer]
        if layer.combine:
            summands.setdefault(name, set()).add(flow.source)
            continue
        held[name] = held.get(name, computed.get(name, EMPTY)).hull(flow.rows)
        if layer.out.wire is not None:
            narrow[name] += flow.size_bytes(layer)  # a copy of its rows as they travel
    for name, sources in summands.items():
        if name in computed:
            sources.add(rank)
    specs = {name: graph.by_name[name].out for name in (*held, *summands)}
    return {name: _piece_bytes(specs[name], rows) + narrow[name] for name, rows in held.items()} | {
        name: specs[name].size_bytes * len(sources) for name, sources in summands.items()
    }


def _live_bytes(graph: Graph, pieces: Mapping[str, tuple[Span, ...]], fixed: frozenset[str]) -> int:
    """The most that is alive outside of fixed buffers while ``pieces`` run in their order."""
    unread = Counter(
        producer
        for name, spans in pieces.items()
        for producer in graph.by_name[name].inputs
        for _ in spans
    )
    requests = sum(
        graph.by_name[name].out.size_bytes for name in pieces if _is_request(graph, name)
    )
    alive: dict[str, int] = {}
    peak = now = requests
    for name, spans in pieces.items():
        layer = graph.by_name[name]
        for rows in spans:
            result = _result_bytes(layer, rows)
            peak = max(peak, now + result + _scratch_bytes(graph, layer, rows))
            if name not in fixed:
                alive[name] = result
                now += result
            for producer in layer.inputs:
                unread[producer] -= 1
                if not unread[producer]:
                    now -= alive.pop(producer, 0)
    return peak


def _is_request(graph: Graph, name: str) -> bool:
    return graph.by_name[name].kind == "input"


def _result_bytes(layer: Layer, rows: Span) -> int:
    return layer.out.size_bytes if layer.combine else _piece_bytes(layer.out, rows)


_VIEWS = ("aten.slice.Tensor", "aten.permute.default")
"""Operators whose result is their operand's memory."""


def _scratch_bytes(graph: Graph, layer: Layer, rows: Span) -> int:
    """What a unit's kernel needs beside its inputs and its result.

    That is the results of all steps but the last, save those whose only reader can write its
    own result over them (as kernels do; a fused convolution never even makes them), and the
    most that one of its windows takes.
    """
    if layer.divided != "rows":
        share = share_of(graph, layer, rows)
        return _scratch_bytes(share.graph, share.layer, share.rows)
    if layer.combine or not layer.steps:
        return 0
    kept = [
        j
        for j, step in enumerate(layer.steps[:-1])
        if step.target not in _VIEWS and not _is_overwritten(layer, j)
    ]
    windows = [(j, c) for j, c in enumerate(calls(graph, layer)) if _window_rule(c) is not None]
    if not kept and not windows:
        return 0
    made = trace(graph, layer, rows).steps
    taken = (_window_bytes(call, made[j]) for j, call in windows)
    return max(taken, default=0) + sum(_piece_bytes(layer.steps[j].out, made[j]) for j in kept)


def _window_rule(call: Call) -> Convolution | MaxPool | AveragePool | None:
    rule = rule_for(call.step.target) if call.out.axis is not None else None
    return rule if isinstance(rule, Convolution | MaxPool | AveragePool) else None


def _window_bytes(call: Call, rows: Span) -> int:
    """What sliding a window over an operand takes beside it.

    That is a copy with padding, where the operator cannot express the padding itself, and for a
    maximum the places where it was found, which nobody reads.
    """
    rule, operand = _window_rule(call), call.operands[0]
    assert rule is not None
    need, padded, places = rule.needs(call, rows)[0], 0, 0
    if isinstance(rule, Convolution):
        outer = rule.geometry(call, rows)[1]
        padded = need.rows + outer[-2] + outer[-1] if any(outer) else 0
    else:
        window = rule.window(call)
        before, after = window.padding(rows, operand.rows)
        undivided = rows.rows == call.out.rows and need.rows == operand.rows
        even = window.symmetric(rows, operand.rows) if isinstance(rule, MaxPool) else None
        if (before or after) and even is None and not undivided:
            padded = need.rows + before + after
    if isinstance(rule, MaxPool):
        places = _piece_bytes(replace(call.out, dtype="int64"), rows)
    return places + _piece_bytes(operand, Span.of(0, padded))


def _is_overwritten(layer: Layer, j: int) -> bool:
    readers = [step for step in layer.steps if Var(j) in step.refs]
    if len(readers) != 1:
        return False
    mine, its = layer.steps[j].out, readers[0].out
    return (mine.shape, mine.dtype) == (its.shape, its.dtype)


def _piece_bytes(spec: TensorSpec, rows: Span) -> int:
    """Bytes of ``rows`` rows in memory, where they have their full width."""
    return spec.size_bytes // max(spec.rows, 1) * rows.rows
