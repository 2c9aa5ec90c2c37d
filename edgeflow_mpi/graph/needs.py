"""Which rows of its inputs a span of a layer's rows needs: rules composed over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeflow_mpi.graph.channels import trace_channels
from edgeflow_mpi.graph.rules import Call, rule_for, whole
from edgeflow_mpi.graph.types import Graph, In, Layer, Ref, TensorSpec
from edgeflow_mpi.spans import EMPTY, Span

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Tables = np.ndarray[tuple[int, int], np.dtype[np.int64]]


@dataclass(frozen=True)
class Trace:
    """Rows that every step of a layer must make, and every input must hold, for one span.

    ``operands[j]`` is aligned with the operands of step j: the rows it reads of each.
    """

    steps: tuple[Span, ...]
    inputs: tuple[Span, ...]
    operands: tuple[tuple[Span, ...], ...]


def calls(graph: Graph, layer: Layer) -> tuple[Call, ...]:
    """The layer's steps with the specs of their operands."""
    return _calls(graph, layer, graph.input_specs(layer))


def native_calls(graph: Graph, layer: Layer) -> tuple[Call, ...]:
    """As :func:`calls`, with inputs as they are where everything is divided by rows."""
    return _calls(graph, layer, [graph.by_name[name].native for name in layer.inputs])


def _calls(graph: Graph, layer: Layer, inputs: Sequence[TensorSpec]) -> tuple[Call, ...]:
    return tuple(
        Call(
            step,
            tuple(
                inputs[ref.index] if isinstance(ref, In) else layer.steps[ref.step].out
                for ref in step.refs
            ),
            {name: graph.weight_specs[name] for name in step.weights},
        )
        for step in layer.steps
    )


def trace(graph: Graph, layer: Layer, rows: Span) -> Trace:
    """Follow non-empty ``rows`` of the layer back through its steps to its inputs."""
    inputs = graph.input_specs(layer)
    if not layer.steps:
        return Trace((), tuple(rows for _ in inputs), ())
    made: list[Span] = [EMPTY] * len(layer.steps)
    read: list[Span] = [EMPTY] * len(inputs)
    operands: list[tuple[Span, ...]] = [()] * len(layer.steps)

    def want(ref: Ref, span: Span) -> None:
        where, index = (read, ref.index) if isinstance(ref, In) else (made, ref.step)
        where[index] = where[index].hull(span)

    bound = calls(graph, layer)
    if layer.combine:
        # A summand over some rows: its one step reduces exactly those rows of its input.
        return Trace((Span(0, 1),), (rows,), ((rows,),))
    made[-1] = rows
    for j in range(len(bound) - 1, -1, -1):
        call = bound[j]
        rule = rule_for(call.step.target) if call.out.axis is not None else None
        if not made[j]:
            continue
        if rule is None or not layer.divisible:
            made[j] = Span(0, call.out.rows)
            operands[j] = whole(call.operands)
        else:
            operands[j] = rule.needs(call, made[j])
        for ref, span in zip(call.step.refs, operands[j], strict=True):
            want(ref, span)
    return Trace(tuple(made), tuple(read), tuple(operands))


class Needs:
    """Rows needed of each input of each layer, as spans and as per-row tables.

    For an input whose producer makes summands the need is all of its rows: every owner's
    summand counts. What ``like`` knows of layers that are the same here is taken from there.
    """

    def __init__(self, graph: Graph, like: Needs | None = None) -> None:
        self._graph = graph
        self._tables: dict[str, tuple[tuple[Rows, Rows], ...]] = {}
        if like is not None:
            self._adopt(like)

    def table(self, layer_name: str) -> tuple[tuple[Rows, Rows], ...]:
        """Per input: arrays (low, high) such that row r needs rows ``[low[r], high[r])``.

        Both are non-decreasing, so ``[a, b)`` needs ``[low[a], high[b - 1])``.
        """
        if layer_name not in self._tables:
            self._tables[layer_name] = self._build(self._graph.by_name[layer_name])
        return self._tables[layer_name]

    def of(self, layer_name: str, rows: Span) -> tuple[Span, ...]:
        """Rows needed of each input for ``rows`` of the layer; nothing for no rows."""
        table = self.table(layer_name)
        if not rows:
            return (EMPTY,) * len(table)
        return tuple(Span.of(int(low[rows.start]), int(high[rows.stop - 1])) for low, high in table)

    def _adopt(self, like: Needs) -> None:
        before = like._graph.by_name
        same = {layer.name for layer in self._graph.layers if before.get(layer.name) == layer}
        for name in same.intersection(like._tables):
            if same.issuperset(before[name].inputs):
                self._tables[name] = like._tables[name]

    def _build(self, layer: Layer) -> tuple[tuple[Rows, Rows], ...]:
        producers = [self._graph.by_name[name] for name in layer.inputs]
        low = np.zeros((len(producers), layer.rows), dtype=np.int64)
        high = np.zeros_like(low)
        if layer.divided == "outputs":
            low, high = self._of_channels(layer, producers)
        elif layer.divisible and layer.rows:
            for row in range(layer.rows):
                for k, span in enumerate(trace(self._graph, layer, Span(row, row + 1)).inputs):
                    low[k, row], high[k, row] = span.start, span.stop
        elif layer.rows:
            reads = trace(self._graph, layer, Span(0, layer.rows)).inputs
            for k, span in enumerate(reads):
                low[k], high[k] = span.start, span.stop
        for k, producer in enumerate(producers):
            if producer.combine:
                low[k], high[k] = 0, producer.rows
            # Mirrored borders and wide dilation need rows out of order: a row then counts
            # for all before it as well, or all behind it, so that spans of rows stay spans.
            low[k] = np.minimum.accumulate(low[k][::-1])[::-1]
            high[k] = np.maximum.accumulate(high[k])
        return tuple((low[k], high[k]) for k in range(len(producers)))

    def _of_channels(self, layer: Layer, producers: Sequence[Layer]) -> tuple[Tables, Tables]:
        """Channels that channels need, or, where it is not that simple, all of an input."""
        channels = np.arange(layer.rows, dtype=np.int64)
        wants = trace_channels(layer, native_calls(self._graph, layer), channels, channels + 1)
        low = np.zeros((len(producers), layer.rows), dtype=np.int64)
        high = np.zeros_like(low)
        for k, (producer, want) in enumerate(zip(producers, wants.inputs, strict=True)):
            high[k] = producer.out.rows
            if want.some is not None and producer.divided == "outputs":
                low[k], high[k] = want.some
        return low, high
