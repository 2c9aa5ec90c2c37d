"""How much memory a kernel works in, known from the shapes of its layer.

Counted is what plain kernels allocate; those that fuse more allocate less.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgeflow_mpi.graph.local import share_of
from edgeflow_mpi.graph.needs import calls, trace
from edgeflow_mpi.graph.rules import Call, rule_for
from edgeflow_mpi.graph.rules.window import AveragePool, Convolution, MaxPool
from edgeflow_mpi.graph.types import Graph, Layer, TensorSpec, Var
from edgeflow_mpi.spans import Span

VIEWS: Final = ("aten.slice.Tensor", "aten.permute.default")
"""Operators whose result is their operand's memory."""


def piece_bytes(spec: TensorSpec, rows: Span) -> int:
    """Bytes of ``rows`` rows in memory, where they have their full width."""
    return spec.size_bytes // max(spec.rows, 1) * rows.rows


def scratch_bytes(graph: Graph, layer: Layer, rows: Span) -> int:
    """What the kernel of some rows of a layer needs beside its inputs and its result.

    That is the results of all steps but the last, save those whose only reader can write its
    own result over them (as kernels do; a fused convolution never even makes them), and the
    most that one of its windows takes.
    """
    if layer.divided != "rows":
        share = share_of(graph, layer, rows)
        return scratch_bytes(share.graph, share.layer, share.rows)
    if layer.combine or not layer.steps:
        return 0
    kept = [
        j
        for j, step in enumerate(layer.steps[:-1])
        if step.target not in VIEWS and not _is_overwritten(layer, j)
    ]
    windows = [(j, c) for j, c in enumerate(calls(graph, layer)) if _window_rule(c) is not None]
    if not kept and not windows:
        return 0
    made = trace(graph, layer, rows).steps
    taken = (_window_bytes(call, made[j]) for j, call in windows)
    return max(taken, default=0) + sum(piece_bytes(layer.steps[j].out, made[j]) for j in kept)


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
        places = piece_bytes(replace(call.out, dtype="int64"), rows)
    return places + piece_bytes(operand, Span.of(0, padded))


def _is_overwritten(layer: Layer, j: int) -> bool:
    readers = [step for step in layer.steps if Var(j) in step.refs]
    if len(readers) != 1:
        return False
    mine, its = layer.steps[j].out, readers[0].out
    return (mine.shape, mine.dtype) == (its.shape, its.dtype)
